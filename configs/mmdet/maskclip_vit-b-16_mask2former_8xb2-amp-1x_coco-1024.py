"""MaskCLIP ViT-B/16, Mask2Former for instances, COCO, 12 epochs.

Recipe: mmdet's mask2former_r50_8xb2-lsj-50e_coco (Cheng et al., 2022). Different from it:

- weights and normalization: the row's
- backbone: ViTDet's windows of 14 patches, global attention in the last block of each quarter
- neck: ViTDet's simple feature pyramid, strides 4 to 32, in place of a ResNet's maps
- squares of 1024 come from pad_size_divisor, in place of a batch augmentation
- 12 epochs in place of 50, weight decay 0.1 and layer decay 0.65 in place of 0.05 and a tenth
  of the rate for the backbone, no clipped gradients
- bfloat16
"""

_base_ = [
    "_base_/mask2former_vit-b-16.py",
    "_base_/coco_1024.py",
    "_base_/schedule_1x.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(backbone="maskclip_vit-b-16_yfcc15m"),
)
