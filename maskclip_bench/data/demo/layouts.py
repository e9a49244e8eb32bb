"""The five layouts of the demo world, made in pieces that any process can make on its own.

A `Piece` is a range of scenes of one split. `make_piece` draws them and writes their files; what
belongs in a common file (annotations, class lists) is returned and merged by `finish_layout`.
Every scene is a function of the seed, its split and its index, so the world does not depend on how
many processes make it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maskclip_bench.data.demo.atlas import Atlas, ObjectClass, drawing_id, load_atlas
from maskclip_bench.data.demo.captions import tokens_of, write_captions
from maskclip_bench.data.demo.drawing import (
    draw_image,
    draw_scene_with_masks,
    semantic_labels,
)
from maskclip_bench.data.demo.draws import Draws
from maskclip_bench.data.demo.formats import (
    bounding_box,
    jpeg_bytes,
    json_bytes,
    png_bytes,
    run_lengths,
    tar_bytes,
)
from maskclip_bench.data.demo.scenes import (
    INSTANCES,
    PAIRS,
    RETRIEVAL,
    SEMANTIC,
    STUFF,
    Scene,
    draw_scene,
)
from maskclip_bench.data.demo.sizes import DemoSizes
from maskclip_bench.data.demo.slices import SLICES, after_drawing, object_style

PAIR_SIZE = 72
OBJECT_SIZE = 72
CAPTION_SIZE = 72
SCENE_SIZE = 128
INSTANCE_SIZE = 160
"""Sides of the images of each layout, in pixels."""

STUFF_COLORS = (
    (120, 178, 232),
    (44, 44, 96),
    (168, 82, 62),
    (46, 116, 176),
    (96, 160, 60),
    (228, 196, 138),
    (232, 240, 250),
    (150, 102, 60),
)
"""Colours of `STUFF` in a drawing of labels."""


@dataclass(frozen=True)
class Piece:
    """Scenes `start` to `stop` of one split of one layout.

    Attributes:
        layout: "pretrain", "objects", "captions", "scenes" or "instances".
        split: Name of the split.
        start: First scene.
        stop: One past the last scene.
        retries: Captions only: which draw of each scene has captions that are new.
        captions: Captions only: those captions, five for each scene.
    """

    layout: str
    split: str
    start: int
    stop: int
    retries: tuple[int, ...] = ()
    captions: tuple[tuple[str, ...], ...] = ()


@dataclass
class MadePiece:
    """The result of a piece.

    Attributes:
        piece: Which.
        files: Path below the world -> size and SHA-256.
        records: For the common files of the split, in order of the scenes.
    """

    piece: Piece
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    records: list[Any] = field(default_factory=list)

    def write(self, world: Path, path: str, content: bytes) -> None:
        """Write a file below `world` and remember it."""
        self.files[path] = write_file(world, path, content)


def write_file(world: Path, path: str, content: bytes) -> tuple[int, str]:
    """Write a file below `world`; returns its size and SHA-256.

    The bytes are made before, since an image library that hits a full disk does not say so.
    """
    target = world / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return len(content), hashlib.sha256(content).hexdigest()


def num_scenes(sizes: DemoSizes, layout: str, split: str) -> int:
    """How many scenes a split has."""
    if layout == "pretrain":
        return sizes.pretrain
    count: int = getattr(sizes, f"{layout}_{split}")
    return count * len(load_atlas().classes) if layout == "objects" else count


SPLITS = {
    "pretrain": ("train",),
    "objects": ("train", "val", "val_ood", "tune", *SLICES),
    "scenes": ("training", "validation", "validation_ood"),
    "instances": ("train", "val", "val_ood"),
    "captions": ("test", "val"),
}


def vendors_of(atlas: Atlas, split: str) -> tuple[str, ...]:
    """Whose drawings a split uses: the held-out vendors in `*_ood`, the others elsewhere."""
    return atlas.held_out_vendors if split.endswith("_ood") else atlas.training_vendors


def pieces(sizes: DemoSizes, layout: str, *, most: int = 500) -> Iterator[Piece]:
    """All pieces of a layout; a piece of `pretrain` is a shard."""
    step = sizes.shard if layout == "pretrain" else most
    for split in SPLITS[layout]:
        total = num_scenes(sizes, layout, split)
        for start in range(0, total, step):
            yield Piece(layout, split, start, min(total, start + step))


def make_piece(
    piece: Piece, world: Path, sizes: DemoSizes, seed: int, held_out: Sequence[str] = ()
) -> MadePiece:
    """Draw the scenes of a piece and write their files below `world`.

    Args:
        piece: Which scenes.
        world: The folder of the world.
        sizes: Of the world.
        seed: Of the world.
        held_out: Vendors of the splits `*_ood`; those of the atlas by default.
    """
    made = MadePiece(piece)
    _MAKERS[piece.layout](made, world, sizes, seed, atlas_of(held_out))
    return made


def atlas_of(held_out: Sequence[str]) -> Atlas:
    """The atlas with these vendors held out, or with its own for an empty list."""
    return load_atlas().holding_out(held_out) if held_out else load_atlas()


def finish_layout(
    layout: str, made: Sequence[MadePiece], world: Path
) -> dict[str, tuple[int, str]]:
    """Write the common files of a layout, given all its pieces; returns what was written."""
    splits = SPLITS[layout]
    order = sorted(made, key=lambda part: (splits.index(part.piece.split), part.piece.start))
    return {
        path: write_file(world, path, json_bytes(value))
        for path, value in _FINISHERS[layout](order).items()
    }


def _records(made: Sequence[MadePiece], split: str) -> list[Any]:
    """Records of all scenes of a split, in their order."""
    return [record for part in made if part.piece.split == split for record in part.records]


# --- pretrain: webdataset shards --------------------------------------------------------------


def pretrain_scene(atlas: Atlas, seed: int, index: int) -> tuple[Scene, list[str]]:
    """One pretraining scene and its captions."""
    vendors = vendors_of(atlas, "train")
    scene = draw_scene(Draws(seed, "pretrain", "scene", index), atlas, PAIRS, vendors)
    captions = write_captions(Draws(seed, "pretrain", "captions", index), scene)
    assert captions is not None
    return scene, captions


def _make_pretrain(made: MadePiece, world: Path, sizes: DemoSizes, seed: int, atlas: Atlas) -> None:
    piece = made.piece
    members: list[tuple[str, bytes]] = []
    for index in range(piece.start, piece.stop):
        scene, captions = pretrain_scene(atlas, seed, index)
        image = draw_image(scene, size=PAIR_SIZE, seed=seed, split="pretrain")
        drawings = [item.drawing for item in scene.objects]
        key = f"{index:06d}"
        members += [
            (f"{key}.jpg", jpeg_bytes(image)),
            (f"{key}.json", json_bytes({"captions": captions, "drawings": drawings})),
            (f"{key}.txt", captions[0].encode()),
        ]
        made.records.append(captions)
    name = shard_name(piece.start // sizes.shard)
    made.write(world, f"pretrain/shards/{name}", tar_bytes(members))


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"pretrain-{number:06d}.tar"


def _finish_pretrain(made: Sequence[MadePiece]) -> dict[str, Any]:
    counts = {
        Path(path).name: part.piece.stop - part.piece.start for part in made for path in part.files
    }
    return {"pretrain/shards.json": {"num_samples": sum(counts.values()), "shards": counts}}


# --- objects: ImageNet folders ----------------------------------------------------------------


def object_of(atlas: Atlas, split: str, index: int, per_class: int) -> tuple[ObjectClass, str]:
    """Class and vendor of one image: classes one after the other, vendors by turns."""
    vendors = vendors_of(atlas, split)
    return atlas.classes[index // per_class], vendors[index % per_class % len(vendors)]


def _make_objects(made: MadePiece, world: Path, sizes: DemoSizes, seed: int, atlas: Atlas) -> None:
    piece = made.piece
    per_class = getattr(sizes, f"objects_{piece.split}")
    for index in range(piece.start, piece.stop):
        main = object_of(atlas, piece.split, index, per_class)
        draws = Draws(seed, "objects", piece.split, index)
        style = object_style(piece.split)
        scene = draw_scene(draws, atlas, style, (main[1],), main=main)
        image = draw_image(scene, size=OBJECT_SIZE, seed=seed, split=f"objects/{piece.split}")
        image = after_drawing(piece.split, image, scene, draws)
        path = f"{main[0].wnid}/{piece.split}_{index:06d}.jpg"
        made.write(world, f"objects/{piece.split}/{path}", jpeg_bytes(image))
        made.records.append((path, {"drawing": drawing_id(*main), "vendor": main[1]}))


def _finish_objects(made: Sequence[MadePiece]) -> dict[str, Any]:
    classes = [
        {
            "wnid": object_class.wnid,
            "name": object_class.name,
            "singular": object_class.singular,
            "plural": object_class.plural,
            "group": object_class.group.name,
        }
        for object_class in load_atlas().classes
    ]
    there = {split: dict(_records(made, split)) for split in SPLITS["objects"]}
    sidecars = {
        f"objects/{split}.json": records
        for split, records in there.items()
        if records or split not in SLICES
    }
    return {"objects/classes.json": classes, **sidecars}


# --- scenes: ADE20K ---------------------------------------------------------------------------


def _make_scenes(made: MadePiece, world: Path, sizes: DemoSizes, seed: int, atlas: Atlas) -> None:
    piece = made.piece
    for index in range(piece.start, piece.stop):
        draws = Draws(seed, "scenes", piece.split, index)
        scene = draw_scene(draws, atlas, SEMANTIC, vendors_of(atlas, piece.split))
        drawn = draw_scene_with_masks(
            scene, size=SCENE_SIZE, seed=seed, split=f"scenes/{piece.split}"
        )
        stem = f"DEMO_{piece.split}_{index:08d}"
        images, annotations = (f"scenes/{kind}/{piece.split}" for kind in ("images", "annotations"))
        made.write(world, f"{images}/{stem}.jpg", jpeg_bytes(drawn.image))
        made.write(world, f"{annotations}/{stem}.png", png_bytes(semantic_labels(scene, drawn)))
        made.records.append((f"{stem}.jpg", [item.drawing for item in scene.objects]))


def _finish_scenes(made: Sequence[MadePiece]) -> dict[str, Any]:
    drawings = {
        f"scenes/drawings_{split}.json": dict(_records(made, split)) for split in SPLITS["scenes"]
    }
    return {"scenes/classes.json": semantic_classes(load_atlas()), **drawings}


def semantic_classes(atlas: Atlas) -> list[dict[str, Any]]:
    """Classes of the semantic layout; `id` is the value in the PNG (0 is unlabelled)."""
    hues = np.linspace(0, 1, len(atlas.groups), endpoint=False)
    colors = [
        *STUFF_COLORS,
        *(_hue_color(float(hue), position) for position, hue in enumerate(hues)),
    ]
    names = [*STUFF, *(group.name for group in atlas.groups)]
    return [
        {
            "id": position + 1,
            "name": name,
            "kind": "stuff" if position < len(STUFF) else "thing",
            "color": list(colors[position]),
        }
        for position, name in enumerate(names)
    ]


def _hue_color(hue: float, position: int) -> tuple[int, int, int]:
    """A saturated colour; neighbours differ in lightness too."""
    angles = 2 * np.pi * (hue + np.array([0.0, 1 / 3, 2 / 3]))
    middle, swing = (150, 105) if position % 2 else (115, 110)
    red, green, blue = (round(float(v)) for v in middle + swing * np.cos(angles))
    return red, green, blue


# --- instances: COCO --------------------------------------------------------------------------


def _make_instances(
    made: MadePiece, world: Path, sizes: DemoSizes, seed: int, atlas: Atlas
) -> None:
    piece = made.piece
    for index in range(piece.start, piece.stop):
        draws = Draws(seed, "instances", piece.split, index)
        scene = draw_scene(draws, atlas, INSTANCES, vendors_of(atlas, piece.split))
        drawn = draw_scene_with_masks(
            scene, size=INSTANCE_SIZE, seed=seed, split=f"instances/{piece.split}"
        )
        name = f"{index:012d}.jpg"
        made.write(world, f"instances/{piece.split}/{name}", jpeg_bytes(drawn.image))
        annotations = []
        for position, item in enumerate(scene.objects, start=1):
            mask = drawn.owner == position
            if mask.any():
                annotations.append(
                    {
                        "category_id": item.object_class.group.index + 1,
                        "segmentation": run_lengths(mask),
                        "area": int(mask.sum()),
                        "bbox": bounding_box(mask),
                        "iscrowd": 0,
                        "drawing": item.drawing,
                    }
                )
        record = {"file_name": name, "width": INSTANCE_SIZE, "height": INSTANCE_SIZE}
        made.records.append((record, annotations))


def _finish_instances(made: Sequence[MadePiece]) -> dict[str, Any]:
    return {
        f"instances/annotations/instances_{split}.json": _coco_file(split, _records(made, split))
        for split in SPLITS["instances"]
    }


def _coco_file(split: str, records: list[Any]) -> dict[str, Any]:
    """COCO's annotation file: ids count from 1 within the split."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (image, found) in enumerate(records, start=1):
        images.append({"id": image_id, **image})
        for annotation in found:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    return {
        "info": {"description": f"maskclip-bench demo world, instances {split}"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": group.index + 1, "name": group.name, "supercategory": "object"}
            for group in load_atlas().groups
        ],
    }


# --- captions: Karpathy's JSON ----------------------------------------------------------------


def caption_scene(
    atlas: Atlas, seed: int, split: str, index: int, retry: int
) -> tuple[Scene, Draws]:
    """One scene of the retrieval layout, and the stream that its captions come from."""
    draws = Draws(seed, "captions", split, index, retry)
    scene = draw_scene(draws, atlas, RETRIEVAL, vendors_of(atlas, split))
    return scene, Draws(seed, "captions", split, index, retry, "words")


def plan_captions(
    sizes: DemoSizes,
    seed: int,
    seen: set[str],
    *,
    most: int = 500,
    held_out: Sequence[str] = (),
) -> list[Piece]:
    """Choose scenes whose five captions are in no other scene of the layout nor in `seen`.

    Args:
        sizes: How many scenes.
        seed: Of the world.
        seen: Captions of pretraining; the new ones are added.
        most: Scenes in one piece.
        held_out: Vendors of which no drawing is used; those of the atlas by default.
    """
    planned = []
    atlas = atlas_of(held_out)
    for split in SPLITS["captions"]:
        chosen: list[tuple[int, tuple[str, ...]]] = []
        for index in range(num_scenes(sizes, "captions", split)):
            captions, retry = None, -1
            while captions is None:
                retry += 1
                scene, draws = caption_scene(atlas, seed, split, index, retry)
                captions = write_captions(draws, scene, is_taken=seen.__contains__)
            seen.update(captions)
            chosen.append((retry, tuple(captions)))
        for start in range(0, len(chosen), most):
            part = chosen[start : start + most]
            retries, texts = (tuple(values) for values in zip(*part, strict=True))
            planned.append(Piece("captions", split, start, start + len(part), retries, texts))
    return planned


def _make_captions(made: MadePiece, world: Path, sizes: DemoSizes, seed: int, atlas: Atlas) -> None:
    piece = made.piece
    scenes = zip(range(piece.start, piece.stop), piece.retries, piece.captions, strict=True)
    for index, retry, captions in scenes:
        scene, _ = caption_scene(atlas, seed, piece.split, index, retry)
        image = draw_image(scene, size=CAPTION_SIZE, seed=seed, split=f"captions/{piece.split}")
        name = f"{piece.split}_{index:06d}.jpg"
        made.write(world, f"captions/images/{name}", jpeg_bytes(image))
        drawings = [item.drawing for item in scene.objects]
        made.records.append((name, piece.split, drawings, captions))


def _finish_captions(made: Sequence[MadePiece]) -> dict[str, Any]:
    """`dataset_demo.json`: the images of all splits in one file."""
    images: list[dict[str, Any]] = []
    num_sentences = 0
    for name, split, drawings, captions in (record for part in made for record in part.records):
        sentences = [
            {
                "raw": caption,
                "tokens": tokens_of(caption),
                "imgid": len(images),
                "sentid": num_sentences + position,
            }
            for position, caption in enumerate(captions)
        ]
        num_sentences += len(sentences)
        images.append(
            {
                "filename": name,
                "split": split,
                "imgid": len(images),
                "sentids": [sentence["sentid"] for sentence in sentences],
                "sentences": sentences,
                "drawings": drawings,
            }
        )
    return {"captions/dataset_demo.json": {"dataset": "demo", "images": images}}


_MAKERS: dict[str, Callable[[MadePiece, Path, DemoSizes, int, Atlas], None]] = {
    "pretrain": _make_pretrain,
    "objects": _make_objects,
    "scenes": _make_scenes,
    "instances": _make_instances,
    "captions": _make_captions,
}
_FINISHERS: dict[str, Callable[[Sequence[MadePiece]], dict[str, Any]]] = {
    "pretrain": _finish_pretrain,
    "objects": _finish_objects,
    "scenes": _finish_scenes,
    "instances": _finish_instances,
    "captions": _finish_captions,
}
