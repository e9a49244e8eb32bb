"""ViT-B/14: upernet on ade20k.

Recipe: BootMAE's for ADE20K (github.com/LightDXY/BootMAE), by the authors of MaskCLIP.
Different from it:

- weights and normalization: the row's, in place of 127.5
- no relative positions and no layer scale, which the encoders compared here lack
- bfloat16 in place of fp16 with a loss scaler
- patches of 14: images are padded to a multiple of 14, strides 3.5 to 28

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
        timm="vit_base_patch14_dinov2",
        img_size=(518, 518),
    ),
    data_preprocessor=dict(
        size=(518, 518),
        test_cfg=dict(
            _delete_=True,
            size_divisor=14,
        ),
    ),
    test_cfg=dict(
        crop_size=(518, 518),
        stride=(345, 345),
    ),
)
