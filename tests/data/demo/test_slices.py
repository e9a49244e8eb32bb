from __future__ import annotations

import numpy as np
import pytest

from maskclip_bench.data.demo.atlas import load_atlas
from maskclip_bench.data.demo.drawing import draw_image
from maskclip_bench.data.demo.draws import Draws
from maskclip_bench.data.demo.scenes import PORTRAIT, draw_scene
from maskclip_bench.data.demo.slices import SMALL_OBJECT, after_drawing, object_style, occlude

ATLAS = load_atlas()


def test_small__much_smaller_than_a_portrait() -> None:
    assert object_style("val") == object_style("val_occluded") == PORTRAIT
    assert object_style("val_small") == SMALL_OBJECT
    assert SMALL_OBJECT.sizes[1] < 0.7 * PORTRAIT.sizes[0]


@pytest.mark.parametrize("index", range(6))
def test_occlude__half_of_the_box_in_one_colour(index: int) -> None:
    draws = Draws(0, "slices", index)
    main = (ATLAS.classes[index], "noto")
    scene = draw_scene(draws, ATLAS, PORTRAIT, ("noto",), main=main)
    image = draw_image(scene, size=72, seed=0, split="objects/val")
    before = np.asarray(image).copy()
    covered = np.asarray(occlude(image, scene, draws))
    changed = (covered != before).any(axis=2)
    left, top, right, bottom = scene.objects[-1].box
    inside = (min(right, 1) - max(left, 0)) * (min(bottom, 1) - max(top, 0)) * 72 * 72
    assert 0.3 * inside < changed.sum() < 0.65 * inside
    assert len(np.unique(covered[changed], axis=0)) == 1
    assert (np.asarray(image) == before).all()  # the image that was given is not changed
    assert after_drawing("val", image, scene, draws) is image
