from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from maskclip_bench.data.demo.atlas import load_atlas
from maskclip_bench.data.demo.drawing import (
    OPAQUE,
    cut_out,
    draw_image,
    draw_scene_with_masks,
    semantic_labels,
)
from maskclip_bench.data.demo.draws import Draws
from maskclip_bench.data.demo.scenes import (
    BACKDROPS,
    GROUNDS,
    INSTANCES,
    MAX_HIDDEN,
    PAIRS,
    PORTRAIT,
    RETRIEVAL,
    SEMANTIC,
    STUFF,
    Scene,
    SceneStyle,
    draw_scene,
)
from maskclip_bench.data.demo.textures import TEXTURE_SIZE, texture

ATLAS = load_atlas()
STYLES = {
    "portrait": PORTRAIT,
    "pairs": PAIRS,
    "retrieval": RETRIEVAL,
    "semantic": SEMANTIC,
    "instances": INSTANCES,
}


def scenes(style: SceneStyle, count: int = 150) -> list[Scene]:
    return [
        draw_scene(Draws(0, "test", index), ATLAS, style, ATLAS.training_vendors)
        for index in range(count)
    ]


def test_draws__known_values_and_ranges() -> None:
    first, second = Draws(0, "a", 1), Draws(0, "a", 1)
    assert [first.uniform() for _ in range(5)] == [second.uniform() for _ in range(5)]
    assert Draws(0, "a", 1).uniform() != Draws(0, "a", 2).uniform()
    draws = Draws(3, "ranges")
    assert {draws.integer(3) for _ in range(100)} == {0, 1, 2}
    assert all(2 <= draws.log_uniform(2, 8) < 8 for _ in range(100))
    assert sorted(draws.sample("abcd", 4)) == list("abcd")
    assert {draws.weighted((0, 1, 0)) for _ in range(20)} == {1}


def test_draws__mean_of_weighted_choices() -> None:
    draws = Draws(0, "weights")
    counts = np.bincount([draws.weighted((1, 2, 7)) for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(counts, [0.1, 0.2, 0.7], atol=0.03)


@pytest.mark.parametrize("name", STYLES)
def test_scene__objects_are_where_they_can_be(name: str) -> None:
    for scene in scenes(STYLES[name]):
        assert scene.objects
        assert scene.backdrop in BACKDROPS and scene.ground in GROUNDS
        for item in scene.objects:
            left, top, right, bottom = item.box
            # No more than an edge is out of the picture.
            assert left > -0.06 and right < 1.06 and top > -0.06 and bottom <= 1.0
            if item.where == "ground":
                assert item.base > scene.horizon, "it would float"
            if item.where == "water":
                assert scene.water and scene.shore < item.base < scene.horizon
                assert item.object_class.group.name == "sea animal"
            if item.where == "air":
                assert scene.backdrop != "brick wall" and item.object_class.flies > 0


@pytest.mark.parametrize("name", STYLES)
def test_scene__nearer_objects_are_later_and_hide_little(name: str) -> None:
    for scene in scenes(STYLES[name]):
        standing = [item.base for item in scene.objects if item.where == "ground"]
        assert standing == sorted(standing)
        for index, behind in enumerate(scene.objects):
            left, top, right, bottom = behind.box
            covered = 0.0
            for front in scene.objects[index + 1 :]:
                x0, y0, x1, y1 = front.box
                covered += max(0.0, min(right, x1) - max(left, x0)) * max(
                    0.0, min(bottom, y1) - max(top, y0)
                )
            assert covered <= MAX_HIDDEN * behind.width * behind.height + 1e-9


def test_scene__all_places_and_numbers_occur() -> None:
    found = scenes(INSTANCES, 400)
    assert {scene.backdrop for scene in found} == set(BACKDROPS)
    assert {scene.ground for scene in found} == set(GROUNDS)
    assert {scene.water for scene in found} == {True, False}
    assert {len(scene.objects) for scene in found} >= {2, 3, 4, 5, 6}
    assert {item.flip for scene in found for item in scene.objects} == {True, False}
    places = {item.where for scene in found for item in scene.objects}
    assert places == {"ground", "water", "air"}
    one_kind_twice = [s for s in found if len({o.object_class for o in s.objects}) < len(s.objects)]
    assert one_kind_twice


def test_portrait__shows_the_main_object_large() -> None:
    main = (ATLAS.classes[7], "twemoji")
    for index in range(60):
        scene = draw_scene(Draws(0, index), ATLAS, PORTRAIT, ("twemoji",), main=main)
        (item,) = scene.objects
        assert (item.object_class, item.vendor) == main
        assert max(item.width, item.height) >= 0.6


def test_masks__are_the_visible_pixels_brute_force() -> None:
    size = 48
    checked = 0
    for scene in scenes(INSTANCES, 6):
        drawn = draw_scene_with_masks(scene, size=size, seed=0, split="test")
        cut_outs = [cut_out(item, size, ATLAS) for item in scene.objects]
        for y in range(size):
            for x in range(size):
                expected = 0
                for position, (sprite, (left, top)) in enumerate(cut_outs, start=1):
                    inside = 0 <= x - left < sprite.width and 0 <= y - top < sprite.height
                    if inside and sprite.getpixel((x - left, y - top))[3] >= OPAQUE:
                        expected = position  # a later object is nearer
                assert drawn.owner[y, x] == expected
                checked += expected > 0
    assert checked > 1000


def test_masks__removing_an_object_changes_nothing_far_from_it() -> None:
    (scene,) = [s for s in scenes(SEMANTIC, 40) if len(s.objects) == 3][:1]
    size = 96
    whole = draw_scene_with_masks(scene, size=size, seed=0, split="test")
    without = replace(scene, objects=scene.objects[:-1])
    less = draw_scene_with_masks(without, size=size, seed=0, split="test")
    mask = whole.owner == len(scene.objects)
    changed = np.abs(np.asarray(whole.image).astype(int) - np.asarray(less.image)).max(-1) > 0
    assert (changed & mask).sum() > 0.9 * mask.sum()
    np.testing.assert_array_equal(np.where(mask, 0, whole.owner), np.where(mask, 0, less.owner))


def test_image__is_the_same_with_and_without_masks() -> None:
    for scene in scenes(SEMANTIC, 8):
        plain = draw_image(scene, size=72, seed=0, split="test")
        drawn = draw_scene_with_masks(scene, size=72, seed=0, split="test")
        np.testing.assert_array_equal(np.asarray(plain), np.asarray(drawn.image))


def test_labels__stuff_then_groups_and_the_moon_is_unlabelled() -> None:
    seen: set[int] = set()
    for scene in scenes(SEMANTIC, 60):
        drawn = draw_scene_with_masks(scene, size=64, seed=0, split="test")
        labels = semantic_labels(scene, drawn)
        present = set(np.unique(labels).tolist())
        seen |= present
        allowed = {STUFF.index(scene.backdrop) + 1, STUFF.index(scene.ground) + 1}
        allowed |= {STUFF.index("water") + 1} if scene.water else set()
        allowed |= {0} if scene.luminary else set()
        groups = {len(STUFF) + 1 + item.object_class.group.index for item in scene.objects}
        assert present <= allowed | groups
        assert groups <= present, "every object is to be seen"
        assert labels[-1, 0] in {STUFF.index(scene.ground) + 1, *groups}
    assert 0 in seen and set(range(1, 9)) <= seen and max(seen) <= 29


@pytest.mark.parametrize("stuff", STUFF)
def test_texture__is_textured_and_other_in_every_split(stuff: str) -> None:
    picture = np.asarray(texture(0, "train", stuff, 0)).astype(float)
    assert picture.shape == (TEXTURE_SIZE, TEXTURE_SIZE, 3)
    assert picture.std(axis=(0, 1)).max() > 3
    other = np.asarray(texture(0, "val", stuff, 0)).astype(float)
    assert np.abs(picture - other).mean() > 1
