"""With the extra `huggingface` only: small models of transformers, made here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from maskclip_bench.backbones import BackboneDeclaration, load_backbone, weights_available
from maskclip_bench.backbones.encoders import HuggingFaceEncoder
from maskclip_bench.backbones.families.huggingface import text_length
from maskclip_bench.backbones.preprocess import Preprocess
from maskclip_bench.backbones.transform import choose_transform, of_huggingface, probe_images
from maskclip_bench.errors import CheckpointError, ConfigError
from maskclip_bench.runtime import Workspace

from .conftest import declare

transformers = pytest.importorskip("transformers")

TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2}
IMAGE = {"image_size": 32, "patch_size": 16}


def test_clip__equals_transformers() -> None:
    text = {
        "vocab_size": 100,
        "max_position_embeddings": 12,
        "eos_token_id": 99,
        "bos_token_id": 98,
    }
    config = transformers.CLIPConfig(
        text_config={**TOWER, **HEADS, **text, "pad_token_id": 99},
        vision_config={**TOWER, **HEADS, **IMAGE},
        projection_dim=8,
    )
    model = transformers.CLIPModel(config).eval()
    tokens = {
        "input_ids": torch.tensor([[98, 5, 6, 99, 99]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0]]),
    }
    images = torch.randn(2, 3, 32, 32)
    encoder = HuggingFaceEncoder(model, lambda texts: tokens)
    with torch.no_grad():
        expected = model(**tokens, pixel_values=images)
        found = encoder.image_outputs(images)
        torch.testing.assert_close(found["joint"], expected.image_embeds)
        torch.testing.assert_close(encoder.encode_text(["a"]), expected.text_embeds)
        assert found["backbone"].shape == (2, 16)
        assert encoder.patch_tokens(images).shape == (2, 4, 16)


def test_vit_folder__class_token(workspace: Workspace, tmp_path: Path) -> None:
    model = transformers.ViTModel(transformers.ViTConfig(**TOWER, **HEADS, **IMAGE)).eval()
    model.save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "vit"
    )
    row = declare(source={"huggingface": str(tmp_path / "vit")})
    assert weights_available(row, workspace)
    backbone = load_backbone(row, workspace=workspace)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(pixel_values=images).last_hidden_state[:, 0]
    torch.testing.assert_close(backbone.forward_features(images), expected)
    assert not backbone.has_text
    assert backbone.transform.resize_mode == "squash"


def test_unknown_model(workspace: Workspace) -> None:
    with pytest.raises(CheckpointError, match="Hugging Face cannot load '/no/model'"):
        load_backbone(declare(source={"huggingface": "/no/model"}), workspace=workspace)


def save(model: object, folder: Path, processor: object) -> BackboneDeclaration:
    model.save_pretrained(folder)  # type: ignore[attr-defined]
    processor.save_pretrained(folder)  # type: ignore[attr-defined]
    return declare(source={"huggingface": str(folder)})


def vit_processor(**values: object) -> object:
    return transformers.ViTImageProcessor(**{"size": {"height": 32, "width": 32}, **values})


def test_vit_mae__sees_all_patches_in_order(workspace: Workspace, tmp_path: Path) -> None:
    torch.manual_seed(0)
    mae = transformers.ViTMAEModel(transformers.ViTMAEConfig(**TOWER, **HEADS, **IMAGE)).eval()
    row = save(mae, tmp_path / "mae", vit_processor())
    backbone = load_backbone(row, workspace=workspace)
    images = torch.randn(2, 3, 32, 32)
    vit = transformers.ViTModel(
        transformers.ViTConfig(**TOWER, **HEADS, **IMAGE), add_pooling_layer=False
    ).eval()
    vit.load_state_dict(mae.state_dict())
    with torch.no_grad():
        expected = vit(pixel_values=images).last_hidden_state
    torch.testing.assert_close(backbone.forward_features(images), expected[:, 0])
    torch.testing.assert_close(backbone.patch_tokens(images), expected[:, 1:])


def test_own_pooling__by_type() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    swin = transformers.SwinModel(
        transformers.SwinConfig(
            image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
        )
    )
    ijepa = transformers.IJepaModel(transformers.IJepaConfig(**TOWER, **HEADS, **IMAGE))
    siglip = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**TOWER, **HEADS, **IMAGE)
    )
    dino = transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**TOWER, **HEADS, **IMAGE, num_register_tokens=3)
    )
    for model, pooled, patches in (
        (swin, lambda out: out.last_hidden_state.mean(1), 16),
        (ijepa, lambda out: out.last_hidden_state.mean(1), 4),
        (siglip, lambda out: out.pooler_output, 4),
        (dino, lambda out: out.last_hidden_state[:, 0], 4),
    ):
        encoder = HuggingFaceEncoder(model.eval(), None)
        with torch.no_grad():
            expected = pooled(model(pixel_values=images))
            found = encoder.image_outputs(images)["backbone"]
            torch.testing.assert_close(found, expected)
            assert encoder.patch_tokens(images).shape[1] == patches


def test_clip_patches__go_through_the_final_norm() -> None:
    config = transformers.CLIPVisionConfig(**TOWER, **HEADS, **IMAGE)
    model = transformers.CLIPVisionModel(config).eval()
    encoder = HuggingFaceEncoder(model, None)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        output = model(pixel_values=images)
        expected = encoder._tower.post_layernorm(output.last_hidden_state)[:, 1:]
        torch.testing.assert_close(encoder.patch_tokens(images), expected)
        pooled = encoder.image_outputs(images)["backbone"]
        torch.testing.assert_close(pooled, output.pooler_output)


def test_unknown_type__names_the_remedy() -> None:
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    with pytest.raises(ConfigError, match=r"model_type 'bert'. is not among the types .*of timm"):
        HuggingFaceEncoder(transformers.BertModel(config), None)


def test_untrained_tensors__are_refused(workspace: Workspace, tmp_path: Path) -> None:
    model = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**TOWER, **HEADS, **IMAGE)
    )
    row = save(model, tmp_path / "siglip", vit_processor())
    weights = tmp_path / "siglip" / "model.safetensors"
    tensors = {k: v for k, v in load_file(str(weights)).items() if "head.probe" not in k}
    save_file(tensors, str(weights), {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors of .*head.probe"):
        load_backbone(row, workspace=workspace)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"resample": 0},
        {"resample": 3},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"size": {"height": 32, "width": 64}},
    ],
    ids=str,
)
def test_processor__every_field_counts(values: dict[str, object]) -> None:
    processor = vit_processor(**values)
    found = of_huggingface(processor)
    transform = choose_transform(
        found["preprocess"],
        Preprocess(),
        library=found["library_transform"],
        inexpressible=found.get("inexpressible"),
        what="row",
    )
    for image in probe_images(40):
        expected = processor(images=image, return_tensors="pt")["pixel_values"][0]  # type: ignore[operator]
        pixels = transform(image)[None]
        torch.testing.assert_close(transform.normalize(pixels)[0], expected, atol=0.03, rtol=0)
    assert (transform.library is not None) == ("size" in values)


def test_text_length__is_the_smallest_limit() -> None:
    class Config:
        model_type = "clip_text_model"
        max_position_embeddings = 12
        pad_token_id = 1

    assert text_length(int(1e30), Config()) == 12
    assert text_length(8, Config()) == 8
    assert text_length(int(1e30), None) == 512
    Config.model_type = "xlm-roberta"
    assert text_length(int(1e30), Config()) == 10


def test_has_text__is_read_from_the_configuration(tmp_path: Path) -> None:
    transformers.ViTConfig(**TOWER, **HEADS, **IMAGE).save_pretrained(tmp_path / "vit")
    transformers.CLIPConfig().save_pretrained(tmp_path / "clip")
    assert declare(source={"huggingface": str(tmp_path / "vit")}).has_text is False
    assert declare(source={"huggingface": str(tmp_path / "clip")}).has_text is True
    assert declare(source={"huggingface": "not/here"}).has_text is None
