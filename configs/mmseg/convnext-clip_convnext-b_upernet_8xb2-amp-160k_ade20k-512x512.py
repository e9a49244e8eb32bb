"""LAION-400M CLIP ConvNeXt-B under UperNet, ADE20K: a trunk with stages of its own, so no neck.

Recipe of ConvNeXt's authors for ADE20K (mmseg's configs/convnext/convnext-base_upernet_8xb2-amp-160k
_ade20k-512x512.py): AdamW lr 1e-4, drop path 0.4, and stage-wise decay 0.9 over 12 layers, which
gives the last stage 0.9^9 of the heads' rate and the stem 0.9^13; a layer norm for each map, as in
its backbone. Different from it:

- gradients are clipped at 3
- bfloat16 in place of fp16 with a loss scaler
"""

_base_ = [
    "_base_/upernet_vit-b-16.py",
    "_base_/ade20k_512x512.py",
    "_base_/schedule_160k.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    data_preprocessor=dict(
        # CLIP's mean and standard deviation (x 255).
        mean=[122.7709, 116.7460, 104.0937],
        std=[68.5005, 66.6322, 70.3232],
    ),
    backbone=dict(
        _delete_=True,
        type="MaskCLIPPyramid",
        open_clip="convnext_base",
        pretrained="laion400m_s13b_b51k",
        norm_outputs=True,
        drop_path_rate=0.4,
        num_layers=12,
    ),
    neck=None,
    decode_head=dict(in_channels=[128, 256, 512, 1024], channels=512),
    auxiliary_head=dict(in_channels=512),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.9))
