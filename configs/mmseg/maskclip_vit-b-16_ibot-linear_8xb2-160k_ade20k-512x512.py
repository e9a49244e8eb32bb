"""MaskCLIP ViT-B/16: ibot-linear on ade20k.

Recipe: iBOT's linear head (github.com/bytedance/ibot, evaluation/semantic_segmentation).
Different from it:

- weights and normalization: the row's
- mmseg 1.x in place of 0.x
- float32 throughout

Written by backbones/openmmlab/row_configs.py: maskclip-bench mm mmseg config
maskclip_vit-b-16_yfcc15m --head ibot-linear --data ade20k.
"""

_base_ = [
    "_base_/ibot-linear_vit-b-16.py",
    "_base_/ade20k_512x512.py",
    "_base_/schedule_ibot_linear_160k.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(
        backbone="maskclip_vit-b-16_yfcc15m",
    ),
)
