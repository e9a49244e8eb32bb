from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from maskclip_bench.training.readback import Readback, agreed


def test_agreed__terms_and_flags() -> None:
    terms = {"a_loss": torch.tensor(1.5), "b_loss": torch.tensor(0.25), "loss": torch.tensor(1.75)}
    losses, bad, stop = agreed(terms, stop=False)
    assert {name: float(loss) for name, loss in losses.items()} == {
        "loss": 1.75,
        "a_loss": 1.5,
        "b_loss": 0.25,
    }
    assert (float(bad), float(stop)) == (0, 0)
    assert float(agreed(terms, stop=True)[2]) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_agreed__not_finite(value: float) -> None:
    terms = {"a_loss": torch.tensor(value, requires_grad=True), "loss": torch.tensor(1.0)}
    losses, bad, _ = agreed(terms, stop=False)
    assert float(bad) == 1
    assert not losses["a_loss"].requires_grad


def test_readback__scalars_and_numbers_in_their_order() -> None:
    values = {"a": torch.tensor(1.5), "lr": 0.1, "b": torch.tensor(2.5, dtype=torch.float64)}
    assert Readback(values).wait() == {"a": 1.5, "lr": 0.1, "b": 2.5}
    assert Readback({}).wait() == {}


def test_readback__a_vector_by_its_names() -> None:
    values = {"a": torch.tensor(2**24 + 1), "lr": 0.1}
    found = Readback(values, (["x", "y"], torch.tensor([0.1, math.inf]))).wait()
    assert found == {"a": 2**24 + 1, "lr": 0.1, "x": float(np.float32(0.1)), "y": math.inf}
    assert Readback({"lr": 0.1}, (["x"], torch.tensor([2.0]))).wait() == {"lr": 0.1, "x": 2.0}
    with pytest.raises(ValueError, match="zip"):
        Readback({}, (["x", "y"], torch.tensor([2.0]))).wait()
