"""Flags of the toolboxes' scripts that would raise, or silently do something else, on our configs.

| flag | as it is | here |
| --- | --- | --- |
| `--amp` | mmseg: an error; mmdet: fp16 with a scaler, GPU only | bfloat16 |
| `--tta` (mmseg) | an error without `tta_model` and `tta_pipeline` | flips of the test pipeline |
| `--auto-scale-lr` (mmdet) | an error without `auto_scale_lr` | the config's global batch |
| `--launcher pytorch` on a CPU | asks for CUDA; SyncBN raises | gloo, batch norm of each process |

`browse_dataset` draws labels over images, so labels that the pipeline makes smaller (`SegRescale`)
keep their size there. `optimize_anchors` knows YOLO's anchors alone and says so.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from maskclip_bench.errors import ConfigError

logger = logging.getLogger(__name__)

_NAMED_BATCH = re.compile(r"_(\d+)xb(\d+)[-_]")


def with_options(arguments: list[str], *options: str) -> list[str]:
    """Add values to `--cfg-options`; those that the user gave come later and win."""
    if "--cfg-options" in arguments:
        at = arguments.index("--cfg-options") + 1
        return [*arguments[:at], *options, *arguments[at:]]
    return [*arguments, "--cfg-options", *options]


def bfloat16_for_amp(arguments: list[str]) -> list[str]:
    """Replace `--amp` by our optimizer wrapper, which computes in bfloat16 on any device."""
    if "--amp" not in arguments:
        return arguments
    rest = [argument for argument in arguments if argument != "--amp"]
    return with_options(rest, "optim_wrapper.type=BFloat16OptimWrapper")


@contextlib.contextmanager
def completed_configs(
    toolbox: str, tool: str = "train", *, formatted: bool = True
) -> Iterator[None]:
    """While a script runs, configs that it reads get what it needs, where that is missing.

    Args:
        toolbox: "mmseg" or "mmdet".
        tool: Name of the script.
        formatted: Whether yapf formats them each time they are logged or dumped; a run does so five
            times, and it takes about a second each time.

    Raises:
        ConfigError: (when the script reads it) The script cannot work on this config.
    """
    original = Config.fromfile

    def fromfile(filename: Any, *arguments: Any, **options: Any) -> Config:
        config = original(filename, *arguments, **options)
        if not formatted:  # `fromfile` has an option for it, and passes it to lazy configs only
            object.__setattr__(config, "_format_python_code", False)
        complete(config, toolbox, str(filename))
        if tool.endswith("browse_dataset"):
            keep_size_of_labels(config)
        if tool.endswith("optimize_anchors"):
            need_yolo_anchors(config)
        return config

    Config.fromfile = staticmethod(fromfile)
    try:
        yield
    finally:
        Config.fromfile = staticmethod(original)


def complete(config: Config, toolbox: str, name: str = "") -> None:
    """Add `auto_scale_lr` and test-time augmentation to a config that has none."""
    batch = global_batch_size(config, name)
    if batch is not None and "auto_scale_lr" not in config:
        config.auto_scale_lr = {"enable": False, "base_batch_size": batch}
    if toolbox == "mmseg" and "tta_pipeline" not in config:
        pipeline = flipped(config)
        if pipeline is not None:
            config.tta_pipeline = pipeline
            config.setdefault("tta_model", {"type": "SegTTAModel"})


def keep_size_of_labels(config: Any) -> None:
    """Remove `SegRescale` from all pipelines."""
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        dataset = (config.get(name) or {}).get("dataset") or {}
        if "pipeline" in dataset:
            dataset["pipeline"] = [
                step for step in dataset["pipeline"] if step.get("type") != "SegRescale"
            ]


def need_yolo_anchors(config: Any) -> None:
    """Check that a detector has the only kind of anchors that mmdet's script optimizes.

    Raises:
        ConfigError: It has others, or none.
    """
    head = config.model.get("bbox_head") or config.model.get("rpn_head") or {}
    kind = (head.get("anchor_generator") or {}).get("type")
    if kind != "YOLOAnchorGenerator":
        raise ConfigError(
            f"optimize_anchors is for detectors with YOLO's anchors (YOLOAnchorGenerator); this "
            f"config has {kind or 'no anchors'}. Set scales, ratios and strides of the anchors by "
            "hand, or use a config of YOLOv3."
        )


def global_batch_size(config: Any, name: str = "") -> int | None:
    """Images of an optimizer step that a config is written for; None if it does not say.

    It says so as `global_batch_size`, or in its name: `8xb2` are eight GPUs with two images each.
    """
    if config.get("global_batch_size"):
        return int(config["global_batch_size"])
    named = _NAMED_BATCH.search(os.path.basename(name))  # noqa: PTH119
    return int(named[1]) * int(named[2]) if named else None


def flipped(config: Any) -> list[dict[str, Any]] | None:
    """The test pipeline with and without a flip; None if its steps are of other kinds."""
    steps = (config.get("test_dataloader") or {}).get("dataset", {}).get("pipeline") or []
    kinds = [str(step.get("type")) for step in steps]
    if kinds[:1] != ["LoadImageFromFile"] or kinds[-2:] != ["LoadAnnotations", "PackSegInputs"]:
        return None
    flips = [
        {"type": "RandomFlip", "prob": probability, "direction": "horizontal"}
        for probability in (0.0, 1.0)
    ]
    between = [[dict(step)] for step in steps[1:-2]]
    transforms = [*between, flips, [dict(steps[-2])], [dict(steps[-1])]]
    return [dict(steps[0]), {"type": "TestTimeAug", "transforms": transforms}]


def batch_norm_of_each_process() -> None:
    """On a CPU, where torch has no synchronized batch norm: plain batch norm in its place."""
    import mmcv.cnn  # noqa: F401  (registers its own first)
    from mmengine.registry import MODELS
    from torch import nn

    if MODELS.get("SyncBN") is nn.BatchNorm2d:
        return
    MODELS.register_module("SyncBN", module=nn.BatchNorm2d, force=True)
    logger.warning(
        "SyncBN works on GPUs only: each process normalizes its own part of the batch here"
    )
