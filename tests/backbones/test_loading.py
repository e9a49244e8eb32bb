from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image

from maskclip_bench.backbones import (
    load_backbone,
    load_backbone_declaration,
    missing_weights,
    weights_available,
)
from maskclip_bench.backbones.encoders import (
    AFTER_PROJECTION,
    BEFORE_PROJECTION,
    OpenClipEncoder,
)
from maskclip_bench.backbones.families.open_clip import trained_with_quick_gelu
from maskclip_bench.backbones.model_state import state_fingerprint
from maskclip_bench.config import validate
from maskclip_bench.errors import CheckpointError, ConfigError, MissingDependencyError
from maskclip_bench.runtime import Workspace

from .conftest import MEAN, declare

WriteFolder = Callable[..., Path]
TEXTS = ["a car", "a big elephant on the grass"]


@pytest.fixture
def folder(workspace: Workspace, write_folder: WriteFolder) -> Path:
    return write_folder(workspace.pretraining("demo/clip", 0) / "model")


def test_recipe_row__equals_open_clip(workspace: Workspace, folder: Path) -> None:
    backbone = load_backbone(declare(source={"recipe": "demo/clip"}), workspace=workspace)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    image = Image.effect_noise((80, 70), 60).convert("RGB")
    pixels = backbone.transform(image)[None]
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.no_grad():
        expected = model.encode_image(preprocess(image)[None], normalize=True)
        expected_text = model.encode_text(tokens, normalize=True)
        trunk = model.visual.trunk(preprocess(image)[None])
    torch.testing.assert_close(backbone.encode_image(pixels), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(backbone.forward_features(pixels), trunk, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(backbone.encode_text(TEXTS), expected_text, atol=1e-5, rtol=1e-4)
    assert backbone.transform.mean == MEAN
    assert backbone.feature_point == BEFORE_PROJECTION
    assert backbone.row_id == "row"
    assert not backbone.model.training
    side = backbone.image_size // 8
    assert backbone.patch_tokens(pixels).shape == (1, side * side, 96)


def test_texts__trimmed_only_where_that_changes_nothing(
    workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(declare(source={"recipe": "demo/clip"}), workspace=workspace)
    long = ["a car " * 40, "a car"]  # cut to the context, and keeps its end
    trimmed = backbone.encode_text(long)
    backbone.model.text.pool_type = "last"
    other = OpenClipEncoder(backbone.model, backbone.encoder.tokenize)  # type: ignore[attr-defined]
    assert other._trimmable is None
    backbone.model.text.pool_type = "argmax"
    torch.testing.assert_close(trimmed, other.encode_text(long), atol=1e-5, rtol=1e-4)


def test_one_pass_gives_both_feature_points(workspace: Workspace, folder: Path) -> None:
    backbone = load_backbone(declare(source={"recipe": "demo/clip"}), workspace=workspace)
    images = torch.zeros(2, 3, backbone.image_size, backbone.image_size)
    outputs = backbone.image_outputs(images)
    assert {point: tuple(value.shape) for point, value in outputs.items()} == {
        "backbone": (2, 96),
        "joint": (2, 12),
    }
    projected = F.normalize(backbone.model.visual.head(outputs["backbone"]), dim=-1)
    torch.testing.assert_close(projected, outputs["joint"])


def test_bfloat16__is_close_and_stored_as_float32(workspace: Workspace, folder: Path) -> None:
    row = declare(source={"recipe": "demo/clip"})
    full = load_backbone(row, workspace=workspace)
    half = load_backbone(row, workspace=workspace, precision="bfloat16")
    images = torch.rand(2, 3, full.image_size, full.image_size)
    found = half.encode_image(images)
    assert found.dtype == torch.float32
    assert F.cosine_similarity(found, full.encode_image(images)).min() > 0.99


def test_fingerprint__follows_weights_and_architecture(
    workspace: Workspace, folder: Path, write_folder: WriteFolder
) -> None:
    row = declare(source={"recipe": "demo/clip"})
    first = load_backbone(row, workspace=workspace).weights_fingerprint
    assert load_backbone(row, workspace=workspace).weights_fingerprint == first
    write_folder(folder, seed=1)
    second = load_backbone(row, workspace=workspace).weights_fingerprint
    assert second != first
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert load_backbone(row, workspace=workspace).weights_fingerprint != second


def test_folder__tokenizer_beside_it_wherever_it_was_moved(
    workspace: Workspace, write_folder: WriteFolder
) -> None:
    moved = write_folder(workspace.root / "moved", bpe_path="/elsewhere/demo_merges.txt.gz")
    backbone = load_backbone(declare(source={"open_clip_folder": "moved"}), workspace=workspace)
    assert backbone.encode_text(TEXTS).shape == (2, 12)
    assert moved.is_dir()


def test_missing_weights__say_how_to_get_them(workspace: Workspace, folder: Path) -> None:
    assert weights_available(declare(source={"recipe": "demo/clip"}), workspace)
    missing = missing_weights(declare(source={"recipe": "demo/clip"}), workspace, 3)
    assert missing is not None
    assert "seed3" in missing
    assert missing.endswith("Pretrain it: maskclip-bench pretrain demo/clip")
    row = declare(source={"recipe": "demo/clip", "weights": "teacher"}, obtain="Ask us.")
    assert str(missing_weights(row, workspace)).endswith("teacher. Ask us.")
    with pytest.raises(CheckpointError, match=r"row: no weights in .*teacher. Ask us"):
        load_backbone(row, workspace=workspace)
    assert missing_weights(declare(source={"open_clip_folder": "no"}), workspace)
    zoo = declare(source={"open_clip": "ViT-B-32", "pretrained": "laion400m_e31"})
    assert "not in this machine's cache" in str(missing_weights(zoo, workspace))
    assert "not in this machine's cache" in str(
        missing_weights(declare(source={"timm": "vit_base_patch16_224.mae"}), workspace)
    )
    assert missing_weights(declare(source={"huggingface": "no/model"}), workspace)
    file = declare(source={"timm": "vit_base_patch16_224", "checkpoint": "w.pth"}, obtain="Fetch.")
    assert str(missing_weights(file, workspace)).endswith("w.pth. Fetch.")
    with pytest.raises(CheckpointError, match=r"no file .*w.pth. Fetch."):
        load_backbone(file, workspace=workspace)


@pytest.mark.parametrize("damage", ["cut", "config", "other"])
def test_folder__damaged(damage: str, workspace: Workspace, folder: Path) -> None:
    weights, config = folder / "open_clip_model.safetensors", folder / "open_clip_config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "config":
        config.write_text("{")
    else:
        config.write_text(config.read_text().replace('"embed_dim": 12', '"embed_dim": 10'))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_backbone(declare(source={"recipe": "demo/clip"}), workspace=workspace)


def test_random_init__needs_no_weights_and_follows_the_seed(workspace: Workspace) -> None:
    row = load_backbone_declaration("random_init_vit-demo_demo")
    assert missing_weights(row, workspace) is None
    state = torch.random.get_rng_state()
    first = load_backbone(row, workspace=workspace)
    assert torch.equal(state, torch.random.get_rng_state())
    assert load_backbone(row, workspace=workspace).weights_fingerprint == first.weights_fingerprint
    second = load_backbone(row, workspace=workspace, seed=1)
    assert second.weights_fingerprint != first.weights_fingerprint
    assert second.row_id == "random_init_vit-demo_demo__seed1"
    assert first.encode_text(TEXTS).shape[0] == 2


TINY_VIT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TINY_RESNET = {
    **TINY_VIT,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
}


@pytest.fixture
def tiny_zoo(tmp_path: Path) -> None:
    for name, config in (("tiny-vit", TINY_VIT), ("tiny-resnet", TINY_RESNET)):
        path = tmp_path / "zoo" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(config))
        open_clip.add_model_config(path)


def test_open_clip__vit_of_its_own(workspace: Workspace, tiny_zoo: None) -> None:
    row = declare(source={"open_clip": "tiny-vit", "random_init": True})
    backbone = load_backbone(row, workspace=workspace)
    images = torch.randn(2, 3, 32, 32)
    outputs = backbone.image_outputs(images)
    assert outputs["backbone"].shape == (2, 64)
    with torch.no_grad():
        expected = backbone.model.encode_image(images, normalize=True)
    torch.testing.assert_close(outputs["joint"], expected)
    assert backbone.feature_point == BEFORE_PROJECTION
    assert backbone.patch_tokens(images).shape == (2, 4, 64)
    tokens = open_clip.SimpleTokenizer(context_length=77)(TEXTS)
    with torch.no_grad():
        expected = backbone.model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(backbone.encode_text(TEXTS), expected, atol=1e-5, rtol=1e-4)


def test_open_clip__patch_tokens_of_coca(workspace: Workspace, tmp_path: Path) -> None:
    """Its norm comes after the pooler and has the width of that."""
    pooled = {**TINY_VIT, "vision_cfg": {**TINY_VIT["vision_cfg"], "attentional_pool": True}}
    path = tmp_path / "tiny-coca-tower.json"
    path.write_text(json.dumps(pooled))
    open_clip.add_model_config(path)
    row = declare(source={"open_clip": "tiny-coca-tower", "random_init": True})
    backbone = load_backbone(row, workspace=workspace)
    assert backbone.patch_tokens(torch.randn(2, 3, 32, 32)).shape == (2, 4, 64)


def test_open_clip__resnet_has_only_its_embedding(workspace: Workspace, tiny_zoo: None) -> None:
    row = declare(source={"open_clip": "tiny-resnet", "random_init": True})
    backbone = load_backbone(row, workspace=workspace)
    outputs = backbone.image_outputs(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(F.normalize(outputs["backbone"], dim=-1), outputs["joint"])
    assert backbone.feature_point == AFTER_PROJECTION
    with pytest.raises(ConfigError, match="ModifiedResNet gives no patch tokens"):
        backbone.patch_tokens(torch.randn(2, 3, 32, 32))


def test_open_clip__openais_weights_get_openais_gelu() -> None:
    assert trained_with_quick_gelu("ViT-B-16", "openai")
    assert not trained_with_quick_gelu("ViT-B-16", "laion2b_s34b_b88k")
    assert not trained_with_quick_gelu("ViT-B-16", None)


def test_open_clip__unknown(workspace: Workspace) -> None:
    row = declare(source={"open_clip": "ViT-Z-16", "pretrained": "openai"})
    with pytest.raises(CheckpointError, match="no 'ViT-Z-16' with pretrained 'openai' here"):
        load_backbone(row, workspace=workspace)


def test_timm__equals_timm_and_has_no_text(workspace: Workspace) -> None:
    row = declare(source={"timm": "test_vit.r160_in1k", "random_init": True})
    backbone = load_backbone(row, workspace=workspace)
    model = timm.create_model("test_vit", pretrained=False, num_classes=0).eval()
    model.load_state_dict(backbone.model.state_dict())
    images = torch.randn(2, 3, backbone.image_size, backbone.image_size)
    with torch.no_grad():
        torch.testing.assert_close(backbone.forward_features(images), model(images))
    assert set(backbone.image_outputs(images)) == {"backbone"}
    assert backbone.patch_tokens(images).ndim == 3
    with pytest.raises(ConfigError, match="row has no text tower"):
        backbone.encode_text(["a car"])
    with pytest.raises(ConfigError, match="row has no text tower"):
        backbone.encode_image(images)


def test_timm__convolutional_patch_tokens(workspace: Workspace) -> None:
    row = declare(source={"timm": "test_resnet.r160_in1k", "random_init": True})
    backbone = load_backbone(row, workspace=workspace)
    tokens = backbone.patch_tokens(torch.randn(1, 3, 96, 96))
    assert tokens.shape == (1, 9, backbone.model.num_features)


def test_timm__weights_from_a_file(workspace: Workspace) -> None:
    model = timm.create_model("test_vit", pretrained=False, num_classes=0)
    workspace.root.mkdir(parents=True)
    torch.save(model.state_dict(), workspace.root / "mine.pth")
    row = declare(source={"timm": "test_vit", "checkpoint": "mine.pth"})
    assert weights_available(row, workspace)
    backbone = load_backbone(row, workspace=workspace)
    assert state_fingerprint(backbone.model) == state_fingerprint(model)


def test_timm__unknown(workspace: Workspace) -> None:
    with pytest.raises(
        CheckpointError, match=r"timm \S+ cannot load 'vit_none'.*pip install -U timm"
    ):
        load_backbone(declare(source={"timm": "vit_none"}), workspace=workspace)


def test_huggingface__extra_is_named(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        MissingDependencyError, match=r"pip install 'maskclip-bench\[huggingface\]'"
    ):
        load_backbone(declare(source={"huggingface": "a/b"}), workspace=workspace)


MODULE = """
import torch


class Encoder(torch.nn.Module):
    preprocess = {"image_size": 16, "mean": [0.0] * 3, "std": [1.0] * 3}

    def __init__(self, width):
        super().__init__()
        self.layer = torch.nn.Linear(3, width)

    def encode_image(self, images):
        return self.layer(images.mean(dim=(2, 3)))

    def encode_text(self, texts):
        return torch.ones(len(texts), self.layer.out_features)


def make(width=5):
    return Encoder(width)


def make_nothing():
    return 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_encoders.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def test_python__ones_own_encoder(workspace: Workspace, own_module: None) -> None:
    row = declare(source={"python": "own_encoders:make", "arguments": {"width": 7}})
    assert weights_available(row, workspace)
    backbone = load_backbone(row, workspace=workspace)
    outputs = backbone.image_outputs(torch.rand(2, 3, 16, 16))
    assert outputs["joint"].shape == (2, 7)
    assert backbone.image_size == 16
    torch.testing.assert_close(backbone.encode_text(["a"]).norm(dim=1), torch.ones(1))
    with pytest.raises(ConfigError, match="Encoder gives no patch tokens"):
        backbone.patch_tokens(torch.rand(2, 3, 16, 16))


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("own_encoders", "should be 'module:factory'"),
        ("own_encoders:mak", "cannot be imported"),
        ("no_such_module:make", "cannot be imported"),
        ("own_encoders:make_nothing", "returned a int, which is no encoder"),
    ],
)
def test_python__problems(
    python: str, message: str, workspace: Workspace, own_module: None
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_backbone(declare(source={"python": python}), workspace=workspace)


def test_validate__reaches_the_preprocessing() -> None:
    from maskclip_bench.backbones import BackboneDeclaration

    values = {"display_name": "Row", "world": "demo", "source": {"timm": "a"}}
    with pytest.raises(ConfigError, match="Did you mean 'interpolation'"):
        validate({**values, "preprocess": {"interpolate": 1}}, BackboneDeclaration, where="row")


@pytest.mark.parametrize(
    "source",
    [
        {"recipe": "demo/clip", "random_init": True},
        {"timm": "test_vit.r160_in1k", "random_init": True},
        {"python": "own_encoders:make"},
    ],
    ids=str,
)
def test_trainable__is_a_copy_with_gradients(
    source: dict[str, object], workspace: Workspace, own_module: None
) -> None:
    backbone = load_backbone(declare(source=source), workspace=workspace)
    trained = backbone.trainable()
    images = torch.randn(2, 3, backbone.image_size, backbone.image_size)
    before = backbone.forward_features(images)
    found = trained(images)
    torch.testing.assert_close(found, before)
    found.square().sum().backward()
    touched = [p for p in trained.parameters() if p.grad is not None]
    assert touched
    with torch.no_grad():
        for parameter in touched:
            parameter.add_(1.0)
    torch.testing.assert_close(backbone.forward_features(images), before, rtol=0, atol=0)
    assert not torch.allclose(trained(images), before)


def test_vision_trunk__of_a_row(workspace: Workspace, own_module: None) -> None:
    timm_row = declare(source={"timm": "test_vit.r160_in1k", "random_init": True})
    backbone = load_backbone(timm_row, workspace=workspace)
    assert backbone.vision_trunk() is backbone.model
    other = load_backbone(declare(source={"python": "own_encoders:make"}), workspace=workspace)
    with pytest.raises(ConfigError, match=r"gives no feature maps. Use a timm or an"):
        other.vision_trunk()
