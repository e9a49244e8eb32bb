from __future__ import annotations

import pytest
import torch
from open_clip.model import CustomTextCLIP
from torch import Tensor

from maskclip_bench.modeling import DEMO_VIT, ModelConfig, TextConfig, VisionConfig, build_model

CONTEXT = 16
VOCABULARY = 50


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig(
        proj_dim=24,
        image_size=48,
        vision=VisionConfig(timm_model=DEMO_VIT),
        text=TextConfig(
            context_length=CONTEXT, vocab_size=VOCABULARY, width=32, num_heads=2, depth=2
        ),
    )


@pytest.fixture
def model(config: ModelConfig) -> CustomTextCLIP:
    torch.manual_seed(0)
    return build_model(config)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def captions() -> Tensor:
    """Three captions of 5, 9 and 3 tokens, trimmed to the longest."""
    rows = torch.zeros(3, 9, dtype=torch.int64)
    generator = torch.Generator().manual_seed(2)
    for row, length in zip(rows, (5, 9, 3), strict=True):
        row[1 : length - 1] = torch.randint(1, VOCABULARY - 2, (length - 2,), generator=generator)
        row[0], row[length - 1] = VOCABULARY - 2, VOCABULARY - 1
    return rows
