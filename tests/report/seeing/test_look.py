"""Models look at images: a real, small and untrained one with text, and one that gives little."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from maskclip_bench.backbones import (
    Backbone,
    as_backbone,
    load_backbone,
    load_backbone_declaration,
)
from maskclip_bench.errors import ConfigError, DataError
from maskclip_bench.report.seeing import look as looking
from maskclip_bench.report.seeing.look import LIST, RowToSee, look, save
from maskclip_bench.report.seeing.scenes import Scenes
from maskclip_bench.report.seen_view import seen_view
from maskclip_bench.runtime import Workspace
from maskclip_bench.storage import read_object


class Colours:
    """Mean colours of 4 x 4 patches; no text, no attention."""

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def patch_tokens(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(2).transpose(1, 2)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    workspace = Workspace.open(tmp_path_factory.mktemp("workspace"))
    return load_backbone(
        load_backbone_declaration("random_init_vit-demo_demo"), workspace=workspace
    )


@pytest.fixture
def scenes() -> Scenes:
    masks, images = [], []
    for index in range(3):
        mask = np.zeros((96, 96), np.uint8)
        mask[8 * index : 8 * index + 40, 10:60] = 1
        pixels = np.full((96, 96, 3), (90, 160, 80), np.uint8)
        pixels[mask == 1] = (200, 40 + 20 * index, 40)
        masks.append(mask)
        images.append(Image.fromarray(pixels))
    names = [f"{index}.png" for index in range(3)]
    return Scenes("toy", names, images, masks, ["ground", "ball"], ["stuff", "thing"], tiles=2)


def rows(untrained: Backbone) -> list[RowToSee]:
    colours = as_backbone(Colours(), image_size=16, mean=(0,) * 3, std=(1,) * 3, name="colours")

    def broken() -> Backbone:
        raise DataError("no weights here")

    return [
        RowToSee("untrained", "Untrained", "u", lambda: untrained),
        RowToSee("colours", "Colours", "c", lambda: colours),
        RowToSee("broken", "Broken", "b", broken),
    ]


def test_look__pictures_numbers_and_reasons(
    untrained: Backbone, scenes: Scenes, tmp_path: Path
) -> None:
    found = look(rows(untrained), scenes, tmp_path, baseline="untrained")
    assert json.loads((tmp_path / LIST).read_text()) == found
    views = found["rows"]["untrained"]["views"]
    assert set(views) == {"own", "shared", "attention", "text", "nearest"}
    assert set(found["rows"]["colours"]["views"]) == {"own", "shared", "nearest"}
    for row in found["rows"].values():
        for files in row["views"].values():
            assert len(files) == 3
            for file in files:
                with Image.open(tmp_path / file) as picture:
                    picture.load()
    grid = 2 * untrained.image_size // 8
    with Image.open(tmp_path / views["own"][0]) as picture:
        assert picture.size == (grid, grid)
    with Image.open(tmp_path / views["shared"][0]) as picture:
        assert picture.size == (8, 8)  # the coarsest grid of the models
    numbers = found["rows"]["colours"]["numbers"]
    assert set(numbers) == {"purity", "neighbours"}
    assert numbers["neighbours"]["value"] > numbers["neighbours"]["chance"]
    assert set(found["rows"]["untrained"]["numbers"]) == {
        "purity", "neighbours", "pointing", "attention",
    }  # fmt: skip
    notes = " ".join(found["rows"]["colours"]["notes"])
    assert "No attention" in notes
    assert "no text tower" in notes
    assert found["failed"] == {"broken": "no weights here"}
    assert found["images"][0]["target"] == "ball"


def test_look__kept_until_something_changes(
    untrained: Backbone, scenes: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = look(rows(untrained)[:1], scenes, tmp_path)
    monkeypatch.setattr(looking, "run_models", None)
    assert look(rows(untrained)[:1], scenes, tmp_path) == first
    with pytest.raises(TypeError):
        look(rows(untrained)[:2], scenes, tmp_path)


def test_look__images_without_masks(untrained: Backbone, scenes: Scenes, tmp_path: Path) -> None:
    plain = Scenes("own", scenes.ids, scenes.images, None, [], None, tiles=1)
    found = look(rows(untrained)[:1], plain, tmp_path)
    assert found["rows"]["untrained"]["numbers"] == {}
    assert set(found["rows"]["untrained"]["views"]) == {"own", "shared", "attention", "nearest"}
    view = seen_view(found, "own images")
    assert view is not None
    assert view["numbers"] == []


def test_seen_view__what_the_page_shows(
    untrained: Backbone, scenes: Scenes, tmp_path: Path
) -> None:
    found = look(rows(untrained), scenes, tmp_path, baseline="untrained")
    view = seen_view(found, "Toys")
    assert view is not None
    assert view["numbers"][0]["title"] == "Cluster purity"
    assert view["rows"][0]["cells"][0]["delta"] == ""
    assert "broken was not looked through: no weights here" in view["notes"]
    assert view["images"][0]["models"][0]["pictures"][0]["view"] == "own"
    assert seen_view(None, "") is None


def test_list__nothing_or_damaged(tmp_path: Path) -> None:
    assert read_object(tmp_path / LIST) is None
    (tmp_path / "pictures").mkdir()
    for text in ("", "[]", "{"):
        (tmp_path / LIST).write_text(text)
        assert read_object(tmp_path / LIST) is None


def test_save__another_suffix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither \.png nor \.webp"):
        save(Image.new("RGB", (2, 2)), tmp_path / "a.gif")
