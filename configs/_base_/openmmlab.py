"""What every mmseg and mmdet config of this repository shares."""

custom_imports = dict(imports=["maskclip_bench.backbones.openmmlab"], allow_failed_imports=False)
custom_hooks = [dict(type="RunReport")]
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
log_level = "INFO"
load_from = None
resume = False
randomness = dict(seed=0)
