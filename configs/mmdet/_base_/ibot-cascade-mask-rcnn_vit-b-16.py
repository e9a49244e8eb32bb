"""Cascade Mask R-CNN as iBOT's: four taps through FPN, global attention, GIoU on decoded boxes.

Zhou et al., 2022 (arXiv 2111.07832), github.com/bytedance/ibot, evaluation/object_detection, in which
it follows Swin's config. DetailCLIP points to that repository, so its MaskCLIP row was probably
measured with it. As there: taps at blocks 4, 6, 8 and 12, drop path 0.2, BEiT's deconvolution pyramid
with batch norm of all processes, FPN, four convolutions and one linear layer in each class-specific
box head, GIoU times 10. Different from it:

- normalization and weights: the row's
- every block recomputed in the backward pass (`with_cp`), because global attention at 1333 x 800 takes
  much memory; gradients are the same
- bfloat16 in place of apex fp16
"""

_base_ = "cascade-mask-rcnn_vit-b-16.py"

sync_bn = dict(type="SyncBN", requires_grad=True)
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        out_indices=(3, 5, 7, 11),
        drop_path_rate=0.2,
        window_size=None,
        global_indices=(),
        with_cp=True,
    ),
    neck=[
        dict(
            type="DeconvolutionPyramid",
            in_channels=768,
            scale_factors=(4, 2, 1, 0.5),
            norm_cfg=sync_bn,
        ),
        dict(type="FPN", in_channels=[768] * 4, out_channels=256, num_outs=5),
    ],
    rpn_head=dict(
        num_convs=1,
        loss_bbox=dict(_delete_=True, type="SmoothL1Loss", beta=1.0 / 9.0, loss_weight=1.0),
    ),
    roi_head=dict(
        bbox_head=[
            dict(
                type="ConvFCBBoxHead",
                num_shared_convs=4,
                num_shared_fcs=1,
                in_channels=256,
                conv_out_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                bbox_coder=dict(
                    type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=stds
                ),
                reg_class_agnostic=False,
                reg_decoded_bbox=True,
                norm_cfg=sync_bn,
                loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type="GIoULoss", loss_weight=10.0),
            )
            for stds in (
                [0.1, 0.1, 0.2, 0.2],
                [0.05, 0.05, 0.1, 0.1],
                [0.033, 0.033, 0.067, 0.067],
            )
        ],
        mask_head=dict(norm_cfg=None),
    ),
)
