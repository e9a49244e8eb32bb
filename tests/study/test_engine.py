from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maskclip_bench.errors import JobError
from maskclip_bench.jobs import JobCancelled
from maskclip_bench.progress import Unit
from maskclip_bench.runtime import Workspace
from maskclip_bench.study import engine, tuning
from maskclip_bench.study.declaration import StudyDeclaration
from maskclip_bench.study.engine import Item, StudyEngine, is_measured, run_items
from maskclip_bench.study.runs import StudyRun, runs_of
from maskclip_bench.tasks.protocols.linear_probe import LinearProbe
from tests.study.conftest import Finish, scores


class Told:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.notes: dict[str, tuple[bool, str]] = {}
        self.units: list[str] = []

    def planned(self, units: list[Unit]) -> None:
        self.units += [unit.key for unit in units]

    def started(self, unit: Unit) -> None:
        pass

    def advanced(self, unit: Unit, stage: str, done: float, total: float) -> None:
        pass

    def finished(self, unit: Unit, *, ok: bool, note: str) -> None:
        self.notes[unit.key] = (ok, note)


def item(key: str, work: Callable[[], None], *after: str) -> Item:
    return Item(Unit(key, key, 1.0), work, frozenset(after))


def test_run_items__the_first_ones_first_and_none_before_what_it_needs() -> None:
    order: list[str] = []
    items = [
        item("b", lambda: order.append("b"), "a"),
        item("a", lambda: order.append("a")),
        item("c", lambda: order.append("c")),
    ]
    told = Told()
    outcome = run_items(items, num_workers=1, listener=told, cancel=threading.Event())
    assert order == ["a", "b", "c"]
    assert outcome.done == order and not outcome.failed
    assert told.notes["b"] == (True, "")


def test_run_items__two_at_a_time() -> None:
    meet = threading.Barrier(2, timeout=20)
    items = [item(key, lambda: meet.wait() and None) for key in "ab"]
    outcome = run_items(items, num_workers=2, listener=Told(), cancel=threading.Event())
    assert sorted(outcome.done) == ["a", "b"]


def test_run_items__what_needs_a_failed_one_is_left_out_and_the_rest_is_done() -> None:
    def fail() -> None:
        raise JobError("it broke\nlog: ...")

    items = [
        item("a", fail),
        item("b", lambda: None, "a"),
        item("c", lambda: None, "b"),
        item("d", lambda: None),
    ]
    told = Told()
    outcome = run_items(items, num_workers=1, listener=told, cancel=threading.Event())
    assert outcome.done == ["d"] and outcome.skipped == ["b", "c"]
    assert outcome.failed["a"].startswith("it broke")
    assert told.notes["a"] == (False, "it broke")
    assert told.notes["b"] == (False, "left out: a failed")


def test_run_items__an_interruption_stops_the_others() -> None:
    cancel = threading.Event()

    def interrupted() -> None:
        raise KeyboardInterrupt

    items = [item("a", interrupted), item("b", lambda: cancel.wait(20) and None)]
    with pytest.raises(KeyboardInterrupt):
        run_items(items, num_workers=2, listener=Told(), cancel=cancel)
    assert cancel.is_set()


Commands = list[tuple[str, ...]]
COLUMNS_FINGERPRINT = engine.columns_fingerprint


@pytest.fixture(autouse=True)
def no_suites(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suites of the tests have no files."""
    monkeypatch.setattr(engine, "columns_fingerprint", lambda suite: f"columns of {suite}")


@pytest.fixture
def commands(
    study: StudyDeclaration,
    workspace: Workspace,
    finish: Finish,
    monkeypatch: pytest.MonkeyPatch,
) -> Commands:
    """Commands are noted, and leave behind what they would."""
    seen: Commands = []

    def run_job(command: list[str], *, log_file: Path, environment: Any, **rest: Any) -> None:
        words = tuple(command[command.index("maskclip_bench") + 1 :])
        seen.append((Path(environment["MASKCLIP_BENCH_DATA"]).name, *words))
        assert rest["num_threads"] == 1
        if words[0] == "pretrain":
            settings = tuple(
                (key, float(value))
                for key, value in (w.split("=") for w in words[2:] if "=" in w)
                if key != "seed"
            )
            folder = Path(words[words.index("--output") + 1])
            tried = "tries" in folder.parts
            run = StudyRun(
                study,
                "",
                folder.name.split("-")[0] if tried else folder.parent.name,
                9 if tried else int(folder.name.removeprefix("seed")),
                settings=settings,
                number=int(folder.name.split("-")[1]) if tried else 0,
            )
            finish(run)
        elif words[:2] == ("study", "curve"):
            folder = log_file.parent
            number = float(folder.name[-1])
            content = {4: scores(0.1), 8: scores(number / 10)}
            (folder / "curve.json").write_text(json.dumps(content))

    monkeypatch.setattr(engine, "run_job", run_job)
    monkeypatch.setattr(
        StudyEngine, "_make_world", lambda self, seed: seen.append(("world", str(seed)))
    )
    return seen


def make_engine(study: StudyDeclaration, workspace: Workspace, told: Told) -> StudyEngine:
    return StudyEngine(study, workspace, device="cpu", num_workers=1, listener=told)


def test_engine__a_stage_in_its_order_and_nothing_twice(
    study: StudyDeclaration, workspace: Workspace, commands: Commands
) -> None:
    told = Told()
    outcome = make_engine(study, workspace, told).run(stages=["main"], seeds=[0])
    assert not outcome.failed
    assert outcome.done == [
        "world/seed0", "train/clip/seed0", "measure/clip/seed0", "train/maskclip/seed0",
        "measure/maskclip/seed0", "curve/clip/seed0", "curve/maskclip/seed0",
    ]  # fmt: skip
    root = str(workspace.root)
    assert commands[1] == (
        "seed0", "pretrain", "tiny/clip", "seed=0", "--output",
        str(runs_of(study)[0].folder(workspace)), "--quiet", "--workspace", root, "--device", "cpu",
    )  # fmt: skip
    assert commands[2][:10] == (
        "seed0", "run", "--suite", "tiny", "--seeds", "0", "--jobs", "1", "--backbone", "tiny-clip",
    )  # fmt: skip
    assert is_measured(runs_of(study)[0], workspace)
    del commands[:]
    assert make_engine(study, workspace, told).run(stages=["main"], seeds=[0]).done == []
    assert commands == []


def test_engine__a_later_stage_measures_more_of_the_same_runs(
    study: StudyDeclaration, workspace: Workspace, commands: Commands
) -> None:
    more = study.stages[1].model_copy(update={"suite": "dense", "measure_minutes": 9.0})
    study = study.model_copy(update={"stages": [study.stages[0], more]})
    assert study.suites == ["tiny", "dense"]
    told = Told()
    outcome = make_engine(study, workspace, told).run(rows=["clip"], seeds=[0])
    assert outcome.done == [
        "world/seed0", "train/clip/seed0", "measure/clip/seed0", "curve/clip/seed0",
        "measure/clip/seed0 on dense",
    ]  # fmt: skip
    assert [words[3] for words in commands if words[1] == "run"] == ["tiny", "dense"]
    first, second = runs_of(study, rows=["clip"], seeds=[0])
    assert (first.measure_seconds, second.measure_seconds) == (150.0, 540.0)
    assert is_measured(first, workspace) and is_measured(second, workspace)
    # Each suite is known by itself: the one that is missing is measured, and nothing else.
    (first.folder(workspace) / "measured.dense.json").unlink()
    assert make_engine(study, workspace, told).run(rows=["clip"], seeds=[0]).done == [
        "world/seed0", "measure/clip/seed0 on dense",
    ]  # fmt: skip


def test_engine__tries_first_then_settled_then_the_rest(
    study: StudyDeclaration,
    workspace: Workspace,
    commands: Commands,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "shipped_root", lambda: tmp_path / "shipped")
    outcome = make_engine(study, workspace, Told()).run()
    trained = [key for key in outcome.done if key.startswith("train/")]
    assert trained[:4] == [
        "train/tries/clip-1", "train/tries/clip-2", "train/tries/maskclip-1",
        "train/tries/maskclip-2",
    ]  # fmt: skip
    assert trained[4] == "train/clip/seed0"
    assert ("world", "9") in commands
    others = [words for words in commands if "tiny/maskclip" in words and "seed=9" in words]
    # Try 2 of CLIP is the best: its learning rate goes with all tries of MaskCLIP.
    assert all("optimizer.lr=0.002" in words for words in others) and len(others) == 2
    assert (tmp_path / "shipped" / "configs/pretrain/tiny/_settled_clip.yaml").exists()


def test_engine__reported_runs_wait_for_the_tries(
    study: StudyDeclaration, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise JobError("no")

    monkeypatch.setattr(engine, "run_job", refuse)
    monkeypatch.setattr(StudyEngine, "_make_world", lambda self, seed: None)
    told = Told()
    outcome = make_engine(study, workspace, told).run()
    assert {key.split("/")[1] for key in outcome.failed} == {"tries"}
    assert not any("seed0" in unit for unit in told.units)


def test_engine__an_interrupted_job_interrupts_the_study(
    study: StudyDeclaration, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancelled(*_: Any, **__: Any) -> None:
        raise JobCancelled

    monkeypatch.setattr(engine, "run_job", cancelled)
    monkeypatch.setattr(StudyEngine, "_make_world", lambda self, seed: None)
    with pytest.raises(KeyboardInterrupt):
        make_engine(study, workspace, Told()).run(rows=["clip"], seeds=[0])


def test_engine__a_world_of_the_seed_with_its_artist(
    study: StudyDeclaration, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Any] = {}
    monkeypatch.setattr(engine, "prepare_demo", lambda root, **given: made.update(given, root=root))
    make_engine(study, workspace, Told())._make_world(1)
    assert made["root"] == workspace.root / "studies" / "small" / "seed1"
    assert made["held_out"] == ["fluent", "fluent-flat"]
    assert (made["seed"], made["folder"], made["sizes"].pretrain) == (1, "demo_long", 96)


def test_is_measured__not_of_a_model_that_was_trained_again(
    study: StudyDeclaration, workspace: Workspace, finish: Finish
) -> None:
    run = runs_of(study)[0]
    folder = finish(run)
    whole = {"recipe": run.fingerprint, "columns": "columns of tiny"}
    for content in ({}, {**whole, "recipe": "other"}, {"recipe": run.fingerprint}):
        (folder / "measured.json").write_text(json.dumps(content))
        assert not is_measured(run, workspace)
    (folder / "measured.json").write_text("")
    assert not is_measured(run, workspace)
    (folder / "measured.json").write_text(json.dumps(whole))
    assert is_measured(run, workspace)


def test_is_measured__not_by_an_earlier_version_of_a_protocol(
    study: StudyDeclaration, workspace: Workspace, commands: Commands, monkeypatch: Any
) -> None:
    make_engine(study, workspace, Told()).run(stages=["main"], rows=["clip"], seeds=[0])
    run = runs_of(study)[0]
    assert is_measured(run, workspace)
    monkeypatch.setattr(engine, "columns_fingerprint", lambda suite: "newer")
    assert not is_measured(run, workspace)
    del commands[:]
    outcome = make_engine(study, workspace, Told()).run(stages=["main"], rows=["clip"], seeds=[0])
    assert outcome.done == ["world/seed0", "measure/clip/seed0"]
    assert is_measured(run, workspace)


def test_columns_fingerprint__follows_the_versions_of_protocols(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fingerprint = COLUMNS_FINGERPRINT.__wrapped__
    before = fingerprint("demo_long")
    assert before == fingerprint("demo_long")
    assert before != fingerprint("demo_long_dense")
    monkeypatch.setattr(LinearProbe, "preset_version", lambda self, task: 99)
    assert fingerprint("demo_long") != before
    assert fingerprint("demo_long_dense") == fingerprint("demo_long_dense")
