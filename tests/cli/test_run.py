"""`maskclip-bench run`: end to end, again, killed at random moments, and with bad input."""

from __future__ import annotations

import errno
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest


def test_run__fills_every_cell_and_the_second_run_changes_nothing(tiny_suite: Any) -> None:
    first = tiny_suite.run("run", "--suite", "tiny")
    assert first.returncode == 0, first.stderr
    scores = tiny_suite.scores()
    assert len(scores) == 4
    assert "MaskCLIP" in first.stdout
    before = snapshot(tiny_suite.workspace)
    second = tiny_suite.run("run", "--suite", "tiny")
    assert second.returncode == 0, second.stderr
    assert "4 recorded, 0 to measure" in second.stderr
    assert snapshot(tiny_suite.workspace) == before


@pytest.mark.slow
def test_run__killed_at_random_moments_ends_with_the_same_table(
    tiny_suite: Any, tmp_path: Path, tiny_data: Path, tiny_catalogue: Path
) -> None:
    reference = tiny_suite.run("run", "--suite", "tiny")
    assert reference.returncode == 0, reference.stderr
    killed = type(tiny_suite)(
        tmp_path / "killed",
        {**tiny_suite.environment, "MASKCLIP_BENCH_WORKSPACE": str(tmp_path / "killed")},
    )
    draw = random.Random(0)
    for _ in range(5):
        process = killed.start("run", "--suite", "tiny")
        time.sleep(draw.uniform(3.0, 14.0))
        process.kill()
        process.wait()
        for path in (killed.workspace / "records").glob("*/*.json"):
            json.loads(path.read_text())  # never half a file
    last = killed.run("run", "--suite", "tiny")
    assert last.returncode == 0, last.stderr
    assert killed.scores() == tiny_suite.scores()
    table = "tables/tiny.md"
    assert (killed.workspace / table).read_text() == (tiny_suite.workspace / table).read_text()


def test_run__a_failing_cell_is_recorded_and_the_rest_goes_on(
    tiny_suite: Any, tiny_data: Path, tmp_path: Path
) -> None:
    catalogue = tmp_path / "more"
    (catalogue / "backbones").mkdir(parents=True)
    (catalogue / "backbones/broken.yaml").write_text(
        "display_name: Broken\nworld: demo\nsource: {python: 'no_such_module:make'}\n"
    )
    environment = dict(tiny_suite.environment)
    environment["MASKCLIP_BENCH_CATALOGUE"] += f":{catalogue}"
    suite = type(tiny_suite)(tiny_suite.workspace, environment)
    done = suite.run("run", "-b", "broken", "-t", "knn/tiny_objects")
    assert done.returncode == 1
    record = json.loads((suite.workspace / "records/broken/knn__tiny_objects.json").read_text())
    assert record["status"] == "failed"
    assert "no_such_module" in record["error"]["message"]
    assert "Traceback" in record["error"]["traceback"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "--suite", "tinny"], 2, "Did you mean 'tiny'?"),
        (["run", "-b", "tiny_clop", "-t", "knn/tiny_objects"], 2, "Did you mean 'tiny_clip'?"),
        (["run", "-b", "tiny_clip", "-t", "knm/tiny_objects"], 2, "Did you mean 'knn'?"),
        (["run", "-b", "tiny_clip", "-t", "knn/tiny_object"], 2, "Did you mean 'tiny_objects'?"),
        (["run", "-b", "tiny_clip", "-t", "knm"], 2, "Did you mean 'knn'?"),
        (["run"], 2, "Say what to run"),
        (["run", "--suite", "tiny", "--seeds", "a"], 2, "is not a list of whole numbers"),
        (["run", "--suite", "tiny", "--device", "tpu9"], 2, "is not a device"),
        (["table", "no_such_table"], 2, "No table"),
        (["data", "prepare", "imagenet"], 2, "imagenet cannot be fetched by a library"),
        (["path", "configs/no.yaml"], 2, "No shipped file"),
    ],
)
def test_bad_names__one_message_and_exit_code_2(
    in_process: Any, arguments: list[str], code: int, message: str
) -> None:
    result = in_process(*arguments)
    assert result.code == code
    assert message in result.errors
    assert "Traceback" not in result.errors


CELL = ("run", "-b", "tiny_untrained", "-t", "knn/tiny_objects")


def test_no_space__one_message_exit_code_4_and_nothing_damaged(
    in_process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("maskclip_bench.storage.fsync_path", full)
        result = in_process(*CELL)
    assert result.code == 4
    assert "No space left on the device" in result.errors
    assert not list((tmp_path / "workspace").rglob("*.json"))
    assert in_process(*CELL).code == 0


def test_workspace_that_cannot_be_written__exit_code_4(in_process: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = in_process(*CELL, "--workspace", str(tmp_path / "file" / "below"))
    assert result.code == 4
    assert "--workspace" in result.errors


def test_damaged_record__is_set_aside_and_measured_again(in_process: Any, tmp_path: Path) -> None:
    assert in_process(*CELL).code == 0
    record = tmp_path / "workspace/records/tiny_untrained/knn__tiny_objects.json"
    whole = json.loads(record.read_text())
    record.write_text(record.read_text()[:100])
    result = in_process(*CELL)
    assert result.code == 0
    assert json.loads(record.read_text())["metrics"] == whole["metrics"]


def test_run__ends_with_a_table_of_the_cells_asked_for(in_process: Any) -> None:
    tables = []
    for arguments in (CELL, CELL, ("table", *CELL[1:])):  # measured now, recorded, later
        result = in_process(*arguments)
        assert result.code == 0
        assert "untrained" in result.output
        assert "±" in result.output
        tables.append(result.output[result.output.index("Measured here") :].strip())
    assert "chance" in tables[0]
    assert tables[0] == tables[1] == tables[2]


def test_run__one_line_on_what_is_not_here(in_process: Any) -> None:
    result = in_process("run", "--backbone", "tiny_untrained", "--task", "knn/*")
    assert result.code == 0, result
    (line,) = [line for line in result.output.splitlines() if "Left out" in line]
    assert "because its data is not on this machine" in line
    assert line.endswith("maskclip-bench plan --backbone tiny_untrained --task 'knn/*'")
    assert result.output.strip().splitlines()[-1] == line


def test_run__limit_is_a_trial_kept_apart(in_process: Any, tmp_path: Path) -> None:
    result = in_process(*CELL, "--limit", "4")
    assert result.code == 0
    assert "trials on at most 4 images" in result.output
    assert (tmp_path / "workspace/records_limit_4/tiny_untrained/knn__tiny_objects.json").is_file()
    assert not (tmp_path / "workspace/records").exists()
    assert in_process(*CELL, "--limit", "0").code == 2


def test_plan__why(in_process: Any) -> None:
    cell = "tiny_untrained/knn/tiny_objects"
    assert "has no record" in in_process("plan", "--why", cell).output
    assert in_process(*CELL).code == 0
    assert f"{cell} holds" in in_process("plan", "--why", cell).output
    wrong = in_process("plan", "--why", "nothing")
    assert wrong.code == 2
    assert "is no cell" in wrong.errors


def test_run__an_encoder_that_exits_with_0_is_a_failed_cell(
    in_process: Any, tmp_path: Path, tiny_catalogue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine/backbones").mkdir(parents=True)
    (tmp_path / "mine/backbones/exits.yaml").write_text(
        "display_name: 'x[/bold]'\nworld: demo\nsource: {python: 'exits_at_once:make'}\n"
    )
    (tmp_path / "exits_at_once.py").write_text("def make():\n    raise SystemExit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    catalogue = f"{tiny_catalogue}{os.pathsep}{tmp_path / 'mine'}"
    monkeypatch.setenv("MASKCLIP_BENCH_CATALOGUE", catalogue)
    result = in_process("run", "-b", "exits", "-b", "tiny_untrained", "-t", "knn/tiny_objects")
    assert result.code == 1
    assert "failed exits/knn/tiny_objects" in result.output
    assert "x[/bold]" in result.output
    records = tmp_path / "workspace/records"
    failed = json.loads((records / "exits/knn__tiny_objects.json").read_text())
    good = json.loads((records / "tiny_untrained/knn__tiny_objects.json").read_text())
    assert (failed["status"], good["status"]) == ("failed", "ok")


def test_unknown_key_in_a_declaration__suggests_the_right_one(
    in_process: Any, tmp_path: Path, tiny_catalogue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine/backbones").mkdir(parents=True)
    (tmp_path / "mine/backbones/typo.yaml").write_text(
        "display_nam: Typo\nworld: demo\nsource: {timm: test_vit}\n"
    )
    catalogue = f"{tiny_catalogue}{os.pathsep}{tmp_path / 'mine'}"
    monkeypatch.setenv("MASKCLIP_BENCH_CATALOGUE", catalogue)
    result = in_process("run", "-b", "typo", "-t", "knn/tiny_objects")
    assert result.code == 2
    assert "Did you mean 'display_name'?" in result.errors


def test_plan__says_what_is_recorded_and_what_is_not(in_process: Any) -> None:
    arguments = ("plan", "-b", "tiny_untrained", "-b", "tiny_clip", "-t", "*/tiny_objects")
    before = in_process(*arguments)
    assert before.code == 0
    assert "to measure" in before.output
    assert "tiny/clip" in before.output
    assert in_process(*CELL).code == 0
    assert "recorded" in in_process(*arguments).output


def test_plan__of_a_data_set_alone_cell_by_cell(in_process: Any) -> None:
    result = in_process("plan", "-b", "tiny_untrained", "-t", "tiny_objects", "--cells")
    assert result.code == 0
    assert "to measure    tiny_untrained/zero_shot_classification/tiny_objects" in result.output
    assert "to measure    tiny_untrained/knn/tiny_objects" in result.output


def test_plan__without_options_is_of_all(in_process: Any) -> None:
    assert in_process("plan").output == in_process("plan", "--suite", "all").output


def test_exit_code__an_extra_that_is_not_installed_is_told_apart() -> None:
    from maskclip_bench.cli.run import _exit_code
    from maskclip_bench.errors import DataError, MissingDependencyError
    from maskclip_bench.tasks.cell import LeftOut
    from maskclip_bench.tasks.execution import RunResult
    from maskclip_bench.tasks.plan import Plan

    from .test_run_view import record

    absent = LeftOut("a", "b", "c", MissingDependencyError("no mmseg"))
    other = LeftOut("a", "b", "c", DataError("no data"))
    assert _exit_code(Plan(), RunResult()) == 0
    assert _exit_code(Plan(left_out=[absent]), RunResult()) == 5
    assert _exit_code(Plan(left_out=[absent, other]), RunResult()) == 3
    failed = record(message="no transformers")
    assert failed.error is not None
    error = failed.error.model_copy(update={"type": "MissingDependencyError"})
    missing = failed.model_copy(update={"error": error})
    assert _exit_code(Plan(), RunResult(failed=[missing])) == 5
    assert _exit_code(Plan(), RunResult(failed=[missing, failed])) == 1
    assert _exit_code(Plan(), RunResult(failed=[failed])) == 1


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and modification time of every file, without locks."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }
