"""100 epochs at batch 64, ViTDet's schedule: lr 1e-4, weight decay 0.1, layer decay 0.7.

250 warm-up iterations from 0.001 of the rate; steps after 89 and 96 epochs. Configs that are based on it
say batch 64 (global_batch_size). Different from the source:

- steps after whole epochs: there after 163,889 and 177,546 of 184,375 iterations, 88.9 and 96.3 epochs
- no weight decay for biases and tokens; there norms and position embeddings alone have none
- bfloat16 in place of fp16 with a loss scaler
"""

_base_ = "schedule_1x.py"

optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.7))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type="MultiStepLR", begin=0, end=100, by_epoch=True, milestones=[89, 96], gamma=0.1),
]
train_cfg = dict(max_epochs=100, val_interval=5)
