from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from maskclip_bench.report.seeing import numbers
from maskclip_bench.report.seeing.patches import Sight
from maskclip_bench.report.seeing.scenes import Scenes

GRID = 4


def scenes() -> Scenes:
    """Two images of 8 x 8: an object (class 1) on the left half, then on the right one."""
    left = np.zeros((8, 8), np.uint8)
    left[:, :4] = 1
    masks = [left, left[:, ::-1].copy()]
    images = [Image.fromarray(np.stack([mask * 200] * 3, -1)) for mask in masks]
    return Scenes("toy", ["a", "b"], images, masks, ["ground", "ball"], ["stuff", "thing"], tiles=1)


def sight(scenes: Scenes, *, wrong: bool = False) -> Sight:
    """A model whose tokens are the class; `wrong` turns the maps around."""
    classes = [scenes.patch_classes(index, GRID) for index in range(len(scenes))]
    found = Sight(grid=GRID, windows=1)
    for known in classes:
        one_hot = np.eye(2, dtype=np.float32)[known]
        found.tokens.append(one_hot)
        seen = one_hot[:, ::-1] if wrong else one_hot
        found.text_scores.append(np.ascontiguousarray(seen))
        found.attention.append(seen[:, 1] / seen[:, 1].sum())
    return found


def test_outcomes__by_hand() -> None:
    toy = scenes()
    tables = numbers.outcomes_of(sight(toy), toy)
    assert set(tables) == {"purity", "neighbours", "pointing", "attention"}
    found = {name: numbers.number(table) for name, table in tables.items()}
    assert found["purity"]["value"] == 1  # one class of objects
    assert found["neighbours"]["value"] == 1
    assert found["neighbours"]["chance"] == pytest.approx(0.5)  # half of the other image's patches
    assert found["pointing"] == {
        "value": 1.0, "low": found["pointing"]["low"], "high": 1.0, "chance": 0.5,
        "num_samples": 2, "num_images": 2,
    }  # fmt: skip
    assert found["attention"]["value"] == 1
    assert found["attention"]["chance"] == 0.5


def test_outcomes__a_model_that_points_beside() -> None:
    toy = scenes()
    tables = numbers.outcomes_of(sight(toy, wrong=True), toy)
    assert tables["pointing"]["value"].tolist() == [0, 0]
    assert tables["attention"]["value"].tolist() == [0, 0]


def test_difference__paired_by_image() -> None:
    toy = scenes()
    good, bad = (numbers.outcomes_of(sight(toy, wrong=w), toy) for w in (False, True))
    found = numbers.difference(good["pointing"], bad["pointing"])
    assert found is not None
    assert found["difference"] == 1
    assert numbers.difference(good["pointing"], good["attention"]) is None  # other samples


def test_outcomes__without_masks_there_are_none() -> None:
    toy = scenes()
    plain = Scenes("plain", toy.ids, toy.images, None, [], None, 1)
    assert numbers.outcomes_of(sight(toy), plain) == {}
    assert plain.shown == [0, 1]
    assert plain.patch_classes(0, 2).tolist() == [-1] * 4


def test_draw_patches__same_places_each_time_and_only_clear_ones() -> None:
    toy = scenes()
    toy.masks[0][0, :4] = 255  # unlabelled
    first, again = numbers.draw_patches(toy, GRID), numbers.draw_patches(toy, GRID)
    assert first.ids() == again.ids()
    assert len(set(first.ids())) == len(first.ids()) == 30  # two patches are half unlabelled
    assert first.is_object.tolist() == [c == 1 for c in first.classes]


def test_draw_patches__at_most_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "PER_IMAGE", 3)
    assert len(numbers.draw_patches(scenes(), GRID).ids()) == 2 * 2 * 3


def test_scenes__objects_and_classes() -> None:
    toy = scenes()
    assert toy.objects(0) == [1]
    assert toy.patch_classes(0, 2).tolist() == [1, 0, 1, 0]
    assert toy.shown == [0, 1]
