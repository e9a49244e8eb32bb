from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from maskclip_bench.errors import ConfigError
from maskclip_bench.report.build import build
from maskclip_bench.report.state import MARK, STATE, built_state
from maskclip_bench.results.measurement import Metric
from maskclip_bench.results.records import Cell, Record, RecordStore, failed_record
from tests.report.measurements import MADE, classification

HOSTILE = "<img src=x onerror=alert(1)>\"'</script>\x1b[31m\u202e="
MAX_FIRST_PAGE = 1_500_000


class Page(HTMLParser):
    """What a page links to, and its elements."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.path = path
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.words = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        assert not [name for name in values if name.startswith("on")], (tag, values)
        for name in ("href", "src"):
            if values.get(name):
                self.links.append(str(values[name]))
        if tag == "img":
            self.images.append(values)

    def handle_data(self, data: str) -> None:
        self.words += data


def check_links(folder: Path) -> None:
    """Every page links to files of the folder alone."""
    for path in folder.rglob("*.html"):
        for link in Page(path).links:
            if link.startswith(("#", "data:")):
                continue
            assert not re.match(r"[a-z]+:", link), f"{path}: {link}"
            assert (path.parent / link.partition("#")[0]).is_file(), f"{path}: {link}"


def test_build__a_folder_of_its_own(two_rows: RecordStore, tmp_path: Path) -> None:
    index = build(tmp_path / "out", records=two_rows.root, pictures="keep")
    assert index == tmp_path / "out" / "index.html"
    check_links(index.parent)
    cells = sorted(path.name for path in (index.parent / "cells/first").iterdir())
    assert cells == [
        "detection__things.html",
        "knn__objects.html",
        "linear_segmentation__scenes.html",
        "retrieval__captions.html",
    ]
    scores = pd.read_csv(index.parent / "data/scores.csv")
    assert set(scores["row"]) == {"first", "second"}
    assert json.loads((index.parent / "data/scores.json").read_text())[0]["task"] == "knn/objects"
    pairs = pd.read_csv(index.parent / "data/pairs.csv")
    assert pairs["difference"][0] == pytest.approx(-6 / 24)
    first_page = [index, index.parent / MARK, *(index.parent / "assets").iterdir()]
    assert sum(path.stat().st_size for path in first_page) < MAX_FIRST_PAGE
    words = Page(index).words
    assert "2 rows, 4 tasks, 8 measured cells" in words
    assert "Demo world" not in words


def test_build__again_in_the_same_folder(
    two_rows: RecordStore, save: Callable[..., Record], tmp_path: Path
) -> None:
    build(tmp_path / "out", records=two_rows.root, pictures="keep")
    build(tmp_path / "out", records=two_rows.root, backbones=["second"], pictures="keep")
    assert [path.name for path in (tmp_path / "out/cells").iterdir()] == ["second"]
    assert "nothing is compared" in Page(tmp_path / "out/index.html").words


def snapshot(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_build__nothing_changed_nothing_written(
    two_rows: RecordStore, save: Callable[..., Record], tmp_path: Path
) -> None:
    build(tmp_path / "out", records=two_rows.root, pictures="keep")
    before = snapshot(tmp_path / "out")
    build(tmp_path / "out", records=two_rows.root, pictures="keep")
    assert snapshot(tmp_path / "out") == before
    save("first", "knn/objects", MADE["knn/objects"](9))
    build(tmp_path / "out", records=two_rows.root, pictures="keep")
    assert snapshot(tmp_path / "out") != before
    (tmp_path / "out/index.html").unlink()
    assert built_state(tmp_path / "out") is None
    build(tmp_path / "out", records=two_rows.root, pictures="keep")
    (tmp_path / "out" / STATE).write_text("{")  # killed while it wrote
    assert built_state(tmp_path / "out") is None
    build(tmp_path / "out", records=two_rows.root, pictures="keep")
    assert built_state(tmp_path / "out") is not None


def test_build__a_folder_of_something_else(two_rows: RecordStore, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"holds files that are no report \(thesis\.tex"):
        build(tmp_path / "out", records=two_rows.root)
    (tmp_path / "mine/cells").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"holds files that are no report \(cells"):
        build(tmp_path / "mine", records=two_rows.root)
    with pytest.raises(ConfigError, match="is a file"):
        build(tmp_path / "out/thesis.tex", records=two_rows.root)


def test_build__nothing_recorded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Nothing of this suite is recorded"):
        build(tmp_path / "out", records=tmp_path / "records")
    assert not (tmp_path / "out").exists()


def test_build__hostile_text_stays_text(
    store: RecordStore, save: Callable[..., Record], tmp_path: Path
) -> None:
    for row, shift in (("first", 8), ("second", 2)):
        measurement = classification(shift, hostile=HOSTILE)
        measurement.details["note"] = HOSTILE
        measurement.details[HOSTILE] = 1
        save(row, "knn/objects", measurement)
    cell = Cell(
        backbone="first", protocol="knn", dataset="other", world="real", cell_fingerprint="f"
    )
    store.save(failed_record(cell, RuntimeError(HOSTILE)))
    index = build(tmp_path / "out", records=store.root, title=HOSTILE, pictures="keep")
    for path in index.parent.rglob("*"):
        if path.suffix in (".html", ".js") and path.parent.name != "assets":
            text = path.read_text(encoding="utf-8")
            assert "<img src=x" not in text, path
            assert "\x1b" not in text, path
            assert "\u202e" not in text, path
    check_links(index.parent)  # also: no element has a handler
    assert r"<img src=x onerror=alert(1)>" in Page(index).words
    details = (index.parent / "data/outcomes/0.js").read_text()
    assert details.startswith("window.maskclipReport.details[0] = {")
    assert "</script" not in details
    assert "failed" in Page(index).words
    failed = Page(index.parent / "cells/first/knn__other.html")
    assert "RuntimeError" in failed.words


def test_build__over_seeds(store: RecordStore, save: Callable[..., Record], tmp_path: Path) -> None:
    for seed in range(2):
        for row, shift in (("first", 8), ("second", 2)):
            save(row, "knn/objects", MADE["knn/objects"](shift + seed), seed=seed)
    index = build(tmp_path / "out", records=store.root, pictures="keep")
    assert "up to 2 training seeds a row" in Page(index).words
    assert (index.parent / "cells/first__seed1/knn__objects.html").is_file()
    check_links(index.parent)


def test_cells__the_surest_mistakes_first(store: RecordStore, save: Callable[..., Record]) -> None:
    from maskclip_bench.report.cells import mistakes_of

    record = save("first", "knn/objects", classification(4))
    found, what = mistakes_of(record, store.outcomes(record), ["cat", "dog", "fox"], "test")
    assert [mistake.image for mistake in found] == [
        "class0/03.jpg", "class2/02.jpg", "class1/01.jpg", "class0/00.jpg",
    ]  # fmt: skip
    assert found[0].caption == "cat → dog (30 %)"
    assert "highest confidence" in what
    plain = store.outcomes(record).drop(columns="confidence")
    found, what = mistakes_of(record, plain, None, "test")
    assert {mistake.image for mistake in found[:3]} >= {"class1/01.jpg", "class2/02.jpg"}
    assert "as many classes" in what


def test_tables__lower_is_better(
    store: RecordStore, save: Callable[..., Record], tmp_path: Path
) -> None:
    """A clear decrease of an error is drawn and said as an improvement."""
    import dataclasses

    for row, shift in (("first", 20), ("second", 1)):
        made = classification(shift)
        errors = 1 - made.outcomes["top1_accuracy"]
        outcomes = made.outcomes[["sample_id"]].assign(group=made.outcomes["sample_id"])
        outcomes["error"] = errors
        metric = Metric(float(errors.mean()), higher_is_better=False)
        measurement = dataclasses.replace(
            made, metrics={"error": metric}, primary_metric="error", outcomes=outcomes
        )
        save(row, "knn/objects", measurement)
    index = build(tmp_path / "out", records=store.root, pictures="keep")
    text = index.read_text()
    assert '<small class="delta better">' in text
    assert "second:</b> clearly better on" in text


WITHOUT_TORCH = """
import sys
from pathlib import Path

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "timm", "open_clip", "matplotlib"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from maskclip_bench.report.build import build
from maskclip_bench.runtime import Workspace

build(Path("out"), records=Path("records"), workspace=Workspace.open("work"), pictures="make")
assert "torch" not in sys.modules
"""


def test_build__without_torch(two_rows: RecordStore, tmp_path: Path) -> None:
    """Tables and comparisons are made of records alone; the pictures of models are left out."""
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    words = Page(tmp_path / "out/index.html").words
    assert "What a model sees is not shown" in words
    check_links(tmp_path / "out")
