"""ViT-S/16: upernet on ade20k.

Recipe: BootMAE's for ADE20K (github.com/LightDXY/BootMAE), by the authors of MaskCLIP.
Different from it:

- weights and normalization: the row's, in place of 127.5
- no relative positions and no layer scale, which the encoders compared here lack
- bfloat16 in place of fp16 with a loss scaler

Written by backbones/openmmlab/row_configs.py. maskclip-bench run fills in a row; by itself,
this config trains from fresh weights.
"""

_base_ = [
    "_base_/upernet_vit-b-16.py",
    "_base_/ade20k_512x512.py",
    "_base_/schedule_160k.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(
        timm="vit_small_patch16_224",
    ),
    decode_head=dict(
        in_channels=[384, 384, 384, 384],
        channels=384,
    ),
    auxiliary_head=dict(
        in_channels=384,
    ),
    neck=dict(
        embed_dim=384,
    ),
)
