"""MaskCLIP ViT-B/16, RetinaNet, COCO boxes, 12 epochs."""

_base_ = [
    "_base_/retinanet_vit-b-16.py",
    "_base_/coco_1024.py",
    "_base_/schedule_1x.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(backbone="maskclip_vit-b-16_yfcc15m"),
)
val_evaluator = dict(metric=["bbox"])
test_evaluator = val_evaluator
