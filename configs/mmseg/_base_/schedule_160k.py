"""160k iterations at batch 16, BootMAE's ADE20K recipe (same authors as MaskCLIP).

AdamW lr 4e-4, betas (0.9, 0.999), weight decay 0.05, layer decay 0.65, 1,500 warm-up iterations
from 1e-6 of the rate, then linearly to 0, gradients clipped at 3. Not taken from it: relative
positions and layer scale, which the encoders compared here do not have. bfloat16 instead of
apex fp16.
"""

optim_wrapper = dict(
    type="BFloat16OptimWrapper",
    optimizer=dict(type="AdamW", lr=4e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="BackboneLayerDecay",
    paramwise_cfg=dict(decay_rate=0.65),
    clip_grad=dict(max_norm=3.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=1500, end=160000, by_epoch=False),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=160000, val_interval=16000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
