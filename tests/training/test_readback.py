from __future__ import annotations

import math

import pytest
import torch

from maskclip_bench.training.readback import Readback


def test_readback__terms() -> None:
    terms = {"a_loss": torch.tensor(1.5), "b_loss": torch.tensor(0.25), "loss": torch.tensor(1.75)}
    readback = Readback(terms, stop=False)
    assert readback.wait()
    assert readback.terms == {"loss": 1.75, "a_loss": 1.5, "b_loss": 0.25}
    assert not readback.stop


def test_readback__stop() -> None:
    readback = Readback({"loss": torch.tensor(1.0)}, stop=True)
    assert readback.wait()
    assert readback.stop


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (["a_loss"], "a_loss is"),
        (["a_loss", "b_loss"], "a_loss and b_loss are"),
        ([], "the gradient is"),
    ],
)
def test_readback__not_finite(bad: list[str], text: str) -> None:
    terms = {
        name: torch.tensor(math.nan if name in bad else 1.0, requires_grad=True)
        for name in ("a_loss", "b_loss")
    }
    readback = Readback({**terms, "loss": torch.stack(list(terms.values())).sum()}, stop=False)
    assert readback.wait() == (not bad)
    assert readback.not_finite() == text
