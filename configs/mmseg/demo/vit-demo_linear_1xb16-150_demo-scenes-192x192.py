"""A linear head on the frozen demo ViT and the demo world's scenes, in half a minute.

Batch norm and a 1x1 convolution on the last map (DINOv2's and DINOv3's linear protocol): what the
features hold, without a head that could read the pixels anew. Schedule and crops are the demo's own.
"""

_base_ = "vit-demo_upernet_1xb8-160_demo-scenes-144x144.py"

max_iters = 150
crop_size = (96, 96)
model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(frozen=True),
    neck=dict(_delete_=True, type="NormalizedTaps", in_channels=96, num_taps=1),
    decode_head=dict(
        _delete_=True,
        type="FCNHead",
        in_channels=96,
        in_index=0,
        channels=96,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=29,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(
            type="CrossEntropyLoss",
            use_sigmoid=False,
            loss_weight=1.0,
            class_weight=[1.0] * 8 + [4.0] * 21,
        ),
    ),
    test_cfg=dict(mode="slide", crop_size=crop_size, stride=crop_size),
)
# At 192 px, a crop of 96 px holds objects as large as those of pretraining.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="Resize", scale=(192, 192), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.9),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(192, 192), keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(batch_size=16, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=2e-2))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=20, end=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
