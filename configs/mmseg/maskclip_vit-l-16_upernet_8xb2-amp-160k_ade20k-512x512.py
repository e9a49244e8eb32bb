"""MaskCLIP ViT-L/16: upernet on ade20k.

Recipe: BootMAE's for ADE20K (github.com/LightDXY/BootMAE), by the authors of MaskCLIP.
Different from it:

- weights and normalization: the row's, in place of 127.5
- no relative positions and no layer scale, which the encoders compared here lack
- bfloat16 in place of fp16 with a loss scaler
- ViT-L and larger: lr 2e-5, layer decay 0.95 and 3,000 warm-up iterations, as BEiT-L in mmseg
  (beit-large_upernet_8xb1-amp-160k_ade20k-640x640), and drop path 0.2, as MAE's and BEiT's

Written by backbones/openmmlab/row_configs.py: maskclip-bench mm mmseg config
maskclip_vit-l-16_yfcc15m --head upernet --data ade20k.
"""

_base_ = [
    "_base_/upernet_vit-b-16.py",
    "_base_/ade20k_512x512.py",
    "_base_/schedule_160k_vit-l.py",
    "_base_/runtime_gpu.py",
]

model = dict(
    backbone=dict(
        backbone="maskclip_vit-l-16_yfcc15m",
        out_indices=(7, 11, 15, 23),
        drop_path_rate=0.2,
    ),
    decode_head=dict(
        in_channels=[1024, 1024, 1024, 1024],
        channels=1024,
    ),
    auxiliary_head=dict(
        in_channels=1024,
    ),
    neck=dict(
        embed_dim=1024,
    ),
)
