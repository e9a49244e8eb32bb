#!/usr/bin/env bash
# Train, resume and test on the original OpenMMLab packages (mmengine, mmcv-lite, mmseg, mmdet)
# instead of the maintained forks that the extra `openmmlab` installs.
#
#     scripts/check_original_openmmlab.sh [FOLDER]
#     TORCH="torch==2.8.0 torchvision==0.23.0" PYTHON=python3.11 scripts/check_original_openmmlab.sh
#
# FOLDER (default: a temporary one) gets a virtual environment with this checkout and a few scenes
# of the demo world. Known limits of the original set: mmcv-lite must be 2.1.0 (mmseg 1.2.2 and
# mmdet 3.3.0 refuse newer ones), reading a training checkpoint needs
# TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 (open-mmlab/mmengine#1655), `_base_ = ['mmseg::...']` needs
# pkg_resources, mmdet's own test.py needs compiled operators (the launcher does not), and mmseg's
# cross entropy cannot have class weights beside unlabelled pixels (switched off below).
set -euo pipefail

root="$(cd "$(dirname "$0")/.." && pwd)"
folder="${1:-$(mktemp -d)}"
mkdir -p "$folder"
folder="$(cd "$folder" && pwd)"
python="${PYTHON:-python3}"
read -r -a torch <<<"${TORCH:-}"

"$python" -m venv "$folder/venv"
venv_python="$folder/venv/bin/python"
pip=("$venv_python" -m pip --disable-pip-version-check -q)
if ((${#torch[@]})); then
    "${pip[@]}" install "${torch[@]}"
fi
"${pip[@]}" install "$root" ${torch[@]+"${torch[@]}"}
"${pip[@]}" install "mmengine==0.10.7" "mmcv-lite==2.1.0" "mmdet==3.3.0" "mmsegmentation==1.2.2" \
    ftfy regex setuptools

export MASKCLIP_BENCH_DATA="$folder/data" OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=-1 MPLBACKEND=Agg
cd "$folder"

"$venv_python" - <<'PYTHON'
import importlib.metadata
import os
from pathlib import Path

from maskclip_bench.data.demo import DemoSizes, prepare_demo

installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
original = {"mmengine": "0.10.7", "mmcv-lite": "2.1.0", "mmdet": "3.3.0", "mmsegmentation": "1.2.2"}
found = {name: installed.get(name) for name in original}
assert found == original, f"not the original packages: {found}"
forks = [name for name in installed if name.startswith("onedl-")]
assert not forks, f"the forks are installed too: {forks}"
print(" ".join(f"{name} {version}" for name, version in found.items()))

sizes = DemoSizes(
    pretrain=2, shard=2, objects_train=1, objects_val=1, objects_val_ood=1, objects_tune=1,
    captions_test=1, captions_val=1, scenes_training=16, scenes_validation=4,
    scenes_validation_ood=1, instances_train=16, instances_val=4, instances_val_ood=1,
)
prepare_demo(Path(os.environ["MASKCLIP_BENCH_DATA"]), sizes=sizes)
PYTHON

# run LOG MESSAGE WORDS...: a command, and what its output must contain
run() {
    local log="$1" message="$2"
    shift 2
    if ! "$venv_python" -W ignore "$@" >"$log" 2>&1; then
        tail -n 30 "$log"
        exit 1
    fi
    grep -q "$message" "$log" || { echo "$log does not say '$message'"; exit 1; }
    echo "ok: $(basename "$log" .log)"
}

stand_in="mmcv operators: torchvision stand-in"
for config in "$root"/configs/mm*/demo/*.py; do
    toolbox="$(basename "$(dirname "$(dirname "$config")")")"
    name="$(basename "$config" .py)"
    scripts="$("$venv_python" -c "import importlib.util as u
print(u.find_spec('$toolbox').submodule_search_locations[0])")/.mim/tools"
    launcher=(-m maskclip_bench mm "$toolbox")
    five=(train_cfg.max_iters=5 train_cfg.val_interval=5 default_hooks.checkpoint.interval=5)
    eight=(train_cfg.max_iters=8 train_cfg.val_interval=8 default_hooks.checkpoint.interval=5)
    if [ "$toolbox" = mmseg ]; then
        five+=(model.decode_head.loss_decode.class_weight=None)
        eight+=(model.decode_head.loss_decode.class_weight=None)
    fi
    plain="$folder/$name-plain" ours="$folder/$name-launcher"
    run "$folder/$name-plain-train.log" "$stand_in" \
        "$scripts/train.py" "$config" --work-dir "$plain" --cfg-options "${five[@]}"
    run "$folder/$name-launcher-train.log" "$stand_in" \
        "${launcher[@]}" train "$config" --work-dir "$ours" --cfg-options "${five[@]}"
    export TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1  # these checkpoints were written just now
    run "$folder/$name-launcher-resume.log" "resumed epoch: 0, iter: 5" \
        "${launcher[@]}" train "$config" --work-dir "$ours" --resume --cfg-options "${eight[@]}"
    run "$folder/$name-launcher-test.log" "Load checkpoint from" \
        "${launcher[@]}" test "$config" "$ours/iter_8.pth" --work-dir "$ours-test"
    if [ "$toolbox" = mmseg ]; then
        run "$folder/$name-plain-test.log" "Load checkpoint from" \
            "$scripts/test.py" "$config" "$plain/iter_5.pth" --work-dir "$plain-test"
    fi
    unset TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD
done
echo "The original OpenMMLab packages train, resume and test ($folder)."
