"""The shipped mmseg and mmdet configs: rows that exist, and recipes that arrive in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from maskclip_bench.backbones import backbone_names
from maskclip_bench.backbones.openmmlab.layer_decay import BackboneLayerDecay
from maskclip_bench.backbones.openmmlab.pyramid import MaskCLIPPyramid
from maskclip_bench.data_files import shipped_root

CONFIGS = sorted(path for path in shipped_root().glob("configs/mm*/*.py"))


def config(name: str) -> Config:
    (path,) = (path for path in CONFIGS if path.name.startswith(name))
    return Config.fromfile(str(path))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_configs__name_rows_that_are_declared(path: Path) -> None:
    backbone = Config.fromfile(str(path)).model.backbone
    assert backbone.get("backbone", backbone_names()[0]) in backbone_names()


@pytest.mark.parametrize(
    "path",
    [path for path in CONFIGS if "vit-l-16" in path.name],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_configs__rates_fit_the_size_of_the_model(path: Path) -> None:
    """ViT-L has a decay of its own, which the schedule of ViT-B must not replace."""
    loaded = Config.fromfile(str(path))
    decay = loaded.optim_wrapper.paramwise_cfg.decay_rate
    lr = loaded.optim_wrapper.optimizer.lr
    assert (lr, decay) == ((2e-5, 0.95) if loaded.default_scope == "mmseg" else (1e-4, 0.8))


@pytest.mark.filterwarnings("ignore")  # what mmdet says while it is imported
@pytest.mark.parametrize(
    ("name", "padded"),
    [
        ("maskclip_vit-b-16_mask-rcnn_8xb2-amp-1x_coco-1024", (1024, 1024)),
        ("maskclip_vit-b-16_mask-rcnn_8xb2-amp-1x_coco-1333x800", (672, 1024)),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_mmdet__images_are_padded_alike_in_training_and_testing(
    name: str, padded: tuple[int, int], training: bool
) -> None:
    """To squares of 1024 (ViTDet), with the mean; the image's own shape stays in its record."""
    pytest.importorskip("mmdet")
    from mmdet.models import DetDataPreprocessor
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    settings = dict(config(name).model.data_preprocessor)
    settings.pop("type")
    preprocessor = DetDataPreprocessor(**settings)
    sample = DetDataSample(metainfo={"img_shape": (660, 1024), "ori_shape": (330, 512)})
    sample.gt_instances = InstanceData()
    image = torch.full((3, 660, 1024), 200, dtype=torch.uint8)
    batch = preprocessor({"inputs": [image], "data_samples": [sample]}, training)
    assert batch["inputs"].shape[-2:] == padded
    assert (batch["inputs"][:, :, 660:] == 0).all()
    assert (batch["inputs"][:, :, :660] != 0).all()
    assert batch["data_samples"][0].img_shape == (660, 1024)
    assert batch["data_samples"][0].ori_shape == (330, 512)


def test_convnext__rates_as_its_authors(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = config("convnext-clip")
    assert loaded.model.backbone.drop_path_rate == 0.4
    model = torch.nn.Module()
    model.backbone = MaskCLIPPyramid(
        timm="test_convnext", num_layers=loaded.model.backbone.num_layers
    )
    model.head = torch.nn.Linear(2, 2)
    wrapper = loaded.optim_wrapper
    constructor = BackboneLayerDecay(
        {"optimizer": dict(wrapper.optimizer)}, dict(wrapper.paramwise_cfg)
    )
    scales = sorted({group["lr_scale"] for group in constructor.groups(model)})
    assert scales == pytest.approx([0.9**power for power in (13, 12, 11, 10, 9, 0)])
