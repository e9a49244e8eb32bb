"""Runtime of long segmentation runs on GPUs: crops of one size, so cuDNN may choose its kernels.

The best checkpoint by mIoU is kept beside the last two. To test in bfloat16 (about half the time; the
mIoU changes in its last digits): --cfg-options test_cfg.type=BFloat16TestLoop
"""

_base_ = "runtime.py"

env_cfg = dict(cudnn_benchmark=True)
default_hooks = dict(checkpoint=dict(save_best="mIoU"))
