"""Files of weights for timm models: what is read, and that nothing stays random in silence."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from maskclip_bench.backbones.loading import load_backbone
from maskclip_bench.backbones.model_state import state_fingerprint
from maskclip_bench.backbones.timm_weights import load_timm_weights
from maskclip_bench.errors import CheckpointError
from maskclip_bench.runtime import Workspace

from .conftest import declare

TINY = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 0,
}


def tiny(**options: object) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", **{**TINY, **options})


def renamed(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [
        (None, ""),
        ("model", ""),  # MAE, DeiT
        ("state_dict", "module.visual."),  # SLIP
        ("teacher", "backbone."),  # DINO
        ("student", "module.backbone."),
        ("state_dict", "visual.trunk."),  # open_clip
    ],
)
def test_load__published_names(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    model, other = tiny(), tiny()
    state = {**renamed(model, prefix), f"{prefix}decoder.weight": torch.ones(2)}
    file = tmp_path / "weights.pth"
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, file)
    load_timm_weights(other, file)
    assert state_fingerprint(other) == state_fingerprint(model)


def test_load__openais_names(tmp_path: Path) -> None:
    """Their prefix stays on, because timm's filter knows the file by it."""
    options = {"pre_norm": True, "norm_layer": nn.LayerNorm}
    model, other = tiny(**options), tiny(**options)
    state: dict[str, Tensor] = {"logit_scale": torch.ones(())}
    for name, value in model.state_dict().items():
        for timms, openais in (
            ("patch_embed.proj", "conv1"),
            ("pos_embed", "positional_embedding"),
            ("cls_token", "class_embedding"),
            ("blocks.", "transformer.resblocks."),
            ("norm_pre", "ln_pre"),
            ("norm1", "ln_1"),
            ("norm2", "ln_2"),
            ("attn.qkv.", "attn.in_proj_"),
            ("attn.proj", "attn.out_proj"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
        ):
            name = name.replace(timms, openais)
        name = f"ln_post.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
        value = value.flatten() if name == "class_embedding" else value
        state[f"visual.{name}"] = value[0] if name == "positional_embedding" else value
    file = tmp_path / "clip.pth"
    torch.save(state, file)
    load_timm_weights(other, file)
    assert state_fingerprint(other) == state_fingerprint(model)


def save(tmp_path: Path, state: object) -> Path:
    file = tmp_path / "weights.pth"
    torch.save(state, file)
    return file


@pytest.mark.parametrize("name", ["norm.weight", "cls_token", "blocks.1.mlp.fc2.bias"])
def test_load__nothing_that_is_used_may_be_missing(tmp_path: Path, name: str) -> None:
    state = tiny().state_dict()
    del state[name]
    with pytest.raises(CheckpointError, match=rf"1 missing, .*: {name} is missing\). Set timm="):
        load_timm_weights(tiny(), save(tmp_path, state))


def test_load__norm_that_another_replaces(tmp_path: Path) -> None:
    """With average pooling timm's final norm comes after the pooling, under another name."""
    pooled = tiny(global_pool="avg")
    file = save(tmp_path, tiny().state_dict())
    with pytest.raises(CheckpointError, match=r"2 missing, .* fc_norm\.weight is missing"):
        load_timm_weights(pooled, file)
    load_timm_weights(pooled, file, unused=["fc"])


def test_load__parts_without_a_place(tmp_path: Path) -> None:
    file = save(tmp_path, tiny(init_values=1.0).state_dict())
    with pytest.raises(CheckpointError, match=r"0 of another shape, 4 too many: .*ls1\.gamma has"):
        load_timm_weights(tiny(), file)


def test_load__head_of_another_data_set(tmp_path: Path) -> None:
    model, other = tiny(num_classes=5), tiny(num_classes=3)
    file = save(tmp_path, model.state_dict())
    with pytest.raises(CheckpointError, match=r"head\.weight is \(5, 24\), expected \(3, 24\)"):
        load_timm_weights(other, file)
    load_timm_weights(other, file, unused=["head"])
    assert torch.equal(other.norm.weight, model.norm.weight)


def test_load__what_the_filter_cannot_convert(tmp_path: Path) -> None:
    state = {**tiny().state_dict(), "patch_embed.proj.weight": torch.ones(3, 5)}
    with pytest.raises(CheckpointError, match="timm cannot convert it"):
        load_timm_weights(tiny(), save(tmp_path, state))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_load__damaged(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no weights at all")
    with pytest.raises(CheckpointError, match=r"cannot be read as tensors alone .* damaged"):
        load_timm_weights(tiny(), tmp_path / name)


def test_load__other_objects_are_not_unpickled(tmp_path: Path) -> None:
    file = save(tmp_path, {"state_dict": tiny().state_dict(), "args": argparse.Namespace(lr=1)})
    with pytest.raises(CheckpointError, match=r"nothing is unpickled here\. If you trust it, take"):
        load_timm_weights(tiny(), file)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2]])
def test_load__no_tensors(tmp_path: Path, content: object) -> None:
    with pytest.raises(CheckpointError, match="holds no dictionary of tensors"):
        load_timm_weights(tiny(), save(tmp_path, content))


def test_load__safetensors(tmp_path: Path) -> None:
    model, other = tiny(), tiny()
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    load_timm_weights(other, tmp_path / "a.safetensors")
    assert state_fingerprint(other) == state_fingerprint(model)
    with pytest.raises(CheckpointError, match=r"No checkpoint .*absent\.pth"):
        load_timm_weights(other, tmp_path / "absent.pth")


def test_row__with_a_file_of_other_keys(workspace: Workspace) -> None:
    """timm itself loads it without strictness when it makes a model without a classifier."""
    model = timm.create_model("test_vit", pretrained=False, num_classes=0)
    workspace.root.mkdir(parents=True)
    torch.save(renamed(model, "encoder."), workspace.root / "mine.pth")
    row = declare(source={"timm": "test_vit", "checkpoint": "mine.pth"})
    with pytest.raises(CheckpointError, match="is a checkpoint of another architecture than Vis"):
        load_backbone(row, workspace=workspace)
