"""English captions of a scene: its surroundings, how objects are arranged, their names, keywords.

Captions are lower-case and without a full stop. Five kinds are written for every scene, one each.
`detail` (0 to 3) says how much of the surroundings and of the sizes is told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from maskclip_bench.data.demo.draws import Draws
from maskclip_bench.data.demo.scenes import Scene, SceneObject

Value = TypeVar("Value")

NUM_CAPTIONS = 5
MAX_DETAIL = 3
DETAIL_WEIGHTS = (0.35, 0.4, 0.2, 0.05)

BIG = 0.6
SMALL = 0.42
"""Longest side, as a fraction of the image, from which on an object is called big (small)."""

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")

_ON_GROUND = {
    "grass": ("on the grass", "on a lawn"),
    "sand": ("on the sand", "on sandy ground"),
    "snow": ("in the snow", "on snowy ground"),
    "wooden floor": ("on a wooden floor", "on wooden boards"),
}
_OVER_GROUND = {
    "grass": "over the grass",
    "sand": "over the sand",
    "snow": "over the snow",
    "wooden floor": "over a wooden floor",
}
_BACKDROPS = {
    "sky": ("under a blue sky", "by day"),
    "night sky": ("at night", "under a starry sky"),
    "brick wall": ("in front of a brick wall", "by a brick wall"),
}
_TIMES = {"sky": ("by day", "on a bright day"), "night sky": ("at night", "in the dark")}
_SCENERY_WORDS = {
    "grass": "grass",
    "sand": "sand",
    "snow": "snow",
    "wooden floor": "wood",
    "sky": "sky",
    "night sky": "night",
    "brick wall": "bricks",
}
_MEDIA = ("a picture of", "a photo of", "a drawing of", "an image of", "art of")

IsTaken = Callable[[str], bool]


def write_captions(
    draws: Draws, scene: Scene, *, is_taken: IsTaken | None = None, num_tries: int = 16
) -> list[str] | None:
    """Five captions, one of each kind.

    Args:
        draws: The stream of this scene's captions.
        scene: What to describe.
        is_taken: If given, captions for which it is true are written again, with more detail.
        num_tries: How often one caption is written again.

    Returns:
        The captions, all different; None if one of them was taken every time.
    """
    captions: list[str] = []
    for write in _KINDS:
        first = draws.weighted(DETAIL_WEIGHTS)
        for attempt in range(num_tries):
            detail = min(MAX_DETAIL, first + attempt // 2)
            caption = write(draws, scene, detail)
            if caption not in captions and not (is_taken and is_taken(caption)):
                captions.append(caption)
                break
        else:
            if is_taken is not None:
                return None
            captions.append(caption)
    return captions


def tokens_of(caption: str) -> list[str]:
    """The words of a caption, as Karpathy's JSON lists them.

    Example:
        >>> tokens_of("a t-shirt, on the sand")
        ['a', 't-shirt', 'on', 'the', 'sand']
    """
    return re.findall(r"[a-z0-9'-]+", caption.lower())


def join(phrases: Sequence[str]) -> str:
    """Phrases as an English list.

    Example:
        >>> join(["a car", "two bees", "a hammer"])
        'a car, two bees and a hammer'
    """
    if len(phrases) <= 1:
        return "".join(phrases)
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


def counted(singular: str, plural: str, count: int, adjective: str = "") -> str:
    """A noun phrase for `count` things.

    Example:
        >>> counted("a pair of scissors", "pairs of scissors", 1)
        'a pair of scissors'
        >>> counted("an elephant", "elephants", 1, "big")
        'a big elephant'
        >>> counted("a bunch of grapes", "bunches of grapes", 3)
        'three bunches of grapes'
    """
    if count > 1:
        return " ".join(part for part in (NUMBERS[count], adjective, plural) if part)
    if not adjective:
        return singular
    article = "an" if adjective[0] in "aeiou" else "a"
    return f"{article} {adjective} {singular.split(' ', 1)[1]}"


def _scenery_caption(draws: Draws, scene: Scene, detail: int) -> str:
    """Where everything is: "a turtle on the grass and an airplane in the sky"."""
    parts = []
    for where in ("ground", "water", "air"):
        items = [item for item in scene.objects if item.where == where]
        if items:
            location = {
                "ground": draws.choice(_ON_GROUND[scene.ground]),
                "water": "in the water",
                "air": draws.choice(("in the sky", "in the air")),
            }[where]
            parts.append(f"{_nouns(draws, items, detail)} {location}")
    caption = join(parts)
    if detail >= 1:
        caption += f" {_backdrop(draws, scene)}"
    if detail >= 2 and scene.water and not any(item.where == "water" for item in scene.objects):
        caption += " by the water"
    return caption


def _relation_caption(draws: Draws, scene: Scene, detail: int) -> str:
    """How two objects are arranged, or where the only one is."""
    candidates = [
        (one, relation, other)
        for one in scene.objects
        for other in scene.objects
        if one.object_class != other.object_class
        for relation in _relations(one, other)
    ]
    if candidates:
        one, relation, other = draws.choice(candidates)
        caption = f"{_noun(draws, one, detail)} {relation} {_noun(draws, other, detail)}"
        rest = [item for item in scene.objects if item is not one and item is not other]
        if rest and detail >= 2:
            caption += f", with {_nouns(draws, rest, detail)}"
    elif len(scene.objects) > 1:
        arrangement = draws.choice(("side by side", "together", "in one place"))
        caption = f"{_nouns(draws, scene.objects, detail)} {arrangement}"
    else:
        center = scene.objects[0].center
        side = "left" if center < 0.4 else "right" if center > 0.6 else "middle"
        where = "in the middle" if side == "middle" else f"on the {side}"
        caption = f"{_nouns(draws, scene.objects, detail)} {where} of the picture"
    return _with_setting(draws, scene, caption, detail)


def _list_caption(draws: Draws, scene: Scene, detail: int) -> str:
    """What there is: "a photo of two bananas and a rocket"."""
    objects = _nouns(draws, scene.objects, detail)
    if draws.chance(0.25):
        first_is_plural = objects.startswith(NUMBERS[2:])
        caption = f"there {'are' if first_is_plural else 'is'} {objects}"
    else:
        caption = f"{draws.choice(_MEDIA)} {objects}"
    return _with_setting(draws, scene, caption, detail)


def _keyword_caption(draws: Draws, scene: Scene, detail: int) -> str:
    """Words that go with the objects and their surroundings: "bamboo, launch, snow, night"."""
    words: list[str] = []
    for object_class in _distinct(item.object_class for item in scene.objects):
        count = 1 if len(scene.objects) > 1 and detail < 2 else 2
        words += draws.sample(object_class.keywords, min(count, len(object_class.keywords)))
        if detail >= 3:
            words.append(object_class.name)
    words += draws.sample(
        (_SCENERY_WORDS[scene.ground], _SCENERY_WORDS[scene.backdrop]), 1 if detail < 1 else 2
    )
    if scene.water and detail >= 1:
        words.append("water")
    return ", ".join(draws.sample(words, len(words)) if detail >= 1 else words)


def _hypernym_caption(draws: Draws, scene: Scene, detail: int) -> str:
    """Kinds of things: "a mammal and two fruits in the snow"."""
    order = _distinct(item.object_class.group for item in scene.objects)
    phrases = []
    for group in draws.sample(order, len(order)):
        items = [item for item in scene.objects if item.object_class.group == group]
        phrases.append(
            counted(group.singular, group.plural, len(items), _size(draws, items, detail))
        )
    return _with_setting(draws, scene, join(phrases), max(1, detail))


_KINDS = (
    _scenery_caption,
    _relation_caption,
    _list_caption,
    _keyword_caption,
    _hypernym_caption,
)


def _distinct(values: Iterable[Value]) -> list[Value]:
    """Different values in the order of their first appearance."""
    return list(dict.fromkeys(values))


def _backdrop(draws: Draws, scene: Scene) -> str:
    """What is behind; nothing is "in the sky under a blue sky"."""
    in_the_air = any(item.where == "air" for item in scene.objects)
    return draws.choice((_TIMES if in_the_air else _BACKDROPS)[scene.backdrop])


def _with_setting(draws: Draws, scene: Scene, caption: str, detail: int) -> str:
    """Add the surroundings: the ground if everything is on it, and from detail 2 the backdrop."""
    if detail < 1:
        return caption
    where = {item.where for item in scene.objects}
    if where == {"ground"}:
        caption += f" {draws.choice(_ON_GROUND[scene.ground])}"
    elif where == {"air"}:
        caption += f" {_OVER_GROUND[scene.ground]}"
    elif detail < 2:
        return f"{caption} {_backdrop(draws, scene)}"
    if detail >= 2:
        caption += f" {_backdrop(draws, scene)}"
    if detail >= 3 and scene.water:
        caption += " by the water"
    return caption


def _relations(one: SceneObject, other: SceneObject) -> list[str]:
    """What is true of `one` in relation to `other`."""
    found = []
    apart = other.center - one.center
    if abs(apart) > 0.15:
        found.append("to the left of" if apart > 0 else "to the right of")
    if abs(apart) > 0.5 * (one.width + other.width) - 0.05:
        found.append("next to")
    if one.where == "air" and other.where != "air":
        found.append("above")
    elif other.where == "air" and one.where != "air":
        found.append("below")
    elif one.where == other.where == "ground" and abs(one.base - other.base) > 0.03:
        overlap = 0.5 * (one.width + other.width) - abs(apart)
        if overlap > 0.3 * min(one.width, other.width):
            found.append("in front of" if one.base > other.base else "behind")
    return found or ["beside"]


def _noun(draws: Draws, item: SceneObject, detail: int) -> str:
    return _nouns(draws, [item], detail)


def _nouns(draws: Draws, items: Sequence[SceneObject], detail: int) -> str:
    """Objects in random order, equal ones counted."""
    classes = _distinct(item.object_class for item in items)
    phrases = []
    for object_class in draws.sample(classes, len(classes)):
        same = [item for item in items if item.object_class == object_class]
        adjective = _size(draws, same, detail)
        phrases.append(counted(object_class.singular, object_class.plural, len(same), adjective))
    return join(phrases)


def _size(draws: Draws, items: Sequence[SceneObject], detail: int) -> str:
    """An adjective if all of `items` are large or all are small; often from detail 1 on."""
    if not draws.chance((0.1, 0.3, 0.8, 1.0)[detail]):
        return ""
    sides = [max(item.width, item.height) for item in items]
    if min(sides) >= BIG:
        return draws.choice(("big", "large"))
    if max(sides) <= SMALL:
        return draws.choice(("small", "little"))
    return ""
