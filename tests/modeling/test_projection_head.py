"""SimCLR's head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from maskclip_bench.modeling.projection_head import GlobalBatchNorm, SimCLRHead


def test_simclr_head__is_slip_in_one_process() -> None:
    torch.manual_seed(0)
    head = SimCLRHead(6, 16, 4)
    layers = [type(layer) for layer in head.layers]
    assert layers == [
        nn.Linear, GlobalBatchNorm, nn.ReLU, nn.Linear, GlobalBatchNorm, nn.ReLU, nn.Linear,
    ]  # fmt: skip
    plain = nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.BatchNorm1d(16),
        nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip
    plain.load_state_dict(head.layers.state_dict())
    pooled = torch.randn(5, 6)
    torch.testing.assert_close(head(pooled), F.normalize(plain(pooled), dim=-1))
