"""40k iterations for a linear head, as DINOv3's: AdamW lr 1e-3, weight decay 1e-3, cosine, float32.

Warm-up of 1,500 iterations from 1e-6 of the rate, then a half cosine to 0; batch 16.
"""

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-3),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="CosineAnnealingLR", eta_min=0.0, begin=1500, end=40000, by_epoch=False),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=40000, val_interval=10000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
