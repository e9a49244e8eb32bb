"""Mask R-CNN on the frozen demo ViT and the demo world's instances, in a minute.

All heads read the last map as it is, standardized. (A pyramid would be trained, and within so short
a schedule it learns as much on a random ViT as on a pretrained one.) The row is filled in by
`maskclip-bench run`; by itself, this config trains from a random start. Widths and schedule are the
demo's own.
"""

_base_ = ["../_base_/mask-rcnn_vit-b-16.py", "../_base_/runtime.py"]

data_root = "{{$MASKCLIP_BENCH_DATA:workspace/data}}/demo/instances/"
num_classes = 21
width = 96
max_iters = 600
size = (144, 144)  # of images of 160 px; objects are then about as large as in pretraining
meta_keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "instances")
model = dict(
    data_preprocessor=dict(pad_size_divisor=16, batch_augments=None),
    backbone=dict(
        timm="vit_demo_patch8_48",
        out_indices=(3,),
        final_norm=True,
        drop_path_rate=0.0,
        frozen=True,
        # Each window of 6 x 6 patches is an image as in pretraining.
        window_size=6,
        global_indices=(),
        tile_positions=True,
    ),
    neck=dict(
        _delete_=True,
        type="NormalizedTaps",
        in_channels=width,
        norm_cfg=dict(type="BN", affine=False),
    ),
    rpn_head=dict(
        in_channels=width,
        feat_channels=48,
        num_convs=1,
        anchor_generator=dict(scales=[3, 6, 12], ratios=[1.0], strides=[8]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width, featmap_strides=[8]),
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
            featmap_strides=[8],
            roi_layer=dict(output_size=7),
        ),
        mask_head=dict(
            num_convs=1,
            in_channels=width,
            conv_out_channels=32,
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
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="BackboneLayerDecay",
    paramwise_cfg=dict(decay_rate=0.8),  # for a backbone that is not frozen
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
