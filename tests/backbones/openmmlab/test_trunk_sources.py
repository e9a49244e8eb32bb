"""Where a trunk comes from: each source, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from torch import nn

from maskclip_bench.backbones.openmmlab.trunk_sources import TrunkSource, load_trunk, vision_trunk
from maskclip_bench.backbones.openmmlab.vit import MaskCLIPViT
from maskclip_bench.config import validate
from maskclip_bench.errors import CheckpointError, ConfigError


def load(**source: object) -> nn.Module:
    return load_trunk(validate(source, TrunkSource, where="config"))


def test_sources__exactly_one(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="exactly one source, got none"):
        load()
    with pytest.raises(ConfigError, match=r"got \['timm', 'open_clip'\]"):
        load(timm=tiny.name, open_clip="ViT-B-16")
    with pytest.raises(ConfigError, match=r"model_args \['depth'\] go with timm= alone"):
        load(open_clip="ViT-B-16", model_args={"depth": 2})
    with pytest.raises(ConfigError, match="weights='teacher' goes with checkpoint="):
        load(timm=tiny.name, weights="teacher")
    with pytest.raises(ConfigError, match="needs the tag of its weights"):
        load(open_clip="ViT-B-16", pretrained=True)
    with pytest.raises(ConfigError, match=r"timm='no_such_net'.*timm.list_models"):
        load(timm="no_such_net")


@pytest.mark.parametrize("kind", ["LocalEntryNotFoundError", "OfflineModeIsEnabled"])
def test_sources__offline(kind: str, monkeypatch: pytest.MonkeyPatch, tiny: Any) -> None:
    from huggingface_hub import errors

    def offline(*given: object, **options: object) -> None:
        raise getattr(errors, kind)("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(CheckpointError, match=r"its weights cannot be fetched .* network access"):
        load(timm=f"{tiny.name}.augreg_in21k", pretrained=True)
    with pytest.raises(CheckpointError, match=r"pretrained='openai': .* network access once"):
        load(open_clip="ViT-B-16", pretrained="openai")


def test_sources__unknown_argument_of_a_model(tiny: Any) -> None:
    with pytest.raises(ConfigError, match=r"unexpected keyword argument 'widht'.* model_args= hol"):
        load(timm=tiny.name, model_args={"widht": 3})


def test_sources__a_row_is_trained_but_for_its_fixed_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Any
) -> None:
    """Fixed positions stay fixed; all else is trained, though the benchmark freezes its rows."""
    tiny.open_clip_folder(tmp_path / "row", {**tiny.open_clip_vit, "pos_embed_type": "sin_cos_2d"})
    row = tmp_path / "row.yaml"
    row.write_text(
        "display_name: Row\nworld: demo\nsource: {open_clip_folder: "
        + str(tmp_path / "row")
        + "}\n"
    )
    monkeypatch.setenv("MASKCLIP_BENCH_WORKSPACE", str(tmp_path))
    backbone = MaskCLIPViT(backbone=str(row))
    fixed = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert fixed == {"tower.positional_embedding"}


def test_sources__damaged_folder(tmp_path: Path, tiny: Any) -> None:
    tiny.open_clip_folder(tmp_path / "a", tiny.open_clip_vit)
    file = tmp_path / "a" / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"or are damaged \(.*Export the model again"):
        MaskCLIPViT(checkpoint=str(tmp_path / "a")).init_weights()


def test_sources__no_exported_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no exported model"):
        MaskCLIPViT(checkpoint=str(tmp_path)).init_weights()


def test_sources__weights_of_another_architecture(
    tmp_path: Path, trunk: tuple[nn.Module, Path], tiny: Any
) -> None:
    def build(file: Path, **arguments: int) -> None:
        MaskCLIPViT(
            timm=tiny.name, model_args={**tiny.arguments, **arguments}, checkpoint=str(file)
        ).init_weights()

    with pytest.raises(CheckpointError, match="checkpoint of another architecture than Vision"):
        build(trunk[1], embed_dim=48)
    with pytest.raises(CheckpointError, match=r"\d+ missing, 0 of another shape"):
        build(trunk[1], depth=5)
    with pytest.raises(CheckpointError, match=r"No checkpoint .*absent.pth. Download it first"):
        build(tmp_path / "absent.pth")


def test_sources__folder_whose_weights_do_not_fit(tmp_path: Path, tiny: Any) -> None:
    tiny.open_clip_folder(tmp_path / "a", tiny.open_clip_vit)
    tiny.open_clip_folder(tmp_path / "b", {**tiny.open_clip_vit, "width": 96})
    (tmp_path / "a" / "open_clip_model.safetensors").write_bytes(
        (tmp_path / "b" / "open_clip_model.safetensors").read_bytes()
    )
    with pytest.raises(CheckpointError, match="do not fit the architecture in its open_clip_conf"):
        MaskCLIPViT(checkpoint=str(tmp_path / "a")).init_weights()


def test_sources__no_feature_maps() -> None:
    with pytest.raises(ConfigError, match="Linear gives no feature maps"):
        vision_trunk(nn.Linear(2, 2))


@pytest.mark.parametrize("wrapped", ["model", "state_dict", None])
def test_sources__published_files(
    tmp_path: Path, trunk: tuple[nn.Module, Path], wrapped: str | None, tiny: Any
) -> None:
    """A file as MAE's (no head, in `model`), or a data-parallel one, is read without unpickling."""
    model, _ = trunk
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    file = tmp_path / "weights.pth"
    torch.save({wrapped: state} if wrapped else state, file)
    expected = model.forward_features(tiny.images())[:, 1:]
    backbone = MaskCLIPViT(**tiny.source(file)).eval()
    backbone.init_weights()
    maps = backbone(tiny.images())[0]
    torch.testing.assert_close(maps.flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=0)
