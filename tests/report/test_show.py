from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from maskclip_bench.backbones import load_backbone_declaration, weights_identity
from maskclip_bench.data_files import CATALOGUE_VARIABLE
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.report.show import picture_grid, show_cells, show_image
from maskclip_bench.results.records import Cell, Record, RecordStore, failed_record
from maskclip_bench.runtime import Workspace
from tests.report.measurements import MADE


@pytest.fixture
def workspace(two_rows: RecordStore) -> Workspace:
    return Workspace.open(two_rows.root.parent)


def test_show_cells__one_cell(workspace: Workspace, tmp_path: Path) -> None:
    files = show_cells("first/knn/objects", workspace, tmp_path / "out", suffix=".svg")
    assert {file.name for file in files} == {
        f"first__knn__objects__{key}.svg"
        for key in (
            "metrics", "curve-top1-accuracy", "classes", "confusions", "confusion", "calibration",
        )
    }  # fmt: skip
    for file in files:
        ET.parse(file)


def test_show_cells__all_of_a_row(workspace: Workspace, tmp_path: Path) -> None:
    files = show_cells("second", workspace, tmp_path / "out", suffix=".svg")
    assert {file.name.split("__")[1] for file in files} == {
        "knn", "retrieval", "linear_segmentation", "detection",
    }  # fmt: skip


def test_show_cells__a_row_named_as_it_was_run(
    two_rows: RecordStore, save: Callable[..., Record], tmp_path: Path
) -> None:
    save("python-mine-make", "knn/objects", MADE["knn/objects"](3))
    workspace = Workspace.open(two_rows.root.parent)
    for what in ("python:mine:make/knn/objects", "python:mine:make/knn", "python:mine:make"):
        files = show_cells(what, workspace, tmp_path / "out", suffix=".svg")
        assert {file.name.split("__")[0] for file in files} == {"python-mine-make"}


def test_show_cells__png(workspace: Workspace, tmp_path: Path) -> None:
    (file,) = show_cells("first/retrieval/captions", workspace, tmp_path, suffix=".png")
    with Image.open(file) as picture:
        assert picture.size[0] == 1280


def test_show_cells__unknown_or_failed(
    workspace: Workspace, two_rows: RecordStore, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no image file, and no recorded cell"):
        show_cells("third/knn/objects", workspace, tmp_path, suffix=".svg")
    cell = Cell(backbone="bad", protocol="knn", dataset="x", world="real", cell_fingerprint="f")
    two_rows.save(failed_record(cell, RuntimeError("broken")))
    with pytest.raises(DataError, match="it failed with RuntimeError: broken"):
        show_cells("bad/knn/x", workspace, tmp_path, suffix=".svg")


def test_show_image__models_beside_each_other(tmp_path: Path) -> None:
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "my photo.png")
    files = show_image(
        tmp_path / "my photo.png",
        ["random_init_vit-demo_demo"],
        Workspace.open(tmp_path),
        tmp_path / "out",
        suffix=".svg",
        tiles=2,
    )
    assert [file.name for file in files] == ["my-photo__seen.svg"]
    text = files[0].read_text()
    assert text.count("<image") == 4  # the image, two colourings, attention
    assert "random init" in text


def test_show_image__no_model_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"No model sees a\.png: clip_vit-demo_demo"):
        show_image(
            tmp_path / "a.png",
            ["clip_vit-demo_demo"],
            Workspace.open(tmp_path),
            tmp_path,
            suffix=".svg",
        )


def test_picture_grid__lines_of_pictures() -> None:
    pictures = [(Image.new("RGB", (9, 5 + i)), "c" * 40) for i in range(8)]
    drawing = picture_grid("Mistakes", pictures)
    assert sum(kind == "image" for kind, _ in drawing.items) == 8
    assert any(v.get("text", "").endswith("…") for _, v in drawing.items)


CAPTIONS = """
display_name: Captions
world: demo
reader: {kind: karpathy, root: captions, file: list.json, images: images}
splits: {test: test}
protocols: {retrieval: {}}
obtain: made by the test
"""


@pytest.fixture
def captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with a data set of captions, declared in a catalogue."""
    (tmp_path / "catalogue/tasks").mkdir(parents=True)
    (tmp_path / "catalogue/tasks/captions.yaml").write_text(CAPTIONS)
    monkeypatch.setenv(CATALOGUE_VARIABLE, str(tmp_path / "catalogue"))
    folder = tmp_path / "data/captions"
    (folder / "images").mkdir(parents=True)
    entries = []
    for index in range(3):
        Image.new("RGB", (20, 20), (80 * index, 0, 200)).save(folder / f"images/{index}.jpg")
        sentences = [{"raw": f"picture number {index}"}]
        entries.append({"filename": f"{index}.jpg", "split": "test", "sentences": sentences})
    (folder / "list.json").write_text(json.dumps({"images": entries}))
    return Workspace.open(tmp_path)


def test_show_cells__what_a_model_retrieves(
    captions: Workspace, save: Callable[..., Record], tmp_path: Path
) -> None:
    row = "random_init_vit-demo_demo"
    weights = weights_identity(load_backbone_declaration(row), captions, 0)
    save(row, "retrieval/captions", MADE["retrieval/captions"](3), weights=weights)
    files = show_cells(f"{row}/retrieval/captions", captions, tmp_path / "out", suffix=".svg")
    (drawn,) = (file.read_text() for file in files if file.stem.endswith("__answers"))
    ET.fromstring(drawn)
    assert "among 3 images and 3 captions" in drawn
    assert drawn.count("the first right one is at place") == 6
    assert drawn.count("“picture number") == 3


def test_show_cells__other_weights_retrieve_nothing(
    captions: Workspace, save: Callable[..., Record], tmp_path: Path
) -> None:
    row = "random_init_vit-demo_demo"
    save(row, "retrieval/captions", MADE["retrieval/captions"](3), weights="another model")
    files = show_cells(f"{row}/retrieval/captions", captions, tmp_path / "out", suffix=".svg")
    assert not any(file.stem.endswith("__answers") for file in files)
