"""SLIP ViT-B/16: linear on ade20k.

Recipe: DINOv3's linear head (Siméoni et al., 2025, arXiv 2508.10104), eval/segmentation.
Different from it:

- weights and normalization: the row's
- images: mmseg's pipeline (photometric distortion, no rotation) in place of its own
- position embeddings become a table for the crop once

Written by backbones/openmmlab/row_configs.py: maskclip-bench mm mmseg config
slip_vit-b-16_yfcc15m --head linear --data ade20k.
"""

_base_ = [
    "_base_/linear_vit-b-16.py",
    "_base_/ade20k_512x512.py",
    "_base_/schedule_linear_40k.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(
        backbone="slip_vit-b-16_yfcc15m",
    ),
)
