"""What dense tasks do with a ViT; kinds of models: backbones/openmmlab/test_architectures.py."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from maskclip_bench.errors import ConfigError
from maskclip_bench.modeling.dense_vit import (
    dense_parts,
    is_dense_vit,
    resample_positions,
    set_drop_path,
)
from maskclip_bench.modeling.vit import is_vit, vit_parts


def test_resample_positions__native_grid_is_untouched() -> None:
    positions = torch.randn(1, 12, 4)
    assert resample_positions(positions, (3, 4), (3, 4)) is positions
    constant = resample_positions(torch.ones(1, 12, 4), (3, 4), (7, 5))
    torch.testing.assert_close(constant, torch.ones(1, 35, 4))


def test_relative_positions__only_where_all_patches_are_kept() -> None:
    """Pretraining drops patches, which a bias between all of them does not allow."""
    small = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 0}
    trunk = timm.create_model("vit_relpos_small_patch16_224", **small)
    assert is_dense_vit(trunk) and not is_vit(trunk)
    assert dense_parts(trunk).grid_size == (2, 2)
    with pytest.raises(ConfigError, match=r"is not a plain ViT .* whose patches can be dropped"):
        vit_parts(trunk)
    with pytest.raises(ConfigError, match=r"made for a grid of 2 x 2 patches \(32 x 32 pixels\)"):
        dense_parts(trunk).ropes((2, 3))


def test_set_drop_path__of_a_block_without_a_place_for_it() -> None:
    set_drop_path(nn.Linear(2, 2), 0.0)
    with pytest.raises(ConfigError, match=r"A Linear has no stochastic depth. Set drop_path_rate"):
        set_drop_path(nn.Linear(2, 2), 0.1)


def test_set_drop_path__of_open_clips_block_drops_whole_images() -> None:
    from open_clip.transformer import ResidualAttentionBlock

    torch.manual_seed(0)
    block = ResidualAttentionBlock(8, 2)
    names = list(block.state_dict())
    set_drop_path(block, 0.5)
    tokens = torch.randn(64, 3, 8)
    assert list(block.state_dict()) == names
    block.eval()
    plain = block(tokens)
    block.train()
    untouched = (block(tokens) == tokens).flatten(1).all(dim=1)
    assert 4 < int(untouched.sum()) < 32  # both branches dropped: a quarter of the images
    block.eval()
    torch.testing.assert_close(block(tokens), plain)
