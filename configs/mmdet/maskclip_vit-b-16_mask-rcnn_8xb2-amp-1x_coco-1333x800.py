"""MaskCLIP ViT-B/16, Mask R-CNN, COCO at the classic size, 12 epochs."""

_base_ = [
    "_base_/mask-rcnn_vit-b-16.py",
    "_base_/coco_1333x800.py",
    "_base_/schedule_1x.py",
    "_base_/runtime.py",
]

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(backbone="maskclip_vit-b-16_yfcc15m"),
)
