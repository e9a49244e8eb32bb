"""Write the configs of mmseg and mmdet that are made from rows and architectures.

    python scripts/write_mm_configs.py     # rewrites configs/mmseg/*.py and configs/mmdet/*.py

Configs of other recipes in these folders are written by hand, and left as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskclip_bench.backbones.declaration import load_backbone_declaration
from maskclip_bench.backbones.openmmlab.row_configs import config_name, row_config
from maskclip_bench.data_files import shipped_root

CLIP = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
}
ROWS = {"clip": "CLIP", "slip": "SLIP", "clip-mae": "CLIP+MAE", "maskclip": "MaskCLIP"}
"""Stem -> title of the rows that are pretrained here."""
TIMM = {"mae": "MAE", "dino": "DINO"}
ARCHITECTURES = ("ViT-S/16", "ViT-B/14", "ViT-B/32", "ViT-L/14", "ViT-H/14")
"""That a row of another library is filled into by `maskclip-bench run`."""


def configs() -> dict[str, str]:
    """Path below configs/ -> text."""
    found: dict[str, str] = {}

    def add(toolbox: str, head: str, data: str, stem: str, **more: Any) -> None:
        name = config_name(toolbox, head, data, stem)
        found[f"{toolbox}/{name}"] = row_config(toolbox, head, data, bases="_base_", **more)

    def add_row(toolbox: str, head: str, data: str, stem: str, size: str = "B") -> None:
        arch = f"vit-{size.lower()}-16"
        row = load_backbone_declaration(f"{stem.replace('-', '_')}_{arch}_yfcc15m")
        title = f"{ROWS[stem]} ViT-{size}/16"
        add(toolbox, head, data, f"{stem}_{arch}", row=row, title=title)

    for toolbox, head, data in (("mmseg", "upernet", "ade20k"), ("mmdet", "mask-rcnn", "coco")):
        for stem in ROWS:
            for size in ("B", "L"):
                add_row(toolbox, head, data, stem, size)
        for stem, title in TIMM.items():
            for size, name in (
                (("B", "base"), ("L", "large")) if stem == "mae" else (("B", "base"),)
            ):
                source = {"timm": f"vit_{name}_patch16_224.{stem}", "pretrained": True}
                arch = f"ViT-{size}/16"
                add(toolbox, head, data, f"{stem}_vit-{size.lower()}-16", arch=arch, source=source,
                    title=f"{title} {arch}")  # fmt: skip
        source = {"open_clip": "ViT-B-16-quickgelu", "pretrained": "openai"}
        add(toolbox, head, data, "openai-clip_vit-b-16", arch="ViT-B/16", source=source,
            normalization=CLIP, title="OpenAI's CLIP ViT-B/16")  # fmt: skip
        for arch in ARCHITECTURES:
            add(toolbox, head, data, arch.lower().replace("/", "-"), arch=arch)
    for stem in ROWS:
        add_row("mmseg", "linear", "ade20k", stem)
    add_row("mmseg", "frozen-upernet", "ade20k", "maskclip")
    add_row("mmseg", "ibot-linear", "ade20k", "maskclip")
    add_row("mmdet", "retinanet", "coco", "maskclip")
    for stem in ("clip", "maskclip"):
        for size in ("B", "L"):
            add_row("mmdet", "vitdet-mask-rcnn", "coco", stem, size)
    return found


def main(root: Path | None = None) -> None:
    """Write them."""
    for name, text in configs().items():
        ((root or shipped_root()) / "configs" / name).write_text(text, encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main()
