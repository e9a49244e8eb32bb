"""Execution: a cell that fails is recorded, whatever it raised, and the run goes on."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maskclip_bench import storage
from maskclip_bench.backbones import Backbone, BackboneDeclaration
from maskclip_bench.errors import StorageError
from maskclip_bench.progress import Unit
from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks import PROTOCOLS, execution
from maskclip_bench.tasks.cell import Column, PlannedCell, Row
from maskclip_bench.tasks.execution import Execution, RunResult, failure_line, in_one_line
from maskclip_bench.tasks.plan import Plan

from .conftest import BlindEncoder, ColourEncoder, make_backbone, squares_task


class Quiet:
    """A listener that keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, bool, str]] = []

    def planned(self, units: list[Unit]) -> None:
        pass

    def started(self, unit: Unit) -> None:
        pass

    def advanced(self, unit: Unit, stage: str, done: float, total: float) -> None:
        pass

    def finished(self, unit: Unit, *, ok: bool, note: str) -> None:
        self.notes.append((unit.key, ok, note))


class Raising(ColourEncoder):
    """Raises what it is given when it sees an image."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def forward_features(self, images: Tensor) -> Tensor:
        raise self.error

    def encode_image(self, images: Tensor) -> Tensor:
        raise self.error


class Unspeakable(Exception):
    """An exception whose text cannot be made."""

    def __str__(self) -> str:
        raise ValueError("no text")


def endless() -> None:
    endless()


def deep() -> BaseException:
    try:
        endless()
    except RecursionError as error:
        return error
    raise AssertionError


ERRORS: dict[str, Callable[[], BaseException]] = {
    "without text": lambda: ValueError(),
    "empty lines": lambda: ValueError("\n\n"),
    "exit 0": lambda: SystemExit(0),
    "exit": lambda: SystemExit(),
    "generator exit": lambda: GeneratorExit(),
    "recursion": deep,
    "memory": lambda: MemoryError(),
    "assertion": lambda: AssertionError(),
    "unspeakable": lambda: Unspeakable(),
    "no such file": lambda: FileNotFoundError(errno.ENOENT, "no", "weights.bin"),
}


def execute(
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    encoders: dict[str, Callable[[], object]],
    *,
    protocols: Sequence[str] = ("knn",),
    num_jobs: int = 1,
    asked: bool = False,
    limit: int | None = None,
    when_idle: Callable[[Callable[[], None]], None] | None = None,
) -> tuple[RunResult, Quiet]:
    """Run cells of rows that are made by functions."""

    def load(declaration: object, **options: object) -> Backbone:
        name = declaration.name  # type: ignore[attr-defined]
        return make_backbone(encoders[name](), name)

    monkeypatch.setattr(execution, "load_backbone", load)
    task = squares_task()
    cells = [
        PlannedCell(
            Row(name, make_backbone(ColourEncoder(), name).declaration),
            Column(PROTOCOLS[protocol], task),
            None,
            asked=asked,
        )
        for name in encoders
        for protocol in protocols
    ]
    listener = Quiet()
    run = Execution(
        Plan(cells=cells, limit=limit),
        workspace,
        device=torch.device("cpu"),
        num_jobs=num_jobs,
        listener=listener,
        when_idle=when_idle,
    )
    return run.run(), listener


@pytest.mark.parametrize("kind", ERRORS)
def test_run__whatever_an_encoder_raises_is_a_failed_cell(
    kind: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, listener = execute(
        workspace,
        monkeypatch,
        {"bad": lambda: Raising(ERRORS[kind]()), "good": ColourEncoder},
    )
    assert [record.row_id for record in result.measured] == ["good"]
    (failed,) = result.failed
    assert failed.status == "failed"
    assert failed.protocol_title == "kNN"  # as the table calls it
    assert not failed.metrics
    assert failure_line(failed)
    standing = RecordStore(workspace.records).load("bad", "knn", "squares")
    assert standing is not None
    assert standing.status == "failed"
    assert {note for _, ok, note in listener.notes if not ok} == {failure_line(failed)}


@pytest.mark.parametrize("kind", ["exit 0", "without text", "recursion"])
def test_run__whatever_loading_raises_is_a_failure_of_the_rows_cells(
    kind: str, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def make() -> object:
        calls.append(1)
        raise ERRORS[kind]()

    result, _ = execute(
        workspace, monkeypatch, {"bad": make, "good": ColourEncoder}, protocols=("knn", "few_shot")
    )
    assert {record.row_id for record in result.failed} == {"bad"}
    assert len(result.failed) == len(result.measured) == 2
    assert len(calls) == 1  # loaded once, not once a cell


def test_run__not_a_number_is_a_failed_cell_that_names_row_and_samples(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NaN(ColourEncoder):
        def forward_features(self, images: Tensor) -> Tensor:
            return super().forward_features(images) * torch.nan

        def encode_image(self, images: Tensor) -> Tensor:
            return super().encode_image(images) * torch.nan

    protocols = ("zero_shot_classification", "linear_probe", "knn", "few_shot")
    result, _ = execute(workspace, monkeypatch, {"nan": NaN}, protocols=protocols)
    assert not result.measured
    assert len(result.failed) == 4
    for record in result.failed:
        assert record.error is not None
        assert record.error.type == "NonFiniteError"
        assert "nan" in record.error.message
        assert ".png" in record.error.message


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StorageError("full")])
def test_run__an_interrupt_and_a_refusing_disk_stop_it(
    error: BaseException, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(type(error)):
        execute(workspace, monkeypatch, {"bad": lambda: Raising(error), "good": ColourEncoder})
    assert not list(workspace.root.rglob("*.json"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_run__a_full_disk_behind_another_error_stops_it(
    code: int, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = RuntimeError("could not compile")
    wrapped.__cause__ = OSError(code, "full")
    with pytest.raises(StorageError, match="--workspace"):
        execute(workspace, monkeypatch, {"bad": lambda: Raising(wrapped)})


def test_run__a_full_disk_when_features_are_written_stops_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(storage, "fsync_path", full)
    with pytest.raises(StorageError, match="No space left"):
        execute(workspace, monkeypatch, {"good": ColourEncoder})


@pytest.mark.parametrize("asked", [False, True])
def test_run__a_row_found_without_text_tower_is_left_out_unless_asked_for(
    asked: bool, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = execute(
        workspace,
        monkeypatch,
        {"blind": BlindEncoder},
        protocols=("zero_shot_classification", "knn"),
        asked=asked,
    )
    assert [record.task for record in result.measured] == ["knn/squares"]
    if asked:
        (failed,) = result.failed
        assert "no text tower" in failure_line(failed)
        assert not result.left_out
    else:
        assert not result.failed
        (left,) = result.left_out
        assert left.what == "blind x zero_shot_classification/squares"
        assert not (workspace.records / "blind/zero_shot_classification__squares.json").exists()


def test_run__a_limit_keeps_its_records_apart(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = execute(workspace, monkeypatch, {"good": ColourEncoder}, limit=12)
    (record,) = result.measured
    assert record.budget == {"limit": 12}
    assert record.metrics["top1_accuracy"].num_samples == 12
    assert not workspace.records.exists()
    assert (workspace.root / "records_limit_12/good/knn__squares.json").is_file()


def test_run__two_workers_measure_what_one_measures(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    encoders: dict[str, Callable[[], object]] = {"a": ColourEncoder, "b": BlindEncoder}

    def scores(num_jobs: int) -> dict[str, float]:
        place = Workspace(root=tmp_path / str(num_jobs), data=workspace.data)
        result, _ = execute(
            place, monkeypatch, encoders, protocols=("knn", "few_shot"), num_jobs=num_jobs
        )
        return {f"{r.row_id}/{r.task}": r.primary.value for r in result.measured}

    one, two = scores(1), scores(2)
    assert one == two
    assert len(one) == 4


def test_run__untrained_rows_side_by_side_get_the_weights_they_get_alone(
    workspace: Workspace, tmp_path: Path
) -> None:
    """Two rows drawn from torch's generator at once, in two threads, must not share its state."""
    source = {"recipe": "demo/clip", "random_init": True}
    declaration = BackboneDeclaration.model_validate(
        {"name": "drawn", "display_name": "Drawn", "world": "demo", "source": source}
    )

    def weights(num_jobs: int) -> dict[int, str]:
        cells = [
            PlannedCell(
                Row("drawn", declaration, seed), Column(PROTOCOLS["knn"], squares_task()), None
            )
            for seed in (0, 1)
        ]
        place = Workspace(root=tmp_path / str(num_jobs), data=workspace.data)
        result = Execution(
            Plan(cells=cells),
            place,
            device=torch.device("cpu"),
            num_jobs=num_jobs,
            listener=Quiet(),
        ).run()
        assert not result.failed, result.failed[0].error
        return {r.cell.seed: r.provenance["weights_state"] for r in result.measured}

    alone, together = weights(1), weights(2)
    assert together == alone
    assert together[0] != together[1]


def test_failure_line__never_empty() -> None:
    for message, expected in (("", "E"), ("\n \n", "E"), ("\na\n  - b", "E: a - b")):
        record = Record.model_validate(
            {
                "cell": {
                    "backbone": "b",
                    "protocol": "knn",
                    "dataset": "d",
                    "world": "demo",
                    "cell_fingerprint": "x",
                },
                "status": "failed",
                "error": {"type": "E", "message": message, "traceback": ""},
            }
        )
        assert failure_line(record) == expected


def test_in_one_line__cuts_what_is_long() -> None:
    assert in_one_line(" a\n\tb ") == "a b"
    assert in_one_line("x" * 400) == "x" * 299 + "…"


def test_run__tells_of_each_row_when_it_is_done(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[str]] = []
    names = ["one", "two"]

    def load(declaration: object, **options: object) -> Backbone:
        return make_backbone(ColourEncoder(), declaration.name)  # type: ignore[attr-defined]

    monkeypatch.setattr(execution, "load_backbone", load)
    cells = [
        PlannedCell(
            Row(name, make_backbone(ColourEncoder(), name).declaration),
            Column(PROTOCOLS["knn"], squares_task()),
            None,
        )
        for name in names
    ]
    Execution(
        Plan(cells=cells),
        workspace,
        device=torch.device("cpu"),
        num_jobs=1,
        listener=Quiet(),
        row_done=lambda result: told.append([record.row_id for record in result.measured]),
    ).run()
    assert told == [["one"], ["one", "two"]]


class Slow(ColourEncoder):
    """Waits for something else before it sees an image."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__()
        self.event = event

    def forward_features(self, images: Tensor) -> Tensor:
        assert self.event.wait(20)
        return super().forward_features(images)


@pytest.mark.parametrize("fails", [False, True])
def test_run__an_idle_worker_works_ahead_once(
    fails: bool, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, event = [], threading.Event()

    def ahead(between: Callable[[], None]) -> None:
        between()
        called.append(threading.current_thread().name)
        event.set()
        if fails:
            raise ValueError("only time is lost")

    encoders: dict[str, Callable[[], object]] = {"a": ColourEncoder, "b": lambda: Slow(event)}
    result, _ = execute(workspace, monkeypatch, encoders, num_jobs=2, when_idle=ahead)
    assert [record.status for record in result.measured] == ["ok", "ok"]
    assert len(called) == 1
    assert called[0].startswith("cell")


def test_run__a_worker_alone_is_never_idle(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders: dict[str, Callable[[], object]] = {"a": ColourEncoder, "b": ColourEncoder}
    called: list[object] = []
    execute(workspace, monkeypatch, encoders, num_jobs=1, when_idle=called.append)
    assert called == []
