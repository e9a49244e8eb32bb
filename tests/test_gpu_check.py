"""`scripts/gpu_check.py` runs whole on a CPU, so that it does when a card is at hand."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.files import module_of

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "gpu_check.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return module_of("scripts/gpu_check.py")


def run(output: Path, *parts: str) -> dict[str, dict[str, object]]:
    """Run parts of it on a CPU -> what it wrote of each."""
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--output", str(output)]
    done = subprocess.run(
        [*command, "--parts", *parts],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((output / "gpu_check.json").read_text())
    table = (output / "gpu_check.md").read_text()
    assert table in done.stdout
    assert all(f"## {part} " in table for part in parts)
    parts_found: dict[str, dict[str, object]] = found["parts"]
    return parts_found


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("part", "num_rows"),
    [
        ("correctness", 10),
        pytest.param(
            "compiled",
            2,
            marks=pytest.mark.skipif(shutil.which("g++") is None, reason="torch needs g++"),
        ),
        ("speed", 6),
        ("loader", 3),
        ("features", 2),
        ("many_passes", 5),
    ],
)
def test_every_part_runs_on_a_cpu(tmp_path: Path, part: str, num_rows: int) -> None:
    found = run(tmp_path, part)[part]
    assert found["status"] == "ok"
    rows = found["rows"]
    assert isinstance(rows, list)
    assert len(rows) == num_rows
    for row in rows:
        assert "error" not in row, row
        assert row.get("rc", 0) == 0, row
        assert row.get("loss_difference", 0) == 0  # of the CPU beside itself
        assert row.get("reduce_scatter_equal", True)
        assert row.get("largest_difference", 0) == 0  # of held pairs beside the loader's
        assert row.get("largest_loss_difference", 0) < 1e-4  # of compiled steps beside plain ones


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_dense_runs_on_a_cpu_or_says_why_not(tmp_path: Path) -> None:
    rows = run(tmp_path, "dense")["dense"]["rows"]
    assert isinstance(rows, list)
    if len(rows) == 1:
        assert rows[0]["skipped"]
        return
    assert [row["what"].split(",")[0] for row in rows] == [
        *("upernet", "adapter") * 2,
        *("mask-rcnn",) * 2,
    ]
    for row in rows:
        assert "error" not in row, row
        assert row.get("iteration", 1) > 0


def test_parts_fit_into_a_quarter_of_an_hour(script: ModuleType) -> None:
    limits = dict(script.PARTS)
    limits.pop("many_passes")  # has what is left
    assert sum(limits.values()) <= script.WHOLE_SECONDS - script.SHORTEST
    assert script.WHOLE_SECONDS == 15 * 60
    assert set(script.PARTS) <= set(vars(script))


@pytest.mark.parametrize("row", ["clip", "maskclip"])
def test_long_recipe__is_the_studys_but_for_how_it_is_loaded(script: ModuleType, row: str) -> None:
    from maskclip_bench.pretrain.recipe import load_recipe

    options = argparse.Namespace(tiny=False, cut_steps=0)
    found = script.long_recipe(options, row, "device")
    assert found.data.held == "device"
    expected = load_recipe(f"demo_long/{row}")
    assert found.computation_fingerprint() == expected.computation_fingerprint()
    assert found.epochs == expected.epochs
    options.cut_steps = 7
    cut = script.long_recipe(options, row, "none")
    assert cut.epochs is None
    assert cut.num_pairs == 7 * cut.global_batch_size


def test_passes__stop_when_their_time_is_over(
    script: ModuleType, tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maskclip_bench.data.shapes import write_shape_shards

    write_shape_shards(tmp_path / "shapes", num_samples=64, num_shards=2, size=24)
    recipe = tiny.tiny_recipe(
        data={"held": "device"}, num_pairs=10**9, checkpoint={"every_steps": 10**6}
    )
    monkeypatch.setattr(script, "long_recipe", lambda *given, compiled: recipe)
    options = argparse.Namespace(tiny=False, cut_steps=0, device="cpu")
    wanted = script.Passes(tmp_path, "clip", 2.0)
    before = signal.getsignal(signal.SIGALRM)
    try:
        found = script.passes(options, wanted)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert found["stopped"]
    assert 0 < found["pairs"] < 10**9
    assert found["seconds_of_600000"] == pytest.approx(600_000 / found["pairs_per_second"])
    assert found["goal_pairs_per_second"] == 10_000
    none = script.Passes(tmp_path, "clip", 0.0, held="none")
    assert script.passes(options, none) == {"skipped": "no time was left"}


def test_dense__without_openmmlab_it_says_so(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "DENSE_PACKAGES", ("mmno", "json", "mmnever"))
    rows: list[object] = []
    script.dense(argparse.Namespace(), lambda what, **numbers: rows.append((what, numbers)))
    assert rows == [("dense", {"skipped": "not installed here: mmno, mmnever"})]


def test_attempt__an_error_is_a_field(script: ModuleType) -> None:
    def fail() -> dict[str, object]:
        raise RuntimeError("CUDA: out of memory")

    assert script.attempt(fail) == {"error": "RuntimeError: CUDA: out of memory"}


def test_to_markdown(script: ModuleType) -> None:
    rows = [{"what": "clip", "seconds": 0.12345, "error": "a|b\nc"}, {"what": "slip"}]
    found = {
        "machine": {"device": "X1", "torch": "2"},
        "parts": {"speed": {"seconds": 3.2, "status": "stopped after 3 s", "rows": rows}},
    }
    text = script.to_markdown(found)
    assert "# GPU check: X1" in text
    assert "## speed (3 s, stopped after 3 s)" in text
    assert "| clip | 0.1235 | a/b c |" in text
    assert "| slip |  |  |" in text
