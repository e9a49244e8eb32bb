"""`scripts/gpu_check.py` runs whole on a CPU, so that it does when a card is at hand."""

from __future__ import annotations

import json
import os
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
    [("correctness", 10), ("speed", 5), ("loader", 3), ("features", 2), ("many_passes", 1)],
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


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_dense_runs_on_a_cpu_or_says_why_not(tmp_path: Path) -> None:
    (row,) = run(tmp_path, "dense")["dense"]["rows"]  # type: ignore[misc]
    assert row.get("skipped") or row["rc"] == 0, row


def test_parts_fit_into_eight_minutes(script: ModuleType) -> None:
    limits = dict(script.PARTS)
    limits.pop("many_passes")  # has what is left
    assert sum(limits.values()) <= script.WHOLE_SECONDS == 8 * 60
    assert set(script.PARTS) <= set(vars(script))


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
