"""With the extra `huggingface` only: small models of transformers, made here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maskclip_bench.backbones import load_backbone, weights_available
from maskclip_bench.backbones.encoders import HuggingFaceEncoder
from maskclip_bench.errors import CheckpointError
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
