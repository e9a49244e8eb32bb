"""36 epochs at batch 16 (3x), steps after 27 and 33: iBOT's schedule."""

_base_ = "schedule_1x.py"

param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type="MultiStepLR", begin=0, end=36, by_epoch=True, milestones=[27, 33], gamma=0.1),
]
train_cfg = dict(max_epochs=36, val_interval=3)
