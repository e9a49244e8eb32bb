"""Weights of open_clip's own architecture, of a folder, and those that do not fit."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import open_clip
import pytest
import timm
import timm.models.vision_transformer as timm_vit
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import load_file, save_file
from timm.models import generate_default_cfgs, register_model
from torch import nn

from maskclip_bench.config import merge, validate
from maskclip_bench.errors import CheckpointError, ConfigError
from maskclip_bench.pretrain.assembly import prepare, tokenizer_of
from maskclip_bench.pretrain.init_weights import start_from
from maskclip_bench.pretrain.methods import build_method
from maskclip_bench.pretrain.methods.base import Method
from maskclip_bench.pretrain.recipe import InitSection, Recipe
from maskclip_bench.pretrain.trainer import train
from maskclip_bench.training.checkpoint import CheckpointStore
from maskclip_bench.training.logs import read_log

CLIP_VITS = {"vit_init_clip_patch8_32": "gelu", "vit_init_clip_quickgelu_patch8_32": "quick_gelu"}
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def _register(name: str, activation: str) -> None:
    """timm's ViT of OpenAI's architecture: 2 blocks, 64 wide (heads are 64 wide there), 32 px."""

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}
        norm = partial(nn.LayerNorm, eps=1e-5)
        arguments = {"pre_norm": True, "norm_layer": norm, "act_layer": activation}
        return timm_vit._create_vision_transformer(
            name, pretrained=pretrained, **{**sizes, **arguments, **kwargs}
        )

    entrypoint.__name__, entrypoint.__module__ = name, __name__
    configs = {f"{name}.test": {"input_size": (3, 32, 32), "num_classes": 0, "pool_size": None}}
    known = sys.modules[__name__].__dict__.setdefault("default_cfgs", {})
    known.update(generate_default_cfgs(configs))
    register_model(entrypoint)


for vit, act in CLIP_VITS.items():
    if not timm.is_model(vit):
        _register(vit, act)


def openai_like(folder: Path, vocab_size: int, *, quick_gelu: bool) -> Path:
    """Random weights of open_clip's own CLIP, as a folder that it reads."""
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
    text = {"context_length": 24, "vocab_size": vocab_size, "width": 32, "heads": 2, "layers": 2}
    torch.manual_seed(3)
    model = CLIP(16, CLIPVisionCfg(**vision), CLIPTextCfg(**text), quick_gelu=quick_gelu)
    with torch.no_grad():  # norms and biases that are not those of a fresh model
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder.mkdir()
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, "quick_gelu": quick_gelu}
    preprocess = {"mean": MEAN, "std": STD}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def recipe_of(tiny: ModuleType, name: str = "clip", **changes: Any) -> Recipe:
    values = tiny.tiny_values(name, num_pairs=48)
    return validate(merge(values, changes), Recipe, where="test")


def built(recipe: Recipe) -> Method:
    torch.manual_seed(0)
    return build_method(
        recipe.method.name, recipe.method_fields(), recipe.model, tokenizer_of(recipe)
    )


def continued(tiny: ModuleType, folder: Path, trunk: str, **changes: Any) -> Recipe:
    quick_gelu = "quickgelu" in trunk
    model = {"vision": {"timm_model": trunk}, "quick_gelu": quick_gelu}
    augment = {"mean": MEAN, "std": STD}
    values = {"init": {"folder": str(folder)}, "model": model, "data": {"augment": augment}}
    return recipe_of(tiny, **merge(values, changes))


@pytest.mark.parametrize(("trunk", "quick_gelu"), list(zip(CLIP_VITS, (False, True), strict=True)))
def test_start_from__open_clips_own_architecture(
    tiny: ModuleType, tmp_path: Path, trunk: str, quick_gelu: bool
) -> None:
    """Under timm's names the weights give open_clip's embeddings, and each one is used."""
    vocab_size = tiny.tiny_recipe().model.text.vocab_size
    folder = openai_like(tmp_path / "clip", vocab_size, quick_gelu=quick_gelu)
    recipe = continued(tiny, folder, trunk)
    method = built(recipe)
    content = start_from(method, recipe)
    assert len(content) == 64
    source = open_clip.create_model(f"local-dir:{folder}").eval()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(
            method.model.eval().encode_image(images), source.encode_image(images)
        )
    sizes = (sum(p.numel() for p in model.parameters()) for model in (method.model, source))
    assert len(set(sizes)) == 1


def test_start_from__another_activation_is_noticed(tiny: ModuleType, tmp_path: Path) -> None:
    vocab_size = tiny.tiny_recipe().model.text.vocab_size
    folder = openai_like(tmp_path / "clip", vocab_size, quick_gelu=True)
    recipe = continued(tiny, folder, "vit_init_clip_patch8_32", model={"quick_gelu": True})
    with pytest.raises(ConfigError, match="gives other embeddings than the model they come from"):
        start_from(built(recipe), recipe)


def test_start_from__another_architecture(tiny: ModuleType, tmp_path: Path) -> None:
    vocab_size = tiny.tiny_recipe().model.text.vocab_size
    folder = openai_like(tmp_path / "clip", vocab_size, quick_gelu=False)
    recipe = continued(tiny, folder, tiny.TINY_VIT)
    with pytest.raises(ConfigError, match=r"of another architecture.*vit_\*_patch\*_clip_224"):
        start_from(built(recipe), recipe)


def test_start_from__another_normalization(tiny: ModuleType, tmp_path: Path) -> None:
    vocab_size = tiny.tiny_recipe().model.text.vocab_size
    folder = openai_like(tmp_path / "clip", vocab_size, quick_gelu=False)
    augment = {"mean": [0.5, 0.5, 0.5]}
    recipe = continued(tiny, folder, "vit_init_clip_patch8_32", data={"augment": augment})
    with pytest.raises(ConfigError, match=r"with mean \[0.481.*data.augment.mean is \[0.5, 0.5"):
        start_from(built(recipe), recipe)


def test_start_from__weights_that_are_not_there(tiny: ModuleType, tmp_path: Path) -> None:
    recipe = recipe_of(tiny, init={"folder": "nowhere"})
    with pytest.raises(CheckpointError, match=r"there is no folder .*/nowhere. Give the `model`"):
        start_from(built(recipe), recipe, workspace=tmp_path)
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot load init \(nowhere\)"):
        start_from(built(recipe), recipe, workspace=tmp_path)
    recipe = recipe_of(tiny, init={"open_clip": "ViT-B-16", "pretrained": "no_such_tag"})
    with pytest.raises(CheckpointError, match=r"cannot load init \(ViT-B-16/no_such_tag\)"):
        start_from(built(recipe), recipe)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "give one of open_clip and folder"),
        ({"open_clip": "a:b", "folder": "x"}, "give one of open_clip and folder"),
        ({"folder": "x", "pretrained": "openai"}, "pretrained goes with open_clip"),
        ({"open_clip": "ViT-B-16"}, "open_clip needs pretrained: the tag"),
    ],
)
def test_init_section__refused(section: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(section, InitSection, where="init")


def test_train__continues_a_clip_as_maskclip(
    tiny: ModuleType, tmp_path: Path, data_root: Path
) -> None:
    """From a run's model: student and momentum copies start as it, at a rate that falls by layer.

    Interrupted, the run needs the weights no more; what they were is in the record of the model.
    """
    first = recipe_of(tiny)
    train(first, output=tmp_path / "clip", data_root=data_root)
    weights = load_file(tmp_path / "clip" / "model" / "open_clip_model.safetensors")
    changes = {"full_ema": True}
    recipe = recipe_of(
        tiny,
        "maskclip",
        init={"folder": "clip/model"},
        optimizer={"layer_decay": 0.5},
        method=changes,
    )
    method: Any = built(recipe)
    start_from(method, recipe, workspace=tmp_path)
    teacher = method.teacher_model()
    for name, value in weights.items():
        assert torch.equal(method.model.state_dict()[name], value), name
        assert torch.equal(teacher.state_dict()[name], value), name
    _, optimizer = prepare(recipe, method, torch.device("cpu"))
    scales = {
        id(parameter): group.get("lr_scale", 1.0)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert scales[id(method.model.visual.trunk.patch_embed.proj.weight)] == 0.5**3  # two blocks
    assert scales[id(method.model.text.transformer.resblocks[1].mlp.c_fc.weight)] == 0.5
    assert scales[id(method.quantizer.student.codewords)] == 1

    run = tmp_path / "maskclip"
    train(recipe, output=run, data_root=data_root, workspace=tmp_path)
    origin = json.loads((run / "model" / "provenance.json").read_text())
    (run / "model" / "provenance.json").unlink()
    (tmp_path / "clip").rename(tmp_path / "gone")
    train(recipe, output=run, data_root=data_root, workspace=tmp_path)
    again = json.loads((run / "model" / "provenance.json").read_text())
    assert len(origin["init_sha256"]) == 64
    assert again["init_sha256"] == origin["init_sha256"]
    checkpoint = CheckpointStore(run / "checkpoints", keep=2).latest()
    assert checkpoint is not None
    assert checkpoint.data["init"] == origin["init_sha256"]
    assert all(line["lr"] > 0 for line in read_log(run))
    assert recipe.computation_fingerprint() != recipe_of(tiny, "maskclip").computation_fingerprint()
