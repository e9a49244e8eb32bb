from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from maskclip_bench.report.build import build
from maskclip_bench.report.show import show_cells
from maskclip_bench.report.stored_pictures import copy_pictures, stored_pictures
from maskclip_bench.results.records import Record, RecordStore
from maskclip_bench.runtime import Workspace
from tests.report.measurements import MADE

LIST = "jobs/first/detection__things-1/pictures_val.json"


@pytest.fixture
def workspace(store: RecordStore) -> Workspace:
    opened = Workspace.open(store.root.parent)
    folder = (opened.root / LIST).parent
    (folder / "pictures_val").mkdir(parents=True)
    Image.new("RGB", (1000, 400), "red").save(folder / "pictures_val/000.png")
    (opened.root / "secret.png").write_bytes((folder / "pictures_val/000.png").read_bytes())
    entries = [
        {"file": "pictures_val/000.png", "sample_id": "a<b>.jpg"},
        {"file": "pictures_val/missing.png", "sample_id": "missing"},
        {"file": "../../../secret.png", "sample_id": "outside"},
    ]
    (opened.root / LIST).write_text(json.dumps({"pictures": entries}))
    return opened


@pytest.fixture
def record(save: Callable[..., Record]) -> Record:
    made = MADE["detection/things"](2)
    details = {"pictures": {"val": LIST, "out": "../elsewhere.json", "gone": "jobs/gone.json"}}
    return save("first", "detection/things", dataclasses.replace(made, details=details))


def test_stored_pictures__only_those_inside(workspace: Workspace, record: Record) -> None:
    (found,) = stored_pictures(record, workspace)
    assert (found.split, found.sample_id) == ("val", "a<b>.jpg")
    assert stored_pictures(record, None) == []


@pytest.mark.parametrize("text", ["", "[]", '{"pictures": [{"file": "x"}]}'])
def test_stored_pictures__a_damaged_list(workspace: Workspace, record: Record, text: str) -> None:
    (workspace.root / LIST).write_text(text)
    assert stored_pictures(record, workspace) == []


def test_copy_pictures__smaller_ones(workspace: Workspace, record: Record, tmp_path: Path) -> None:
    (shown,) = copy_pictures(record, workspace, tmp_path / "out")
    assert (shown["width"], shown["height"]) == (720, 288)
    with Image.open(tmp_path / "out" / shown["file"]) as picture:
        assert picture.size == (720, 288)
    file = (workspace.root / LIST).parent / "pictures_val/000.png"
    file.write_bytes(b"no image")
    assert copy_pictures(record, workspace, tmp_path / "out") == []


def test_pictures_are_on_the_page_and_drawn(
    workspace: Workspace, record: Record, store: RecordStore, tmp_path: Path
) -> None:
    index = build(tmp_path / "out", records=store.root, workspace=workspace, pictures="keep")
    text = (index.parent / "cells/first/detection__things.html").read_text()
    assert "Predictions beside the truth" in text
    assert "val/a&lt;b&gt;.jpg" in text
    files = show_cells("first/detection/things", workspace, tmp_path / "shown", suffix=".svg")
    assert "first__detection__things__predictions.svg" in {file.name for file in files}
