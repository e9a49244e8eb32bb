"""LAION-400M CLIP ConvNeXt-B under UperNet, ADE20K: a trunk with stages of its own, so no neck.

Recipe of ConvNeXt's authors for ADE20K: AdamW lr 1e-4, decay 0.9 a block; the rest as in the other
configs.
"""

_base_ = [
    "_base_/upernet_vit-b-16.py",
    "_base_/ade20k_512x512.py",
    "_base_/schedule_160k.py",
    "_base_/runtime.py",
]

model = dict(
    data_preprocessor=dict(
        # CLIP's mean and standard deviation (x 255).
        mean=[122.7709, 116.7460, 104.0937],
        std=[68.5005, 66.6322, 70.3232],
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        _delete_=True,
        type="MaskCLIPPyramid",
        open_clip="convnext_base",
        pretrained="laion400m_s13b_b51k",
    ),
    neck=None,
    decode_head=dict(in_channels=[128, 256, 512, 1024], channels=512),
    auxiliary_head=dict(in_channels=512),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.9))
