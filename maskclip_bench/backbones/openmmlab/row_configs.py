"""Configs of mmseg and mmdet written from a row: its architecture, normalization and weights.

    maskclip-bench mm mmseg config dinov2_vit-b-14 --head upernet --data ade20k -o my_upernet.py

What an architecture changes of the shipped bases (`configs/mm*/_base_`), all of ViT-B/16:

| of the architecture | changes |
| --- | --- |
| width | channels of neck and heads |
| depth | taps (a third, a half, two thirds, the last block), global blocks, drop path, schedule |
| patch 14 | images of 512 (1024) pixels are padded to a multiple of 14; strides 3.5, 7, 14, 28 |
| patch 32 | the pyramid's factors are 8, 4, 2, 1 |

A config holds what differs from its bases alone. Its header says what differs from the source of
the recipe (`recipe_notes`).
"""

from __future__ import annotations

import re
import tempfile
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.backbones.loading import load_backbone
from maskclip_bench.backbones.openmmlab.recipe_notes import recipe_notes
from maskclip_bench.data_files import shipped_root
from maskclip_bench.errors import ConfigError, MaskCLIPBenchError, unknown_name
from maskclip_bench.runtime import Workspace

_ARCH = re.compile(r"ViT-(Ti|S|B|L|H)/(\d+)")
_SIZES = {"Ti": (192, 12), "S": (384, 12), "B": (768, 12), "L": (1024, 24), "H": (1280, 32)}
"""Size -> (width, depth)."""


_UNTRAINED = {
    "ViT-S/16": "vit_small_patch16_224",
    "ViT-B/14": "vit_base_patch14_dinov2",
    "ViT-B/16": "vit_base_patch16_224",
    "ViT-B/32": "vit_base_patch32_224",
    "ViT-L/14": "vit_large_patch14_224",
    "ViT-L/16": "vit_large_patch16_224",
    "ViT-H/14": "vit_huge_patch14_224",
}
"""What a config of an architecture trains from by itself: timm's model with fresh weights."""


@dataclass(frozen=True)
class Data:
    """A data set of the shipped bases.

    Attributes:
        base: File in `_base_`.
        num_classes: Of the heads.
        crop: Height and width of training crops, or of padded images.
        label: In a config's name.
    """

    base: str
    num_classes: int
    crop: tuple[int, int]
    label: str


DATA: dict[str, dict[str, Data]] = {
    "mmseg": {
        "ade20k": Data("ade20k_512x512", 150, (512, 512), "ade20k-512x512"),
        "voc2012": Data("voc2012_512x512", 21, (512, 512), "voc2012-512x512"),
        "pascal_context": Data(
            "pascal-context-59_480x480", 59, (480, 480), "pascal-context-59-480x480"
        ),
        "coco_stuff": Data("coco-stuff164k_512x512", 171, (512, 512), "coco-stuff164k-512x512"),
        "cityscapes": Data("cityscapes_512x1024", 19, (512, 1024), "cityscapes-512x1024"),
    },
    "mmdet": {
        "coco": Data("coco_1024", 80, (1024, 1024), "coco-1024"),
        "lvis": Data("lvis_1024", 1203, (1024, 1024), "lvis-1024"),
    },
}

HEADS: dict[str, dict[str, tuple[str, str, str]]] = {
    "mmseg": {
        "upernet": ("upernet_vit-b-16", "schedule_160k", "8xb2-amp-160k"),
        "frozen-upernet": ("upernet_vit-b-16", "schedule_160k", "8xb2-amp-160k"),
        "linear": ("linear_vit-b-16", "schedule_linear_40k", "8xb2-40k"),
        "ibot-linear": ("ibot-linear_vit-b-16", "schedule_ibot_linear_160k", "8xb2-160k"),
    },
    "mmdet": {
        "mask-rcnn": ("mask-rcnn_vit-b-16", "schedule_1x", "8xb2-amp-1x"),
        "vitdet-mask-rcnn": (
            "vitdet-mask-rcnn_vit-b-16",
            "schedule_vitdet_100e",
            "64xb1-amp-100e",
        ),
        "cascade-mask-rcnn": ("cascade-mask-rcnn_vit-b-16", "schedule_1x", "8xb2-amp-1x"),
        "retinanet": ("retinanet_vit-b-16", "schedule_1x", "8xb2-amp-1x"),
    },
}
"""Toolbox -> head -> (base of the model, base of the schedule, that part of the name)."""

_VITDET_SIZES = {24: "_vit-l", 32: "_vit-h"}
SCHEDULE_OF_DEPTH: dict[str, dict[int, str]] = {
    "upernet": {24: "_vit-l", 32: "_vit-l"},
    "mask-rcnn": _VITDET_SIZES,
    "vitdet-mask-rcnn": _VITDET_SIZES,
    "cascade-mask-rcnn": _VITDET_SIZES,
    "retinanet": _VITDET_SIZES,
}
"""Head -> depth -> ending of the schedule's name, where a larger ViT has rates of its own."""


def row_config(
    toolbox: str,
    head: str,
    data: str,
    *,
    row: BackboneDeclaration | None = None,
    arch: str | None = None,
    source: str | Mapping[str, Any] | None = None,
    normalization: dict[str, list[float]] | None = None,
    bases: str | None = None,
    title: str | None = None,
) -> str:
    """The text of a config.

    Args:
        toolbox: "mmseg" or "mmdet".
        head: A key of `HEADS`.
        data: A key of `DATA`.
        row: The row; None for a config of an architecture, which a run fills in.
        arch: Architecture in place of the row's.
        source: What the backbone names: a row, or arguments of the backbone that say where its
            weights come from; None = the row's name.
        normalization: `mean` and `std` in fractions; None = as in the bases.
        bases: Folder of the bases; None = that of the installed package.
        title: First words of the header; None = the row's name in tables, or the architecture.

    Raises:
        UnknownNameError: Another toolbox, head or data set.
        ConfigError: The architecture is no ViT whose sizes are known here.
    """
    _check_names(toolbox, head, data)
    architecture = arch or (row.arch if row is not None else "")
    found = _ARCH.fullmatch(architecture)
    if found is None:
        raise ConfigError(
            f"The architecture {architecture!r} has sizes that are not known here; configs are "
            "written for ViT-{Ti,S,B,L,H}/PATCH. Start from a config of configs/ by hand."
        )
    width, depth = _SIZES[found[1]]
    model = _segmentor if toolbox == "mmseg" else _detector
    changes = model(head, DATA[toolbox][data], width, depth, int(found[2]))
    if normalization is not None:
        scaled = {key: [round(255 * x, 4) for x in xs] for key, xs in normalization.items()}
        changes["data_preprocessor"] = {**changes.get("data_preprocessor", {}), **scaled}
    command = None
    if isinstance(source, Mapping):
        changes["backbone"] = {**source, **changes["backbone"]}
    elif row is not None:
        changes["backbone"] = {"backbone": source or row.name, **changes["backbone"]}
        command = f"maskclip-bench mm {toolbox} config {row.name} --head {head} --data {data}"
    elif architecture in _UNTRAINED:
        changes["backbone"] = {"timm": _UNTRAINED[architecture], **changes["backbone"]}
    if title is None:
        title = architecture if row is None else f"{row.display_name} ({architecture})"
    return _text(toolbox, head, data, architecture, title, command, changes, bases)


_AFTER_THE_MODEL = {
    "retinanet": 'val_evaluator = dict(metric=["bbox"])\ntest_evaluator = val_evaluator\n',
    "vitdet-mask-rcnn": (
        "global_batch_size = 64  # 64 GPUs x 1\ntrain_dataloader = dict(batch_size=1)\n"
    ),
}
"""Head -> what its configs say besides the model."""
_OF_THE_DATA = {
    "lvis": ('default_hooks = dict(checkpoint=dict(save_best="lvis/bbox_AP", rule="greater"))\n'),
}
"""Data set -> what configs on it say besides the model: its metrics have names of their own."""


def config_name(toolbox: str, head: str, data: str, stem: str) -> str:
    """A file name in OpenMMLab's grammar.

    Raises:
        UnknownNameError: Another toolbox, head or data set.
    """
    _check_names(toolbox, head, data)
    return f"{stem}_{head}_{HEADS[toolbox][head][2]}_{DATA[toolbox][data].label}.py"


def _check_names(toolbox: str, head: str, data: str) -> None:
    for kind, name, known in (
        ("toolbox", toolbox, HEADS),
        ("head", head, HEADS.get(toolbox, {})),
        ("data set", data, DATA.get(toolbox, {})),
    ):
        if name not in known:
            raise unknown_name(kind, name, known, remedy=f"Use {', '.join(known)}.")


def normalization_of(
    row: BackboneDeclaration, workspace: Workspace, seed: int = 0
) -> dict[str, list[float]] | None:
    """Mean and standard deviation of a row: as declared, else as its library says once loaded.

    None where neither is known on this machine.
    """
    declared = row.preprocess
    if declared.mean is not None and declared.std is not None:
        return {"mean": list(declared.mean), "std": list(declared.std)}
    try:
        transform = load_backbone(row, workspace=workspace, seed=seed).transform
    except MaskCLIPBenchError:
        return None
    mean, std = transform.mean, transform.std
    return None if mean is None or std is None else {"mean": list(mean), "std": list(std)}


def _taps(depth: int) -> tuple[int, ...]:
    """Blocks 4, 6, 8, 12 of 12 (BootMAE, iBOT), and the same shares of another depth."""
    return tuple(depth * share // 12 - 1 for share in (4, 6, 8, 12))


def _padded(size: int, patch: int) -> int:
    return -(-size // patch) * patch


def _segmentor(head: str, data: Data, width: int, depth: int, patch: int) -> dict[str, Any]:
    """What differs from the bases, by part of the model."""
    linear = head in ("linear", "ibot-linear")
    size = [_padded(side, patch) for side in data.crop]
    heads: dict[str, Any] = {"num_classes": data.num_classes}
    backbone: dict[str, Any] = {"img_size": tuple(size)}
    changes: dict[str, Any] = {"backbone": backbone, "decode_head": heads}
    if head == "linear":
        backbone["out_indices"] = (depth - 1,)
        heads |= {"in_channels": width, "channels": width}
        changes["neck"] = {"in_channels": width}
    else:
        backbone["out_indices"] = _taps(depth)
        heads["in_channels"] = [width] * 4
        heads["channels"] = 4 * width if head == "ibot-linear" else width
    if head in ("upernet", "frozen-upernet"):
        changes["auxiliary_head"] = {"in_channels": width, "num_classes": data.num_classes}
        changes["neck"] = {"embed_dim": width}
        if patch >= 32:
            changes["neck"] = {
                "_delete_": True,
                "type": "DeconvolutionPyramid",
                "in_channels": width,
                "scale_factors": (8, 4, 2, 1),
            }
        backbone["drop_path_rate"] = 0.1 if depth <= 12 else 0.2  # MAE, BEiT
    if head == "frozen-upernet":
        backbone |= {"frozen": True, "drop_path_rate": 0.0}
    if linear:
        backbone["drop_path_rate"] = 0.0
    test_cfg: dict[str, Any] = {"size": tuple(size)}
    if data.crop[0] % patch or data.crop[1] % patch:
        test_cfg = {"size_divisor": patch}
    changes["data_preprocessor"] = {
        "size": tuple(size),
        "test_cfg": {"_delete_": True, **test_cfg},
    }
    stride = tuple(side * 2 // 3 for side in size)
    changes["test_cfg"] = {"crop_size": tuple(size), "stride": stride}
    return changes


def _detector(head: str, data: Data, width: int, depth: int, patch: int) -> dict[str, Any]:
    """What differs from the bases, by part of the model."""
    quarter = depth // 4
    changes: dict[str, Any] = {
        "backbone": {
            "out_indices": (depth - 1,),
            "global_indices": tuple(quarter * index - 1 for index in (1, 2, 3, 4)),
            "drop_path_rate": {12: 0.1, 24: 0.4, 32: 0.5}[depth],  # ViTDet
        },
        "neck": {"in_channels": width},
        "data_preprocessor": {"pad_size_divisor": _padded(data.crop[0], patch)},
    }
    factors = (8, 4, 2, 1) if patch >= 32 else (4, 2, 1, 0.5)
    factors = factors[1:] if head == "retinanet" else factors
    strides = [patch / factor for factor in factors]
    strides = [int(stride) if stride.is_integer() else stride for stride in strides]
    changes["neck"]["scale_factors"] = factors
    levels = 5
    anchors = strides + [strides[-1] * 2 ** (k + 1) for k in range(levels - len(strides))]
    if head == "retinanet":
        changes["bbox_head"] = {
            "num_classes": data.num_classes,
            "anchor_generator": {"strides": anchors},
        }
        return changes
    if data.num_classes > 1000:  # LVIS: 300 detections an image, rare classes have low scores
        changes["test_cfg"] = {"rcnn": {"max_per_img": 300, "score_thr": 0.0001}}
    changes["rpn_head"] = {"anchor_generator": {"strides": anchors}}
    changes["roi_head"] = {
        "bbox_roi_extractor": {"featmap_strides": strides},
        "mask_roi_extractor": {"featmap_strides": strides},
        "mask_head": {"num_classes": data.num_classes},
    }
    if head == "vitdet-mask-rcnn":
        grid = tuple(_padded(side, patch) // patch for side in data.crop)
        changes["backbone"]["relative_positions"] = grid
    if head in ("mask-rcnn", "vitdet-mask-rcnn"):
        changes["roi_head"]["bbox_head"] = {"num_classes": data.num_classes}
    elif data.num_classes != 80:
        raise ConfigError(
            "The three box heads of cascade-mask-rcnn are a list, whose classes a config cannot "
            "change alone. Use mask-rcnn for this data set, or copy the config."
        )
    return changes


def _text(
    toolbox: str,
    head: str,
    data: str,
    architecture: str,
    title: str,
    command: str | None,
    changes: dict[str, Any],
    bases: str | None,
) -> str:
    """The file: header, bases, and what differs from them."""
    size, _, patch = architecture.removeprefix("ViT-").partition("/")
    depth = _SIZES[size][1]
    folder = bases or (shipped_root() / "configs" / toolbox / "_base_").as_posix()
    model_base, schedule, _ = HEADS[toolbox][head]
    names = [
        model_base,
        DATA[toolbox][data].base,
        schedule + SCHEDULE_OF_DEPTH.get(head, {}).get(depth, ""),
        "runtime_gpu",
    ]
    list_of_bases = "".join(f'    "{folder}/{name}.py",\n' for name in names)
    shipped = (shipped_root() / "configs" / toolbox / "_base_").as_posix()
    base = _merged(f"_base_ = {[f'{shipped}/{name}.py' for name in names]!r}\n")
    new = _only_new(changes, base.model.to_dict())
    written = "Written by backbones/openmmlab/row_configs.py"
    if command is not None:
        written += f": {command}"
    elif (
        isinstance(changes["backbone"].get("timm"), str) and "pretrained" not in changes["backbone"]
    ):
        written += (
            ". maskclip-bench run fills in a row; by itself, this config trains from fresh weights"
        )
    parts = [
        f'"""{title}: {head} on {data}.\n\n{recipe_notes(head, data, depth, int(patch))}\n\n',
        textwrap.fill(written + ".", 96, break_on_hyphens=False, break_long_words=False),
        '\n"""\n\n_base_ = [\n' + list_of_bases + "]\n",
        f"\nmodel = {_python(new)}\n" if new else "",
        _AFTER_THE_MODEL.get(head, ""),
        _OF_THE_DATA.get(data, ""),
    ]
    return "".join(parts)


def _merged(text: str) -> Config:
    """A config from its text."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bases.py"
        file.write_text(text, encoding="utf-8")
        return Config.fromfile(str(file))


def _only_new(changes: dict[str, Any], base: Any) -> dict[str, Any]:
    """The changes without what the base says already."""
    known = base if isinstance(base, dict) else {}
    if "_delete_" in changes:
        rest = {key: value for key, value in changes.items() if key != "_delete_"}
        return {} if _plain(rest) == _plain(known) else changes
    new = {}
    for key, value in changes.items():
        if isinstance(value, dict):
            inner = _only_new(value, known.get(key))
            if inner:
                new[key] = inner
        elif key not in known or _plain(known[key]) != _plain(value):
            new[key] = value
    return new


def _plain(value: Any) -> Any:
    """Tuples as lists: configs use both."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _python(value: Any, indent: int = 0) -> str:
    """A value as the source of a config, one key a line."""
    if not isinstance(value, dict):
        return repr(value).replace("'", '"')
    pad = "    " * (indent + 1)
    inner = "".join(f"{pad}{key}={_python(item, indent + 1)},\n" for key, item in value.items())
    return f"dict(\n{inner}{'    ' * indent})"


def write_row_config(
    toolbox: str, row: BackboneDeclaration, head: str, data: str, output: Path, *, source: str
) -> Path:
    """Write the config of a row.

    Raises:
        MaskCLIPBenchError: See `row_config`.
    """
    from maskclip_bench.storage import write_text

    normalization = normalization_of(row, Workspace.open())
    text = row_config(toolbox, head, data, row=row, source=source, normalization=normalization)
    write_text(output, text)
    return output
