from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.files import module_of

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return module_of("scripts/training_curves.py")


def run(folder: Path, values: dict[int, float]) -> str:
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": step, "x": value}) for step, value in values.items()]
    (folder / "log.jsonl").write_text("\n".join([*lines, '{"step": 9, "other": 1}', ""]))
    return str(folder)


def test_table_and_figure(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = run(tmp_path / "clip" / "seed0", {1: 0.5, 2: 0.25, 3: 0.1251})
    other = run(tmp_path / "maskclip" / "seed0", {2: 1.0, 3: 2.0})
    picture = tmp_path / "x.png"
    script.main([one, other, "--key", "x", "--every", "2", "--figure", str(picture)])
    assert capsys.readouterr().out.splitlines() == [
        "| step | clip | maskclip |",
        "| --- | --- | --- |",
        "| 2 | 0.250 | 1.000 |",
        "| 3 | 0.125 | 2.000 |",
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_table__nothing_in_common(script: ModuleType, tmp_path: Path) -> None:
    runs = [run(tmp_path / name / "seed0", {step: 1.0}) for name, step in (("a", 1), ("b", 2))]
    with pytest.raises(SystemExit, match="no step in common"):
        script.main([*runs, "--key", "x"])
