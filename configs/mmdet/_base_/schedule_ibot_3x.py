"""36 epochs, steps after 27 and 33: iBOT's detection schedule, with its weight decay of 0.05."""

_base_ = "schedule_3x.py"

optim_wrapper = dict(optimizer=dict(weight_decay=0.05))
