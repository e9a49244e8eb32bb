"""ViTDet's schedule for ViT-H: layer decay 0.9. Different from the source: 100 epochs in place of 75."""

_base_ = "schedule_vitdet_100e.py"

optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.9))
