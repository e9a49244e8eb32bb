"""UperNet on the frozen demo ViT and the demo world's scenes, in half a minute.

The row is filled in by `maskclip-bench run`; by itself, this config trains from a random start.
The head reads the last map alone, standardized. Widths and schedule are the demo's own: at a higher
learning rate, or with earlier maps, the head reads pixels and a random ViT does as well.
"""

_base_ = "../_base_/runtime.py"

data_root = "{{$MASKCLIP_BENCH_DATA:workspace/data}}/demo/scenes"
num_classes = 29
norm_cfg = dict(type="BN", requires_grad=True)
max_iters = 500
size = (144, 144)  # of scenes of 128 px; objects are then about as large as in pretraining
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=size,
        test_cfg=dict(size_divisor=8),
    ),
    backbone=dict(
        type="MaskCLIPViT",
        timm="vit_demo_patch8_48",
        out_indices=(3,),
        final_norm=True,
        frozen=True,
        # Each window of 6 x 6 patches is an image as in pretraining.
        window_size=6,
        tile_positions=True,
    ),
    neck=dict(type="NormalizedTaps", in_channels=96, norm_cfg=dict(type="BN", affine=False)),
    decode_head=dict(
        type="UPerHead",
        in_channels=[96],
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
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="Resize", scale=size, keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    # Twice the resolution of the scores, not eight times: half the time of a step.
    dict(type="SegRescale", scale_factor=0.25),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=size, keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=4,
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

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="BackboneLayerDecay",
    paramwise_cfg=dict(decay_rate=0.3),  # for a backbone that is not frozen
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
