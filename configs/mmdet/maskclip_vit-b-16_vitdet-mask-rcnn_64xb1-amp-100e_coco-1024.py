"""MaskCLIP ViT-B/16: vitdet-mask-rcnn on coco.

Recipe: ViTDet (Li et al., 2022, arXiv 2203.16527), detectron2's projects/ViTDet. Different from
it:

- weights and normalization: the row's
- steps after whole epochs, 89 and 96, in place of 88.9 and 96.3
- class token and registers, which ViTDet does not have, are copied into each window
- no weight decay for biases and tokens; in ViTDet, norms and positions alone have none
- bfloat16 in place of fp16 with a loss scaler

Written by backbones/openmmlab/row_configs.py: maskclip-bench mm mmdet config
maskclip_vit-b-16_yfcc15m --head vitdet-mask-rcnn --data coco.
"""

_base_ = [
    "_base_/vitdet-mask-rcnn_vit-b-16.py",
    "_base_/coco_1024.py",
    "_base_/schedule_vitdet_100e.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(
        backbone="maskclip_vit-b-16_yfcc15m",
    ),
)
global_batch_size = 64  # 64 GPUs x 1
train_dataloader = dict(batch_size=1)
