"""What a config says of its recipe: the source, and line by line what differs from it."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

_BFLOAT16 = "bfloat16 in place of fp16 with a loss scaler"
_ROW = "weights and normalization: the row's"
_LARGE_UPERNET = (
    "ViT-L and larger: lr 2e-5, layer decay 0.95 and 3,000 warm-up iterations, as BEiT-L in mmseg "
    "(beit-large_upernet_8xb1-amp-160k_ade20k-640x640), and drop path 0.2, as MAE's and BEiT's"
)
_WINDOWS = "class token and registers, which ViTDet does not have, are copied into each window"
_DECAY = "no weight decay for biases and tokens; in ViTDet, norms and positions alone have none"
_SHORT = "12 epochs at batch 16, steps after 8 and 11, in place of 100 epochs at batch 64"
_LAYER_DECAY = {
    12: "layer decay 0.65, as in iBOT's detection recipe, in place of 0.7",
    24: "layer decay 0.8, as ViTDet's for ViT-L",
    32: "layer decay 0.9, as ViTDet's for ViT-H",
}
_VITDET = "ViTDet (Li et al., 2022, arXiv 2203.16527), detectron2's projects/ViTDet"


@dataclass(frozen=True)
class Notes:
    """Of one head.

    Attributes:
        source: Where the recipe comes from.
        differences: From it, one a line.
    """

    source: str
    differences: tuple[str, ...]


NOTES: dict[str, Notes] = {
    "upernet": Notes(
        "BootMAE's for ADE20K (github.com/LightDXY/BootMAE), by the authors of MaskCLIP",
        (
            _ROW + ", in place of 127.5",
            "no relative positions and no layer scale, which the encoders compared here lack",
            _BFLOAT16,
        ),
    ),
    "frozen-upernet": Notes(
        "BootMAE's for ADE20K (github.com/LightDXY/BootMAE), with a frozen backbone",
        (
            "the backbone is not trained, and has no drop path",
            _ROW + ", in place of 127.5",
            "no relative positions and no layer scale, which the encoders compared here lack",
            _BFLOAT16,
        ),
    ),
    "linear": Notes(
        "DINOv3's linear head (Siméoni et al., 2025, arXiv 2508.10104), eval/segmentation",
        (
            _ROW,
            "images: mmseg's pipeline (photometric distortion, no rotation) in place of its own",
            "position embeddings become a table for the crop once",
        ),
    ),
    "ibot-linear": Notes(
        "iBOT's linear head (github.com/bytedance/ibot, evaluation/semantic_segmentation)",
        (_ROW, "mmseg 1.x in place of 0.x", "float32 throughout"),
    ),
    "mask-rcnn": Notes(
        _VITDET,
        (
            _ROW,
            _SHORT,
            "no relative positions in the attention; the head vitdet-mask-rcnn has them",
            _WINDOWS,
            _DECAY,
            "proposals are matched to objects as mmdet does it (match_low_quality)",
            _BFLOAT16,
        ),
    ),
    "vitdet-mask-rcnn": Notes(
        _VITDET,
        (
            _ROW,
            "steps after whole epochs, 89 and 96, in place of 88.9 and 96.3",
            _WINDOWS,
            _DECAY,
            _BFLOAT16,
        ),
    ),
    "cascade-mask-rcnn": Notes(
        "Cascade Mask R-CNN's heads as mmdet's, on ViTDet's backbone (arXiv 2203.16527)",
        (
            _ROW,
            "four convolutions with layer norm and one linear layer in each box head, as ViTDet's",
            "no relative positions in the attention",
            _WINDOWS,
            _DECAY,
            _BFLOAT16,
        ),
    ),
    "retinanet": Notes(
        "mmdet's retinanet_r50_fpn head (Lin et al., 2017) on ViTDet's backbone",
        (
            _ROW,
            "ViTDet's pyramid of strides 8 to 128 in place of an FPN, windows, AdamW",
            "no relative positions in the attention",
            _WINDOWS,
            _DECAY,
            _BFLOAT16,
        ),
    ),
}


def recipe_notes(head: str, data: str, depth: int, patch: int) -> str:
    """The source of a recipe and what differs from it, wrapped for a header.

    Args:
        head: A key of `NOTES`.
        data: Key of the data set in `row_configs.DATA`.
        depth: Blocks of the ViT.
        patch: Pixels along a side of a patch.
    """
    notes = NOTES[head]
    lines = [*notes.differences]
    on_coco = head in ("mask-rcnn", "vitdet-mask-rcnn", "cascade-mask-rcnn", "retinanet")
    if head in ("mask-rcnn", "cascade-mask-rcnn", "retinanet"):
        lines.append(_LAYER_DECAY[depth])
    if head == "upernet" and depth > 12:
        lines.append(_LARGE_UPERNET)
    if head == "vitdet-mask-rcnn" and depth == 32:
        lines.append("100 epochs in place of 75")
    if data not in (("coco",) if on_coco else ("ade20k",)):
        lines.append(
            f"data: {data} in place of {'COCO' if on_coco else 'ADE20K'}, with the same schedule"
        )
    if patch == 14:
        lines.append("patches of 14: images are padded to a multiple of 14, strides 3.5 to 28")
    if patch == 32:
        lines.append("patches of 32: the pyramid enlarges its map 8, 4, 2 and 1 times")
    if patch not in (14, 16, 32):
        lines.append(f"patches of {patch} in place of 16")
    listed = [
        textwrap.fill(f"- {line}", 96, subsequent_indent="  ", break_on_hyphens=False)
        for line in lines
    ]
    source = textwrap.fill(
        f"Recipe: {notes.source}. Different from it:", 96, break_on_hyphens=False
    )
    return "\n".join([source, "", *listed])
