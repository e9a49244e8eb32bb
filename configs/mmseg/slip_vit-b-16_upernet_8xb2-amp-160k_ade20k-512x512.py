"""SLIP ViT-B/16: upernet on ade20k.

Recipe: BootMAE's for ADE20K (github.com/LightDXY/BootMAE), by the authors of MaskCLIP.
Different from it:

- weights and normalization: the row's, in place of 127.5
- no relative positions and no layer scale, which the encoders compared here lack
- bfloat16 in place of fp16 with a loss scaler

Written by backbones/openmmlab/row_configs.py: maskclip-bench mm mmseg config
slip_vit-b-16_yfcc15m --head upernet --data ade20k.
"""

_base_ = [
    "_base_/upernet_vit-b-16.py",
    "_base_/ade20k_512x512.py",
    "_base_/schedule_160k.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(
        backbone="slip_vit-b-16_yfcc15m",
    ),
)
