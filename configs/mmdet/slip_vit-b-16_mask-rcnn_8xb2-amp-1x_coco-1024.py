"""SLIP ViT-B/16: mask-rcnn on coco.

Recipe: ViTDet (Li et al., 2022, arXiv 2203.16527), detectron2's projects/ViTDet. Different from
it:

- weights and normalization: the row's
- 12 epochs at batch 16, steps after 8 and 11, in place of 100 epochs at batch 64
- no relative positions in the attention; the head vitdet-mask-rcnn has them
- class token and registers, which ViTDet does not have, are copied into each window
- no weight decay for biases and tokens; in ViTDet, norms and positions alone have none
- proposals are matched to objects as mmdet does it (match_low_quality)
- bfloat16 in place of fp16 with a loss scaler
- layer decay 0.65, as in iBOT's detection recipe, in place of 0.7

Written by backbones/openmmlab/row_configs.py: maskclip-bench mm mmdet config
slip_vit-b-16_yfcc15m --head mask-rcnn --data coco.
"""

_base_ = [
    "_base_/mask-rcnn_vit-b-16.py",
    "_base_/coco_1024.py",
    "_base_/schedule_1x.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(
        backbone="slip_vit-b-16_yfcc15m",
    ),
)
