"""Few-shot: draws, and the closed form against refitting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from maskclip_bench.errors import DataError, NonFiniteError
from maskclip_bench.tasks.protocols.few_shot import draw_shots, fit_ridge
from tests.tasks.conftest import (
    ColourEncoder,
    MakeContext,
    run,
    squares_task,
)


def test_few_shot__draws_are_of_every_class_and_deterministic() -> None:
    labels = np.repeat([0, 1, 2], [5, 9, 7])
    chosen = draw_shots(labels, 3, seed=1)
    assert np.bincount(labels[chosen]).tolist() == [3, 3, 3]
    assert len(set(chosen.tolist())) == 9
    assert np.array_equal(chosen, draw_shots(labels, 3, seed=1))
    assert not np.array_equal(chosen, draw_shots(labels, 3, seed=2))


def test_few_shot__leave_one_out_equals_leaving_one_out() -> None:
    """The chosen penalty is the one that naive refitting without each image chooses."""
    from maskclip_bench.tasks.protocols import few_shot

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 4, generator=generator).double()
    labels = torch.arange(12) % 3
    targets = 2 * F.one_hot(labels, 3).double() - 1

    def ridge(
        x: torch.Tensor, y: torch.Tensor, penalty: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        centred = x - x.mean(0)
        gram = centred.T @ centred + penalty * torch.eye(4, dtype=torch.float64)
        weight = torch.linalg.solve(gram, centred.T @ (y - y.mean(0)))
        return weight, y.mean(0) - x.mean(0) @ weight

    variance = float((features - features.mean(0)).pow(2).sum())
    accuracy = []
    for relative in few_shot.PENALTIES:
        hits = 0
        for out in range(12):
            keep = torch.arange(12) != out
            weight, bias = ridge(features[keep], targets[keep], relative * variance)
            hits += int((features[out] @ weight + bias).argmax() == labels[out])
        accuracy.append(hits)
    assert len(set(accuracy)) > 1
    best = few_shot.PENALTIES[int(np.argmax(accuracy))] * variance
    weight, bias = fit_ridge(features.float(), labels, num_classes=3)
    expected_weight, expected_bias = ridge(features.float().double(), targets, best)
    torch.testing.assert_close(weight, expected_weight)
    torch.testing.assert_close(bias, expected_bias)


def test_few_shot__too_few_images_a_class(make_context: MakeContext) -> None:
    task = squares_task(protocols={"few_shot": {"shots": 10}})
    with pytest.raises(DataError, match="wants 10 train images of every class; the smallest"):
        run(make_context("few_shot", task, ColourEncoder()), "few_shot")


def test_fit_ridge__without_variance_all_classes_are_equal() -> None:
    features = torch.linspace(0.1, 3, 5).expand(8, -1)
    weight, bias = fit_ridge(features, torch.arange(8) % 4, num_classes=4)
    assert not weight.any()
    assert bias.unique().numel() == 1


def test_fit_ridge__refuses_what_is_not_finite() -> None:
    features = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    features[2, 3] = torch.inf
    with pytest.raises(NonFiniteError, match="1 of 8 rows of the features"):
        fit_ridge(features, torch.arange(8) % 4, num_classes=4)
