"""A dense cell as a job: what it writes and starts; interrupted runs, and runs on two processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from maskclip_bench import storage
from maskclip_bench.backbones.dense_job import DenseJob, DenseSplit
from maskclip_bench.backbones.openmmlab import dense_cell as jobs
from maskclip_bench.backbones.openmmlab.dense_checkpoints import seal_new
from maskclip_bench.data_files import shipped_root
from maskclip_bench.errors import ConfigError
from maskclip_bench.jobs import PARENT_VARIABLE

from .conftest import CLASSES

SEGMENTATION = "configs/mmseg/demo/vit-demo_frozen-upernet_1xb4-500_demo-scenes-144x144.py"
DETECTION = "configs/mmdet/demo/vit-demo_frozen-mask-rcnn_1xb4-600_demo-instances-144x144.py"
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def segmentation_job(folder: Path, root: Path, *, iterations: int = 4) -> DenseJob:
    splits = {
        name: DenseSplit(
            name=name,
            images=str(root / "images" / name),
            samples=[
                (str(image), str(root / "annotations" / name / f"{image.stem}.png"))
                for image in sorted((root / "images" / name).iterdir())
            ],
        )
        for name in ("training", "validation")
    }
    return DenseJob(
        toolbox="mmseg",
        config=str(shipped_root() / SEGMENTATION),
        work_dir=str(folder),
        backbone={"timm": "vit_demo_patch8_48"},
        train=splits["training"],
        tests=[splits["validation"], splits["training"]],
        classes=list(CLASSES),
        options={
            "train_cfg.max_iters": iterations,
            "default_hooks.checkpoint.interval": 5,
            "model.decode_head.num_classes": 3,
            "model.decode_head.loss_decode.class_weight": [1.0, 1.0, 1.0],
            **{f"{loader}.dataset.num_classes": 3 for loader in LOADERS},
        },
    )


def detection_job(folder: Path, root: Path, *, iterations: int = 4) -> DenseJob:
    splits = {
        name: DenseSplit(
            name=name,
            images=str(root / name),
            annotations=str(root / f"annotations/instances_{name}.json"),
        )
        for name in ("train", "val")
    }
    return DenseJob(
        toolbox="mmdet",
        config=str(shipped_root() / DETECTION),
        work_dir=str(folder),
        backbone={"timm": "vit_demo_patch8_48"},
        train=splits["train"],
        tests=[splits["val"]],
        options={
            "train_cfg.max_iters": iterations,
            "default_hooks.checkpoint.interval": 5,
            "model.roi_head.bbox_head.num_classes": 2,
            "model.roi_head.mask_head.num_classes": 2,
            **{f"{loader}.dataset.num_classes": 2 for loader in LOADERS},
        },
    )


def write_checkpoint(folder: Path, *, step: int = 5) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"iter_{step}.pth"
    torch.save({"weight": torch.ones(64)}, file)
    return file


def test_training_config__does_not_validate(tmp_path: Path, scenes: Path) -> None:
    """With an interval alone, mmengine would still validate after the last iteration."""
    config = jobs.training_config(segmentation_job(tmp_path / "work", scenes), world_size=1)
    assert config.val_cfg is config.val_dataloader is config.val_evaluator is None
    dataset = config.test_dataloader.dataset
    assert dataset.type == "SegmentationSamples" and "split" not in dataset
    listed = json.loads(Path(dataset.samples_file).read_text())
    assert [Path(image).name for image, _ in listed] == [f"{index:03d}.jpg" for index in range(4)]
    assert not config.resume and config.load_from is None


def test_training_config__validates_where_the_job_says_so(
    tmp_path: Path, scenes: Path, instances: Path
) -> None:
    """On its split, as often as the config says, without files; tests stay as they are."""
    job = segmentation_job(tmp_path / "work", scenes)
    asked = job.model_copy(update={"validate_on": job.train})
    config = jobs.training_config(asked, world_size=1)
    listed = json.loads(Path(config.val_dataloader.dataset.samples_file).read_text())
    assert len(listed) == 8
    assert config.val_cfg.type == "AsideValLoop"
    assert [evaluator.type for evaluator in config.val_evaluator] == ["IoUMetric"]
    assert config.train_cfg.val_interval == 500
    tested = jobs.training_config(job, world_size=1)
    assert config.test_dataloader == tested.test_dataloader
    assert config.test_evaluator == tested.test_evaluator
    job = detection_job(tmp_path / "work", instances)
    config = jobs.training_config(job.model_copy(update={"validate_on": job.train}), world_size=1)
    (evaluator,) = config.val_evaluator
    assert evaluator.ann_file == config.val_dataloader.dataset.ann_file == job.train.annotations
    assert config.test_evaluator[0].ann_file == job.tests[0].annotations


def test_training_config__divides_the_global_batch(tmp_path: Path, scenes: Path) -> None:
    job = segmentation_job(tmp_path / "work", scenes)
    job.options["global_batch_size"] = 16
    assert jobs.training_config(job, world_size=8).train_dataloader.batch_size == 2
    with pytest.raises(ConfigError, match="global batch of 16 cannot be divided among 3 processes"):
        jobs.training_config(job, world_size=3)


def test_training_config__goes_on_from_the_last_whole_checkpoint(
    tmp_path: Path, scenes: Path
) -> None:
    folder = tmp_path / "work"
    first, second = write_checkpoint(folder, step=5), write_checkpoint(folder, step=10)
    job = segmentation_job(folder, scenes)
    config = jobs.training_config(job, world_size=1)
    assert config.resume and config.load_from == str(second)
    second.write_bytes(second.read_bytes()[:-100])
    assert jobs.training_config(job, world_size=1).load_from == str(first)
    first.write_bytes(b"")
    config = jobs.training_config(job, world_size=1)
    assert not config.resume and config.load_from is None


@pytest.mark.parametrize("trained", ['{"checkpoint": "iter_10.pth"}', "{", "[]", ""])
def test_run__damaged_checkpoint_after_training_trains_on(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch, trained: str
) -> None:
    """It never fails every rerun: the one before is used, and training goes on to the end."""
    folder = tmp_path / "work"
    first, last = write_checkpoint(folder, step=5), write_checkpoint(folder, step=10)
    seal_new(folder)
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    job = segmentation_job(folder, scenes)
    job.folder.trained.write_text(trained)
    launched: list[str] = []

    def launch(toolbox: str, action: str, config: str, *given: Any, **more: Any) -> None:
        launched.append(action)
        if action == "train":
            assert f"load_from = {str(first)!r}" in Path(config).read_text()
            write_checkpoint(folder, step=10)

    monkeypatch.setattr(jobs, "launch", launch)
    jobs.run(job)
    assert launched == ["train", "test", "test"]
    assert json.loads(job.folder.trained.read_text()) == {"checkpoint": "iter_10.pth"}


def test_run__removes_what_dead_processes_left(
    tmp_path: Path, scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = segmentation_job(tmp_path / "work", scenes)
    write_checkpoint(tmp_path / "work")
    dead = storage.temporary_path(job.folder.progress)
    dead = dead.with_name(dead.name.replace(str(os.getpid()), "99999999"))
    dead.write_text("x")
    monkeypatch.setattr(jobs, "launch", lambda *given, **more: None)
    jobs.run(job)
    assert not dead.exists()


def test_configs__keep_a_second_checkpoint() -> None:
    """mmengine removes the oldest checkpoint before it writes the newest."""
    from mmengine.config import Config

    for toolbox in ("mmseg", "mmdet"):
        config = Config.fromfile(str(shipped_root() / f"configs/{toolbox}/_base_/runtime.py"))
        assert config.default_hooks.checkpoint.max_keep_ckpts == 2


@pytest.mark.parametrize(("toolbox", "resumes"), [("mmseg", True), ("mmdet", False)])
def test_run__what_is_launched(
    toolbox: str,
    resumes: bool,
    tmp_path: Path,
    scenes: Path,
    instances: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Train once, test what has no scores; mmseg's script needs its own word to go on."""
    folder = tmp_path / "work"
    make, root = (segmentation_job, scenes) if toolbox == "mmseg" else (detection_job, instances)
    job = make(folder, root)
    file = write_checkpoint(folder)
    launched: list[tuple[Any, ...]] = []

    def launch(*given: Any, keep_group: bool, format_configs: bool, check_data: bool) -> None:
        assert keep_group and not check_data and not format_configs
        launched.append(given)

    monkeypatch.setattr(jobs, "launch", launch)
    jobs.run(job)
    (_, action, config, arguments), *tests = launched
    assert action == "train" and config == str(folder / "config_train.py")
    assert arguments == ["--work-dir", str(folder), *(["--resume"] if resumes else [])]
    assert "resume = True" in (folder / "config_train.py").read_text()
    assert [given[1] for given in tests] == ["test"] * len(job.tests)
    assert all(given[3][0] == str(file) for given in tests)
    job.folder.scores(job.tests[0].name).write_text("{}")
    launched.clear()
    jobs.run(job)
    assert len(launched) == len(job.tests) - 1


def test_fill__errors(tmp_path: Path, scenes: Path, instances: Path) -> None:
    folder = tmp_path / "work"
    job = segmentation_job(folder, scenes).model_copy(
        update={"config": str(shipped_root() / DETECTION)}
    )
    with pytest.raises(ConfigError, match=r"'COCOLayout' reads a COCO .* configs/mmseg/"):
        jobs.fill(job, split=job.tests[0])
    job = detection_job(folder, instances).model_copy(
        update={"config": str(shipped_root() / SEGMENTATION)}
    )
    with pytest.raises(ConfigError, match=r"'ADE20KLayout' takes no COCO .* configs/mmdet/"):
        jobs.fill(job, split=job.tests[0])
    foreign = tmp_path / "foreign.py"
    foreign.write_text("model = dict(backbone=dict(type='ResNet'))\n")
    with pytest.raises(ConfigError, match=r"backbone 'ResNet'.* Use MaskCLIPViT or MaskCLIPPyr"):
        jobs.fill(job.model_copy(update={"config": str(foreign)}), split=job.tests[0])


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 4), (errno.EDQUOT, 4)])
def test_main__disk_full(
    tmp_path: Path,
    scenes: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
) -> None:
    def launch(*given: Any, **more: Any) -> None:
        raise OSError(number, "full", "iter_5.pth")

    monkeypatch.setattr(jobs, "launch", launch)
    job = segmentation_job(tmp_path / "work", scenes)
    assert jobs.main([str(job.write())]) == code
    assert "iter_5.pth" in capsys.readouterr().err
    monkeypatch.setattr(jobs, "launch", lambda *given, **more: Path("absent").read_text())
    with pytest.raises(FileNotFoundError):
        jobs.main([str(job.folder.job)])


def start(job: DenseJob, launcher: list[str]) -> subprocess.Popen[bytes]:
    """Start a job; its output goes to `log_of(job)`."""
    file = job.write()
    environment = {
        **os.environ,
        "PYTHONPATH": str(shipped_root()),
        "CUDA_VISIBLE_DEVICES": "-1",
        "OMP_NUM_THREADS": "1",
        PARENT_VARIABLE: str(os.getpid()),
    }
    with log_of(job).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", *launcher, "-m", jobs.__name__, str(file)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def log_of(job: DenseJob) -> Path:
    return Path(job.work_dir).with_suffix(".log")


def finish(job: DenseJob, launcher: list[str]) -> str:
    """Run a job to its end -> what it printed."""
    with start(job, launcher) as process:
        try:
            code = process.wait(timeout=280)
        finally:
            process.kill()
    output = log_of(job).read_text()
    assert code == 0, output[-3000:]
    return output


@pytest.mark.slow
def test_job__two_processes_train_and_test(tmp_path: Path, scenes: Path) -> None:
    """Under torchrun the ranks' parent is its agent, and three scripts share one group."""
    pytest.importorskip("mmseg")
    job = segmentation_job(tmp_path / "work", scenes)
    finish(job, ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"])
    folder = tmp_path / "work"
    assert json.loads((folder / "run_report.json").read_text())["world_size"] == 2
    assert json.loads((folder / "trained.json").read_text())["checkpoint"] == "iter_4.pth"
    for split in job.tests:
        scores = json.loads(job.folder.scores(split.name).read_text())
        assert 0 <= scores["mIoU"] <= 100
        assert job.folder.outcomes(split.name).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("toolbox", ["mmseg", "mmdet"])
def test_job__killed_in_mid_training_goes_on(
    toolbox: str, tmp_path: Path, scenes: Path, instances: Path
) -> None:
    pytest.importorskip(toolbox)
    make, root = (segmentation_job, scenes) if toolbox == "mmseg" else (detection_job, instances)
    folder = tmp_path / "work"
    job = make(folder, root, iterations=100_000)
    with start(job, []) as process:
        try:
            deadline = time.monotonic() + 200
            while jobs.last_checkpoint(folder) is None and time.monotonic() < deadline:
                assert process.poll() is None, log_of(job).read_text()[-3000:]
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
    stopped = jobs.last_checkpoint(folder)
    assert stopped is not None
    moved = folder.rename(tmp_path / "moved")
    step = int(stopped.stem.removeprefix("iter_"))
    job = make(moved, root, iterations=step + 2)
    output = finish(job, [])
    assert f"epoch: 0, iter: {step}" in output
    trained = json.loads((moved / "trained.json").read_text())
    assert trained == {"checkpoint": f"iter_{step + 2}.pth"}
    for split in job.tests:
        assert job.folder.scores(split.name).is_file()


@pytest.mark.slow
def test_job__validation_changes_no_weight(tmp_path: Path, scenes: Path) -> None:
    pytest.importorskip("mmseg")
    weights = []
    for name in ("without", "with"):
        job = segmentation_job(tmp_path / name, scenes)
        options = {**job.options, "train_cfg.val_interval": 2}
        validated = job.tests[0] if name == "with" else None
        finish(job.model_copy(update={"options": options, "validate_on": validated}), [])
        logged = "".join(path.read_text() for path in (tmp_path / name).rglob("scalars.json"))
        assert logged.count('"mIoU"') == (2 if name == "with" else 0)
        checkpoint = torch.load(tmp_path / name / "iter_4.pth", weights_only=False)
        weights.append(checkpoint["state_dict"])
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.slow
def test_job__maps_of_another_job_change_no_score(tmp_path: Path, scenes: Path) -> None:
    pytest.importorskip("mmseg")
    maps, found = tmp_path / "maps", {}
    for name, file in (("alone", None), ("first", str(maps)), ("second", str(maps))):
        job = segmentation_job(tmp_path / name, scenes).model_copy(update={"maps": file})
        before = maps.stat().st_mtime_ns if maps.exists() else None
        finish(job, [])
        checkpoint = torch.load(tmp_path / name / "iter_4.pth", weights_only=False)
        scores = [job.folder.scores(split.name).read_text() for split in job.tests]
        found[name] = checkpoint["state_dict"], scores
    assert maps.stat().st_mtime_ns == before, "the second job made maps anew"
    for name in ("first", "second"):
        weights, scores = found[name]
        assert scores == found["alone"][1]
        assert all(torch.equal(value, weights[key]) for key, value in found["alone"][0].items())
