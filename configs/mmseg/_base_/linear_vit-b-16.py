"""Linear segmentation as DINOv3's: batch norm, dropout 0.1 and a 1x1 convolution on the last map.

Siméoni et al., 2025 (arXiv 2508.10104), github.com/facebookresearch/dinov3, eval/segmentation, config
for ADE20K: frozen backbone, last map after its norm, weights drawn with std 0.01. Different from it:

- images: mmseg's pipeline (photometric distortion, no rotation) in place of the repository's own
- normalization and weights: the row's
- position embeddings: a table for 512 pixels, resampled once
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
        dropout_ratio=0.1,
        num_classes=150,
        align_corners=False,
        init_cfg=dict(type="Normal", std=0.01, override=dict(name="conv_seg")),
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=None,
)
