"""Tests of the choice of attention kernels."""

import pytest
import torch
from torch import Tensor

from maskclip_bench.modeling import attention
from maskclip_bench.modeling.attention import attend


def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    scores = query.double() @ key.double().transpose(-2, -1) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ value.double()


@pytest.mark.parametrize("max_plain_keys", [0, 256])
@pytest.mark.parametrize("masking", ["none", "bool", "added", "causal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attend__equals_plain(
    dtype: torch.dtype, masking: str, max_plain_keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "MAX_PLAIN_KEYS", max_plain_keys)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, 3, 5, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3)
    )
    allowed, mask = None, None
    if masking == "causal":
        allowed = torch.ones(5, 5, dtype=torch.bool).tril()
    elif masking != "none":
        allowed = torch.tensor([[True, True, False, True, False]] * 2).view(2, 1, 1, 5)
        mask = allowed.expand(2, 1, 5, 5)
        if masking == "added":
            mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, float("-inf"))
    mixed = attend(query, key, value, mask=mask, is_causal=masking == "causal")
    expected = plain(query, key, value, allowed)
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0, "atol": 2e-2}
    )
    torch.testing.assert_close(mixed.double(), expected, **tolerance)
    direction = torch.randn(mixed.shape, generator=generator, dtype=torch.float64)
    found = torch.autograd.grad((mixed.double() * direction).sum(), (query, key, value))
    wanted = torch.autograd.grad((expected * direction).sum(), (query, key, value))
    tolerance = (
        {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0, "atol": 6e-2}
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def test_attend__drops_weights() -> None:
    torch.manual_seed(0)
    query = key = torch.zeros(1, 1, 100, 4, dtype=torch.bfloat16)
    value = torch.ones(1, 1, 100, 4, dtype=torch.bfloat16)
    mixed = attend(query, key, value, dropout=0.5).float()
    assert mixed.mean() == pytest.approx(1.0, abs=0.05)  # kept weights are scaled up
    assert mixed.std() > 0.05
