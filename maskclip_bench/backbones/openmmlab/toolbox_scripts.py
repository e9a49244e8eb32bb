"""Start the scripts that the mmseg and mmdet wheels carry: training, tests, and their tools.

    maskclip-bench mm mmseg|mmdet train|test CONFIG [arguments of that script]
    maskclip-bench mm mmseg|mmdet TOOL [arguments of that script]
    python -m maskclip_bench.backbones.openmmlab.toolbox_scripts mmseg train CONFIG ...

A TOOL is the name of a script below the wheel's `tools/`: `analyze_logs`, or, where two have one
name, with its folder: `misc/browse_dataset`.

The scripts are run as they are; before them, this module

- puts the stand-in for mmcv's compiled operators in place (mmdet's `test.py` imports them before
  it reads the config, so a config alone comes too late there),
- checks the data that the config names: a missing folder ends here, with exit code 3, and not
  after minutes,
- makes `--launcher pytorch` work on CPU (gloo), where mmengine wants CUDA, and `--amp`, `--tta` and
  `--auto-scale-lr` on our configs (see `script_flags`),
- reads checkpoints without unpickling; `--allow-pickle FILE` lets one file through.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from maskclip_bench.backbones.openmmlab import (
    image_reading,
    mmcv_kernels,
    safe_loading,
    script_flags,
)
from maskclip_bench.backbones.openmmlab.datasets import order_categories
from maskclip_bench.data.dense import check_coco, check_segmentation_folder
from maskclip_bench.errors import (
    ConfigError,
    MaskCLIPBenchError,
    MissingDependencyError,
    did_you_mean,
    unknown_name,
)
from maskclip_bench.extras import install_command

TOOLBOXES = ("mmseg", "mmdet")
ACTIONS = ("train", "test")
"""Scripts whose data is checked first."""
WITHOUT_WEIGHTS = ("get_flops", "analysis_tools/get_flops")
"""Scripts that build a model and count its operations."""
_MASK_TYPES = {"ADE20KLayout": None, "ADE20KDataset": ".jpg", "BaseSegDataset": ".jpg"}
"""Data sets whose folders are checked -> suffix of their images; None = any image."""
_COCO_TYPES = ("COCOLayout", "CocoDataset")
_DISTRIBUTIONS = {"mmseg": "onedl-mmsegmentation", "mmdet": "onedl-mmdetection"}


def tools_of(toolbox: str) -> dict[str, Path]:
    """All scripts inside the installed wheel, by name: `train`, `analysis_tools/get_flops`.

    Raises:
        UnknownNameError: Another toolbox.
        MissingDependencyError: The toolbox is not installed, or without its scripts.
    """
    if toolbox not in TOOLBOXES:
        raise unknown_name("toolbox", toolbox, TOOLBOXES, remedy="Use mmseg or mmdet.")
    spec = importlib.util.find_spec(toolbox)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(f"{toolbox} is not installed: {install_command('openmmlab')}")
    folder = Path(spec.submodule_search_locations[0]) / ".mim" / "tools"
    found = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*.py"))
    }
    if "train" not in found:
        raise MissingDependencyError(
            f"The installed {toolbox} carries no scripts ({folder}). Install its wheel, not a "
            f"source checkout: pip install {_DISTRIBUTIONS[toolbox]}"
        )
    return found


def script(toolbox: str, tool: str) -> Path:
    """One of them, by its name or by the last part of it.

    Raises:
        UnknownNameError: Another toolbox.
        ConfigError: There is no such script, or several.
        MissingDependencyError: The toolbox is not installed, or without its scripts.
    """
    tools = tools_of(toolbox)
    if tool in tools:
        return tools[tool]
    fitting = [name for name in tools if name.rpartition("/")[2] == tool]
    if len(fitting) == 1:
        return tools[fitting[0]]
    if fitting:
        raise ConfigError(
            f"{toolbox} has several scripts {tool!r}: {', '.join(fitting)}. Name it with its "
            "folder."
        )
    short = [name.rpartition("/")[2] for name in tools]
    raise ConfigError(
        f"{toolbox} has no script {tool!r}.{did_you_mean(tool, [*tools, *short])} It has "
        f"{', '.join(tools)}."
    )


def launch(
    toolbox: str,
    tool: str,
    config: str | None,
    arguments: Sequence[str] = (),
    *,
    allow_pickle: Sequence[str] = (),
    check_data: bool = True,
    keep_group: bool = False,
    format_configs: bool = True,
) -> None:
    """Run the script in this process; returns when it ends well.

    Args:
        toolbox: "mmseg" or "mmdet".
        tool: "train", "test", or the name of another script.
        config: Path of a config; None for scripts that take none.
        arguments: Of the script (`--work-dir`, `--resume`, a checkpoint, `--cfg-options`...).
        allow_pickle: Files that may run the code they hold when they are loaded.
        check_data: Check the data that the config names first (training and tests).
        keep_group: Leave the process group open for the next script; `leave_group` ends it. A
            group ended and opened again under one torchrun would meet the keys of the first in
            the agent's store.
        format_configs: Whether yapf formats the configs that the script logs and dumps.

    Raises:
        ConfigError: No such config or script.
        CheckpointError: There is no such file to allow; or, while the script runs, a checkpoint is
            missing, damaged, or needs unpickling.
        DataError: The data the config names is missing or broken.
    """
    path = script(toolbox, tool)
    if tool in ACTIONS and (config is None or not Path(config).is_file()):
        raise ConfigError(
            f"No config {config}. `maskclip-bench path configs/{toolbox}/NAME.py` prints the "
            "place of a shipped one."
        )
    _prepare(toolbox, tool, allow_pickle)
    arguments = list(arguments)
    if tool in ACTIONS:
        assert config is not None
        if check_data and os.environ.get("RANK", "0") == "0":
            check_config_data(config, actions=(tool,), arguments=arguments)
        arguments = script_flags.bfloat16_for_amp(arguments)
    if _launcher(arguments) == "pytorch":
        arguments = _prepare_cpu_group(arguments)
    before = sys.argv
    sys.argv = [str(path), *([] if config is None else [config]), *arguments]
    try:
        configs = script_flags.completed_configs(toolbox, tool, formatted=format_configs)
        with safe_loading.guard(toolbox), configs:
            runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv = before
        if not keep_group:
            leave_group()


def _prepare(toolbox: str, tool: str, allow_pickle: Sequence[str]) -> None:
    """What is put in place before a script is imported."""
    mmcv_kernels.install()
    image_reading.install()
    if toolbox == "mmdet":
        order_categories()
    let_bases_resolve()
    for file in allow_pickle:
        safe_loading.allow(file)
    if tool in WITHOUT_WEIGHTS:
        from maskclip_bench.backbones.openmmlab.trunk_backbone import TrunkBackbone

        TrunkBackbone.weights_do_not_matter = True


def warm_up() -> None:
    """Import what the scripts import while they run, for a server of jobs (`job_server`)."""
    mmcv_kernels.install()
    image_reading.install()
    for toolbox in _DISTRIBUTIONS:
        with contextlib.suppress(ImportError):
            utils = importlib.import_module(f"{toolbox}.utils")
            utils.register_all_modules(init_default_scope=False)


def let_bases_resolve() -> None:
    """Teach mmengine the distribution names, so that `_base_ = ['mmseg::...']` finds the wheel."""
    from mmengine.config import utils

    for package, distribution in _DISTRIBUTIONS.items():
        try:
            importlib.metadata.distribution(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        utils.MODULE2PACKAGE[package] = distribution


def check_config_data(
    config: str, *, actions: Sequence[str], arguments: Sequence[str] = ()
) -> list[str]:
    """Check the data sets of a config against the disk -> one line for each.

    Types that are not known here (LVIS, CrowdHuman, Open Images...) check themselves.

    Raises:
        DataError: Something is missing or does not fit.
    """
    from mmengine.config import Config

    loaded = Config.fromfile(config)
    options = _config_options(arguments)
    if options:
        loaded.merge_from_dict(options)
    loaders = ["test_dataloader"] if "test" in actions else []
    if "train" in actions:
        loaders += ["train_dataloader", "val_dataloader"]
    lines = []
    for name in loaders:
        for dataset in innermost_datasets(loaded.get(name) or {}):
            count = _check_dataset(dataset)
            if count is not None:
                lines.append(f"{name}: {count} images")
    return lines


def _launcher(arguments: Sequence[str]) -> str:
    """The value of `--launcher`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--launcher", default="none")
    return parser.parse_known_args(list(arguments))[0].launcher


def _config_options(arguments: Sequence[str]) -> dict[str, Any]:
    """The values after `--cfg-options`, parsed as the scripts parse them."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    known, _ = parser.parse_known_args(list(arguments))
    return dict(known.cfg_options or {})


def innermost_datasets(loader: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The innermost data set dicts of a data loader (inside repeat and concatenation wrappers)."""
    waiting = [loader.get("dataset")]
    while waiting:
        dataset = waiting.pop()
        if not dataset:
            continue
        inner = dataset.get("dataset") or dataset.get("datasets")
        if inner:
            waiting += inner if isinstance(inner, (list, tuple)) else [inner]
        else:
            yield dataset


def _check_dataset(dataset: dict[str, Any]) -> int | None:
    """Check one data set of a type that is known here; None for others (they check themselves)."""
    root = Path(dataset.get("data_root") or "")
    prefix = dataset.get("data_prefix") or {}
    kind = str(dataset.get("type")).rpartition(".")[2]
    if kind in _COCO_TYPES:
        return check_coco(root / dataset["ann_file"], root / prefix.get("img", ""))
    if kind not in _MASK_TYPES or dataset.get("ann_file"):
        return None
    if kind == "ADE20KLayout":
        folders = [root / part / dataset["split"] for part in ("images", "annotations")]
    else:
        folders = [root / prefix.get(part, "") for part in ("img_path", "seg_map_path")]
    return check_segmentation_folder(
        folders[0],
        folders[1],
        image_suffix=dataset.get("img_suffix", _MASK_TYPES[kind]),
        mask_suffix=dataset.get("seg_map_suffix", ".png"),
        num_classes=dataset.get("num_classes", 150 if kind == "ADE20KDataset" else None),
    )


def _prepare_cpu_group(arguments: list[str]) -> list[str]:
    """On CPU: join torchrun's group with gloo, and wrap the model without a device.

    mmengine keeps a group that exists; by itself it would ask for CUDA.
    """
    import torch

    if torch.cuda.is_available() or "WORLD_SIZE" not in os.environ:
        return arguments
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo")
    script_flags.batch_norm_of_each_process()
    return script_flags.with_options(
        arguments,
        "model_wrapper_cfg.type=MMDistributedDataParallel",
        "model_wrapper_cfg.device_ids=None",
    )


def leave_group() -> None:
    """End this process's group, if it is in one."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m ...launch TOOLBOX ACTION CONFIG ...`; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--allow-pickle", action="append", default=[])
        known, given = parser.parse_known_args(given)
        if len(given) < 2 or (given[1] in ACTIONS and len(given) < 3):
            raise ConfigError(
                "Usage: mmseg|mmdet train|test CONFIG [--allow-pickle FILE] "
                "[arguments of the script], or mmseg|mmdet TOOL [arguments of the script]"
            )
        toolbox, tool, *rest = given
        config = rest.pop(0) if tool in ACTIONS else None
        launch(toolbox, tool, config, rest, allow_pickle=known.allow_pickle)
    except MaskCLIPBenchError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
