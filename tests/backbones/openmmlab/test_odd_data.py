"""Every documented command, by subprocess, on odd data (`odd_data`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from maskclip_bench.data_files import shipped_root

from .odd_data import DETECTION, SEGMENTATION, write_odd_instances, write_odd_scenes
from .test_toolbox_scripts import DETECTION as DETECTION_CONFIG
from .test_toolbox_scripts import SEGMENTATION as SEGMENTATION_CONFIG

MANY_COMMANDS = """
import glob, json, sys
from maskclip_bench.cli import main
for words in json.loads(sys.argv[1]):
    found = [sorted(glob.glob(word)) if "*" in word else [word] for word in words]
    sys.argv = ["maskclip-bench", *(paths[-1] for paths in found)]
    print("$", *sys.argv, flush=True)
    try:
        main()
    except SystemExit as error:
        if error.code:
            raise
"""
"""One process for several commands: most of the time of each are its imports."""


def run_all(commands: Sequence[Sequence[object]], data: Path, workspace: Path) -> str:
    """Run commands one after another in a process of their own -> what they printed."""
    environment = {
        **os.environ,
        "MASKCLIP_BENCH_DATA": str(data),
        "MASKCLIP_BENCH_WORKSPACE": str(workspace),
        "PYTHONPATH": str(shipped_root()),
        "CUDA_VISIBLE_DEVICES": "-1",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
        "COLUMNS": "200",
    }
    words = [[str(word) for word in command] for command in commands]
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MANY_COMMANDS, json.dumps(words)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=workspace,
        timeout=840,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


def files(folder: Path, pattern: str) -> int:
    return len(list(folder.glob(pattern)))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mmseg__every_command_on_odd_data(tmp_path: Path) -> None:
    pytest.importorskip("mmseg")
    write_odd_scenes(tmp_path / "data/demo/scenes")
    config, out, tools = tmp_path / "odd.py", tmp_path / "out", tmp_path / "tools"
    config.write_text(SEGMENTATION.format(base=SEGMENTATION_CONFIG))
    exported = tmp_path / "exported"
    mm = ("mm", "mmseg")
    test = ("test", config, out / "iter_5.pth", "--work-dir", out)
    five = ("--cfg-options", "train_cfg.max_iters=5", "train_cfg.val_interval=5")
    commands: list[Sequence[object]] = [
        [*mm, "train", config, "--work-dir", out, "--amp"],
        [*mm, "train", config, "--work-dir", out, "--resume", *five],
        [*mm, *test, "--out", tools / "predicted", "--show-dir", tools / "shown"],
        [*mm, *test, "--tta", "--cfg-options", "test_cfg.type=BFloat16TestLoop"],
        [*mm, "confusion_matrix", config, tools / "predicted", tools / "matrix"],
        [*mm, "analysis_tools/browse_dataset", config, "--output-dir", tools / "browsed",
         "--not-show"],
        [*mm, "misc/browse_dataset", config, "--output-dir", tools / "also", "--not-show"],
        [*mm, "analyze_logs", f"{out}/*/vis_data/scalars.json", "--keys", "mIoU", "--out",
         tools / "curve.png"],
        [*mm, "benchmark", config, out / "iter_5.pth", "--repeat-times", "1"],
        [*mm, "get_flops", config, "--shape", "48", "48"],
        [*mm, "print_config", config],
        [*mm, "publish_model", out / "iter_5.pth", tools / "published"],
        ["export", out, "-o", exported],
        [*mm, "test", exported / "config.py", exported / "model.pth", "--work-dir", out / "alone"],
        ["path", f"configs/mmseg/demo/{SEGMENTATION_CONFIG.name}"],
    ]  # fmt: skip
    output = run_all(commands, tmp_path / "data", tmp_path)
    assert files(tools / "predicted", "*.png") == 6
    assert files(tools / "matrix", "*.png") == 1
    assert files(tools / "browsed", "*") == 8
    assert (tools / "curve.png").is_file()
    assert files(tools, "published*.pth") == 1
    assert "Flops" in output
    assert str(SEGMENTATION_CONFIG) in output.replace("\n", "")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mmdet__every_command_on_odd_data(tmp_path: Path) -> None:
    pytest.importorskip("mmdet")
    write_odd_instances(tmp_path / "data/demo/instances")
    config, out, tools = tmp_path / "odd.py", tmp_path / "out", tmp_path / "tools"
    config.write_text(DETECTION.format(base=DETECTION_CONFIG))
    found = tools / "found.pkl"
    exported = tmp_path / "exported"
    mm = ("mm", "mmdet")
    five = ("--cfg-options", "train_cfg.max_iters=5", "train_cfg.val_interval=5")
    test = ("test", config, out / "iter_5.pth", "--work-dir", out)
    pickled = ("--allow-pickle", found)
    commands: list[Sequence[object]] = [
        [*mm, "train", config, "--work-dir", out, "--amp", "--auto-scale-lr"],
        [*mm, "train", config, "--work-dir", out, "--resume", *five],
        [*mm, *test, "--out", found, "--show-dir", tools / "shown",
         "--cfg-options", "test_cfg.type=BFloat16TestLoop"],
        [*mm, "analysis_tools/browse_dataset", config, "--output-dir", tools / "browsed",
         "--not-show"],
        [*mm, "confusion_matrix", config, found, tools / "matrix", *pickled],
        [*mm, "analyze_logs", "cal_train_time", f"{out}/*/vis_data/scalars.json"],
        [*mm, "analyze_results", config, found, tools / "best", "--topk", "2", *pickled],
        [*mm, "eval_metric", config, found, *pickled],
        [*mm, "benchmark", config, "--checkpoint", out / "iter_5.pth", "--task", "dataloader",
         "--repeat-num", "1", "--max-iter", "4", "--num-warmup", "1", "--log-interval", "1"],
        [*mm, "get_flops", config, "--num-images", "1"],
        [*mm, "print_config", config],
        [*mm, "publish_model", out / "iter_5.pth", tools / "published.pth"],
        ["export", out, "-o", exported],
        [*mm, "test", exported / "config.py", exported / "model.pth", "--work-dir", out / "alone"],
        ["path", f"configs/mmdet/demo/{DETECTION_CONFIG.name}"],
    ]  # fmt: skip
    output = run_all(commands, tmp_path / "data", tmp_path)
    assert found.is_file()
    assert files(tools / "browsed", "*") == 8
    assert files(tools / "matrix", "*.png") == 1
    assert files(tools, "published*.pth") == 1
    assert str(DETECTION_CONFIG) in output.replace("\n", "")


ROW = """
display_name: untrained
world: real
source: {timm: vit_demo_patch8_48, random_init: true}
arch: ViT-demo
"""
TASKS = {
    "segmentation/odd_scenes": """
display_name: odd scenes
world: real
reader: {kind: ade20k, root: odd/scenes, classes: classes.json}
splits: {train: training, test: validation}
protocols: {segmentation: {configs: {"*": CONFIG}, preset: odd, options: {train_cfg.max_iters: 3}}}
obtain: made by the tests
""",
    "detection/odd_instances": """
display_name: odd instances
world: real
reader: {kind: coco_instances, root: odd/instances}
splits: {train: train, test: val}
protocols: {detection: {configs: {"*": CONFIG}, preset: odd, options: {train_cfg.max_iters: 3}}}
obtain: made by the tests
""",
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", TASKS)
def test_run__dense_cells_on_odd_data(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, name = task.split("/")
    pytest.importorskip("mmseg" if protocol == "segmentation" else "mmdet")
    write_odd_scenes(tmp_path / "data/odd/scenes")
    write_odd_instances(tmp_path / "data/odd/instances")
    base, text = (
        (SEGMENTATION_CONFIG, SEGMENTATION)
        if protocol == "segmentation"
        else (DETECTION_CONFIG, DETECTION)
    )
    config = tmp_path / "odd.py"
    config.write_text(text.format(base=base))
    for folder in ("tasks", "backbones"):
        (tmp_path / "catalogue" / folder).mkdir(parents=True)
    (tmp_path / f"catalogue/tasks/{name}.yaml").write_text(
        TASKS[task].replace("CONFIG", str(config))
    )
    (tmp_path / "catalogue/backbones/odd_untrained.yaml").write_text(ROW)
    words = ["run", "-b", "odd_untrained", "-t", task, "--device", "cpu"]
    monkeypatch.setenv("MASKCLIP_BENCH_CATALOGUE", str(tmp_path / "catalogue"))
    run_all([words], tmp_path / "data", tmp_path)
    file = tmp_path / "records/odd_untrained" / f"{task.replace('/', '__')}.json"
    record = json.loads(file.read_text())
    assert record["status"] == "ok", record["error"]
    assert record["details"]["pictures"]
