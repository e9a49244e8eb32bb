#!/usr/bin/env bash
# Train and validate on the original OpenMMLab packages (mmengine, mmcv-lite, mmseg, mmdet) instead
# of the maintained forks that the extra `openmmlab` installs.
#
#     scripts/check_original_openmmlab.sh [FOLDER]
#
# FOLDER (default: a temporary one) gets a virtual environment with this checkout and a few scenes
# of the demo world. Known limits of the original set: mmcv-lite must be 2.1.0 (mmseg 1.2.2 and
# mmdet 3.3.0 refuse newer ones), resuming needs TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1
# (open-mmlab/mmengine#1655), and `_base_ = ['mmseg::...']` needs pkg_resources.
set -euo pipefail

root="$(cd "$(dirname "$0")/.." && pwd)"
folder="${1:-$(mktemp -d)}"
python="${PYTHON:-python3}"

mkdir -p "$folder"
"$python" -m venv "$folder/venv"
pip=("$folder/venv/bin/python" -m pip --disable-pip-version-check -q)
"${pip[@]}" install "$root"
"${pip[@]}" install "mmengine==0.10.7" "mmcv-lite==2.1.0" "mmdet==3.3.0" "mmsegmentation==1.2.2" \
    ftfy regex setuptools

export MASKCLIP_BENCH_DATA="$folder/data" OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=-1 MPLBACKEND=Agg
cd "$folder"
venv_python="$folder/venv/bin/python"

"$venv_python" - <<'PYTHON'
import os
from pathlib import Path

from maskclip_bench.data.demo import DemoSizes, prepare_demo

sizes = DemoSizes(
    pretrain=2, shard=2, objects_train=1, objects_val=1, objects_val_ood=1, objects_tune=1,
    captions_test=1, captions_val=1, scenes_training=16, scenes_validation=4,
    scenes_validation_ood=1, instances_train=16, instances_val=4, instances_val_ood=1,
)
prepare_demo(Path(os.environ["MASKCLIP_BENCH_DATA"]), sizes=sizes)
PYTHON

short=(train_cfg.max_iters=5 train_cfg.val_interval=5)
for toolbox in mmseg mmdet; do
    config="$(ls "$root"/configs/$toolbox/demo/*.py)"
    for route in "-m maskclip_bench mm $toolbox train" "$(
        "$venv_python" -c "import importlib.util as u; print(u.find_spec('$toolbox').submodule_search_locations[0])"
    )/.mim/tools/train.py"; do
        # shellcheck disable=SC2086  # a route is several words
        "$venv_python" -W ignore $route "$config" --work-dir "$folder/$toolbox" \
            --cfg-options "${short[@]}" | tail -n 1
    done
done
echo "The original OpenMMLab packages train and validate ($folder)."
