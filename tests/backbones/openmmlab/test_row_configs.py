"""Configs written from rows: as the shipped ones where there is one, and right for other sizes."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from maskclip_bench.backbones.declaration import load_backbone_declaration
from maskclip_bench.backbones.openmmlab.row_configs import (
    DATA,
    HEADS,
    config_name,
    normalization_of,
    row_config,
)
from maskclip_bench.data_files import shipped_root
from maskclip_bench.errors import ConfigError, UnknownNameError
from maskclip_bench.runtime import Workspace

ARCHITECTURES = ("ViT-S/16", "ViT-B/14", "ViT-B/32", "ViT-L/16", "ViT-L/14", "ViT-H/14")


def read(folder: Path, text: str) -> Any:
    file = folder / "config.py"
    file.write_text(text)
    return Config.fromfile(str(file))


def plain(value: Any) -> Any:
    """Tuples as lists: configs use both."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize(
    ("shipped", "row", "head", "data"),
    [
        ("maskclip_vit-b-16_upernet_8xb2-amp-160k_ade20k-512x512",
         "maskclip_vit-b-16_yfcc15m", "upernet", "ade20k"),
        ("maskclip_vit-l-16_upernet_8xb2-amp-160k_ade20k-512x512",
         "maskclip_vit-l-16_yfcc15m", "upernet", "ade20k"),
        ("maskclip_vit-b-16_frozen-upernet_8xb2-amp-160k_ade20k-512x512",
         "maskclip_vit-b-16_yfcc15m", "frozen-upernet", "ade20k"),
        ("maskclip_vit-b-16_linear_8xb2-40k_ade20k-512x512",
         "maskclip_vit-b-16_yfcc15m", "linear", "ade20k"),
        ("maskclip_vit-b-16_ibot-linear_8xb2-160k_ade20k-512x512",
         "maskclip_vit-b-16_yfcc15m", "ibot-linear", "ade20k"),
        ("maskclip_vit-b-16_mask-rcnn_8xb2-amp-1x_coco-1024",
         "maskclip_vit-b-16_yfcc15m", "mask-rcnn", "coco"),
        ("maskclip_vit-l-16_mask-rcnn_8xb2-amp-1x_coco-1024",
         "maskclip_vit-l-16_yfcc15m", "mask-rcnn", "coco"),
        ("maskclip_vit-b-16_retinanet_8xb2-amp-1x_coco-1024",
         "maskclip_vit-b-16_yfcc15m", "retinanet", "coco"),
    ],
)  # fmt: skip
def test_row_config__equals_the_shipped_one(
    shipped: str, row: str, head: str, data: str, tmp_path: Path
) -> None:
    toolbox = "mmseg" if data == "ade20k" else "mmdet"
    expected = Config.fromfile(str(shipped_root() / f"configs/{toolbox}/{shipped}.py"))
    found = read(tmp_path, row_config(toolbox, head, data, row=load_backbone_declaration(row)))
    assert plain(found.to_dict()) == plain(expected.to_dict())


@pytest.mark.parametrize("arch", ["ViT-S/16", "ViT-B/14", "ViT-B/32", "ViT-L/14", "ViT-H/14"])
@pytest.mark.parametrize(
    ("toolbox", "head", "data"), [("mmseg", "upernet", "ade20k"), ("mmdet", "mask-rcnn", "coco")]
)
def test_row_config__of_an_architecture_is_the_shipped_one(
    arch: str, toolbox: str, head: str, data: str, tmp_path: Path
) -> None:
    """Rows of these sizes are filled into them (`configs` of tasks/*.yaml)."""
    name = config_name(toolbox, head, data, arch.lower().replace("/", "-"))
    shipped = Config.fromfile(str(shipped_root() / "configs" / toolbox / name))
    assert read(tmp_path, row_config(toolbox, head, data, arch=arch)).to_dict() == shipped.to_dict()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("head", HEADS["mmseg"])
@pytest.mark.parametrize("data", DATA["mmseg"])
def test_row_config__segmentation_fits_together(
    arch: str, head: str, data: str, tmp_path: Path
) -> None:
    config = read(tmp_path, row_config("mmseg", head, data, arch=arch))
    patch = int(arch.rpartition("/")[2])
    model = config.model
    size = model.data_preprocessor["size"]
    assert all(
        side % patch == 0 and side >= crop
        for side, crop in zip(size, config.crop_size, strict=True)
    )
    assert tuple(model.backbone.img_size) == tuple(size) == tuple(model.test_cfg.crop_size)
    assert model.decode_head.num_classes == DATA["mmseg"][data].num_classes
    depth = {"S": 12, "B": 12, "L": 24, "H": 32}[arch[4]]
    assert model.backbone.out_indices[-1] == depth - 1
    if head == "upernet":
        assert config.optim_wrapper.optimizer.lr == (4e-4 if depth == 12 else 2e-5)
    if "upernet" in head:
        assert model.auxiliary_head.num_classes == model.decode_head.num_classes


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("head", ["mask-rcnn", "vitdet-mask-rcnn", "retinanet"])
@pytest.mark.parametrize("data", DATA["mmdet"])
def test_row_config__detection_fits_together(
    arch: str, head: str, data: str, tmp_path: Path
) -> None:
    config = read(tmp_path, row_config("mmdet", head, data, arch=arch))
    model, patch = config.model, int(arch.rpartition("/")[2])
    assert model.data_preprocessor.pad_size_divisor % patch == 0
    strides = [patch / factor for factor in model.neck.scale_factors]
    part = model.bbox_head if head == "retinanet" else model.rpn_head
    assert list(part.anchor_generator.strides)[: len(strides)] == strides
    assert len(part.anchor_generator.strides) == model.neck.num_outs == 5
    if head != "retinanet":
        assert list(model.roi_head.bbox_roi_extractor.featmap_strides) == strides
        assert model.roi_head.mask_head.num_classes == DATA["mmdet"][data].num_classes
        assert model.roi_head.bbox_head.num_classes == DATA["mmdet"][data].num_classes


def test_shipped__are_written_by_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy by hand: a changed recipe is written into all of them."""
    script = runpy.run_path(str(shipped_root() / "scripts/write_mm_configs.py"))
    written = script["configs"]()
    assert len(written) > 40
    for name, text in written.items():
        assert (shipped_root() / "configs" / name).read_text(encoding="utf-8") == text, name


@pytest.mark.parametrize(
    "path", sorted(shipped_root().glob("configs/mm*/*.py")), ids=lambda path: path.stem
)
def test_shipped__every_header_lists_what_differs(path: Path) -> None:
    header = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    _, said, rest = " ".join(header.split("\n")).partition("Different from it: ")
    assert said and rest.lstrip().startswith("- ")


def test_vitdet__as_its_source(tmp_path: Path) -> None:
    """Relative positions in every block, layer decay 0.7, batch 64, 100 epochs."""
    for arch, decay in (("ViT-B/16", 0.7), ("ViT-L/16", 0.8), ("ViT-H/14", 0.9)):
        config = read(tmp_path, row_config("mmdet", "vitdet-mask-rcnn", "coco", arch=arch))
        side = -(-1024 // int(arch[-2:]))
        assert tuple(config.model.backbone.relative_positions) == (side, side)
        assert config.optim_wrapper.paramwise_cfg.decay_rate == decay
        assert config.optim_wrapper.optimizer.lr == 1e-4
        assert config.global_batch_size == 64 and config.train_dataloader.batch_size == 1
        assert config.train_cfg.max_epochs == 100
        assert config.param_scheduler[1].milestones == [89, 96]
        assert not config.model.train_cfg.rcnn.assigner.match_low_quality


def test_row_config__normalization_of_the_row(tmp_path: Path) -> None:
    row = load_backbone_declaration("openai_vit-b-16")
    given = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.25, 0.5, 1.0]}
    config = read(tmp_path, row_config("mmseg", "upernet", "ade20k", row=row, normalization=given))
    assert config.model.data_preprocessor.mean == [122.7709, 116.746, 104.0937]
    assert config.model.data_preprocessor.std == [63.75, 127.5, 255.0]
    assert config.model.backbone.backbone == "openai_vit-b-16"
    own = row.preprocess.model_copy(update={"mean": (0, 0, 0), "std": (1, 1, 1)})
    declared = row.model_copy(update={"preprocess": own})
    workspace = Workspace(root=tmp_path, data=tmp_path)
    assert normalization_of(declared, workspace) == {"mean": [0, 0, 0], "std": [1, 1, 1]}
    absent = row.model_copy(update={"source": type(row.source)(open_clip="no", pretrained="x")})
    assert normalization_of(absent, workspace) is None


def test_row_config__refuses() -> None:
    with pytest.raises(UnknownNameError, match=r"No head 'uppernet'. Did you mean 'upernet'"):
        row_config("mmseg", "uppernet", "ade20k", arch="ViT-B/16")
    with pytest.raises(UnknownNameError, match="No data set 'coco'"):
        row_config("mmseg", "upernet", "coco", arch="ViT-B/16")
    with pytest.raises(UnknownNameError, match="No toolbox 'mmcls'"):
        row_config("mmcls", "upernet", "coco", arch="ViT-B/16")
    with pytest.raises(ConfigError, match=r"'ConvNeXt-B' has sizes that are not known here"):
        row_config("mmseg", "upernet", "ade20k", arch="ConvNeXt-B")
    with pytest.raises(ConfigError, match="box heads of cascade-mask-rcnn are a list"):
        row_config("mmdet", "cascade-mask-rcnn", "lvis", arch="ViT-B/16")


def test_config_name__in_openmmlabs_grammar() -> None:
    assert config_name("mmseg", "linear", "voc2012", "x_vit-b-14") == (
        "x_vit-b-14_linear_8xb2-40k_voc2012-512x512.py"
    )
