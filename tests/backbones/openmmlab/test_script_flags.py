"""What flags of the scripts need: bfloat16 for --amp, flips for --tta, the config's batch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.config import Config

from maskclip_bench.backbones.openmmlab import script_flags
from maskclip_bench.backbones.openmmlab.hooks import RunReport
from maskclip_bench.data_files import shipped_root
from maskclip_bench.errors import ConfigError

SEGMENTATION = sorted(shipped_root().glob("configs/mmseg/*.py"))
DETECTION = sorted(shipped_root().glob("configs/mmdet/*.py"))


def test_amp__is_bfloat16() -> None:
    assert script_flags.bfloat16_for_amp(["--work-dir", "x"]) == ["--work-dir", "x"]
    option = "optim_wrapper.type=BFloat16OptimWrapper"
    assert script_flags.bfloat16_for_amp(["--amp"]) == ["--cfg-options", option]
    given = ["--cfg-options", "a=1", "--amp", "--resume"]
    assert script_flags.bfloat16_for_amp(given) == ["--cfg-options", option, "a=1", "--resume"]


@pytest.mark.parametrize("path", SEGMENTATION, ids=lambda path: path.stem)
def test_tta__every_segmentation_config_has_flips(path: Path) -> None:
    config = Config.fromfile(str(path))
    script_flags.complete(config, "mmseg", str(path))
    assert config.tta_model.type == "SegTTAModel"
    kinds = [step["type"] for step in config.tta_pipeline]
    assert kinds == ["LoadImageFromFile", "TestTimeAug"]
    transforms = config.tta_pipeline[1]["transforms"]
    assert [group[0]["type"] for group in transforms[-3:]] == [
        "RandomFlip", "LoadAnnotations", "PackSegInputs",
    ]  # fmt: skip
    assert [flip["prob"] for flip in transforms[-3]] == [0.0, 1.0]


def test_tta__of_another_pipeline_is_left_to_the_config() -> None:
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "PackSegInputs"}]
    config = Config({"test_dataloader": {"dataset": {"pipeline": pipeline}}})
    script_flags.complete(config, "mmseg")
    assert "tta_pipeline" not in config and "tta_model" not in config


@pytest.mark.parametrize("path", [*SEGMENTATION, *DETECTION], ids=lambda path: path.stem)
def test_auto_scale_lr__knows_the_batch_of_every_config(path: Path) -> None:
    config = Config.fromfile(str(path))
    named = script_flags._NAMED_BATCH.search(path.name)
    assert named is not None
    assert script_flags.global_batch_size(config, str(path)) == int(named[1]) * int(named[2])
    script_flags.complete(config, path.parent.name, str(path))
    batch = int(named[1]) * int(named[2])
    assert config.auto_scale_lr.base_batch_size == batch and not config.auto_scale_lr.enable


def test_global_batch_size__of_a_name_or_unknown() -> None:
    assert script_flags.global_batch_size({}, "a/b_4xb8-80k_c.py") == 32
    assert script_flags.global_batch_size({"global_batch_size": 3}, "b_4xb8-80k_c.py") == 3
    assert script_flags.global_batch_size({}, "mine.py") is None


@pytest.mark.parametrize("formatted", [True, False])
def test_completed_configs__formatted_or_as_they_are(
    formatted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def format_code(text: str, **_: Any) -> tuple[str, bool]:
        calls.append(text)
        return text, False

    monkeypatch.setattr("yapf.yapflib.yapf_api.FormatCode", format_code)
    file = tmp_path / "config.py"
    file.write_text("model = dict(type='EncoderDecoder', backbone=dict(depth=12))\n")
    with script_flags.completed_configs("mmseg", formatted=formatted):
        config = Config.fromfile(str(file))
    text = config.pretty_text
    assert bool(calls) == formatted
    assert Config.fromstring(text, ".py").to_dict() == config.to_dict()


def test_completed_configs__while_a_script_runs() -> None:
    before = Config.fromfile
    with script_flags.completed_configs("mmdet"):
        assert "auto_scale_lr" in Config.fromfile(str(DETECTION[0]))
    assert Config.fromfile is before


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize(
    ("world", "batch", "accumulated", "scaled", "warned"),
    [
        (8, 2, 1, False, False),
        (1, 2, 1, False, True),
        (1, 2, 8, False, False),
        (1, 2, 1, True, False),
    ],
)
def test_report__warns_of_another_batch(
    world: int, batch: int, accumulated: int, scaled: bool, warned: bool, tmp_path: Path
) -> None:
    runner: Any = SimpleNamespace(
        work_dir=str(tmp_path),
        cfg=Config({"global_batch_size": 16, "auto_scale_lr": {"enable": scaled}}),
        world_size=world,
        train_dataloader=SimpleNamespace(batch_size=batch),
        optim_wrapper=SimpleNamespace(_accumulative_counts=accumulated),
        logger=Log(),
    )
    RunReport().before_train(runner)
    assert bool(runner.logger.lines) == warned
    if warned:
        assert "written for 16 images a step, and this run takes 2" in runner.logger.lines[0]


def test_sync_bn__is_batch_norm_on_a_cpu() -> None:
    from mmcv.cnn import build_norm_layer
    from mmengine.registry import MODELS
    from torch import nn

    original = MODELS.get("SyncBN")
    try:
        for _ in range(2):
            script_flags.batch_norm_of_each_process()
        assert type(build_norm_layer({"type": "SyncBN"}, 4)[1]) is nn.BatchNorm2d
    finally:
        MODELS.register_module("SyncBN", module=original, force=True)


def test_browse_dataset__labels_keep_their_size() -> None:
    path = next((shipped_root() / "configs/mmseg/demo").glob("vit-demo_frozen*.py"))
    for tool, kept in (("train", True), ("analysis_tools/browse_dataset", False)):
        with script_flags.completed_configs("mmseg", tool):
            pipeline = Config.fromfile(str(path)).train_dataloader.dataset.pipeline
        assert any(step["type"] == "SegRescale" for step in pipeline) == kept


def test_optimize_anchors__of_yolo_alone() -> None:
    yolo = Config({"model": {"bbox_head": {"anchor_generator": {"type": "YOLOAnchorGenerator"}}}})
    script_flags.need_yolo_anchors(yolo)
    message = r"optimize_anchors is for .*YOLO.* has AnchorGenerator\. Set scales"
    with (
        script_flags.completed_configs("mmdet", "analysis_tools/optimize_anchors"),
        pytest.raises(ConfigError, match=message),
    ):
        Config.fromfile(str(DETECTION[0]))
    with pytest.raises(ConfigError, match="has no anchors"):
        script_flags.need_yolo_anchors(Config({"model": {}}))
