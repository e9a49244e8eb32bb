"""Weights of a backbone: from its source in training, from a checkpoint everywhere else."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from maskclip_bench.backbones.openmmlab import trunk_backbone
from maskclip_bench.backbones.openmmlab.pyramid import MaskCLIPPyramid
from maskclip_bench.backbones.openmmlab.remembered_maps import RememberedMaps
from maskclip_bench.backbones.openmmlab.trunk_sources import encode_architecture
from maskclip_bench.backbones.openmmlab.vit import MaskCLIPViT
from maskclip_bench.errors import CheckpointError, ConfigError, MissingDependencyError


def sources(folder: Path, tiny: Any) -> dict[str, dict[str, Any]]:
    """Arguments of a backbone whose weights are in files below `folder`, by kind."""
    folder.mkdir()
    _, file = tiny.random_trunk(folder, tiny.arguments)
    tiny.open_clip_folder(folder / "native", tiny.open_clip_vit)
    vision = {"timm_model_name": "vit_demo_patch8_48", "timm_pool": "", "timm_proj": "linear"}
    tiny.open_clip_folder(folder / "run" / "model", {**vision, "image_size": 48})
    row = folder / "row.yaml"
    row.write_text(
        f"display_name: R\nworld: demo\nsource: {{open_clip_folder: {folder / 'run' / 'model'}}}\n"
    )
    return {
        "timm": tiny.source(file),
        "open_clip folder": {"checkpoint": str(folder / "native")},
        "run": {"checkpoint": str(folder / "run")},
        "row": {"backbone": str(row)},
    }


class Segmentor(nn.Module):
    def __init__(self, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.backbone = MaskCLIPViT(**arguments)
        self.head = nn.Conv2d(3, 3, 1)


@pytest.mark.parametrize("kind", ["timm", "open_clip folder", "run", "row"])
@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("load", ["torch", "mmengine"])
def test_checkpoint__stands_alone(
    kind: str, gone: bool, load: str, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the pretrained weights, and without the folder that says the architecture."""
    monkeypatch.setenv("MASKCLIP_BENCH_WORKSPACE", str(tmp_path))
    arguments = sources(tmp_path / "pretrained", tiny)[kind]
    trained = Segmentor(arguments).eval()
    trained.backbone.init_weights()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += 0.01
    state = copy.deepcopy(trained.state_dict())
    if gone:
        shutil.rmtree(tmp_path / "pretrained")
    monkeypatch.setattr(trunk_backbone, "load_trunk", None)
    served = Segmentor(arguments).eval()
    if load == "torch":
        served.load_state_dict(state)
    else:
        load_state_dict(served, state, strict=True)
    served.backbone.init_weights()  # what inferencers call at times
    pictures = tiny.images((48, 48))
    torch.testing.assert_close(
        served.backbone(pictures)[0], trained.backbone(pictures)[0], atol=0, rtol=0
    )
    assert json.dumps(list(served.state_dict())) == json.dumps(list(state))


def test_forward__without_weights_is_refused(tmp_path: Path, tiny: Any) -> None:
    backbone = MaskCLIPViT(**sources(tmp_path / "a", tiny)["timm"])
    with pytest.raises(CheckpointError, match=r"has no weights yet: they come from init_weights"):
        backbone(tiny.images())


def test_forward__of_an_unknown_architecture(tmp_path: Path, tiny: Any) -> None:
    backbone = MaskCLIPViT(checkpoint=str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match=r"not known here: .*gone holds no exported model"):
        _ = backbone.trunk
    with pytest.raises(CheckpointError, match="holds no exported model"):
        backbone.init_weights()


def test_init_weights__leaves_the_generator_alone(tmp_path: Path, tiny: Any) -> None:
    """Heads are drawn after the backbone."""
    backbone = MaskCLIPViT(**sources(tmp_path / "a", tiny)["run"])
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    backbone.init_weights()
    assert torch.equal(torch.rand(3), expected)


def test_init_weights__loads_nothing_before_a_checkpoint(tmp_path: Path, tiny: Any) -> None:
    backbone = MaskCLIPViT(**sources(tmp_path / "a", tiny)["timm"])
    shutil.rmtree(tmp_path / "a")
    backbone.expect_checkpoint()
    backbone.init_weights()
    assert not backbone.has_weights


def test_checkpoint__of_another_backbone(tmp_path: Path, tiny: Any) -> None:
    arguments = sources(tmp_path / "a", tiny)["timm"]
    state = MaskCLIPViT(**arguments, out_indices=(1,)).state_dict()
    with pytest.raises(CheckpointError, match=r"has no tower\.blocks\.2\..* trained with another"):
        MaskCLIPViT(**arguments).load_state_dict(state, strict=False)
    heads = MaskCLIPViT(**arguments)
    heads.load_state_dict({}, strict=False)
    assert not heads.has_weights


def test_checkpoint__of_an_older_version(tmp_path: Path, tiny: Any) -> None:
    arguments = sources(tmp_path / "a", tiny)["timm"]
    state = MaskCLIPViT(**arguments).state_dict()
    del state["architecture"]
    MaskCLIPViT(**arguments).load_state_dict(state, strict=True)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"timm": "hf-hub:someone/model"}, "names 'hf-hub:someone/model', which is no model of"),
        ({"timm": "local-dir:/tmp"}, "which is no model of the installed timm"),
        ({"open_clip": {"embed_dim": 8, "vision_cfg": {"timm_model_name": "hf-hub:a/b"}}}, "hf-hu"),
        ({"timm": "vit_tiny_patch16_224", "model_args": {"checkpoint_path": "x"}}, "name files of"),
        ({"python": "os:system"}, r"has the keys \['python'\]"),
    ],
)
def test_checkpoint__architecture_names_nothing_to_fetch(
    architecture: dict[str, Any], message: str, tmp_path: Path
) -> None:
    state = {"architecture": encode_architecture(architecture), "tower.x": torch.zeros(1)}
    with pytest.raises(ConfigError, match=message):
        MaskCLIPViT(checkpoint=str(tmp_path)).load_state_dict(state, strict=False)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_checkpoint__damaged_architecture(content: bytes, tmp_path: Path) -> None:
    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    state = {"architecture": encoded, "tower.x": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="architecture in the checkpoint cannot be read"):
        MaskCLIPViT(checkpoint=str(tmp_path)).load_state_dict(state, strict=False)


def test_init_weights__of_another_architecture(
    tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = MaskCLIPViT(**sources(tmp_path / "a", tiny)["timm"])
    monkeypatch.setattr(trunk_backbone, "load_trunk", lambda source: nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"another architecture .* tensors missing, 0 of"):
        backbone.init_weights()


def trained_names(backbone: nn.Module) -> set[str]:
    return {name for name, value in backbone.named_parameters() if value.requires_grad}


def test_train_only__some_parameters(tiny: Any) -> None:
    arguments = {"timm": tiny.name, "model_args": tiny.arguments}
    biases = trained_names(MaskCLIPViT(**arguments, train_only=[r"\.bias$"]))
    assert biases and all(name.endswith(".bias") for name in biases)
    norms = trained_names(MaskCLIPPyramid(timm="test_convnext", train_only=["norm"]))
    assert norms and all("norm" in name for name in norms)
    with pytest.raises(ConfigError, match=r"train_only=\['qvk'\] fits none of the \d+ parameters"):
        MaskCLIPViT(**arguments, train_only=["qvk"])
    with pytest.raises(ConfigError, match="frozen=True trains nothing; leave out train_only"):
        MaskCLIPViT(**arguments, frozen=True, train_only=["norm"])


@pytest.mark.parametrize(("stages", "trained"), [(-1, 5), (0, 4), (2, 2), (4, 0)])
def test_frozen_stages(stages: int, trained: int, tiny: Any) -> None:
    arguments = {"timm": tiny.name, "model_args": {**tiny.arguments, "pos_drop_rate": 0.5}}
    backbone = MaskCLIPViT(**arguments, frozen_stages=stages).train()
    names = trained_names(backbone)
    kinds = {
        name.split(".")[2] if "blocks" in name else "stem"
        for name in names
        if "norm." not in name.split("tower.")[1][:5]
    }
    assert len(kinds) == trained
    assert ("tower.cls_token" in names) == (stages < 0)
    assert backbone.tower.pos_drop.training == (stages < 0)
    assert [block.training for block in backbone.vit.blocks] == [
        index >= stages for index in range(4)
    ]
    assert "tower.norm.weight" in names
    with pytest.raises(ConfigError, match=r"frozen_stages=5: use -1 \(none\) to 4"):
        MaskCLIPViT(**arguments, frozen_stages=5)


def test_lora__needs_peft(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingDependencyError, match=r"lora= needs peft.*maskclip-bench\[lora\]"):
        MaskCLIPViT(timm=tiny.name, model_args=tiny.arguments, lora={"r": 2})


@pytest.mark.parametrize("kind", ["timm", "open_clip folder"])
def test_lora__trains_low_rank_additions(kind: str, tmp_path: Path, tiny: Any) -> None:
    pytest.importorskip("peft")
    arguments = sources(tmp_path / "a", tiny)[kind]
    plain = MaskCLIPViT(**arguments).eval()
    plain.init_weights()
    names = ["qkv", "fc1"] if kind == "timm" else ["c_fc"]
    backbone = MaskCLIPViT(**arguments, lora={"r": 2, "target_modules": names}).eval()
    backbone.init_weights()
    torch.testing.assert_close(backbone(tiny.images()), plain(tiny.images()))
    trained = trained_names(backbone)
    assert trained and all("lora_" in name for name in trained)
    assert {backbone.layer_of(name) for name in trained} == set(range(1, backbone.num_layers + 1))
    with pytest.raises(ConfigError, match=r"lora=.*target_modules are ends of names"):
        MaskCLIPViT(**arguments, lora={"r": 2, "target_modules": ["absent"]})


def test_remembered__maps_follow_the_weights_and_the_settings(
    monkeypatch: pytest.MonkeyPatch, tiny: Any
) -> None:
    remembered, images = RememberedMaps(2**24), tiny.images((48, 48))
    monkeypatch.setattr(trunk_backbone.TrunkBackbone, "remembered", remembered)

    def check(backbone: MaskCLIPViT, number: int) -> None:
        """It gives the maps of its encoder; so many encoders are known then."""
        for _ in range(2):
            for map, plain in zip(backbone(images), backbone.feature_maps(images), strict=True):
                torch.testing.assert_close(map, plain, rtol=0, atol=0)
        assert len(remembered) == number * len(images)

    arguments = {"timm": "vit_demo_patch8_48", "frozen": True}
    first = MaskCLIPViT(**arguments, out_indices=(3,))
    first.init_weights()
    check(first, 1)
    state = first.state_dict()
    again = MaskCLIPViT(**arguments, out_indices=(3,))
    again.load_state_dict(state)
    check(again, 1)
    earlier = MaskCLIPViT(**arguments, out_indices=(2,))
    earlier.load_state_dict(state, strict=False)
    check(earlier, 2)
    again.load_state_dict({k: v + 1 if v.is_floating_point() else v for k, v in state.items()})
    check(again, 3)
    trained = MaskCLIPViT(timm="vit_demo_patch8_48", out_indices=(3,))
    trained.init_weights()
    check(trained, 3)  # it learns: nothing is kept
