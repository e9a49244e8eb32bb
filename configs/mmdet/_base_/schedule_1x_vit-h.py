"""12 epochs for ViT-H: layer decay 0.9 (ViTDet, arXiv 2203.16527, Appendix)."""

_base_ = "schedule_1x.py"

optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.9))
