"""A linear head on the frozen demo ViT and the demo world's scenes, in a quarter of a minute.

Batch norm and a 1x1 convolution on the last map (DINOv2's and DINOv3's linear protocol): what the
features hold, without a head that could read the pixels anew. The schedule is the demo's own.
"""

_base_ = "vit-demo_frozen-upernet_1xb4-500_demo-scenes-144x144.py"

max_iters = 250
model = dict(
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
)
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(optimizer=dict(lr=1e-2))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=20, end=max_iters, by_epoch=False),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
