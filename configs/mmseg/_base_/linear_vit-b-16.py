"""Linear segmentation: batch norm and a 1x1 convolution on the frozen last map.

DINOv2's and DINOv3's ADE20K linear protocol: 40k iterations, batch 16, AdamW lr 1e-3, weight
decay 1e-3, windows of 512 with stride 341.
"""

_base_ = "upernet_vit-b-16.py"

model = dict(
    backbone=dict(out_indices=(11,), final_norm=True, frozen=True, drop_path_rate=0.0),
    neck=dict(_delete_=True, type="NormalizedTaps", in_channels=768, num_taps=1),
    decode_head=dict(
        _delete_=True,
        type="FCNHead",
        in_channels=768,
        in_index=0,
        channels=768,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=150,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=None,
)
