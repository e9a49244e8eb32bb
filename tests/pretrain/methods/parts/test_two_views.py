"""Two views of an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tiny_methods import MODEL, batch

from maskclip_bench.modeling import build_model
from maskclip_bench.pretrain.methods.parts.two_views import TwoViews, TwoViewsConfig


def test_two_views__loss_is_simclrs() -> None:
    torch.manual_seed(0)
    trunk = build_model(MODEL).visual.trunk
    config = TwoViewsConfig(ssl_hidden_dim=8, ssl_output_dim=4, ssl_temperature=0.5)
    both, whole = TwoViews(trunk, config).train(), batch()
    embeddings = both.see(trunk, whole)
    for name, view in zip(("first_view", "second_view"), whole.ssl_views, strict=True):
        torch.testing.assert_close(embeddings[name], trunk(view), rtol=1e-5, atol=1e-5)
    views = torch.cat([both(embeddings["first_view"]), both(embeddings["second_view"])])
    logits = (views @ views.T / 0.5).fill_diagonal_(float("-inf"))
    expected = F.cross_entropy(logits, torch.arange(16).roll(8))
    torch.testing.assert_close(both.loss(embeddings), expected)
