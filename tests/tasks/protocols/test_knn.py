"""kNN: votes by hand and by a naive loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskclip_bench.errors import NonFiniteError
from maskclip_bench.tasks.protocols.knn import is_narrow, vote
from maskclip_bench.unit_vectors import unit_vectors
from tests.tasks.conftest import (
    ColourEncoder,
    MakeContext,
    run,
    squares_task,
)


def test_vote__by_hand() -> None:
    bank = F.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), dim=1)
    test = torch.tensor([[1.0, 0.0]])
    labels = torch.tensor([0, 1, 1])
    scores = vote(test, bank, labels, num_classes=3, num_neighbors=(1, 3), temperature=0.07)
    assert scores[1][0].tolist() == pytest.approx([np.exp(1 / 0.07), 0, 0], rel=1e-5)
    near = float(bank[1, 0])
    expected = [np.exp(1 / 0.07), np.exp(near / 0.07) + 1.0, 0.0]
    assert scores[3][0].tolist() == pytest.approx(expected, rel=1e-4)


def test_vote__equals_a_naive_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = F.normalize(torch.randn(50, 4, generator=generator), dim=1)
    test = F.normalize(torch.randn(20, 4, generator=generator), dim=1)
    labels = torch.randint(0, 5, (50,), generator=generator)
    fast = vote(test, bank, labels, num_classes=5, num_neighbors=(7,))[7]
    for row, query in enumerate(test):
        similarity = bank @ query
        votes = torch.zeros(5)
        for index in similarity.argsort(descending=True)[:7]:
            votes[labels[index]] += (similarity[index] / 0.07).exp()
        torch.testing.assert_close(fast[row], votes, rtol=1e-4, atol=1e-2)


def test_knn__reports_all_k_that_the_bank_allows(make_context: MakeContext) -> None:
    found = run(make_context("knn", squares_task(), ColourEncoder()), "knn")
    assert {name for name in found.metrics if "_k" in name} == {
        "top1_accuracy_k10",
        "top1_accuracy_k48",
    }
    assert found.details["num_neighbors"] == 20


def test_vote__equal_neighbours_share_the_last_positions() -> None:
    """Six equal features in the bank, k of 4: their order in the bank must not decide."""
    bank = F.normalize(torch.ones(6, 3), dim=1)
    labels = torch.tensor([0, 0, 0, 0, 1, 2])
    for order in (torch.arange(6), torch.arange(6).flip(0)):
        scores = vote(
            bank[:2], bank, labels[order], num_classes=4, num_neighbors=(4, 6), temperature=1.0
        )
        weight = float(np.exp(1.0))
        expected = [weight * 4 * 4 / 6, weight * 4 / 6, weight * 4 / 6, 0.0]
        assert scores[4][0].tolist() == pytest.approx(expected)
        assert scores[6][0].tolist() == pytest.approx([4 * weight, weight, weight, 0.0])


def test_vote__refuses_what_is_not_finite() -> None:
    bank = torch.eye(3)
    with pytest.raises(NonFiniteError, match="1 of 1 rows"):
        vote(bank[:1] * torch.nan, bank, torch.arange(3), num_classes=3, num_neighbors=(1,))


class NarrowEncoder(ColourEncoder):
    """Features of a narrow cone: the same number is added to each, 10,000 times their spread."""

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward_features(images) + 1e4


def test_knn__of_a_narrow_cone(make_context: MakeContext) -> None:
    found = run(make_context("knn", squares_task(), NarrowEncoder()), "knn")
    assert found.metrics["top1_accuracy"].value > 0.9


def test_is_narrow() -> None:
    vectors = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    assert not is_narrow(unit_vectors(vectors + 10))
    assert is_narrow(unit_vectors(vectors + 1000))
    assert is_narrow(unit_vectors(torch.ones(3, 8)))
