"""ViT-L/14: upernet on ade20k.

Written by backbones/openmmlab/row_configs.py. `maskclip-bench run` fills in a row; by
itself, this config trains from fresh weights.
The bases say what differs from the recipes' sources; this file holds what the
architecture, the row's normalization and the classes of the data set change.
"""

_base_ = [
    "_base_/upernet_vit-b-16.py",
    "_base_/ade20k_512x512.py",
    "_base_/schedule_160k_vit-l.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(
        timm="vit_large_patch14_224",
        img_size=(518, 518),
        out_indices=(7, 11, 15, 23),
        drop_path_rate=0.2,
    ),
    decode_head=dict(
        num_classes=150,
        in_channels=[1024, 1024, 1024, 1024],
        channels=1024,
    ),
    auxiliary_head=dict(
        in_channels=1024,
        num_classes=150,
    ),
    neck=dict(
        embed_dim=1024,
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
