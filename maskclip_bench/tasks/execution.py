"""Execution of a plan: every open cell is measured with a small pool of threads and subprocesses.

    plan -> (data, weights) -> protocols -> records

Pretraining and the protocols that train through the backbone run as subprocesses, the others in
this process, each as soon as what it needs is there. Whatever a row, its settings or its encoder
raises is the failure of that cell: it is recorded and the run goes on. Only an interrupt and a disk
that refuses stop a run; the same call continues it.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from threadpoolctl import threadpool_limits

from maskclip_bench import storage
from maskclip_bench.backbones import (
    Backbone,
    UnloadedBackbone,
    load_backbone,
    unloaded_backbone,
)
from maskclip_bench.data.dataset import hashing_told
from maskclip_bench.errors import JobError, StorageError, storage_error
from maskclip_bench.job_server import serving
from maskclip_bench.jobs import JobCancelled, own_command, run_job
from maskclip_bench.progress import Listener, Unit, read_progress
from maskclip_bench.results.records import Record, RecordStore, failed_record
from maskclip_bench.runtime import DATA_VARIABLE, Workspace, provenance, threads_of_job
from maskclip_bench.tasks.ahead import ReadAhead, encode_texts_ahead
from maskclip_bench.tasks.cell import (
    Column,
    LeftOut,
    PlannedCell,
    Row,
    cell_of,
    fingerprints_of,
    preprocess_fingerprint,
    records_of,
)
from maskclip_bench.tasks.features import FeatureStore
from maskclip_bench.tasks.measure import measure_record
from maskclip_bench.tasks.pieces import Piece, files_of_maps, pieces_of, pretraining_unit
from maskclip_bench.tasks.plan import Plan

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

DRAW_DEMO = Unit("demo-world", "drawing the demo world", expected_seconds=30.0)
CHECK_DEMO = Unit("demo-world", "checking the demo world", expected_seconds=2.0)

PRETRAIN_IMPORTS = ("maskclip_bench.cli.app", "maskclip_bench.pretrain.launch")
"""What a pretraining is started with (see `job_server`)."""


@dataclass
class RunResult:
    """What a run did.

    Attributes:
        measured: Records of the cells that were measured.
        failed: Records of the cells that failed, with the error.
        left_out: Cells of rows that turned out, once loaded, not to fit the protocol.
    """

    measured: list[Record] = field(default_factory=list)
    failed: list[Record] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


@dataclass
class _Node:
    """A piece of work of the pool; starts when `after` are done."""

    key: str
    work: Callable[[], None]
    after: frozenset[str] = frozenset()


class _Loader:
    """Loads a row when its first cell asks for it, once; what it raised is raised again."""

    def __init__(self, load: Callable[[], Backbone | UnloadedBackbone]) -> None:
        self._load = load
        self._loaded: Backbone | UnloadedBackbone | None = None
        self._error: BaseException | None = None

    def __call__(self) -> Backbone | UnloadedBackbone:
        if self._error is not None:
            raise self._error
        if self._loaded is None:
            try:
                self._loaded = self._load()
            except BaseException as error:
                self._error = error
                raise
        return self._loaded


class Execution:
    """Does what a plan leaves open.

    Args:
        plan: From `make_plan`.
        workspace: Where everything goes.
        device: For features and protocols.
        num_jobs: Pieces of work side by side; the cores are divided among them.
        listener: Told of all progress.
        features: The store of features; None opens the workspace's.
        row_done: Called with what there is so far whenever the cells of a row that run in this
            process are done, by one thread at a time.
        when_idle: Called once when nothing is left to begin while the last pieces of work go on,
            with a function that raises where the run is interrupted.
    """

    def __init__(
        self,
        plan: Plan,
        workspace: Workspace,
        *,
        device: torch.device,
        num_jobs: int,
        listener: Listener,
        features: FeatureStore | None = None,
        row_done: Callable[[RunResult], None] | None = None,
        when_idle: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self._row_done = row_done
        self._when_idle = when_idle
        self._plan = plan
        self._workspace = workspace
        self._device = device
        self._num_jobs = num_jobs
        self._num_threads = threads_of_job(num_jobs)
        self._listener = listener
        self._store = RecordStore(records_of(workspace, plan.limit))
        self._features = features or FeatureStore(workspace.features)
        self._read_ahead = ReadAhead(workspace)
        self._demo_unit = CHECK_DEMO if (workspace.data / "demo").is_dir() else DRAW_DEMO
        self._cancel = threading.Event()
        self._not_pretrained: dict[tuple[str, int], JobError] = {}
        self._result = RunResult()
        self._lock = threading.Lock()
        storage.remove_leftovers(workspace.jobs)
        on_cpu = device.type == "cpu"
        self._shared_maps = files_of_maps(plan, workspace.jobs) if on_cpu else {}

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
            serving(self._num_threads) if self._device.type == "cpu" else nullcontext(),
            ThreadPoolExecutor(self._num_jobs, thread_name_prefix="cell") as pool,
        ):
            try:
                while pending or running:
                    for key, node in list(pending.items()):
                        if len(running) < self._num_jobs and node.after <= done:
                            running[pool.submit(self._in_thread, node.work)] = key
                            del pending[key]
                    if self._when_idle and not pending and 0 < len(running) < self._num_jobs:
                        work, self._when_idle = self._when_idle, None
                        running[pool.submit(self._in_thread, partial(self._ahead, work))] = "ahead"
                    finished, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                    for future in finished:
                        done.add(running.pop(future))
                        future.result()
            except BaseException:
                self._cancel.set()
                raise
            finally:
                for file in self._shared_maps.values():
                    file.unlink(missing_ok=True)
        return self._result

    def _in_thread(self, work: Callable[[], None]) -> None:
        torch.set_num_threads(self._num_threads)  # OpenMP's setting is per thread
        work()

    def _ahead(self, work: Callable[[Callable[[], None]], None]) -> None:
        """Do what only saves time later; whatever goes wrong with it is said then."""
        try:
            work(self._check_cancelled)
        except JobCancelled:
            raise
        except Exception:
            logger.debug("nothing was done ahead", exc_info=True)

    # What there is to do, and in which order.

    def _units(self) -> list[Unit]:
        units = [self._demo_unit] if self._plan.needs_demo else []
        units += [pretraining_unit(row) for row in self._plan.pretraining]
        return units + [cell.unit for cell in self._plan.open_cells]

    def _nodes(self) -> list[_Node]:
        """The pieces of the plan, each with what does it."""
        pieces = pieces_of(self._plan, self._demo_unit.key)
        return [_Node(piece.key, partial(self._do, piece), piece.after) for piece in pieces]

    def _do(self, piece: Piece) -> None:
        if piece.kind == "demo":
            self._prepare_demo()
            return
        assert piece.row is not None
        if piece.kind == "pretrain":
            self._pretrain(piece.row, pretraining_unit(piece.row))
        elif piece.kind == "refused":
            self._measure(piece.cells[0], self._loader(piece.row))
        else:
            self._evaluate_row(piece.cells)
        if piece.kind == "row" and self._row_done is not None:
            with self._lock:
                self._row_done(self._result)

    # The pieces of work. Each runs in a thread of the pool.

    def _prepare_demo(self) -> None:
        from maskclip_bench.data.demo import prepare_demo

        unit = self._demo_unit
        self._listener.started(unit)

        def progress(stage: str, done: int, total: int) -> None:
            self._check_cancelled()
            self._listener.advanced(unit, stage, done, total)

        folder = prepare_demo(self._workspace.data, progress=progress)
        self._listener.finished(unit, ok=True, note=str(folder))

    def _pretrain(self, row: Row, unit: Unit) -> None:
        """Make a row's weights in a subprocess; a failure is kept for the row's cells."""
        recipe = row.declaration.recipe
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
                imports=PRETRAIN_IMPORTS,
            )
        except JobError as error:
            self._not_pretrained[row.name, row.seed] = error
            self._listener.finished(unit, ok=False, note=in_one_line(str(error)))
        else:
            self._listener.finished(unit, ok=True, note=str(output))

    def _report_pretraining(self, unit: Unit, output: Path) -> None:
        state = read_progress(output)
        if state is not None:
            rate = f"{state.images_per_second:.0f} images/s, loss {state.loss:.2f}"
            self._listener.advanced(unit, rate, state.step, state.total_steps)

    def _evaluate_row(self, cells: Sequence[PlannedCell]) -> None:
        """The cells of one row that run in this process; its weights are loaded once."""
        in_job = all(cell.column.protocol.job_loads_backbone for cell in cells)
        loader = self._loader(cells[0].row, in_job=in_job)
        columns = [cell.column for cell in cells]
        for index, cell in enumerate(cells):
            self._check_cancelled()
            if index == 0 and len(cells) > 1:
                self._encode_texts(cell, columns, loader)
            self._read_ahead.start(columns, index)
            self._measure(cell, loader)

    def _encode_texts(self, first: PlannedCell, columns: Sequence[Column], loader: _Loader) -> None:
        """Encode the texts of all the row's tasks together; what fails is said in its cell."""
        try:
            backbone = loader()
        except (KeyboardInterrupt, JobCancelled, StorageError):
            raise
        except BaseException:
            return
        if not isinstance(backbone, Backbone):
            return
        self._listener.started(first.unit)

        def progress(stage: str, done: int, total: int) -> None:
            self._check_cancelled()
            self._listener.advanced(first.unit, stage, done, total)

        encode_texts_ahead(
            columns,
            backbone,
            workspace=self._workspace,
            features=self._features,
            limit=self._plan.limit,
            progress=progress,
        )

    def _loader(self, row: Row, *, in_job: bool = False) -> _Loader:
        def load() -> Backbone | UnloadedBackbone:
            if (row.name, row.seed) in self._not_pretrained:
                raise self._not_pretrained[row.name, row.seed]
            if in_job:
                return unloaded_backbone(
                    row.declaration, workspace=self._workspace, seed=row.seed, device=self._device
                )
            return load_backbone(
                row.declaration,
                workspace=self._workspace,
                seed=row.seed,
                device=self._device,
                precision=self._plan.precision,
            )

        return _Loader(load)

    def _measure(self, cell: PlannedCell, loader: _Loader) -> None:
        """Measure a cell and record what came of it, score or failure."""
        self._listener.started(cell.unit)
        began = time.monotonic()
        parts = {"preprocess": preprocess_fingerprint(cell.row.declaration)}
        record: Record | None = None
        outcomes: pd.DataFrame | None = None
        try:
            reason = self._unfit(cell, loader)
            if reason is None:
                record, outcomes = self._attempt(cell, loader, parts)
        except (KeyboardInterrupt, JobCancelled, StorageError):
            raise
        except BaseException as error:  # SystemExit in somebody's encoder, too
            refusal = _disk_refusal(error, self._workspace)
            if refusal is not None:
                raise refusal from error  # nothing can be recorded on a disk that refuses
            logger.debug("cell failed", exc_info=True)
            record = self._failure(cell, _with_text(error), parts, time.monotonic() - began)
        if record is None:
            self._leave_out(cell, str(reason))
        else:
            self._keep(cell, record, outcomes)

    def _unfit(self, cell: PlannedCell, loader: _Loader) -> str | None:
        """Why the loaded row does not fit the protocol, where nobody asked for it by name."""
        if cell.refused is not None or cell.asked:
            return None
        return cell.column.protocol.missing_in(loader(), cell.column.declaration)

    def _attempt(
        self, cell: PlannedCell, loader: _Loader, parts: dict[str, str]
    ) -> tuple[Record, pd.DataFrame]:
        """Measure; `parts` gets the fingerprints as they are found, for the record of a failure."""
        row, protocol, task = cell.row, cell.column.protocol, cell.column.declaration
        if cell.refused is not None:
            raise cell.refused
        parts["weights"] = "not on this machine"
        backbone = loader()
        parts["weights"] = backbone.identity

        def progress(stage: str, done: int, total: int) -> None:
            self._check_cancelled()
            self._listener.advanced(cell.unit, stage, done, total)

        with hashing_told(progress):
            parts |= fingerprints_of(
                protocol,
                task,
                row.declaration,
                self._workspace,
                weights=parts["weights"],
                limit=self._plan.limit,
                precision=self._plan.precision,
            )

        return measure_record(
            protocol,
            task,
            backbone,
            workspace=self._workspace,
            features=self._features,
            device=self._device,
            progress=progress,
            num_threads=self._num_threads,
            cancel=self._cancel,
            limit=self._plan.limit,
            validate=self._plan.validate,
            shared_maps=self._shared_maps.get(cell.unit.key),
            fingerprints=dict(parts),
        )

    def _failure(
        self, cell: PlannedCell, error: BaseException, parts: dict[str, str], seconds: float
    ) -> Record:
        """The record of a failed cell."""
        return failed_record(
            cell_of(
                cell.column.protocol, cell.column.declaration, cell.row.name, cell.row.seed, parts
            ),
            error,
            fingerprints=parts,
            provenance=provenance(self._device),
            seconds=seconds,
            protocol_title=cell.column.protocol.title,
        )

    def _keep(self, cell: PlannedCell, record: Record, outcomes: pd.DataFrame | None) -> None:
        """Save a record, and tell of it."""
        standing = self._store.save(record, outcomes)
        if standing.cell == record.cell:  # else an older score is kept, and this still failed
            record = standing
        with self._lock:
            (self._result.measured if record.status == "ok" else self._result.failed).append(record)
        self._listener.finished(cell.unit, ok=record.status == "ok", note=summary(record))

    def _leave_out(self, cell: PlannedCell, reason: str) -> None:
        with self._lock:
            self._result.left_out.append(
                LeftOut(f"{cell.row.name} x {cell.column.name}", reason, "")
            )
        self._listener.finished(cell.unit, ok=True, note=f"left out: {reason}")

    def _check_cancelled(self) -> None:
        if self._cancel.is_set():
            raise JobCancelled


def summary(record: Record) -> str:
    """The primary metric with its interval, or the error, in one line."""
    if record.status == "failed" or record.primary_metric is None:
        return failure_line(record)
    metric = record.primary
    text = f"{record.primary_metric} {100 * metric.value:.1f}"
    return f"{text} ±{100 * metric.half_width:.1f}" if metric.half_width is not None else text


def failure_line(record: Record) -> str:
    """Type and text of a failed record's error, in one line; the type alone where it has none."""
    if record.error is None:
        return "failed"
    text = in_one_line(record.error.message)
    return f"{record.error.type}: {text}" if text else record.error.type


def in_one_line(text: str, *, at_most: int = 300) -> str:
    """Lines joined, and cut after `at_most` characters; the record has all of it."""
    joined = " ".join(text.split())
    return joined if len(joined) <= at_most else f"{joined[: at_most - 1]}…"


def _with_text(error: BaseException) -> BaseException:
    """The error, or one in its place if its own text cannot be read."""
    try:
        str(error)
    except Exception:
        return RuntimeError(f"{type(error).__name__}, whose text cannot be read")
    return error


def _disk_refusal(error: BaseException, workspace: Workspace) -> StorageError | None:
    """The refusal of the disk that is behind an error, if there is one: no space, no quota."""
    for cause in _causes(error):
        if isinstance(cause, StorageError):
            return cause
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return storage_error(cause, cause.filename or workspace.root)
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those it came from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
