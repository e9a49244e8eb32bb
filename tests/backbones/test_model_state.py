"""Hashes of a model's tensors."""

from __future__ import annotations

import torch

from maskclip_bench.backbones.model_state import state_fingerprint


def test_state_fingerprint__sees_names_types_and_values() -> None:
    layer = torch.nn.Linear(2, 2)
    prints = {state_fingerprint(layer), state_fingerprint(layer.to(torch.bfloat16))}
    layer = layer.float()
    with torch.no_grad():
        layer.bias[0] += 1
    prints |= {state_fingerprint(layer), state_fingerprint(torch.nn.Sequential(layer))}
    assert len(prints) == 4
