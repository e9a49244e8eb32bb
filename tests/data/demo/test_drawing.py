from __future__ import annotations

import numpy as np
import pytest

from maskclip_bench.data.demo.atlas import load_atlas
from maskclip_bench.data.demo.drawing import Drawn, draw_image, draw_scene_with_masks
from maskclip_bench.data.demo.draws import Draws
from maskclip_bench.data.demo.layouts import vendors_of
from maskclip_bench.data.demo.scenes import INSTANCES, STUFF, Scene, draw_scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    atlas = load_atlas()
    vendors = vendors_of(atlas, "train")
    return [draw_scene(Draws(0, "test", n), atlas, INSTANCES, vendors) for n in range(6)]


@pytest.fixture(scope="module")
def drawn(scenes: list[Scene]) -> list[Drawn]:
    return [draw_scene_with_masks(scene, size=64, seed=0, split="train") for scene in scenes]


def test_masks__have_the_image_size_and_known_values(
    scenes: list[Scene], drawn: list[Drawn]
) -> None:
    for scene, picture in zip(scenes, drawn, strict=True):
        assert picture.image.size == (64, 64) and picture.image.mode == "RGB"
        assert picture.owner.shape == picture.stuff.shape == (64, 64)
        assert set(np.unique(picture.owner)) <= set(range(len(scene.objects) + 1))
        assert set(np.unique(picture.stuff)) <= set(range(len(STUFF) + 1))
        assert (picture.owner > 0).any()


def test_image__is_the_same_with_and_without_masks(scenes: list[Scene], drawn: list[Drawn]) -> None:
    for scene, picture in zip(scenes, drawn, strict=True):
        alone = draw_image(scene, size=64, seed=0, split="train")
        assert alone.tobytes() == picture.image.tobytes()


def test_image__of_another_split_has_other_textures(scenes: list[Scene]) -> None:
    one, other = (draw_image(scenes[0], size=64, seed=0, split=s) for s in ("train", "val"))
    assert one.tobytes() != other.tobytes()
