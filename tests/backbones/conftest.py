from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from maskclip_bench.backbones.declaration import BackboneDeclaration
from maskclip_bench.config import validate
from maskclip_bench.data.tokenizer import DEMO_MERGES, TokenizerConfig, load_tokenizer
from maskclip_bench.modeling.model import DEMO_VIT, ModelConfig, build_model, open_clip_config
from maskclip_bench.runtime import Workspace

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.2, 0.3)


def declare(**values: object) -> BackboneDeclaration:
    base = {"name": "row", "display_name": "Row", "world": "demo"}
    return validate({**base, **values}, BackboneDeclaration, where="row")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(root=tmp_path / "workspace", data=tmp_path / "data")


@pytest.fixture(scope="session")
def model_config() -> ModelConfig:
    size = int(DEMO_VIT.rpartition("_")[2])
    vocabulary = load_tokenizer(TokenizerConfig(kind="demo", context_length=16)).vocab_size
    text = {
        "context_length": 16, "vocab_size": vocabulary, "width": 24, "num_heads": 2, "depth": 1,
    }  # fmt: skip
    values = {"proj_dim": 12, "image_size": size, "vision": {"timm_model": DEMO_VIT}, "text": text}
    return validate(values, ModelConfig, where="model")


@pytest.fixture
def write_folder(model_config: ModelConfig) -> Callable[..., Path]:
    """Write an open_clip folder as pretraining exports it."""

    def write(folder: Path, *, seed: int = 0, bpe_path: str | None = None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        model = build_model(model_config)
        (folder / DEMO_MERGES.name).write_bytes(DEMO_MERGES.read_bytes())
        options = {"bpe_path": bpe_path or str(folder / DEMO_MERGES.name)}
        config = open_clip_config(model_config, mean=MEAN, std=STD, tokenizer_kwargs=options)
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, str(folder / "open_clip_model.safetensors"), metadata={"format": "pt"})
        return folder

    return write
