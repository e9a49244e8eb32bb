"""Shipped configs, made tiny, on toy data: train, validate, go on, test the checkpoint alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import maskclip_bench.backbones.openmmlab  # noqa: F401  (registers the backbones)
from maskclip_bench.backbones.openmmlab import trunk_backbone
from maskclip_bench.data_files import shipped_root

from .conftest import write_instances

TINY_VIT = {
    "type": "MaskCLIPViT",
    "timm": "vit_tiny_patch16_224",
    "model_args": {"img_size": 64, "embed_dim": 24, "depth": 4, "num_heads": 2, "num_classes": 0},
    "window_size": 2,
    "global_indices": (3,),
    "final_norm": False,
    "drop_path_rate": 0.1,
}


def retinanet(model: Any) -> None:
    model.bbox_head.update(num_classes=2, in_channels=32, feat_channels=32, stacked_convs=1)
    model.test_cfg.score_thr = 0.0


def dino(model: Any) -> None:
    model.num_queries = 10
    model.bbox_head.update(num_classes=2, embed_dims=32)
    small = {"embed_dims": 32, "feedforward_channels": 32, "ffn_drop": 0.0}
    for part in (model.encoder, model.decoder):
        part.num_layers = 1
        part.layer_cfg.ffn_cfg = small
        for name in ("self_attn_cfg", "cross_attn_cfg"):
            if name in part.layer_cfg:
                part.layer_cfg[name].update(embed_dims=32)
    model.positional_encoding.num_feats = 16
    model.test_cfg.max_per_img = 10
    model.dn_cfg.group_cfg.num_dn_queries = 4


def mask2former(model: Any) -> None:
    head = model.panoptic_head
    head.update(num_things_classes=2, num_queries=5, feat_channels=32, out_channels=32)
    head.in_channels = [32] * 4
    head.loss_cls.class_weight = [1.0, 1.0, 0.1]
    head.pixel_decoder.encoder.num_layers = 1
    head.transformer_decoder.num_layers = 2
    layers = (head.pixel_decoder.encoder.layer_cfg, head.transformer_decoder.layer_cfg)
    for layer in layers:
        for part in layer.values():
            part.embed_dims = 32
            if "feedforward_channels" in part:
                part.feedforward_channels = 32
    head.positional_encoding.num_feats = head.pixel_decoder.positional_encoding.num_feats = 16
    model.panoptic_fusion_head.num_things_classes = 2
    model.train_cfg.num_points = 64
    model.test_cfg.max_per_image = 10


DETECTORS: dict[str, Callable[[Any], None]] = {
    "maskclip_vit-b-16_retinanet_8xb2-amp-1x_coco-1024": retinanet,
    "maskclip_vit-b-16_dino-detr_8xb2-amp-1x_coco-1024": dino,
    "maskclip_vit-b-16_mask2former_8xb2-amp-1x_coco-1024": mask2former,
}


def tiny_detection(name: str, root: Path, work_dir: Path) -> Any:
    from mmengine.config import Config

    config = Config.fromfile(str(shipped_root() / f"configs/mmdet/{name}.py"))
    config.model.backbone = {**TINY_VIT, "out_indices": (3,)}
    config.model.neck.update(in_channels=24, out_channels=32)
    config.model.data_preprocessor.pad_size_divisor = 64
    DETECTORS[name](config.model)
    for loader, split in (("train", "train"), ("val", "val"), ("test", "val")):
        settings = config[f"{loader}_dataloader"]
        settings.update(num_workers=0, persistent_workers=False)
        settings.dataset.update(
            type="COCOLayout",
            data_root=f"{root}/",
            ann_file=f"annotations/instances_{split}.json",
            data_prefix={"img": f"{split}/"},
        )
        for step in settings.dataset.pipeline:
            for key in ("scale", "crop_size"):
                if key in step:
                    step[key] = (64, 64)
    for evaluator in ("val_evaluator", "test_evaluator"):
        config[evaluator].ann_file = f"{root}/annotations/instances_val.json"
    config.train_cfg.update(max_epochs=1, val_interval=1)
    config.default_hooks.visualization = None
    return with_work_dir(config, work_dir)


def with_work_dir(config: Any, work_dir: Path) -> Any:
    config.work_dir = str(work_dir)
    config.experiment_name = work_dir.name
    config.default_hooks.pop("visualization", None)
    return config


def run(config: Any, action: str) -> dict[str, float]:
    """Train or test in this process -> the last metrics."""
    import mmdet.datasets
    import mmdet.models
    import mmseg.datasets
    import mmseg.models
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner

    assert mmdet.datasets and mmdet.models and mmseg.datasets and mmseg.models
    init_default_scope(config.default_scope)
    runner = Runner.from_cfg(config)
    if action == "test":
        return dict(runner.test())
    runner.train()
    return dict(runner.message_hub.runtime_info.get("last_metrics", {}))


def as_shipped(
    config: Any, name: str, again: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train and validate; go on without the source; test the checkpoint alone."""
    run(config, "train")
    work_dir = Path(config.work_dir)
    first = sorted(work_dir.glob("*.pth"))[-1]
    state = torch.load(first, map_location="cpu", weights_only=False)["state_dict"]
    assert all(torch.isfinite(value.float()).all() for value in state.values())
    monkeypatch.setattr(trunk_backbone, "load_trunk", None)
    resumed = again()
    resumed.resume = True
    for key in ("max_epochs", "max_iters"):
        if key in resumed.train_cfg:
            resumed.train_cfg[key] += 1 if key == "max_epochs" else 2
    run(resumed, "train")
    last = max(work_dir.glob("*.pth"), key=lambda path: path.stat().st_mtime_ns)
    assert last != first
    alone = again()
    alone.work_dir, alone.load_from = f"{work_dir}-test", str(last)
    assert run(alone, "test")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DETECTORS)
def test_detectors__train_validate_resume_test(
    name: str, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mmdet")
    root = write_instances(tmp_path / "coco", counts=(4, 2))
    _, file = tiny.random_trunk(tmp_path, TINY_VIT["model_args"])
    TINY = {**TINY_VIT, "checkpoint": str(file)}
    monkeypatch.setitem(globals(), "TINY_VIT", TINY)

    def make() -> Any:
        return tiny_detection(name, root, tmp_path / "work")

    as_shipped(make(), name, make, monkeypatch)
