"""DINO-DETR (Zhang et al., 2023, arXiv 2203.03605) on a plain ViT-B/16, four scales.

Not to be confused with DINO, the self-distillation. Transformer, head, losses and denoising: mmdet's
`dino/dino-4scale_r50_8xb2-12e_coco.py`. Different from it:

- backbone: ViTDet's windows of 14 patches, global attention in the last block of each quarter
- neck: ViTDet's simple feature pyramid, strides 8 to 64, in place of a channel mapper
- images are padded to multiples of 64, which the pyramid needs, in place of 1
"""

_layer_ffn = dict(embed_dims=256, feedforward_channels=2048, ffn_drop=0.0)
model = dict(
    type="DINO",
    num_queries=900,
    with_box_refine=True,
    as_two_stage=True,
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=64,
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
        num_outs=4,
        norm_cfg=dict(type="LN2d"),
    ),
    encoder=dict(
        num_layers=6,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256, num_levels=4, dropout=0.0), ffn_cfg=_layer_ffn
        ),
    ),
    decoder=dict(
        num_layers=6,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256, num_heads=8, dropout=0.0),
            cross_attn_cfg=dict(embed_dims=256, num_levels=4, dropout=0.0),
            ffn_cfg=_layer_ffn,
        ),
        post_norm_cfg=None,
    ),
    positional_encoding=dict(num_feats=128, normalize=True, offset=0.0, temperature=20),
    bbox_head=dict(
        type="DINOHead",
        num_classes=80,
        sync_cls_avg_factor=True,
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=5.0),
        loss_iou=dict(type="GIoULoss", loss_weight=2.0),
    ),
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=100),
    ),
    train_cfg=dict(
        assigner=dict(
            type="HungarianAssigner",
            match_costs=[
                dict(type="FocalLossCost", weight=2.0),
                dict(type="BBoxL1Cost", weight=5.0, box_format="xywh"),
                dict(type="IoUCost", iou_mode="giou", weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img=300),
)
