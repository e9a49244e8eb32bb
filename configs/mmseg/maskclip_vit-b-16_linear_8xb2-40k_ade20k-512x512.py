"""MaskCLIP ViT-B/16, frozen, linear head, ADE20K."""

_base_ = [
    "_base_/linear_vit-b-16.py",
    "_base_/ade20k_512x512.py",
    "_base_/schedule_linear_40k.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(backbone="maskclip_vit-b-16_yfcc15m"),
)
