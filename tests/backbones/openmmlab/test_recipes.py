"""Every recipe, made tiny, on toy data: train, validate, go on, test the checkpoint alone.

A recipe is a config without its row: shipped configs that differ in weights and normalization alone
are run once. The data sets are the config's own types on a few drawn images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

import maskclip_bench.backbones.openmmlab  # noqa: F401  (registers the backbones)
from maskclip_bench.backbones.openmmlab import trunk_backbone
from maskclip_bench.backbones.openmmlab.row_configs import row_config
from maskclip_bench.backbones.openmmlab.trunk_sources import TrunkSource
from maskclip_bench.data_files import shipped_root

from . import toy_data_sets
from .conftest import TinyModels

WIDTH, HEADS = 24, 2
SHRINK = 8
"""All sizes in pixels are divided by it."""
CHANNELS = (
    "in_channels", "channels", "out_channels", "feat_channels", "conv_out_channels",
    "fc_out_channels", "embed_dim", "embed_dims", "feedforward_channels",
)  # fmt: skip
IMAGE_SIZES = ("size", "crop_size", "stride", "scale", "scales", "img_size", "pad_size_divisor")
FEWER = {
    "num_layers": 1, "num_queries": 10, "num_points": 64, "num_dn_queries": 4, "max_per_img": 10,
    "max_per_image": 10, "nms_pre": 50, "num_feats": 16, "score_thr": 0.0, "window_size": 3,
}  # fmt: skip


def recipe_of(config: Any) -> str:
    """All that two rows of one recipe share."""
    values = config.to_dict()
    for key in TrunkSource.model_fields:
        values["model"]["backbone"].pop(key, None)
    for key in ("mean", "std"):
        values["model"]["data_preprocessor"].pop(key, None)
    return json.dumps(values, sort_keys=True, default=str)


def shipped_recipes() -> dict[str, Path]:
    """Name -> the first shipped config of each recipe."""
    found: dict[str, Path] = {}
    for path in sorted(shipped_root().glob("configs/mm*/*.py")):
        found.setdefault(recipe_of(Config.fromfile(str(path))), path)
    return {path.stem: path for path in found.values()}


SHIPPED = shipped_recipes()
WRITTEN = {
    f"{head} on {data}": (toolbox, head, data)
    for toolbox, head, data in (
        ("mmseg", "upernet", "voc2012"),
        ("mmseg", "linear", "voc2012"),
        ("mmseg", "ibot-linear", "pascal_context"),
        ("mmseg", "upernet", "pascal_context"),
        ("mmseg", "upernet", "coco_stuff"),
        ("mmseg", "upernet", "cityscapes"),
        ("mmdet", "mask-rcnn", "lvis"),
    )
}


def smaller(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(smaller(item) for item in value)
    return max(value // SHRINK, 1) if isinstance(value, int) and value > 64 else value


def padded(value: Any, patch: int) -> Any:
    """Sizes of the model are multiples of the patch."""
    if isinstance(value, (list, tuple)):
        return type(value)(padded(item, patch) for item in value)
    return -(-value // patch) * patch


def fewer_channels(value: Any, width: int) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(fewer_channels(item, width) for item in value)
    return {width: WIDTH, 4 * width: 4 * WIDTH}.get(value, 32)


def shrink(node: Any, width: int) -> None:
    """Fewer channels, layers, queries and pixels, everywhere."""
    if isinstance(node, list):
        for item in node:
            shrink(item, width)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key in CHANNELS and value is not None:
            node[key] = fewer_channels(value, width)
        elif key in IMAGE_SIZES:
            node[key] = smaller(value)
        elif key in FEWER and isinstance(value, (int, float)):
            node[key] = FEWER[key]
        else:
            shrink(value, width)


def tiny_backbone(config: Any, arch: tuple[str, int], weights: Path, tiny: TinyModels) -> None:
    """The recipe's arguments on a tiny trunk with as many blocks and the same patches."""
    backbone = config.model.backbone
    size, patch = arch
    for key in TrunkSource.model_fields:
        backbone.pop(key, None)
    depth = {"s": 12, "b": 12, "l": 24, "h": 32}[size]
    arguments = {
        "img_size": 4 * patch, "patch_size": patch, "embed_dim": WIDTH, "depth": depth,
        "num_heads": HEADS, "num_classes": 0,
    }  # fmt: skip
    _, file = tiny.random_trunk(weights, arguments)
    backbone.update(timm=tiny.name, model_args=arguments, checkpoint=str(file))
    if backbone.get("img_size"):
        backbone.img_size = padded(backbone.img_size, patch)
    if backbone.get("relative_positions"):
        backbone.relative_positions = (8, 8)


def tiny_pyramid(config: Any) -> None:
    """ConvNeXt, whose widths the heads name."""
    from maskclip_bench.backbones.openmmlab.pyramid import MaskCLIPPyramid

    backbone = config.model.backbone
    for key in TrunkSource.model_fields:
        backbone.pop(key, None)
    backbone.update(timm="test_convnext", num_layers=12)
    channels = MaskCLIPPyramid(timm=backbone.timm).channels
    config.model.decode_head.in_channels = channels
    config.model.auxiliary_head.in_channels = channels[2]


def tiny_config(config: Any, name: str, folder: Path, tiny: TinyModels) -> Any:
    found = re.search(r"vit-([sblh])-(\d+)", name)
    arch = (found[1], int(found[2])) if found else ("b", 16)
    width = {"s": 384, "b": 768, "l": 1024, "h": 1280}[arch[0]]
    shrink(config.model, width)
    if config.model.type == "DINO":
        config.model.bbox_head.embed_dims = 32
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        config[loader].update(num_workers=0, persistent_workers=False, pin_memory=False)
        shrink(config[loader], width)
    preprocessor = config.model.data_preprocessor
    for node, key in ((preprocessor, "size"), (preprocessor.get("test_cfg"), "size"),
                      (config.model.get("test_cfg"), "crop_size"),
                      (preprocessor, "pad_size_divisor")):  # fmt: skip
        if node and key in node:
            node[key] = padded(node[key], arch[1])
    if config.model.backbone.type == "MaskCLIPPyramid":
        tiny_pyramid(config)
    else:
        tiny_backbone(config, arch, folder, tiny)
    if config.train_cfg.type == "EpochBasedTrainLoop":
        config.train_cfg.update(max_epochs=1, val_interval=1)
    else:
        config.train_cfg.update(max_iters=5, val_interval=5)
        config.default_hooks.checkpoint.interval = 5
    config.default_hooks.pop("visualization", None)
    config.env_cfg.cudnn_benchmark = False
    config.work_dir = str(folder / "work")
    return config


def run(config: Any, action: str) -> dict[str, float]:
    """Train or test in this process -> the metrics of a test."""
    import mmdet.datasets
    import mmdet.models
    import mmseg.datasets
    import mmseg.models
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner

    assert mmdet.datasets and mmdet.models and mmseg.datasets and mmseg.models
    init_default_scope(config.default_scope)
    object.__setattr__(config, "_format_python_code", False)  # by yapf: most of the time of a run
    config.experiment_name = f"{Path(config.work_dir).parent.name}-{action}-{config.resume}"
    runner = Runner.from_cfg(config)
    if action == "test":
        return dict(runner.test())
    runner.train()
    assert runner.val_loop is not None
    return {}


def as_shipped(again: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Train and validate; go on without the source; test the checkpoint alone."""
    config = again()
    run(config, "train")
    work_dir = Path(config.work_dir)
    first = newest(work_dir)
    state = torch.load(first, map_location="cpu", weights_only=False)["state_dict"]
    assert all(torch.isfinite(value.float()).all() for value in state.values())
    monkeypatch.setattr(trunk_backbone, "load_trunk", None)
    resumed = again()
    resumed.resume = True
    for key, more in (("max_epochs", 1), ("max_iters", 2)):
        if key in resumed.train_cfg:
            resumed.train_cfg[key] += more
    run(resumed, "train")
    last = newest(work_dir)
    assert last != first
    alone = again()
    alone.work_dir, alone.load_from = f"{work_dir}-test", str(last)
    assert run(alone, "test")


def newest(folder: Path) -> Path:
    numbered = [path for path in folder.glob("*.pth") if not path.name.startswith("best")]
    return max(numbered, key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All data sets, drawn once."""
    pytest.importorskip("mmdet")
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.lvis import LVISV1Dataset

    root = tmp_path_factory.mktemp("data")
    for write in (
        toy_data_sets.write_ade20k,
        toy_data_sets.write_voc2012,
        toy_data_sets.write_pascal_context,
        toy_data_sets.write_coco_stuff,
        toy_data_sets.write_cityscapes,
    ):
        write(root)
    toy_data_sets.write_coco(root, CocoDataset.METAINFO["classes"])
    toy_data_sets.write_coco(root, LVISV1Dataset.METAINFO["classes"], lvis=True)
    return root


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the toolboxes say
@pytest.mark.parametrize("name", [*SHIPPED, *WRITTEN])
def test_recipes__train_validate_resume_test(
    name: str, tmp_path: Path, tiny: TinyModels, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "lvis" in name:
        pytest.importorskip("lvis")
    monkeypatch.setenv("MASKCLIP_BENCH_DATA", str(data_root))
    if name in WRITTEN:
        path = tmp_path / "written.py"
        toolbox, head, data = WRITTEN[name]
        path.write_text(row_config(toolbox, head, data, arch="ViT-B/16"))
    else:
        path = SHIPPED[name]

    def again() -> Any:
        return tiny_config(Config.fromfile(str(path)), name, tmp_path, tiny)

    as_shipped(again, monkeypatch)
