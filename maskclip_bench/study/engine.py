"""Doing the runs of a study side by side, each with one thread, until all are done.

Every piece of work is a command of its own that does nothing where its result is there already, so
that a study goes on after any interruption: worlds are drawn once, trainings go on from their last
checkpoint, measured cells and checkpoints are not measured again.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from maskclip_bench import storage
from maskclip_bench.data.demo import prepare_demo
from maskclip_bench.errors import JobError
from maskclip_bench.jobs import JobCancelled, own_command, run_job
from maskclip_bench.pretrain.export import finished_fingerprint
from maskclip_bench.progress import Listener, Unit, read_progress
from maskclip_bench.runtime import DATA_VARIABLE, MODEL_FOLDER, Workspace
from maskclip_bench.study import tuning
from maskclip_bench.study.checkpoints import missing_scores, tasks_of
from maskclip_bench.study.declaration import StudyDeclaration
from maskclip_bench.study.runs import (
    TUNING,
    StudyRun,
    data_root,
    expected_seconds,
    is_trained,
    runs_of,
    set_aside_another,
)
from maskclip_bench.tasks.plan import columns_of_suite
from maskclip_bench.tasks.suite import load_suite

logger = logging.getLogger(__name__)

WORLD_SECONDS = 35.0
CURVE_SECONDS = 60.0
MEASURED_FILE = "measured.json"
"""In a run's folder: of which model the study's suite has been measured, and which columns it had.
For another suite it is `measured.<suite>.json`."""


@dataclass(frozen=True)
class Item:
    """A piece of work, that begins when those named in `after` are done.

    Attributes:
        unit: What the display shows.
        work: Does it; raises `JobError` where it fails.
        after: Keys of other pieces.
    """

    unit: Unit
    work: Callable[[], None]
    after: frozenset[str] = frozenset()


@dataclass
class Outcome:
    """What came of a call.

    Attributes:
        done: Keys of the pieces that are done.
        failed: Key -> what went wrong.
        skipped: Keys of pieces that need one that failed.
    """

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def run_items(
    items: Sequence[Item], *, num_workers: int, listener: Listener, cancel: threading.Event
) -> Outcome:
    """Do pieces of work side by side, the first ones first.

    Args:
        items: All of them.
        num_workers: Pieces at one time.
        listener: Told of each.
        cancel: Set when the call is interrupted; pieces that run are asked to stop.

    Raises:
        KeyboardInterrupt: Passed on, after the pieces under way have stopped.
        StorageError: The disk refuses.
    """
    outcome, pending = Outcome(), {item.unit.key: item for item in items}
    running: dict[Future[None], str] = {}
    with ThreadPoolExecutor(num_workers, thread_name_prefix="study") as pool:
        try:
            while pending or running:
                _skip_needless(pending, outcome, listener)
                for key, item in list(pending.items()):
                    waits = any(
                        other in pending or other in running.values() for other in item.after
                    )
                    if len(running) < num_workers and not waits:
                        running[pool.submit(_work, item, listener)] = key
                        del pending[key]
                finished, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in finished:
                    key = running.pop(future)
                    try:
                        future.result()
                        outcome.done.append(key)
                    except JobError as error:
                        outcome.failed[key] = str(error)
        except BaseException:
            cancel.set()
            raise
    return outcome


def _work(item: Item, listener: Listener) -> None:
    listener.started(item.unit)
    try:
        item.work()
    except JobError as error:
        listener.finished(item.unit, ok=False, note=str(error).splitlines()[0])
        raise
    listener.finished(item.unit, ok=True, note="")


def _skip_needless(pending: dict[str, Item], outcome: Outcome, listener: Listener) -> None:
    """Take out pieces that need one that failed or was skipped."""
    lost = {*outcome.failed, *outcome.skipped}
    while found := [key for key, item in pending.items() if item.after & lost]:
        for key in found:
            item = pending.pop(key)
            needed = min(item.after & lost)
            outcome.skipped.append(key)
            listener.finished(item.unit, ok=False, note=f"left out: {needed} failed")
        lost |= {*found}


class StudyEngine:
    """Does a study in a workspace.

    Args:
        study: Which.
        workspace: Where everything goes.
        device: For trainings and measurements, in torch's spelling.
        num_workers: Pieces of work side by side; each has one thread on a CPU.
        num_threads: Threads of each.
        listener: Told of all progress.
    """

    def __init__(
        self,
        study: StudyDeclaration,
        workspace: Workspace,
        *,
        device: str,
        num_workers: int,
        listener: Listener,
        num_threads: int = 1,
    ) -> None:
        self._study = study
        self._workspace = workspace
        self._device = device
        self._num_workers = num_workers
        self._num_threads = num_threads
        self._listener = listener
        self._cancel = threading.Event()

    def run(
        self,
        *,
        stages: Sequence[str] = (),
        rows: Sequence[str] = (),
        seeds: Sequence[int] = (),
    ) -> Outcome:
        """Do what is left of the study, or of a part of it: first the tries, then the runs.

        Args:
            stages: Only these; all by default, the tries before them.
            rows: Only these rows.
            seeds: Only these seeds.

        Raises:
            UnknownNameError: There is no such stage or row.
            ConfigError: There is no such seed.
            StorageError: The disk refused, or the catalogue cannot be written.
        """
        wanted = runs_of(self._study, stages=stages, rows=rows, seeds=seeds)
        outcome = Outcome()
        with_tries = TUNING in stages or not (stages or rows or seeds)
        if self._study.tuning is not None and with_tries:
            for phase in self._tries():
                _add(outcome, self._do(self.items(phase)))
                if outcome.failed:
                    return outcome  # what comes later needs the tries
            for path in tuning.settle(self._study, self._workspace):
                logger.warning("%s has the settings of the best try now.", path)
        _add(outcome, self._do(self.items(wanted)))
        return outcome

    def _tries(self) -> Iterator[list[StudyRun]]:
        """The first row's tries; and, once they are measured, those of the others.

        Those of the others begin with the first row's best settings.
        """
        assert self._study.tuning is not None
        first = self._study.tuning.first
        others = [row for row in self._study.tuning.tries if row != first]

        def runs(rows: Sequence[str]) -> list[StudyRun]:
            found = [tuning.tries(self._study, row, self._workspace) for row in rows]
            by_number = zip(*found, strict=True)  # try 1 of every row, then try 2
            return [each.run for same in by_number for each in same]

        yield runs([first])
        if others:
            yield runs(others)

    def _do(self, items: Sequence[Item]) -> Outcome:
        if not items:
            return Outcome()
        self._listener.planned([item.unit for item in items])
        return run_items(
            items, num_workers=self._num_workers, listener=self._listener, cancel=self._cancel
        )

    def items(self, runs: Sequence[StudyRun]) -> list[Item]:
        """What is to be done for some runs: trained and measured one after the other; curves last.

        The curves of a seed come before the trainings of the next.
        """
        items: list[Item] = []
        for seed in dict.fromkeys((run.stage, run.seed) for run in runs):
            of_seed = [run for run in runs if (run.stage, run.seed) == seed]
            curves = []
            for run in of_seed:
                items += self._main_items(run, known={item.unit.key for item in items})
                curves += self._curve_items(run, known={item.unit.key for item in items})
            items += curves
        return items

    def _main_items(self, run: StudyRun, *, known: set[str]) -> list[Item]:
        """World, training and measurement of a run, those that are left."""
        items = []
        world, train = f"world/seed{run.seed}", f"train/{run.key}"
        of_another = run.suite != run.study.suite
        what = f"{run.key} on {run.suite}" if of_another else run.key
        measure = f"measure/{what}"
        if is_measured(run, self._workspace):
            return []
        if world not in known:
            unit = Unit(world, f"world of seed {run.seed}", WORLD_SECONDS)
            items.append(Item(unit, partial(self._make_world, run.seed)))
        if train not in known and not is_trained(run, self._workspace):
            unit = Unit(train, f"train {run.key}", expected_seconds(run))
            items.append(Item(unit, partial(self._train, run, unit), frozenset({world})))
        if not run.number and measure not in known:
            unit = Unit(measure, f"measure {what}", run.measure_seconds)
            items.append(Item(unit, partial(self._measure, run), frozenset({world, train})))
        return items

    def _curve_items(self, run: StudyRun, *, known: set[str]) -> list[Item]:
        trained = is_trained(run, self._workspace)
        if not tasks_of(run) or (trained and not missing_scores(run, self._workspace)):
            return []
        unit = Unit(f"curve/{run.key}", f"checkpoints of {run.key}", CURVE_SECONDS)
        if unit.key in known:
            return []
        after = frozenset({f"world/seed{run.seed}", f"train/{run.key}"} & known)
        return [Item(unit, partial(self._curve, run), after)]

    # The pieces of work. Each is in a thread of the pool; all but the world are processes.

    def _make_world(self, seed: int) -> None:
        prepare_demo(
            data_root(self._study, seed, self._workspace),
            sizes=self._study.world.demo_sizes,
            seed=seed,
            held_out=self._study.held_out(seed),
            folder=self._study.world.folder,
            num_processes=1,
        )

    def _train(self, run: StudyRun, unit: Unit) -> None:
        folder = run.folder(self._workspace)
        aside = set_aside_another(run, self._workspace)
        if aside is not None:
            logger.warning("%s was of another recipe, and is now %s.", folder, aside)

        def report() -> None:
            state = read_progress(folder)
            if state is not None:
                stage = f"{state.images_per_second:.0f} images/s, loss {state.loss:.2f}"
                self._listener.advanced(unit, stage, state.step, state.total_steps)

        self._command(
            run, "pretrain", run.recipe_name, *run.overrides, "--output", str(folder), "--quiet",
            log="job.log", on_poll=report,
        )  # fmt: skip

    def _measure(self, run: StudyRun) -> None:
        self._command(
            run, "run", "--suite", run.suite, "--seeds", str(run.seed), "--jobs", "1",
            "--backbone", self._study.backbone_of(run.row), log="measure.log",
        )  # fmt: skip
        model = finished_fingerprint(run.folder(self._workspace) / MODEL_FOLDER)
        columns = columns_fingerprint(run.suite)
        storage.write_json(
            _measured_file(run, self._workspace), {"recipe": model, "columns": columns}
        )

    def _curve(self, run: StudyRun) -> None:
        which = ["--try", str(run.number)] if run.number else ["--seed", str(run.seed)]
        self._command(run, "study", "curve", self._study.name, run.row, *which, log="curve.log")

    def _command(
        self,
        run: StudyRun,
        *arguments: str,
        log: str,
        on_poll: Callable[[], None] = lambda: None,
    ) -> None:
        """Run a command of ours with the world of the run's seed as its data."""
        try:
            run_job(
                own_command(
                    *arguments, "--workspace", str(self._workspace.root), "--device", self._device
                ),
                log_file=run.folder(self._workspace) / log,
                num_threads=self._num_threads,
                cancel=self._cancel,
                on_poll=on_poll,
                environment={
                    DATA_VARIABLE: str(data_root(self._study, run.seed, self._workspace)),
                    "COLUMNS": os.environ.get("COLUMNS", "160"),
                },
            )
        except JobCancelled:
            raise KeyboardInterrupt from None


def is_measured(run: StudyRun, workspace: Workspace) -> bool:
    """Whether the run's model is trained and the suite is measured of it; a try needs no suite."""
    if not is_trained(run, workspace):
        return False
    if run.number:
        return not missing_scores(run, workspace)
    recorded = storage.read_object(_measured_file(run, workspace)) or {}
    now = {"recipe": run.fingerprint, "columns": columns_fingerprint(run.suite)}
    return {key: recorded.get(key) for key in now} == now


@cache
def columns_fingerprint(suite: str) -> str:
    """Hash of a suite's data sets with their settings, and of the versions of its protocols.

    What was measured by an earlier version is looked at again; the cells that still hold stand.
    """
    return storage.fingerprint(
        {
            column.name: {
                "task": column.declaration.model_dump(mode="json"),
                "version": column.protocol.preset_version(column.declaration),
            }
            for column in columns_of_suite(load_suite(suite), left_out=[])
        }
    )


def _measured_file(run: StudyRun, workspace: Workspace) -> Path:
    """Where it is kept of which model the run's suite was measured."""
    path = run.folder(workspace) / MEASURED_FILE
    return path if run.suite == run.study.suite else path.with_suffix(f".{run.suite}.json")


def _add(outcome: Outcome, other: Outcome) -> None:
    outcome.done += other.done
    outcome.failed |= other.failed
    outcome.skipped += other.skipped
