"""MaskCLIP ViT-B/16, iBOT's Cascade Mask R-CNN, COCO, 36 epochs, multi-scale."""

_base_ = [
    "_base_/ibot-cascade-mask-rcnn_vit-b-16.py",
    "_base_/coco_1333x800.py",
    "_base_/schedule_ibot_3x.py",
    "_base_/runtime.py",
]

model = dict(
    backbone=dict(backbone="maskclip_vit-b-16_yfcc15m"),
)
