"""Linear segmentation as iBOT's: a 1x1 convolution on four concatenated maps, without a norm.

Zhou et al., 2022 (arXiv 2111.07832), github.com/bytedance/ibot, evaluation/semantic_segmentation: maps
of blocks 4, 6, 8 and 12 of the frozen backbone. DetailCLIP's linear column, which has a row of
MaskCLIP, probably comes from it. Different from it:

- normalization and weights: the row's
- mmseg 1.x in place of 0.x; bfloat16 is not used
"""

_base_ = "linear_vit-b-16.py"

model = dict(
    backbone=dict(out_indices=(3, 5, 7, 11), final_norm=False),
    neck=None,
    decode_head=dict(
        in_channels=[768, 768, 768, 768],
        in_index=[0, 1, 2, 3],
        channels=3072,
        input_transform="resize_concat",
        dropout_ratio=0.0,
    ),
)
