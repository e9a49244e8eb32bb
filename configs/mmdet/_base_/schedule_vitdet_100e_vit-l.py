"""ViTDet's schedule for ViT-L: layer decay 0.8."""

_base_ = "schedule_vitdet_100e.py"

optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.8))
