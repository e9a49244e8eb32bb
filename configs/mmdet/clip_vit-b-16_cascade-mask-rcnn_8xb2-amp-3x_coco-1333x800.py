"""CLIP ViT-B/16, Cascade Mask R-CNN, COCO, 36 epochs, multi-scale."""

_base_ = [
    "_base_/cascade-mask-rcnn_vit-b-16.py",
    "_base_/coco_1333x800.py",
    "_base_/schedule_3x.py",
    "_base_/runtime.py",
]

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(backbone="clip_vit-b-16_yfcc15m"),
)
