"""What is in a scene and where: drawn from a seed, independent of pixels.

All lengths are fractions of the side of the (square) image, so that one layout can be drawn at
any size. `y` points down. The `base` of an object is its lower edge; a lower one is nearer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from maskclip_bench.data.demo.atlas import Atlas, ObjectClass, drawing_id
from maskclip_bench.data.demo.draws import Draws

BACKDROPS = ("sky", "night sky", "brick wall")
GROUNDS = ("grass", "sand", "snow", "wooden floor")
WATER = "water"
STUFF = (*BACKDROPS, WATER, *GROUNDS)
"""Stuff classes, in label order."""

MAX_HIDDEN = 0.45
"""Share of an object's box that the boxes of nearer objects may cover."""

NUM_TRIES = 24
"""Positions tried for one object before it is made smaller, or left out."""


@dataclass(frozen=True)
class SceneObject:
    """One object.

    Attributes:
        object_class: What it is.
        vendor: Whose drawing.
        center: Horizontal position of its middle.
        base: Vertical position of its lower edge.
        width: Horizontal extent.
        height: Vertical extent.
        flip: Mirrored left to right.
        angle: Degrees, counterclockwise.
        where: "ground", "air", or "water" (its lower part is under water).
    """

    object_class: ObjectClass
    vendor: str
    center: float
    base: float
    width: float
    height: float
    flip: bool
    angle: float
    where: str

    @property
    def drawing(self) -> str:
        """Drawing id."""
        return drawing_id(self.object_class, self.vendor)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        half = self.width / 2
        return (self.center - half, self.base - self.height, self.center + half, self.base)


@dataclass(frozen=True)
class Scene:
    """Scenery, its light, and its objects from back to front.

    Attributes:
        backdrop: One of `BACKDROPS`.
        ground: One of `GROUNDS`.
        water: Whether there is a strip of water between them.
        shore: Where the backdrop meets the water (or the ground).
        horizon: Where the ground begins.
        hills: Deviations of the ground's edge at equal steps from left to right.
        light: -1 (from the left) to 1 (from the right).
        brightness: Of the whole scene, at most 1.
        warmth: -1 (blue) to 1 (yellow).
        luminary: Horizontal and vertical position of the sun or moon, or None.
        texture: Seed of the choice of textures.
        objects: From back to front.
    """

    backdrop: str
    ground: str
    water: bool
    shore: float
    horizon: float
    hills: tuple[float, ...]
    light: float
    brightness: float
    warmth: float
    luminary: tuple[float, float] | None
    texture: float
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class SceneStyle:
    """How scenes of a layout are drawn.

    Attributes:
        counts: Weights of 1, 2, 3... objects.
        sizes: Smallest and largest longest side of an object.
        near_size: If set, the range of one object in front, with `near_chance`.
        near_chance: How often there is such an object.
        repeat_chance: How often a further object is of a class that is there already.
    """

    counts: tuple[float, ...]
    sizes: tuple[float, float]
    near_size: tuple[float, float] | None = None
    near_chance: float = 0.0
    repeat_chance: float = 0.15


PORTRAIT = SceneStyle(counts=(1.0,), sizes=(0.62, 0.94))
"""One large object: the classification layout."""

PAIRS = SceneStyle(counts=(0.45, 0.35, 0.20), sizes=(0.34, 0.80))
"""One to three objects: image-text pairs."""

RETRIEVAL = SceneStyle(counts=(0.0, 0.55, 0.45), sizes=(0.34, 0.66), repeat_chance=0.12)
"""Two or three objects: enough to say to tell one scene from a thousand others."""

SEMANTIC = SceneStyle(
    counts=(0.0, 0.3, 0.4, 0.3), sizes=(0.16, 0.5), near_size=(0.5, 0.75), near_chance=0.3
)
"""Two to four objects on much ground."""

INSTANCES = SceneStyle(
    counts=(0.0, 0.15, 0.25, 0.25, 0.2, 0.15),
    sizes=(0.14, 0.52),
    near_size=(0.72, 0.95),
    near_chance=0.45,
    repeat_chance=0.25,
)
"""Two to six objects, from far to very near."""


def draw_scene(
    draws: Draws,
    atlas: Atlas,
    style: SceneStyle,
    vendors: Sequence[str],
    *,
    main: tuple[ObjectClass, str] | None = None,
) -> Scene:
    """Draw a scene.

    Args:
        draws: The stream of this scene.
        atlas: Classes and the shapes of their drawings.
        style: Sizes and numbers of objects.
        vendors: Whose drawings may be used.
        main: Class and vendor of the first object; drawn if not given.
    """
    backdrop = BACKDROPS[draws.weighted((0.5, 0.22, 0.28))]
    floors = (0.34, 0.24, 0.24, 0.18) if backdrop == "sky" else (0.28, 0.2, 0.2, 0.32)
    ground = GROUNDS[draws.weighted(floors)]
    outdoors = backdrop != "brick wall"
    water = outdoors and ground != "wooden floor" and draws.chance(0.35)
    horizon = draws.uniform(0.36, 0.6)
    shore = horizon - draws.uniform(0.12, 0.22) if water else horizon
    flat = ground == "wooden floor"
    roughness = 0.0 if flat else 0.03 if outdoors else 0.008
    empty = Scene(
        backdrop=backdrop,
        ground=ground,
        water=water,
        shore=shore,
        horizon=horizon,
        hills=tuple(draws.uniform(-roughness, roughness) for _ in range(5)),
        light=draws.uniform(-1.0, 1.0),
        brightness=draws.uniform(0.84, 1.0),
        warmth=draws.uniform(-1.0, 1.0),
        luminary=(draws.uniform(0.1, 0.9), draws.uniform(0.06, 0.2))
        if outdoors and draws.chance(0.4)
        else None,
        texture=draws.uniform(),
        objects=(),
    )
    objects = _draw_objects(draws, atlas, style, vendors, empty, main)
    return replace(empty, objects=objects)


def _draw_objects(
    draws: Draws,
    atlas: Atlas,
    style: SceneStyle,
    vendors: Sequence[str],
    empty: Scene,
    main: tuple[ObjectClass, str] | None,
) -> tuple[SceneObject, ...]:
    """Choose objects and find room for each; back to front."""
    count = draws.weighted(style.counts) + 1
    placed: list[SceneObject] = []
    near = style.near_size is not None and draws.chance(style.near_chance)
    for position in range(count):
        if position == 0 and main is not None:
            object_class, vendor = main
        elif placed and draws.chance(style.repeat_chance):
            object_class, vendor = placed[0].object_class, draws.choice(vendors)
        else:
            object_class, vendor = draws.choice(atlas.classes), draws.choice(vendors)
        sizes = style.near_size if near and position == 0 and style.near_size else style.sizes
        size = draws.log_uniform(*sizes)
        aspect = atlas.sprites[drawing_id(object_class, vendor)].size
        for attempt in range(NUM_TRIES):
            # After half of the tries there is no room for so large an object.
            shrink = 1.0 if attempt < NUM_TRIES // 2 else 0.7
            candidate = _candidate(
                draws, object_class, vendor, aspect, max(sizes[0], size * shrink), style, empty
            )
            if _fits([*placed, candidate]):
                placed.append(candidate)
                break
    return tuple(sorted(placed, key=_nearness))


def _candidate(
    draws: Draws,
    object_class: ObjectClass,
    vendor: str,
    aspect: tuple[int, int],
    size: float,
    style: SceneStyle,
    empty: Scene,
) -> SceneObject:
    """Put an object somewhere it can be: in the air, in the water, or on the ground."""
    angle = draws.uniform(-7.0, 7.0)
    flip = draws.chance(0.5)
    width, height = (size * side / max(aspect) for side in aspect)
    center = draws.uniform(width * 0.46, 1 - width * 0.46)
    outdoors = empty.backdrop != "brick wall"
    if outdoors and draws.chance(object_class.flies) and height < 0.9:
        where = "air"
        top = draws.uniform(0.02, max(0.04, empty.shore - height * 0.6))
        base = min(top + height, 0.97)
    elif (
        empty.water
        and object_class.group.name == "sea animal"
        and height < empty.horizon - 0.02
        and draws.chance(0.75)
    ):
        where = "water"
        base = empty.horizon - draws.uniform(0.035, 0.06)
    else:
        where = "ground"
        # The larger an object, the nearer it is; a little play keeps this from being a rule.
        smallest, largest = (
            style.sizes[0] * 0.7,
            max(style.sizes[1], (style.near_size or (0, 0))[1]),
        )
        nearness = (size - smallest) / (largest - smallest) + draws.uniform(-0.18, 0.18)
        farthest = empty.horizon + 0.05
        base = farthest + (0.97 - farthest) * min(1.0, max(0.0, nearness))
        base = max(base, min(0.98, height + 0.02))
    return SceneObject(object_class, vendor, center, base, width, height, flip, angle, where)


def _nearness(item: SceneObject) -> tuple[int, float]:
    """Sort key: what is in the air is behind, then what is in the water, then by the base."""
    return ({"air": 0, "water": 1, "ground": 2}[item.where], item.base)


def _fits(objects: Sequence[SceneObject]) -> bool:
    """Whether nearer objects leave enough to be seen of every object."""
    ordered = sorted(objects, key=_nearness)
    for index, behind in enumerate(ordered):
        left, top, right, bottom = behind.box
        covered = 0.0
        for front in ordered[index + 1 :]:
            x0, y0, x1, y1 = front.box
            covered += max(0.0, min(right, x1) - max(left, x0)) * max(
                0.0, min(bottom, y1) - max(top, y0)
            )
        if covered > MAX_HIDDEN * behind.width * behind.height:
            return False
    return True
