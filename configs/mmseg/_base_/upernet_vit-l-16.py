"""UperNet on a plain ViT-L/16: 24 blocks of width 1024, taps every sixth block (BEiT, BootMAE)."""

_base_ = "upernet_vit-b-16.py"

model = dict(
    # Drop path 0.2 for large: MAE's and BEiT's ADE20K recipes.
    backbone=dict(out_indices=(7, 11, 15, 23), drop_path_rate=0.2),
    neck=dict(embed_dim=1024),
    decode_head=dict(in_channels=[1024, 1024, 1024, 1024], channels=1024),
    auxiliary_head=dict(in_channels=1024),
)
