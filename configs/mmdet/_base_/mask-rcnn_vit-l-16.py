"""Mask R-CNN on a plain ViT-L/16: 24 blocks of width 1024 (ViTDet: drop path 0.4)."""

_base_ = "mask-rcnn_vit-b-16.py"

model = dict(
    backbone=dict(out_indices=(23,), drop_path_rate=0.4, global_indices=(5, 11, 17, 23)),
    neck=dict(in_channels=1024),
)
