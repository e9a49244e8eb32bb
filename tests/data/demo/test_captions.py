from __future__ import annotations

import re

import pytest

from maskclip_bench.data.demo.atlas import load_atlas
from maskclip_bench.data.demo.captions import counted, join, tokens_of, write_captions
from maskclip_bench.data.demo.draws import Draws
from maskclip_bench.data.demo.layouts import DemoSizes, plan_captions, pretrain_scene
from maskclip_bench.data.demo.scenes import PAIRS, RETRIEVAL, Scene, SceneObject, draw_scene

ATLAS = load_atlas()
CLASSES = {c.name: c for c in ATLAS.classes}


def scene_of(*placed: tuple[str, float, float, float, str], **place: object) -> Scene:
    """A scene with objects (name, center, base, size, where), from back to front."""
    objects = tuple(
        SceneObject(CLASSES[name], "noto", center, base, size, size, False, 0.0, where)
        for name, center, base, size, where in placed
    )
    values: dict[str, object] = {
        "backdrop": "sky",
        "ground": "snow",
        "water": False,
        "shore": 0.5,
        "horizon": 0.5,
        "hills": (0.0,) * 5,
        "light": 0.0,
        "brightness": 1.0,
        "warmth": 0.0,
        "luminary": None,
        "texture": 0.0,
        "objects": objects,
    }
    return Scene(**(values | place))  # type: ignore[arg-type]


def all_captions(scene: Scene, count: int = 60) -> list[list[str]]:
    """Captions of many draws, one list for each kind."""
    written = [write_captions(Draws(0, index), scene) for index in range(count)]
    return [list(kind) for kind in zip(*[w for w in written if w], strict=True)]


@pytest.mark.parametrize(
    ("name", "count", "adjective", "expected"),
    [
        ("pair of scissors", 1, "", "a pair of scissors"),
        ("pair of scissors", 2, "", "two pairs of scissors"),
        ("pair of jeans", 1, "small", "a small pair of jeans"),
        ("grapes", 1, "", "a bunch of grapes"),
        ("grapes", 3, "", "three bunches of grapes"),
        ("elephant", 1, "", "an elephant"),
        ("elephant", 1, "big", "a big elephant"),
        ("octopus", 2, "little", "two little octopuses"),
        ("tropical fish", 2, "", "two tropical fish"),
        ("cactus", 2, "", "two cacti"),
        ("ice cream cone", 1, "", "an ice cream cone"),
        ("french fries", 1, "", "a box of french fries"),
        ("ear of corn", 4, "", "four ears of corn"),
        ("t-shirt", 1, "", "a t-shirt"),
    ],
)
def test_counted__is_english(name: str, count: int, adjective: str, expected: str) -> None:
    noun = CLASSES[name]
    assert counted(noun.singular, noun.plural, count, adjective) == expected


def test_join__commas_and_and() -> None:
    assert join([]) == ""
    assert join(["a car"]) == "a car"
    assert join(["a car", "a bee"]) == "a car and a bee"
    assert join(["a car", "a bee", "a hat"]) == "a car, a bee and a hat"


def test_tokens_of__words_only() -> None:
    assert tokens_of("A t-shirt, on the sand") == ["a", "t-shirt", "on", "the", "sand"]


def test_captions__say_where_things_are() -> None:
    scene = scene_of(("turtle", 0.2, 0.7, 0.3, "ground"), ("guitar", 0.8, 0.9, 0.3, "ground"))
    place, relation, listing, keywords, hypernyms = all_captions(scene)
    assert "a turtle and a guitar in the snow" in place
    assert any(c.startswith("a turtle to the left of a guitar") for c in relation)
    assert any(c.startswith("a guitar to the right of a turtle") for c in relation)
    assert not any("turtle to the right" in c or "guitar to the left" in c for c in relation)
    assert any(c.startswith("a photo of") for c in listing)
    assert all(re.fullmatch(r"[a-z, -]+", c) and ", " in c for c in keywords)
    assert any("a reptile and a musical instrument" in c for c in hypernyms)


def test_captions__in_front_and_behind() -> None:
    scene = scene_of(("turtle", 0.5, 0.7, 0.3, "ground"), ("guitar", 0.55, 0.9, 0.3, "ground"))
    relation = all_captions(scene)[1]
    assert any("turtle behind a" in c for c in relation)
    assert any("guitar in front of a" in c for c in relation)
    assert not any("turtle in front of a" in c or "guitar behind" in c for c in relation)


def test_captions__in_the_air_and_in_the_water() -> None:
    scene = scene_of(
        ("airplane", 0.3, 0.3, 0.3, "air"),
        ("whale", 0.6, 0.48, 0.3, "water"),
        ("rabbit", 0.7, 0.9, 0.4, "ground"),
        water=True,
        shore=0.4,
    )
    kinds = all_captions(scene)
    assert any(
        re.fullmatch(
            r"a( little| small)? rabbit in the snow, a( little| small)? whale in the water and "
            r"an? (little |small )?airplane in the sky",
            caption,
        )
        for caption in kinds[0]
    )
    assert any("airplane above a" in caption for caption in kinds[1])
    for caption in (c for kind in kinds for c in kind):
        assert "in the sky under a blue sky" not in caption
        assert not re.search(r"airplane (in the snow|on snowy ground)", caption)


def test_captions__equal_objects_are_counted() -> None:
    scene = scene_of(("banana", 0.2, 0.7, 0.5, "ground"), ("banana", 0.8, 0.9, 0.5, "ground"))
    place, relation, listing, _, hypernyms = all_captions(scene)
    assert all(c.startswith("two bananas") for c in place)
    assert any(c.startswith("two bananas side by side") for c in relation)
    assert "there are two bananas" in listing
    assert all(c.startswith("two fruits") for c in hypernyms)


@pytest.mark.parametrize("style", [PAIRS, RETRIEVAL], ids=["pairs", "retrieval"])
def test_captions__grammar_of_many(style: object) -> None:
    lengths = []
    for index in range(600):
        scene = draw_scene(Draws(1, index), ATLAS, style, ATLAS.training_vendors)  # type: ignore[arg-type]
        captions = write_captions(Draws(2, index), scene)
        assert captions is not None and len(captions) == 5
        for caption in captions:
            assert caption == caption.lower() == caption.strip()
            assert "  " not in caption
            assert not re.search(r"\ba [aeiou]", caption), caption
            assert not re.search(r"\ban [^aeiou]", caption), caption
            assert not re.search(r"\b(\w+) \1\b", caption), caption
            assert not re.search(r"\b(two|three) (a|an)\b", caption), caption
            lengths.append(len(tokens_of(caption)))
    assert 7 < sum(lengths) / len(lengths) < 11
    assert max(lengths) < 40


def test_write_captions__taken_ones_are_written_anew() -> None:
    scene = scene_of(("turtle", 0.2, 0.7, 0.3, "ground"), ("guitar", 0.8, 0.9, 0.3, "ground"))
    first = write_captions(Draws(0, "x"), scene)
    assert first is not None
    second = write_captions(Draws(0, "x"), scene, is_taken=set(first).__contains__)
    assert second is not None and not set(first) & set(second)
    assert write_captions(Draws(0, "x"), scene, is_taken=lambda caption: True) is None


def test_plan_captions__unique_and_new() -> None:
    sizes = DemoSizes(pretrain=400, captions_test=60, captions_val=20)
    seen = {text for index in range(400) for text in pretrain_scene(ATLAS, 0, index)[1]}
    before = set(seen)
    planned = plan_captions(sizes, 0, seen, most=25)
    assert [(p.split, p.start, p.stop) for p in planned] == [
        ("test", 0, 25),
        ("test", 25, 50),
        ("test", 50, 60),
        ("val", 0, 20),
    ]
    texts = [text for piece in planned for captions in piece.captions for text in captions]
    assert len(texts) == len(set(texts)) == 80 * 5
    assert not before & set(texts)


@pytest.mark.slow
def test_plan_captions__unique_and_new_at_full_size() -> None:
    sizes = DemoSizes()
    seen = {text for i in range(sizes.pretrain) for text in pretrain_scene(ATLAS, 0, i)[1]}
    words = {word for text in seen for word in tokens_of(text)}
    before = set(seen)
    planned = plan_captions(sizes, 0, seen)
    texts = [text for piece in planned for captions in piece.captions for text in captions]
    assert len(texts) == len(set(texts)) == 1300 * 5
    assert not before & set(texts)
    assert {word for text in texts for word in tokens_of(text)} <= words
