"""UperNet on the demo ViT and the demo world's scenes: the paper's protocol in a minute.

The row is filled in by `maskclip-bench run`; by itself, this config trains from a random start.
Widths and schedule are the demo's own, chosen for two CPU cores.
"""

_base_ = "../_base_/runtime.py"

data_root = "{{$MASKCLIP_BENCH_DATA:workspace/data}}/demo/scenes"
num_classes = 29
norm_cfg = dict(type="BN", requires_grad=True)
max_iters = 160
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(144, 144),
        test_cfg=dict(size_divisor=8),
    ),
    backbone=dict(
        type="MaskCLIPViT",
        timm="vit_demo_patch8_48",
        out_indices=(3,),
        final_norm=True,
        drop_path_rate=0.0,
    ),
    # One tap: with earlier ones, the head of so short a training reads pixels, not features.
    neck=dict(
        type="DeconvolutionPyramid",
        in_channels=96,
        scale_factors=(1,),
        out_channels=48,
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(
        type="UPerHead",
        in_channels=[48],
        in_index=[0],
        pool_scales=(1, 2, 4),
        channels=48,
        dropout_ratio=0.0,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(
            type="CrossEntropyLoss",
            use_sigmoid=False,
            loss_weight=1.0,
            # Things cover few pixels; without this, so short a training finds none of them.
            class_weight=[1.0] * 8 + [4.0] * 21,
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
# Scenes are 128 px, and most of their objects small: at 144 px they are about as large as in
# pretraining.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="Resize", scale=(144, 144), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(144, 144), keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="ADE20KLayout",
        data_root=data_root,
        split="training",
        num_classes=num_classes,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ADE20KLayout",
        data_root=data_root,
        split="validation",
        num_classes=num_classes,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

# The head starts from nothing and has 160 steps: a high rate for it, a tenth and less for the
# backbone.
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-2, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="BackboneLayerDecay",
    paramwise_cfg=dict(decay_rate=0.3),
    clip_grad=dict(max_norm=3.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=20, end=max_iters, by_epoch=False),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(interval=100), visualization=dict(draw=False)
)
