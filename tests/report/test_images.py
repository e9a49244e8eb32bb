from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from maskclip_bench.config import validate
from maskclip_bench.errors import ConfigError
from maskclip_bench.report.build import make_sheets
from maskclip_bench.report.images import Gallery, image_id, write_sheet
from maskclip_bench.runtime import Workspace
from maskclip_bench.tasks.declaration import TaskDeclaration

COLOURS = {"red": (250, 0, 0), "blue": (0, 0, 250)}


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    for name, colour in COLOURS.items():
        folder = tmp_path / "data/squares/val" / name
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (20 + number, 20), colour).save(folder / f"{number}.png")
    task = validate(
        {
            "name": "squares",
            "display_name": "Squares",
            "world": "real",
            "reader": {"kind": "image_folder", "root": "squares"},
            "splits": {"test": "val"},
            "protocols": {"knn": {}},
            "obtain": "made by the test",
        },
        TaskDeclaration,
        where="test",
    )
    return Gallery({"squares": task}, Workspace.open(tmp_path), tmp_path / "out")


def test_sheet__each_image_at_its_place(gallery: Gallery, tmp_path: Path) -> None:
    sheet = gallery.sheet("squares")
    assert sheet is not None
    assert sheet.place["blue/0.png"] == 0
    assert sheet.place["red/2.png"] == 5
    with Image.open(tmp_path / "out" / sheet.file) as picture:
        row, column = divmod(5, sheet.columns)
        middle = (column * sheet.tile + sheet.tile // 2, row * sheet.tile + sheet.tile // 2)
        red, green, blue = picture.convert("RGB").getpixel(middle)
    assert red > 180
    assert max(green, blue) < 70
    style = sheet.style("red/2.png", size=32, up="../")
    assert style is not None
    assert f"background-position:-{column * 32}px -{row * 32}px" in style
    assert "url('../pictures/images/squares-" in style
    assert sheet.style("absent.png", size=32) is None


def test_sheet__made_once(gallery: Gallery, tmp_path: Path) -> None:
    first = gallery.sheet("squares")
    assert first is not None
    changed = (tmp_path / "out" / first.file).stat().st_mtime_ns
    again = Gallery(gallery.datasets, gallery.workspace, gallery.folder).sheet("squares")
    assert again == first
    assert (tmp_path / "out" / first.file).stat().st_mtime_ns == changed


def test_gallery__without_files_or_workspace(gallery: Gallery, tmp_path: Path) -> None:
    assert gallery.sheet("unknown") is None
    assert gallery.class_names["unknown"] is None
    assert Gallery(gallery.datasets, None, tmp_path).sheet("squares") is None
    elsewhere = Workspace.open(tmp_path / "elsewhere")
    assert Gallery(gallery.datasets, elsewhere, tmp_path).dataset("squares") is None


def test_gallery__a_broken_image_leaves_the_pictures_out(
    gallery: Gallery, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data/squares/val/red/1.png").write_bytes(b"no image")
    assert gallery.sheet("squares") is None
    assert "No images of squares in the report" in caplog.text


def test_class_names__of_the_data_set(gallery: Gallery) -> None:
    assert gallery.class_names["squares"] == ["blue", "red"]


@pytest.mark.parametrize(
    ("sample", "image"),
    [
        ("image:a.jpg", "a.jpg"),
        ("text:12:a:b.jpg", "a:b.jpg"),
        ("val/a.jpg", "a.jpg"),
        ("other/a.jpg", "other/a.jpg"),
    ],
)
def test_image_id(sample: str, image: str) -> None:
    assert image_id(sample, "val") == image


def test_write_sheet__one_image(tmp_path: Path) -> None:
    sheet = write_sheet([Image.new("RGB", (300, 10))], ["a"], tmp_path, "x/y.webp", tile=16)
    assert (sheet.columns, sheet.rows) == (1, 1)
    with Image.open(tmp_path / "x/y.webp") as picture:
        assert picture.size == (16, 16)


def test_make_sheets__those_that_the_report_asks_for(gallery: Gallery, tmp_path: Path) -> None:
    calls: list[int] = []
    out = tmp_path / "ahead"
    workspace = Workspace.open(tmp_path)
    make_sheets(gallery.datasets, workspace, out, between=lambda: calls.append(1))
    expected = gallery.sheet("squares")
    assert expected is not None
    made = (out / expected.file).read_bytes()
    assert made == (tmp_path / "out" / expected.file).read_bytes()
    assert len(calls) == 7  # before the set, and after each image
    make_sheets(gallery.datasets, workspace, out, between=lambda: calls.append(1))
    assert len(calls) == 8


def test_make_sheets__ends_where_it_is_told_to_and_leaves_other_folders_alone(
    gallery: Gallery, tmp_path: Path
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_sheets(gallery.datasets, Workspace.open(tmp_path), tmp_path / "out", between=stop)
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("not a report")
    with pytest.raises(ConfigError, match="no report"):
        make_sheets(gallery.datasets, Workspace.open(tmp_path), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
