"""ViTDet's Mask R-CNN on a plain ViT-B/16: with relative positions, and boxes matched as there.

Li et al., 2022 (arXiv 2203.16527); detectron2's projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py.
Heads, windows and pyramid: mask-rcnn_vit-b-16.py. Different from the source:

- weights and normalization: the row's
- class token and registers, which ViTDet does not have, are copied into each window
"""

_base_ = "mask-rcnn_vit-b-16.py"

model = dict(
    # Tables of 64 x 64 patches in the global blocks, of the windows in the others.
    backbone=dict(relative_positions=(64, 64)),
    train_cfg=dict(rcnn=dict(assigner=dict(match_low_quality=False))),
)
