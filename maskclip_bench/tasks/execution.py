"""Execution of a plan: every open cell is measured with a small pool of threads and subprocesses.

    plan -> (data, weights) -> protocols -> records

Pretraining and the protocols that train through the backbone run as subprocesses, the others in
this process, each as soon as what it needs is there. A cell that fails is recorded as failed and
the run goes on; killed at any moment, the same call goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from maskclip_bench.backbones import Backbone, load_backbone
from maskclip_bench.errors import JobError, MaskCLIPBenchError, StorageError
from maskclip_bench.jobs import JobCancelled, own_command, run_job
from maskclip_bench.pretrain.methods import METHODS
from maskclip_bench.pretrain.recipe import load_recipe
from maskclip_bench.progress import Listener, Unit, read_progress
from maskclip_bench.results.records import (
    Record,
    RecordStore,
    failed_record,
    measured_record,
)
from maskclip_bench.runtime import DATA_VARIABLE, Workspace, default_num_threads, provenance
from maskclip_bench.tasks.cell import (
    PlannedCell,
    Row,
    fingerprints_of,
    identity_of_cell,
    preprocess_fingerprint,
    weights_identity,
)
from maskclip_bench.tasks.features import FeatureStore
from maskclip_bench.tasks.plan import Plan
from maskclip_bench.tasks.protocols.base import ProtocolContext

logger = logging.getLogger(__name__)

DEMO_UNIT = Unit("demo-world", "drawing the demo world", expected_seconds=30.0)

SECONDS_PER_PAIR = 1 / 400
"""Of CLIP on the demo world on one core; only weighs the pieces of a run against each other."""


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
        listener: Listener,
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
        fingerprints = {"preprocess": preprocess_fingerprint(row)}
        outcomes = None
        try:
            if cell.refused is not None:
                raise cell.refused
            found = weights_identity(row, self._workspace) if backbone else "not on this machine"
            fingerprints["weights"] = found
            fingerprints = fingerprints_of(row, column, self._workspace, weights=found)
            if backbone is None:
                raise self._broken_rows[row.name, row.seed]
            measurement = column.protocol.run(self._context(cell, backbone))
            outcomes = measurement.outcomes
            record = measured_record(
                identity_of_cell(row, column, fingerprints),
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
                identity_of_cell(row, column, fingerprints),
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
