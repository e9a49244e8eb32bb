"""A suite: named rows x columns, made cell by cell, so that nothing is ever done twice.

    plan -> (data, weights) -> protocols -> records

`make_plan` looks at what is on this machine and says of every cell whether it is recorded, ready,
can be made ready here (demo data, demo rows), or is left out and why. What was asked for by name is
not left out quietly: its cells are recorded as failed. `Execution` does the rest with a small pool:
pretraining and the protocols that train through the backbone run as subprocesses, the others in
this process, each as soon as what it needs is there. A cell that fails is recorded as failed and
the run goes on; killed at any moment, the same call goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Literal
from typing import Protocol as TypingProtocol

import torch
from pydantic import Field
from threadpoolctl import threadpool_limits

from maskclip_bench import storage
from maskclip_bench.backbones import (
    Backbone,
    BackboneDeclaration,
    backbone_names,
    load_backbone,
    load_backbone_declaration,
    missing_weights,
    weights_folder,
)
from maskclip_bench.config import Declaration, load_declaration
from maskclip_bench.data_files import declarations, find_declaration
from maskclip_bench.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    JobError,
    MaskCLIPBenchError,
    StorageError,
    unknown_name,
)
from maskclip_bench.jobs import JobCancelled, own_command, run_job
from maskclip_bench.pretrain.export import finished_fingerprint
from maskclip_bench.pretrain.methods import METHODS
from maskclip_bench.pretrain.recipe import load_recipe
from maskclip_bench.progress import read_progress
from maskclip_bench.results.records import (
    Cell,
    Record,
    RecordStore,
    failed_record,
    measured_record,
    row_id,
)
from maskclip_bench.runtime import DATA_VARIABLE, Workspace, default_num_threads, provenance
from maskclip_bench.tasks import (
    PROTOCOLS,
    Protocol,
    ProtocolContext,
    TaskDeclaration,
    cell_fingerprint,
    dataset_names,
    get_protocol,
    load_task_declaration,
    missing_data,
)
from maskclip_bench.tasks.features import FeatureStore

logger = logging.getLogger(__name__)


class SuiteDeclaration(Declaration):
    """Named rows x columns (`configs/suites/*.yaml`)."""

    description: str
    """One line for `maskclip-bench list suites`."""
    backbones: Literal["*"] | list[str] = "*"
    """Rows, by name; "*" is every declared backbone."""
    tasks: Literal["*"] | list[str] = "*"
    """Columns, "protocol/dataset"; either part may be "*"."""
    without_tasks: list[str] = Field(default_factory=list)
    """Columns of `tasks` that the suite does not have, as shell patterns ("detection/demo_*")."""
    without_cells: list[str] = Field(default_factory=list)
    """Cells that the suite does not have, as shell patterns of "row/protocol/data set"."""
    tables: list[str] = Field(default_factory=list)
    """Tables shown at the end, those that have at least one measured cell."""


@dataclass(frozen=True)
class Unit:
    """Something a run does that is worth a line in the display."""

    key: str
    label: str
    expected_seconds: float


class RunListener(TypingProtocol):
    """What the suite tells about its progress (the command line shows it)."""

    def planned(self, units: list[Unit]) -> None:
        """All that the run will do."""

    def started(self, unit: Unit) -> None:
        """A unit begins."""

    def advanced(self, unit: Unit, stage: str, done: float, total: float) -> None:
        """A unit is `done` of `total` through its `stage`."""

    def finished(self, unit: Unit, *, ok: bool, note: str) -> None:
        """A unit ended; `note` is its score or what went wrong."""


def load_suite(name: str) -> SuiteDeclaration:
    """Read a suite by name or path.

    Raises:
        UnknownNameError: There is none of that name.
        ConfigError: Its file is wrong.
    """
    path = find_declaration(
        "configs/suites", name, singular="suite", listing="maskclip-bench list suites"
    )
    return load_declaration(path, SuiteDeclaration)


def suite_names() -> list[str]:
    """All suites."""
    return list(declarations("configs/suites"))


# --- plan -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A backbone with the seed of its pretraining (0 for weights from elsewhere)."""

    name: str
    declaration: BackboneDeclaration
    seed: int = 0

    @property
    def can_be_made(self) -> bool:
        """Whether its weights take only minutes to make: a recipe of the demo world."""
        return self.declaration.world == "demo" and self.declaration.source.made_here

    @property
    def label(self) -> str:
        """For people: display name, and the seed if it is not 0."""
        suffix = f" (seed {self.seed})" if self.seed else ""
        return f"{self.declaration.display_name}{suffix}"


@dataclass(frozen=True)
class Column:
    """A protocol on a data set."""

    protocol: Protocol
    declaration: TaskDeclaration

    @property
    def name(self) -> str:
        """`protocol/dataset`."""
        return f"{self.protocol.name}/{self.declaration.name}"

    @property
    def on_demo_data(self) -> bool:
        """Whether its files are part of the demo world, which this package draws."""
        return Path(self.declaration.reader.root).parts[:1] == ("demo",)


@dataclass(frozen=True)
class PlannedCell:
    """A cell the run has, or will have, a record of.

    Attributes:
        recorded: Its record, if that still holds.
        refused: Why it cannot be measured here, for a cell that was asked for by name.
    """

    row: Row
    column: Column
    recorded: Record | None
    refused: MaskCLIPBenchError | None = None

    @property
    def is_to_measure(self) -> bool:
        """Whether it has no record and this machine can make one."""
        return self.recorded is None and self.refused is None

    @property
    def unit(self) -> Unit:
        """Its line in the display."""
        return Unit(
            key=f"{self.row.name}/{self.row.seed}/{self.column.name}",
            label=f"{self.row.label}: {self.column.name}",
            expected_seconds=self.column.protocol.expected_seconds,
        )


@dataclass(frozen=True)
class LeftOut:
    """Something of the suite that this machine cannot do now.

    Attributes:
        error: What its cells fail with, where it was asked for by name; else None.
    """

    what: str
    why: str
    remedy: str
    error: MaskCLIPBenchError | None = None


@dataclass(frozen=True)
class Named:
    """What a run was asked for by name: to leave that out is a failure."""

    rows: frozenset[str] = frozenset()
    datasets: frozenset[str] = frozenset()
    protocols: frozenset[str] = frozenset()

    @classmethod
    def of(cls, backbones: Iterable[str], tasks: Iterable[str]) -> Named:
        """From names of rows and patterns of columns, in which "*" names nothing."""
        parts = [pattern.partition("/") for pattern in tasks]
        return cls(
            rows=frozenset(map(_stem, backbones)),
            datasets=frozenset(_stem(dataset) for _, _, dataset in parts) - {"*"},
            protocols=frozenset(protocol for protocol, _, _ in parts) - {"*"},
        )


def _stem(name: str) -> str:
    """The name of a declaration that may be given by the path of its file."""
    return Path(name).stem if name.endswith((".yaml", ".yml")) else name


@dataclass
class Plan:
    """What a suite comes to on this machine.

    Attributes:
        cells: Recorded, and to be made.
        pretraining: Rows whose weights must be made first.
        left_out: The rest, with the reason and the remedy.
        needs_demo: Whether the demo world must be there.
    """

    cells: list[PlannedCell] = field(default_factory=list)
    pretraining: list[Row] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    needs_demo: bool = False

    @property
    def open_cells(self) -> list[PlannedCell]:
        """Cells without a record."""
        return [cell for cell in self.cells if cell.recorded is None]


def make_plan(
    suite: SuiteDeclaration,
    workspace: Workspace,
    *,
    seeds: Sequence[int] = (0,),
    named: Named | None = None,
) -> Plan:
    """Say of every cell of the suite what this machine can do about it.

    Args:
        suite: Rows x columns.
        workspace: Where data, weights and records lie.
        seeds: Pretraining seeds of the rows that are made here.
        named: What of it was asked for by name.

    Raises:
        UnknownNameError: The suite names a backbone, protocol or data set that does not exist.
        DataError: A record is damaged.
    """
    plan = Plan()
    named = named or Named()
    store = RecordStore(workspace.records)
    columns = _columns(suite)
    no_data = _absent_data(columns, workspace, named)
    plan.left_out += no_data.values()
    for row in _rows(suite, seeds):
        missing = _missing_weights(row, workspace, named)
        no_weights = None if row.can_be_made else _absent_weights(row, missing, named)
        plan.left_out += [no_weights] if no_weights else []
        weights = weights_identity(row, workspace) if missing is None else None
        if row.can_be_made and missing is None:
            _warn_of_another_recipe(row, workspace)
        cells = []
        for column in columns:
            name = f"{row.name}/{column.name}"
            if row.declaration.world != column.declaration.world or any(
                fnmatch(name, pattern) for pattern in suite.without_cells
            ):
                continue
            absent = [item for item in (no_data.get(column.declaration.name), no_weights) if item]
            if not absent:
                absent = _unfit(row, column, named)
                plan.left_out += absent
            if any(item.error is None for item in absent):
                continue
            if absent:
                cells.append(PlannedCell(row, column, None, refused=absent[0].error))
            else:
                recorded = _recorded(store, row, column, workspace, weights=weights)
                cells.append(PlannedCell(row, column, recorded))
        plan.cells += cells
        if missing is not None and any(cell.is_to_measure for cell in cells):
            plan.pretraining.append(row)
    plan.needs_demo = any(cell.column.on_demo_data for cell in plan.cells if cell.is_to_measure)
    return plan


def _rows(suite: SuiteDeclaration, seeds: Sequence[int]) -> list[Row]:
    rows = []
    for name in backbone_names() if suite.backbones == "*" else suite.backbones:
        declaration = load_backbone_declaration(name)
        depends_on_seed = declaration.source.recipe is not None or declaration.source.random_init
        rows += [
            Row(declaration.name, declaration, seed)
            for seed in (seeds if depends_on_seed else (0,))
        ]
    return rows


def _columns(suite: SuiteDeclaration) -> list[Column]:
    """The suite's columns, data set by data set, protocols in the order of `PROTOCOLS`."""
    patterns = ["*/*"] if suite.tasks == "*" else suite.tasks
    columns: dict[str, Column] = {}
    for pattern in patterns:
        protocol, slash, dataset = pattern.partition("/")
        if not slash:
            raise ConfigError(
                f"{pattern!r} is not a task. Write protocol/data set, e.g. "
                "zero_shot_classification/imagenet; either part may be *."
            )
        if protocol != "*":
            get_protocol(protocol)  # raises for one that does not exist
        datasets = dataset_names() if dataset == "*" else [dataset]
        tasks = [load_task_declaration(name) for name in datasets]
        found = [
            Column(PROTOCOLS[name], task)
            for task in tasks
            for name in PROTOCOLS
            if protocol in ("*", name) and name in task.protocols
        ]
        if not found:
            known = [f"{name}/{task.name}" for task in tasks for name in task.protocols]
            raise unknown_name("task", pattern, known, remedy=LIST_TASKS)
        columns |= {column.name: column for column in found}
    return [
        column
        for name, column in columns.items()
        if not any(fnmatch(name, pattern) for pattern in suite.without_tasks)
    ]


def _absent_data(
    columns: Iterable[Column], workspace: Workspace, named: Named
) -> dict[str, LeftOut]:
    """Data sets that are not here and cannot be drawn here, by name."""
    absent: dict[str, LeftOut] = {}
    for column in columns:
        task = column.declaration
        missing = None if column.on_demo_data else missing_data(task, workspace)
        if missing is not None:
            error = DataError(
                f"{task.name}: {missing.rstrip('.')}. The data root is {workspace.data}; "
                f"{DATA_VARIABLE} sets another."
            )
            absent[task.name] = LeftOut(
                f"*/{task.name}",
                "its data is not on this machine",
                task.obtain,
                error if task.name in named.datasets else None,
            )
    return absent


def _missing_weights(row: Row, workspace: Workspace, named: Named) -> str | None:
    """What is missing of a row's weights; a named row of a zoo is downloaded when it is loaded."""
    source = row.declaration.source
    if row.name in named.rows and source.kind in ZOOS and source.checkpoint is None:
        return None
    return missing_weights(row.declaration, workspace, row.seed)


def _warn_of_another_recipe(row: Row, workspace: Workspace) -> None:
    """Say if a row's weights were made by its recipe as it was before a change."""
    name = row.declaration.source.recipe
    assert name is not None
    folder = weights_folder(row.declaration, workspace, row.seed)
    made_by = None if folder is None else finished_fingerprint(folder)
    now = load_recipe(name, [f"seed={row.seed}"]).computation_fingerprint()
    if made_by not in (None, now):
        logger.warning(
            "The weights of %s were made by another version of the recipe %s, and are measured as "
            "they are. To make them anew, delete %s and the row's records in %s.",
            row.label,
            name,
            workspace.pretraining(name, row.seed),
            workspace.records / row_id(row.name, row.seed),
        )


def _absent_weights(row: Row, missing: str | None, named: Named) -> LeftOut | None:
    if missing is None:
        return None
    error = CheckpointError(f"{row.name}: {missing}")
    return LeftOut(
        row.name,
        "its weights are not on this machine",
        missing,
        error if row.name in named.rows else None,
    )


def _unfit(row: Row, column: Column, named: Named) -> list[LeftOut]:
    """Why the protocol cannot measure the row, if so."""
    reason = column.protocol.left_out(column.declaration, row.declaration)
    if reason is None:
        return []
    asked = row.name in named.rows and column.protocol.name in named.protocols
    what = f"{row.name} x {column.name}"
    return [LeftOut(what, reason, "", ConfigError(f"{what}: {reason}.") if asked else None)]


def weights_identity(row: Row, workspace: Workspace) -> str:
    """What says, without loading them, that a row's weights are still the same.

    For a folder of weights the hash of the weights files; for a model of a zoo its name there.
    """
    declaration = row.declaration
    identity: list[object] = [declaration.source.model_dump(mode="json"), row.seed]
    folder = weights_folder(declaration, workspace, row.seed)
    if folder is not None and folder.is_dir() and not declaration.source.random_init:
        identity += [
            storage.sha256_file(path)
            for path in sorted(folder.iterdir())
            if path.suffix in (".safetensors", ".bin")
        ]
    return storage.fingerprint(identity)


def _fingerprints(
    row: Row, column: Column, workspace: Workspace, *, weights: str
) -> dict[str, str]:
    """Hashes of all that a cell's number depends on, by part.

    Raises:
        DataError: The data is missing or broken.
        ConfigError: The settings do not fit.
    """
    return {
        "weights": weights,
        "preprocess": _preprocess_fingerprint(row),
        **column.protocol.cell_fingerprints(column.declaration, row.declaration, workspace),
    }


def _preprocess_fingerprint(row: Row) -> str:
    return storage.fingerprint(row.declaration.preprocess.model_dump(mode="json"))


def _recorded(
    store: RecordStore, row: Row, column: Column, workspace: Workspace, *, weights: str | None
) -> Record | None:
    """The ok record of the cell, if what it depends on is still the same.

    A row whose weights were deleted after it was measured (`weights` is None) keeps its records.
    Data that cannot be read leaves the cell to be measured, which says what is wrong with it.
    """
    record = store.load(row_id(row.name, row.seed), column.protocol.name, column.declaration.name)
    if record is None or record.status != "ok":
        return None
    if missing_data(column.declaration, workspace) is not None:
        return None
    if weights is None:
        weights = record.fingerprints.get("weights", "")
    try:
        now = _fingerprints(row, column, workspace, weights=weights)
    except (DataError, OSError):
        return None
    return record if record.fingerprints == now else None


# --- execute --------------------------------------------------------------------------------------


@dataclass
class RunResult:
    """What a run did: cells made, cells that failed (with the error's first line)."""

    measured: list[Record] = field(default_factory=list)
    failed: list[Record] = field(default_factory=list)


@dataclass
class _Node:
    """A piece of work of the pool; starts when `after` are done."""

    key: str
    work: Callable[[], None]
    after: frozenset[str] = frozenset()


class Execution:
    """Does what a plan leaves open.

    Args:
        plan: From `make_plan`.
        workspace: Where everything goes.
        device: For features and protocols.
        num_jobs: Pieces of work side by side; the cores are divided among them.
        listener: Told of all progress.
    """

    def __init__(
        self,
        plan: Plan,
        workspace: Workspace,
        *,
        device: torch.device,
        num_jobs: int,
        listener: RunListener,
    ) -> None:
        self._plan = plan
        self._workspace = workspace
        self._device = device
        self._num_jobs = num_jobs
        self._num_threads = max(1, default_num_threads() // num_jobs)
        self._listener = listener
        self._store = RecordStore(workspace.records)
        self._features = FeatureStore(workspace.features)
        self._cancel = threading.Event()
        self._broken_rows: dict[tuple[str, int], BaseException] = {}
        self._result = RunResult()
        self._lock = threading.Lock()

    def run(self) -> RunResult:
        """Make all open cells.

        Raises:
            KeyboardInterrupt: Passed on, after every job was asked to stop and did.
            StorageError: The disk refuses; the run stops, since nothing could be recorded.
        """
        nodes = self._nodes()
        self._listener.planned(self._units())
        pending = {node.key: node for node in nodes}
        done: set[str] = set()
        running: dict[Future[None], str] = {}
        # The linear algebra of NumPy and SciPy has threads of its own, which torch does not know.
        with (
            threadpool_limits(self._num_threads, user_api="blas"),
            ThreadPoolExecutor(self._num_jobs, thread_name_prefix="cell") as pool,
        ):
            try:
                while pending or running:
                    for key, node in list(pending.items()):
                        if len(running) < self._num_jobs and node.after <= done:
                            running[pool.submit(self._in_thread, node.work)] = key
                            del pending[key]
                    finished, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                    for future in finished:
                        done.add(running.pop(future))
                        future.result()
            except BaseException:
                self._cancel.set()
                raise
        return self._result

    def _in_thread(self, work: Callable[[], None]) -> None:
        torch.set_num_threads(self._num_threads)  # OpenMP's setting is per thread
        work()

    # What there is to do, and in which order.

    def _rows(self) -> dict[tuple[str, int], list[PlannedCell]]:
        """Cells to measure, by row."""
        rows: dict[tuple[str, int], list[PlannedCell]] = {}
        for cell in self._plan.open_cells:
            if cell.is_to_measure:
                rows.setdefault((cell.row.name, cell.row.seed), []).append(cell)
        return rows

    def _units(self) -> list[Unit]:
        units = [DEMO_UNIT] if self._plan.needs_demo else []
        units += [_pretraining_unit(row) for row in self._plan.pretraining]
        return units + [cell.unit for cell in self._plan.open_cells]

    def _nodes(self) -> list[_Node]:
        """Longest first, so that the pool is not left waiting for one late long piece."""
        nodes = [
            _Node(cell.unit.key, partial(self._measure, cell, None))
            for cell in self._plan.open_cells
            if cell.refused is not None
        ]
        first: frozenset[str] = frozenset()
        if self._plan.needs_demo:
            nodes.append(_Node(DEMO_UNIT.key, self._prepare_demo))
            first = frozenset({DEMO_UNIT.key})
        after: dict[tuple[str, int], frozenset[str]] = {}
        by_length = sorted(
            self._plan.pretraining, key=lambda row: -_pretraining_unit(row).expected_seconds
        )
        for row in by_length:
            unit = _pretraining_unit(row)
            nodes.append(_Node(unit.key, partial(self._pretrain, row, unit), first))
            after[row.name, row.seed] = frozenset({unit.key})
        for key, cells in self._rows().items():
            ready = after.get(key, first)
            here = [cell for cell in cells if not cell.column.protocol.runs_as_job]
            if here:
                name = f"row/{here[0].row.name}/{here[0].row.seed}"
                nodes.append(_Node(name, partial(self._evaluate_row, here), ready))
            for cell in cells:
                if cell not in here:
                    nodes.append(_Node(cell.unit.key, partial(self._evaluate_cell, cell), ready))
        return nodes

    # The pieces of work. Each runs in a thread of the pool.

    def _prepare_demo(self) -> None:
        from maskclip_bench.data.demo import prepare_demo

        self._listener.started(DEMO_UNIT)

        def progress(stage: str, done: int, total: int) -> None:
            self._check_cancelled()
            self._listener.advanced(DEMO_UNIT, stage, done, total)

        folder = prepare_demo(self._workspace.data, progress=progress)
        self._listener.finished(DEMO_UNIT, ok=True, note=str(folder))

    def _pretrain(self, row: Row, unit: Unit) -> None:
        """Make a row's weights in a subprocess; a failure is kept for the row's cells."""
        recipe = row.declaration.source.recipe
        assert recipe is not None
        output = self._workspace.pretraining(recipe, row.seed)
        self._listener.started(unit)
        command = own_command(
            "pretrain", recipe, f"seed={row.seed}", "--output", str(output),
            "--device", str(self._device), "--quiet",
        )  # fmt: skip
        try:
            run_job(
                command,
                log_file=output / "job.log",
                num_threads=self._num_threads,
                cancel=self._cancel,
                on_poll=lambda: self._report_pretraining(unit, output),
                environment={DATA_VARIABLE: str(self._workspace.data)},
            )
        except JobError as error:
            self._broken_rows[row.name, row.seed] = error
            self._listener.finished(unit, ok=False, note=str(error).splitlines()[0])
        else:
            self._listener.finished(unit, ok=True, note=str(output))

    def _report_pretraining(self, unit: Unit, output: Path) -> None:
        state = read_progress(output)
        if state is not None:
            rate = f"{state.images_per_second:.0f} images/s, loss {state.loss:.2f}"
            self._listener.advanced(unit, rate, state.step, state.total_steps)

    def _evaluate_row(self, cells: Sequence[PlannedCell]) -> None:
        """The cells of one row that run in this process; its weights are loaded once."""
        backbone: Backbone | None = None
        for cell in cells:
            self._check_cancelled()
            if backbone is None and (cell.row.name, cell.row.seed) not in self._broken_rows:
                try:
                    backbone = self._load(cell.row)
                except MaskCLIPBenchError as error:
                    self._broken_rows[cell.row.name, cell.row.seed] = error
            self._measure(cell, backbone)

    def _evaluate_cell(self, cell: PlannedCell) -> None:
        """A cell whose protocol starts a subprocess of its own."""
        self._evaluate_row([cell])

    def _load(self, row: Row) -> Backbone:
        return load_backbone(
            row.declaration, workspace=self._workspace, seed=row.seed, device=self._device
        )

    def _measure(self, cell: PlannedCell, backbone: Backbone | None) -> None:
        """Run the protocol and record what came of it, score or failure."""
        unit, row, column = cell.unit, cell.row, cell.column
        self._listener.started(unit)
        began = time.monotonic()
        origin = provenance(self._device)
        if backbone is not None:
            origin["weights_state"] = backbone.weights_fingerprint
            origin["transform"] = backbone.transform_id
        fingerprints = {"preprocess": _preprocess_fingerprint(row)}
        outcomes = None
        try:
            if cell.refused is not None:
                raise cell.refused
            found = weights_identity(row, self._workspace) if backbone else "not on this machine"
            fingerprints["weights"] = found
            fingerprints = _fingerprints(row, column, self._workspace, weights=found)
            if backbone is None:
                raise self._broken_rows[row.name, row.seed]
            measurement = column.protocol.run(self._context(cell, backbone))
            outcomes = measurement.outcomes
            record = measured_record(
                _identity(row, column, fingerprints),
                measurement,
                fingerprints=fingerprints,
                provenance=origin,
                seconds=time.monotonic() - began,
            )
        except StorageError:
            raise  # nothing can be recorded on a disk that refuses
        except Exception as error:
            logger.debug("cell failed", exc_info=True)
            outcomes = None
            record = failed_record(
                _identity(row, column, fingerprints),
                error,
                fingerprints=fingerprints,
                provenance=origin,
                seconds=time.monotonic() - began,
            )
        standing = self._store.save(record, outcomes)
        if standing.cell == record.cell:  # else an older score stands, and this still failed
            record = standing
        with self._lock:
            (self._result.measured if record.status == "ok" else self._result.failed).append(record)
        self._listener.finished(unit, ok=record.status == "ok", note=_summary(record))

    def _context(self, cell: PlannedCell, backbone: Backbone) -> ProtocolContext:
        def progress(stage: str, done: int, total: int) -> None:
            self._check_cancelled()
            self._listener.advanced(cell.unit, stage, done, total)

        return ProtocolContext(
            task=cell.column.declaration,
            settings=cell.column.protocol.settings_of(cell.column.declaration),
            backbone=backbone,
            features=self._features,
            workspace=self._workspace,
            device=self._device,
            progress=progress,
            num_threads=self._num_threads,
            cancel=self._cancel,
        )

    def _check_cancelled(self) -> None:
        if self._cancel.is_set():
            raise JobCancelled


def _identity(row: Row, column: Column, fingerprints: dict[str, str]) -> Cell:
    """The cell that a record is of."""
    return Cell(
        backbone=row.name,
        seed=row.seed,
        protocol=column.protocol.name,
        dataset=column.declaration.name,
        world=column.declaration.world,
        task_version=column.declaration.task_version,
        cell_fingerprint=cell_fingerprint(fingerprints),
    )


DEMO_UNIT = Unit("demo-world", "drawing the demo world", expected_seconds=30.0)

LIST_TASKS = "List them with: maskclip-bench list tasks"

ZOOS = ("open_clip", "timm", "huggingface")
"""Sources whose library downloads weights that are not here."""

SECONDS_PER_PAIR = 1 / 400
"""Of CLIP on the demo world on one core; only weighs the pieces of a run against each other."""


def _pretraining_unit(row: Row) -> Unit:
    name = row.declaration.source.recipe
    assert name is not None
    recipe = load_recipe(name)
    cost = METHODS[recipe.method.name].relative_cost
    return Unit(
        key=f"pretrain/{row.name}/{row.seed}",
        label=f"pretraining {row.label}",
        expected_seconds=(recipe.num_pairs or 0) * cost * SECONDS_PER_PAIR,
    )


def _summary(record: Record) -> str:
    """The primary metric with its interval, or the error's first line."""
    if record.status == "failed" or record.primary_metric is None:
        return str(record.error.message).splitlines()[0] if record.error else "failed"
    metric = record.primary
    text = f"{record.primary_metric} {100 * metric.value:.1f}"
    return f"{text} ±{100 * metric.half_width:.1f}" if metric.half_width is not None else text
