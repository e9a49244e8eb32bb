"""MaskCLIP ViT-B/16, DINO-DETR with four scales, COCO boxes, 12 epochs.

Recipe: mmdet's dino-4scale_r50_8xb2-12e_coco (Zhang et al., 2023). Different from it:

- weights and normalization: the row's
- backbone: ViTDet's windows of 14 patches, global attention in the last block of each quarter
- neck: ViTDet's simple feature pyramid, strides 8 to 64, in place of a channel mapper
- images: ViTDet's large-scale jittering to 1024, padded to multiples of 64, in place of DETR's
- AdamW with weight decay 0.1, layer decay 0.65 and 250 warm-up iterations, in place of weight
  decay 1e-4, a tenth of the rate for the backbone, and clipped gradients
- steps after 8 and 11 epochs in place of 11
- bfloat16
"""

_base_ = [
    "_base_/dino-detr_vit-b-16.py",
    "_base_/coco_1024.py",
    "_base_/schedule_1x.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(backbone="maskclip_vit-b-16_yfcc15m"),
)
val_evaluator = dict(metric=["bbox"])
test_evaluator = val_evaluator
