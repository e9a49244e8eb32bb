"""OpenAI's CLIP ViT-B/16, UperNet, ADE20K."""

_base_ = [
    "_base_/upernet_vit-b-16.py",
    "_base_/ade20k_512x512.py",
    "_base_/schedule_160k.py",
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
