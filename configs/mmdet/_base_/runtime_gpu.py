"""Runtime of long detection runs on GPUs: squares of one size, so cuDNN may choose its kernels.

The best checkpoint by box AP is kept beside the last two. To test in bfloat16:
--cfg-options test_cfg.type=BFloat16TestLoop
"""

_base_ = "runtime.py"

env_cfg = dict(cudnn_benchmark=True)
default_hooks = dict(checkpoint=dict(save_best="coco/bbox_mAP"))
