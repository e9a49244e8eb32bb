"""160k iterations for iBOT's linear head: AdamW lr 7e-4, weight decay 0.05, poly power 1, float32."""

_base_ = "schedule_160k.py"

optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=7e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
