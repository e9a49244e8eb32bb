"""Mask R-CNN on the demo ViT and the demo world's instances: ViTDet's protocol in a minute.

The row is filled in by `maskclip-bench run`; by itself, this config trains from a random start.
Widths and schedule are the demo's own, chosen for two CPU cores.
"""

_base_ = ["../_base_/mask-rcnn_vit-b-16.py", "../_base_/runtime.py"]

data_root = "{{$MASKCLIP_BENCH_DATA:workspace/data}}/demo/instances/"
num_classes = 21
width = 32
max_iters = 400
size = (128, 128)  # of images of 160 px; objects are then about as large as in pretraining
meta_keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "instances")
model = dict(
    data_preprocessor=dict(pad_size_divisor=16, batch_augments=None),
    backbone=dict(
        timm="vit_demo_patch8_48",
        out_indices=(3,),
        final_norm=True,
        drop_path_rate=0.0,
        window_size=None,
        global_indices=(),
    ),
    neck=dict(in_channels=96, out_channels=width, scale_factors=(1, 0.5, 0.25), num_outs=3),
    rpn_head=dict(
        in_channels=width,
        feat_channels=width,
        num_convs=1,
        anchor_generator=dict(scales=[3], ratios=[1.0], strides=[8, 16, 32]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width, featmap_strides=[8, 16, 32], finest_scale=32),
        bbox_head=dict(
            _delete_=True,
            type="Shared2FCBBoxHead",
            in_channels=width,
            fc_out_channels=128,
            roi_feat_size=7,
            num_classes=num_classes,
            bbox_coder=dict(
                type="DeltaXYWHBBoxCoder",
                target_means=[0.0] * 4,
                target_stds=[0.1, 0.1, 0.2, 0.2],
            ),
            reg_class_agnostic=True,
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
        mask_roi_extractor=dict(
            out_channels=width,
            featmap_strides=[8, 16, 32],
            finest_scale=32,
            roi_layer=dict(output_size=7),
        ),
        mask_head=dict(
            num_convs=1,
            in_channels=width,
            conv_out_channels=width,
            num_classes=num_classes,
            class_agnostic=True,
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5), mask_size=14),
    ),
    test_cfg=dict(rpn=dict(nms_pre=100, max_per_img=50), rcnn=dict(max_per_img=20)),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=size, keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=size, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=meta_keys),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="COCOLayout",
        data_root=data_root,
        ann_file="annotations/instances_train.json",
        data_prefix=dict(img="train/"),
        num_classes=num_classes,
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="COCOLayout",
        data_root=data_root,
        ann_file="annotations/instances_val.json",
        data_prefix=dict(img="val/"),
        num_classes=num_classes,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="CocoMetric",
    ann_file=data_root + "annotations/instances_val.json",
    metric=["bbox", "segm"],
)
test_evaluator = val_evaluator

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="BackboneLayerDecay",
    paramwise_cfg=dict(decay_rate=0.8),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=20, end=max_iters, by_epoch=False),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
log_processor = dict(by_epoch=False)
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(by_epoch=False, interval=100),
    visualization=dict(draw=False),
)
