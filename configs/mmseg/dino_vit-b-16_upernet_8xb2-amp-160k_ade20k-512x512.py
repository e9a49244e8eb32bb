"""DINO ViT-B/16, UperNet, ADE20K."""

_base_ = [
    "_base_/upernet_vit-b-16.py",
    "_base_/ade20k_512x512.py",
    "_base_/schedule_160k.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(timm="vit_base_patch16_224.dino", pretrained=True),
)
