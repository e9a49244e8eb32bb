"""MaskCLIP ViT-B/16, iBOT's Cascade Mask R-CNN, COCO, 36 epochs, multi-scale.

Recipe: iBOT's (github.com/bytedance/ibot, evaluation/object_detection), which follows Swin's.
Different from it:

- weights and normalization: the row's
- blocks are recomputed in the backward pass; gradients are the same
- bfloat16 in place of apex fp16
"""

_base_ = [
    "_base_/ibot-cascade-mask-rcnn_vit-b-16.py",
    "_base_/coco_1333x800.py",
    "_base_/schedule_ibot_3x.py",
    "_base_/runtime.py",
]

model = dict(
    backbone=dict(backbone="maskclip_vit-b-16_yfcc15m"),
)
