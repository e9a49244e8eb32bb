"""CLIP+MAE ViT-B/16, Cascade Mask R-CNN, COCO, 36 epochs, multi-scale.

Recipe: Cascade Mask R-CNN's heads as mmdet's, on ViTDet's backbone (arXiv 2203.16527).
Different from it:

- weights and normalization: the row's
- four convolutions with layer norm and one linear layer in each box head, as ViTDet's
- no relative positions in the attention
- class token and registers, which ViTDet does not have, are copied into each window
- no weight decay for biases and tokens; in ViTDet, norms and positions alone have none
- bfloat16 in place of fp16 with a loss scaler
- layer decay 0.65, as in iBOT's detection recipe, in place of 0.7
- 36 epochs at batch 16 with steps after 27 and 33, and multi-scale images of 1333 x 800, as
  iBOT's
"""

_base_ = [
    "_base_/cascade-mask-rcnn_vit-b-16.py",
    "_base_/coco_1333x800.py",
    "_base_/schedule_3x.py",
    "_base_/runtime.py",
]

model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(backbone="clip_mae_vit-b-16_yfcc15m"),
)
