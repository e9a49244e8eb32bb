"""MaskCLIP ViT-B/16, Mask R-CNN with the simple feature pyramid, COCO, 12 epochs."""

_base_ = [
    "_base_/mask-rcnn_vit-b-16.py",
    "_base_/coco_1024.py",
    "_base_/schedule_1x.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(backbone="maskclip_vit-b-16_yfcc15m"),
)
