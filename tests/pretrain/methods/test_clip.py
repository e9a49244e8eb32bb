from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from tiny_methods import batch, build


def test_clip__loss_is_open_clips() -> None:
    method, whole = build("clip", Path()), batch()
    tokens = F.pad(whole.tokens, (0, 16 - whole.tokens.shape[1]))
    images = method.model.encode_image(whole.images, normalize=True)
    texts = method.model.encode_text(tokens, normalize=True)
    logits, targets = method.model.logit_scale.exp() * images @ texts.T, torch.arange(8)
    expected = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    torch.testing.assert_close(method(whole)["contrastive_loss"], expected)
