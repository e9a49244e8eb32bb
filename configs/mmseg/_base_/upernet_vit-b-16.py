"""UperNet on a plain ViT-B/16, four taps through BEiT's deconvolution pyramid.

Heads as in mmseg's BEiT and MAE configs: width 768, FCN auxiliary head with weight 0.4. Taps at
blocks 4, 6, 8, 12 (indices 3, 5, 7, 11), drop path 0.1: BootMAE's ADE20K recipe, by the authors of
MaskCLIP, and iBOT's, which DetailCLIP's MaskCLIP row was measured with. Position embeddings become a
table of 32 x 32 once, as in BEiT, MAE, BootMAE and iBOT, and windows of a test are not padded, as
there; an image smaller than a window is. Different from BootMAE's:

- no relative positions and no layer scale, which the encoders compared here do not have
- normalization: the row's, in place of 127.5
"""

norm_cfg = dict(type="SyncBN", requires_grad=True)
data_preprocessor = dict(
    type="SegDataPreProcessor",
    # ImageNet's mean and standard deviation (x 255), with which SLIP's code and MAE pretrain.
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    size=(512, 512),
    test_cfg=dict(size=(512, 512)),
)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type="MaskCLIPViT",
        out_indices=(3, 5, 7, 11),
        final_norm=False,
        drop_path_rate=0.1,
        img_size=(512, 512),
    ),
    neck=dict(type="Feature2Pyramid", embed_dim=768, rescales=[4, 2, 1, 0.5]),
    decode_head=dict(
        type="UPerHead",
        in_channels=[768, 768, 768, 768],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=768,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=768,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    # Windows of 512 with a stride of two thirds, as BEiT and all that follow it.
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
