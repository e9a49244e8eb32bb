from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from maskclip_bench.data.batch import Batch
from maskclip_bench.training.nonfinite import describe, not_finite, shortened, value_range


class Encoder(nn.Module):
    """Pools images and tokens through a layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.text = nn.Linear(1, 4)

    def encode(self, batch: Batch) -> Mapping[str, Tensor]:
        return {
            "image_features": self.image(batch.images.mean((2, 3))),
            "text_features": self.text(batch.tokens.float().mean(1, keepdim=True)),
        }


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder()


def batches(value: float = 1.0) -> list[Batch]:
    tokens = torch.tensor([[5, 9], [7, 8]])
    return [
        Batch(torch.full((2, 3, 32, 32), value), tokens, (), torch.Generator()),
        Batch(torch.full((2, 3, 32, 32), -3.0), tokens, (), torch.Generator()),
    ]


def told(encoder: Encoder, value: float = 1.0) -> str:
    return describe(
        encoder,
        batches(value),
        encode=lambda batch: encoder.encode(batch),
        autocast=contextlib.nullcontext,
        also={"logit_scale": torch.tensor(2.6593)},
    )


def test_describe__ranges_of_all_micro_batches(encoder: Encoder) -> None:
    text = told(encoder)
    assert text.startswith("images -3..1, tokens 5..9, image_features -")
    assert "text_features -" in text
    assert "logit_scale 2.6593..2.6593." in text
    assert text.endswith("All weights are finite.")


@pytest.mark.parametrize(
    ("poisoned", "first"), [("image.0.weight", "image.0"), ("text.bias", "text")]
)
def test_describe__where_it_began(encoder: Encoder, poisoned: str, first: str) -> None:
    with torch.no_grad():
        encoder.get_parameter(poisoned).fill_(math.nan)
    text = told(encoder)
    assert f"Weights not finite: {poisoned}." in text
    assert f"The first output that is not finite is that of {first}." in text
    assert not any(module._forward_hooks for module in encoder.modules())


def test_describe__inputs_that_are_not_finite(encoder: Encoder) -> None:
    text = told(encoder, math.inf)
    assert "images -3..-3 (6144 of 12288 not finite)" in text
    assert "is that of image.0." in text


def test_describe__a_step_that_fails_again(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(batch: Batch) -> None:
        raise RuntimeError("out of memory\nwith details")

    monkeypatch.setattr(encoder, "encode", fail)
    text = told(encoder)
    assert text.startswith("images 1..1, tokens 5..")
    assert text.endswith("The step cannot be repeated: out of memory.")


def test_not_finite() -> None:
    tensors = {"a": torch.zeros(2), "b": torch.tensor([0.0, math.inf])}
    assert not_finite(tensors.items()) == ["b"]


def test_shortened() -> None:
    assert shortened(list("abc")) == "a, b, c"
    assert shortened(list("abcdefg")) == "a, b, c, d, e and 2 more"


def test_value_range__none_finite() -> None:
    assert value_range([torch.full((2,), math.nan)]) == "none finite (2 of 2 not finite)"
