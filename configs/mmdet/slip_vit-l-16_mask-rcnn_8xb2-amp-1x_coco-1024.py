"""SLIP ViT-L/16, Mask R-CNN with the simple feature pyramid, COCO, 12 epochs."""

_base_ = [
    "_base_/mask-rcnn_vit-l-16.py",
    "_base_/coco_1024.py",
    "_base_/schedule_1x_vit-l.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(backbone="slip_vit-l-16_yfcc15m"),
)
