"""ViT-S/16: mask-rcnn on coco.

Written by backbones/openmmlab/row_configs.py. `maskclip-bench run` fills in a row; by
itself, this config trains from fresh weights.
The bases say what differs from the recipes' sources; this file holds what the
architecture, the row's normalization and the classes of the data set change.
"""

_base_ = [
    "_base_/mask-rcnn_vit-b-16.py",
    "_base_/coco_1024.py",
    "_base_/schedule_1x.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(
        timm="vit_small_patch16_224",
        out_indices=(11,),
        global_indices=(2, 5, 8, 11),
        drop_path_rate=0.1,
    ),
    neck=dict(
        in_channels=384,
        scale_factors=(4, 2, 1, 0.5),
    ),
    data_preprocessor=dict(
        pad_size_divisor=1024,
    ),
    rpn_head=dict(
        anchor_generator=dict(
            strides=[4, 8, 16, 32, 64],
        ),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            featmap_strides=[4, 8, 16, 32],
        ),
        mask_roi_extractor=dict(
            featmap_strides=[4, 8, 16, 32],
        ),
        mask_head=dict(
            num_classes=80,
        ),
        bbox_head=dict(
            num_classes=80,
        ),
    ),
)
