"""12 epochs at batch 16 (1x), steps after 8 and 11.

AdamW lr 1e-4 and layer decay 0.65: iBOT's detection recipe, which DetailCLIP's MaskCLIP row was
measured with; weight decay 0.1 and 250 warm-up iterations: ViTDet. Different from ViTDet: 12 epochs in
place of 100 with batch 64, layer decay 0.65 in place of 0.7, no relative positions in the attention.
"""

optim_wrapper = dict(
    type="BFloat16OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
    constructor="BackboneLayerDecay",
    paramwise_cfg=dict(decay_rate=0.65),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type="MultiStepLR", begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=12, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
