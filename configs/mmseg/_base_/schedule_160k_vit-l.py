"""160k iterations for ViT-L: lr 2e-5, layer decay 0.95 and 3,000 warm-up iterations.

BEiT-L's recipe for ADE20K in mmseg (configs/beit/beit-large_upernet_8xb1-amp-160k_ade20k-640x640).
The lr and the decay in schedule_160k.py are BootMAE's, for ViT-B.
"""

_base_ = "schedule_160k.py"

optim_wrapper = dict(optimizer=dict(lr=2e-5), paramwise_cfg=dict(decay_rate=0.95))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=3000),
    dict(type="PolyLR", power=1.0, eta_min=0.0, begin=3000, end=160000, by_epoch=False),
]
