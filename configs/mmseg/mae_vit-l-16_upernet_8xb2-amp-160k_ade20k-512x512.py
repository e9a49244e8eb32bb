"""MAE ViT-L/16, UperNet, ADE20K."""

_base_ = [
    "_base_/upernet_vit-l-16.py",
    "_base_/ade20k_512x512.py",
    "_base_/schedule_160k_vit-l.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(timm="vit_large_patch16_224.mae", pretrained=True),
)
