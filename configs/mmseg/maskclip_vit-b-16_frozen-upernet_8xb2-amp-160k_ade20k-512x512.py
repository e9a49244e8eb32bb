"""MaskCLIP ViT-B/16, frozen, under UperNet, ADE20K."""

_base_ = [
    "_base_/upernet_vit-b-16.py",
    "_base_/ade20k_512x512.py",
    "_base_/schedule_160k.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(backbone="maskclip_vit-b-16_yfcc15m", frozen=True, drop_path_rate=0.0),
)
