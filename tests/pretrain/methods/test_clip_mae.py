from __future__ import annotations

from pathlib import Path

import torch
from tiny_methods import batch, build

from maskclip_bench.modeling.masking import random_mask
from maskclip_bench.modeling.towers import image_tokens


def test_clip_mae__losses_equal_a_plain_transcription() -> None:
    method, whole = build("clip_mae", Path()), batch()
    terms = method(whole)
    mask = random_mask(8, 36, 0.75, torch.Generator().manual_seed(0))
    predicted = method.decoder(
        image_tokens(method.model.visual.trunk, whole.images, mask), mask, num_prefix=1
    )
    patches = whole.images.unfold(2, 8, 8).unfold(3, 8, 8)  # [B, 3, 6, 6, 8, 8]
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(8, 36, 192)
    target = patches[mask.hidden].view(8, 27, 192)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    expected = 0.05 * (predicted - target).square().mean()
    torch.testing.assert_close(terms["reconstruction_loss"], expected)


def test_clip_mae__contrastive_weight_is_on_the_scale_of_maskclips() -> None:
    twice, once = build("clip_mae", Path()), build("clip_mae", Path(), contrastive_weight=1.0)
    plain = build("clip", Path())
    plain.model.load_state_dict(once.model.state_dict())
    loss = plain(batch())["contrastive_loss"]
    torch.testing.assert_close(once(batch())["contrastive_loss"], loss)
    torch.testing.assert_close(twice(batch())["contrastive_loss"], 2 * loss)
