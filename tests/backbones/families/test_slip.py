"""SLIP's published checkpoints: names, heads, projection, against SLIP's own forward pass."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskclip_bench.backbones import load_backbone
from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.backbones.families import slip
from maskclip_bench.data.tokenizer import TokenizerConfig, load_tokenizer
from maskclip_bench.errors import CheckpointError
from maskclip_bench.modeling.model import ModelConfig, TextConfig, VisionConfig
from maskclip_bench.runtime import Workspace

NAME = "slip_small_25ep"
WIDTH, DEPTH, HEADS, P = 32, 2, 4, 16


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(
        proj_dim=P,
        image_size=48,
        vision=VisionConfig(timm_model="vit_demo_patch8_48"),
        text=TextConfig(width=WIDTH, num_heads=HEADS, depth=DEPTH),
        quick_gelu=True,
    )
    monkeypatch.setattr(slip, "config_of", lambda size: config)
    monkeypatch.setitem(slip.NUM_HEADS, "small", 6)  # the small trunk has 3


def slip_names(model: nn.Module) -> dict[str, Tensor]:
    """The state as SLIP's code names it."""
    state = {}
    for name, value in model.state_dict().items():
        if name == "visual.head.proj.weight":
            state["module.image_projection"] = value.T.contiguous()
        else:
            state["module." + name.replace("visual.trunk.", "visual.").removeprefix("text.")] = (
                value
            )
    return {**state, "module.image_mlp.layer1.weight": torch.zeros(3, 3)}


@pytest.fixture
def saved(tmp_path: Path) -> nn.Module:
    """A model with weights that are all drawn, and its file as SLIP's code writes it."""
    torch.manual_seed(0)
    model = slip.build("small")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    torch.save(
        {
            "epoch": 25,
            "state_dict": slip_names(model),
            "best_acc1": 0.4,
            "args": argparse.Namespace(model="SLIP_VITS16", lr=3e-3),
        },
        tmp_path / f"{NAME}.pt",
    )
    return model


def row() -> BackboneDeclaration:
    return BackboneDeclaration.model_validate(
        {
            "name": "slip",
            "display_name": "SLIP",
            "world": "real",
            "source": {"slip": NAME, "folder": "."},
        }
    )


class PlainText(nn.Module):
    """The text tower as SLIP's models.py computes it, from its own names."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.state = {name.removeprefix("module."): value for name, value in state.items()}

    def forward(self, tokens: Tensor) -> Tensor:
        s = self.state
        x = s["token_embedding.weight"][tokens] + s["positional_embedding"]
        mask = torch.full((tokens.shape[1], tokens.shape[1]), float("-inf")).triu(1)
        for i in range(DEPTH):
            at = f"transformer.resblocks.{i}"
            y = F.layer_norm(x, (WIDTH,), s[f"{at}.ln_1.weight"], s[f"{at}.ln_1.bias"])
            qkv = y @ s[f"{at}.attn.in_proj_weight"].T + s[f"{at}.attn.in_proj_bias"]
            q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
            weights = (q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5 + mask).softmax(-1)
            y = (weights @ v).transpose(1, 2).flatten(2)
            x = x + y @ s[f"{at}.attn.out_proj.weight"].T + s[f"{at}.attn.out_proj.bias"]
            y = F.layer_norm(x, (WIDTH,), s[f"{at}.ln_2.weight"], s[f"{at}.ln_2.bias"])
            y = y @ s[f"{at}.mlp.c_fc.weight"].T + s[f"{at}.mlp.c_fc.bias"]
            y = y * torch.sigmoid(1.702 * y)
            x = x + y @ s[f"{at}.mlp.c_proj.weight"].T + s[f"{at}.mlp.c_proj.bias"]
        x = F.layer_norm(x, (WIDTH,), s["ln_final.weight"], s["ln_final.bias"])
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ s["text_projection"]


def test_equals_slips_own_forward_pass(saved: Any, tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, data=tmp_path)
    backbone = load_backbone(row(), workspace=workspace)
    texts = ["a photo of a cat.", "two dogs"]
    tokens = load_tokenizer(TokenizerConfig())(texts)
    state = slip_names(saved)
    expected = F.normalize(PlainText(state)(tokens), dim=-1)
    assert torch.allclose(backbone.encode_text(texts), expected, atol=1e-5)
    images = torch.randn(2, 3, 48, 48)
    pooled = saved.visual.trunk.eval()(images)
    joint = F.normalize(pooled @ state["module.image_projection"], dim=-1)
    outputs = backbone.image_outputs(images)
    assert torch.allclose(outputs["backbone"], pooled, atol=1e-5)
    assert torch.allclose(outputs["joint"], joint, atol=1e-5)
    assert (backbone.transform.interpolation, backbone.has_text) == ("bilinear", True)
    assert saved.visual.trunk.blocks[0].attn.num_heads == 6


def test_missing_and_broken(saved: nn.Module, tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, data=tmp_path)
    whole = torch.load(tmp_path / f"{NAME}.pt", weights_only=False)
    del whole["state_dict"]["module.ln_final.weight"]
    torch.save(whole, tmp_path / f"{NAME}.pt")
    with pytest.raises(CheckpointError, match=r"is no small CLIP or SLIP: .*ln_final"):
        load_backbone(row(), workspace=workspace)
    (tmp_path / f"{NAME}.pt").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint of SLIP"):
        load_backbone(row(), workspace=workspace)
    (tmp_path / f"{NAME}.pt").unlink()
    with pytest.raises(CheckpointError, match=r"slip: no file .*slip_small_25ep.pt"):
        load_backbone(row(), workspace=workspace)


class Malicious:
    def __reduce__(self) -> Any:
        return print, ("ran",)


def test_nothing_else_is_unpickled(
    saved: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {}, "args": Malicious()}, tmp_path / f"{NAME}.pt")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint of SLIP"):
        slip.read_checkpoint(tmp_path / f"{NAME}.pt")
    assert capsys.readouterr().out == ""


def test_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match="is no CLIP or SLIP of SLIP's release, such as slip_base"):
        slip.SLIPSource(slip="simclr_base_25ep")
