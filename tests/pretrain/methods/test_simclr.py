from __future__ import annotations

from pathlib import Path

import torch
from tiny_methods import batch, build


def test_simclr__compares_the_two_views_alone() -> None:
    method, whole = build("simclr", Path()), batch()
    terms = method(whole)
    embeddings, _ = method.encode(whole)
    torch.testing.assert_close(terms["ssl_loss"], method.ssl_head.loss(embeddings))
    other = batch()
    other.images.zero_()
    torch.testing.assert_close(build("simclr", Path())(other)["loss"], terms["loss"])
