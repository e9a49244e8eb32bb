from __future__ import annotations

from pathlib import Path

import torch
from tiny_methods import batch, build

from maskclip_bench.pretrain.methods.mae import MAEConfig


def test_mae__defaults_are_its_papers() -> None:
    config = MAEConfig()
    assert (config.decoder_depth, config.decoder_dim, config.decoder_num_heads) == (8, 512, 16)
    assert (config.mask_ratio, config.normalize_pixels) == (0.75, True)


def test_mae__sees_no_captions_and_only_visible_patches() -> None:
    method, whole = build("mae", Path()), batch()
    loss = method(whole)["loss"]
    changed = batch()
    changed.tokens.fill_(1)
    torch.testing.assert_close(build("mae", Path())(changed)["loss"], loss)
    embeddings, terms = method.encode(batch())
    assert embeddings == {}
    assert terms.keys() == {"reconstruction_loss"}
