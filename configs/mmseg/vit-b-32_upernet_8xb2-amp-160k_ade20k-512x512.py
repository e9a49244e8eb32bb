"""ViT-B/32: upernet on ade20k.

Written by backbones/openmmlab/row_configs.py. `maskclip-bench run` fills in a row; by
itself, this config trains from fresh weights.
The bases say what differs from the recipes' sources; this file holds what the
architecture, the row's normalization and the classes of the data set change.
"""

_base_ = [
    "_base_/upernet_vit-b-16.py",
    "_base_/ade20k_512x512.py",
    "_base_/schedule_160k.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(
        timm="vit_base_patch32_224",
        img_size=(512, 512),
        out_indices=(3, 5, 7, 11),
        drop_path_rate=0.1,
    ),
    decode_head=dict(
        num_classes=150,
        in_channels=[768, 768, 768, 768],
        channels=768,
    ),
    auxiliary_head=dict(
        in_channels=768,
        num_classes=150,
    ),
    neck=dict(
        _delete_=True,
        type="DeconvolutionPyramid",
        in_channels=768,
        scale_factors=(8, 4, 2, 1),
    ),
    data_preprocessor=dict(
        size=(512, 512),
        test_cfg=dict(
            _delete_=True,
            size=(512, 512),
        ),
    ),
    test_cfg=dict(
        crop_size=(512, 512),
        stride=(341, 341),
    ),
)
