"""MaskCLIP ViT-B/16: retinanet on coco.

Recipe: mmdet's retinanet_r50_fpn head (Lin et al., 2017) on ViTDet's backbone. Different from
it:

- weights and normalization: the row's
- ViTDet's pyramid of strides 8 to 128 in place of an FPN, windows, AdamW
- no relative positions in the attention
- class token and registers, which ViTDet does not have, are copied into each window
- no weight decay for biases and tokens; in ViTDet, norms and positions alone have none
- bfloat16 in place of fp16 with a loss scaler
- layer decay 0.65, as in iBOT's detection recipe, in place of 0.7

Written by backbones/openmmlab/row_configs.py: maskclip-bench mm mmdet config
maskclip_vit-b-16_yfcc15m --head retinanet --data coco.
"""

_base_ = [
    "_base_/retinanet_vit-b-16.py",
    "_base_/coco_1024.py",
    "_base_/schedule_1x.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(
        backbone="maskclip_vit-b-16_yfcc15m",
    ),
)
val_evaluator = dict(metric=["bbox"])
test_evaluator = val_evaluator
