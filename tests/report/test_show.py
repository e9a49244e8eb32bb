from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image

from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.report.show import picture_grid, show_cells, show_image
from maskclip_bench.results.records import Cell, RecordStore, failed_record
from maskclip_bench.runtime import Workspace


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
