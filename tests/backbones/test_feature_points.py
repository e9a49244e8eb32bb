"""Errors for models without a text tower or without patch tokens."""

from __future__ import annotations

import pytest
from torch import nn

from maskclip_bench.backbones.feature_points import (
    AFTER_PROJECTION,
    BEFORE_PROJECTION,
    POOLED,
    no_patch_tokens,
    no_text_tower,
)
from maskclip_bench.errors import ConfigError


def test_points__are_told_apart() -> None:
    assert len({BEFORE_PROJECTION, AFTER_PROJECTION, POOLED}) == 3


def test_errors__name_the_model_and_what_works() -> None:
    with pytest.raises(ConfigError, match=r"mae has no text tower: .* Use linear_probe or knn"):
        raise no_text_tower("mae")
    with pytest.raises(ConfigError, match=r"Identity gives no patch tokens. Use a ViT, or give"):
        raise no_patch_tokens(nn.Identity())
