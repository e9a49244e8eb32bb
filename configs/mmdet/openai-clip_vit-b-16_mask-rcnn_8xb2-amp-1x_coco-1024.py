"""OpenAI's CLIP ViT-B/16, Mask R-CNN with the simple feature pyramid, COCO, 12 epochs."""

_base_ = [
    "_base_/mask-rcnn_vit-b-16.py",
    "_base_/coco_1024.py",
    "_base_/schedule_1x.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    data_preprocessor=dict(
        # CLIP's mean and standard deviation (x 255).
        mean=[122.7709, 116.7460, 104.0937],
        std=[68.5005, 66.6322, 70.3232],
    ),
    backbone=dict(open_clip="ViT-B-16-quickgelu", pretrained="openai"),
)
