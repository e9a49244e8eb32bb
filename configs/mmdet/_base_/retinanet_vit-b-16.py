"""RetinaNet (Lin et al., 2017, arXiv 1708.02002) on a plain ViT-B/16 with the simple feature pyramid.

Head, losses and assignment: mmdet's `_base_/models/retinanet_r50_fpn.py`. Different from it:

- backbone and neck: ViTDet's (arXiv 2203.16527): windows of 14 patches, global attention in the last
  block of each quarter, pyramid from the last map, strides 8 to 128 (the two coarsest by pooling)
- images are padded to squares of 1024, as ViTDet's
"""

model = dict(
    type="RetinaNet",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=1024,
    ),
    backbone=dict(
        type="MaskCLIPViT",
        out_indices=(11,),
        final_norm=False,
        drop_path_rate=0.1,
        window_size=14,
        global_indices=(2, 5, 8, 11),
    ),
    neck=dict(
        type="SimpleFeaturePyramid",
        in_channels=768,
        out_channels=256,
        scale_factors=(2, 1, 0.5),
        num_outs=5,
        norm_cfg=dict(type="LN2d"),
    ),
    bbox_head=dict(
        type="RetinaHead",
        num_classes=80,
        in_channels=256,
        stacked_convs=4,
        feat_channels=256,
        anchor_generator=dict(
            type="AnchorGenerator",
            octave_base_scale=4,
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0),
    ),
    train_cfg=dict(
        assigner=dict(
            type="MaxIoUAssigner",
            pos_iou_thr=0.5,
            neg_iou_thr=0.4,
            min_pos_iou=0,
            ignore_iof_thr=-1,
        ),
        sampler=dict(type="PseudoSampler"),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type="nms", iou_threshold=0.5),
        max_per_img=100,
    ),
)
