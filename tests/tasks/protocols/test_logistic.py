"""The solver of the linear probe against scikit-learn, from two starts, and the search of C."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression as Oracle

from maskclip_bench.errors import NonFiniteError
from maskclip_bench.progress import no_progress
from maskclip_bench.tasks.protocols.linear_probe import PRESETS, Preset, fit_probe, hold_out
from maskclip_bench.tasks.protocols.logistic import LogisticSolver


def clouds(
    num_samples: int = 240, width: int = 6, num_classes: int = 4
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num_samples) % num_classes
    centres = torch.randn(num_classes, width, generator=generator)
    features = centres[labels] + 1.3 * torch.randn(num_samples, width, generator=generator)
    return features * torch.logspace(-1, 1, width) + 3, labels


@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
def test_fit__equals_scikit_learn(c: float) -> None:
    features, labels = clouds()
    oracle = Oracle(C=c, tol=1e-8, max_iter=5000).fit(features.double().numpy(), labels.numpy())
    found = LogisticSolver(features, labels, 4, tolerance=1e-10).fit(c)
    assert found.converged
    # The penalty leaves nothing undetermined but the mean of the biases.
    bias = found.bias.numpy() - found.bias.numpy().mean()
    np.testing.assert_allclose(found.weight.numpy().T, oracle.coef_, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(
        bias, oracle.intercept_ - oracle.intercept_.mean(), rtol=2e-3, atol=2e-3
    )


def test_fit__a_start_does_not_change_the_answer() -> None:
    features, labels = clouds()
    cold = LogisticSolver(features, labels, 4, tolerance=1e-10).fit(1.0)
    solver = LogisticSolver(features, labels, 4, tolerance=1e-10)
    for c in (1e-4, 1e-2, 30.0):
        solver.fit(c, exact=False)
    warm = solver.fit(1.0)
    torch.testing.assert_close(warm.weight, cold.weight, rtol=1e-3, atol=1e-4)
    again = LogisticSolver(features, labels, 4, tolerance=1e-10, start=cold).fit(1.0)
    assert again.num_iterations <= 4
    torch.testing.assert_close(again.weight, cold.weight, rtol=1e-3, atol=1e-4)


def objective(
    features: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, c: float
) -> float:
    logits = features.double() @ weight.double() + bias.double()
    loss = -logits.log_softmax(dim=1).gather(1, labels[:, None]).mean()
    return float(loss + weight.double().square().sum() / (2 * c * len(features)))


@pytest.mark.parametrize("c", [1.0, 1e3, 1e6])
def test_fit__separable_features_converge_from_two_starts_to_scikit_learns_optimum(
    c: float,
) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 5
    features = torch.randn(5, 32, generator=generator)[labels]
    features = features + 0.4 * torch.randn(300, 32, generator=generator)
    oracle = Oracle(C=c, tol=1e-9, max_iter=20_000)
    oracle.fit(features.double().numpy(), labels.numpy())
    weight, bias = torch.from_numpy(oracle.coef_.T), torch.from_numpy(oracle.intercept_)
    optimum = objective(features, labels, weight, bias, c)
    cold = LogisticSolver(features, labels, 5).fit(c)
    solver = LogisticSolver(features, labels, 5)
    solver.fit(c / 100, exact=False)
    warm = solver.fit(c)
    for found in (cold, warm):
        assert found.converged
        value = objective(features, labels, found.weight, found.bias, c)
        assert value <= optimum * (1 + 1e-4)


def test_fit__one_class_is_solved() -> None:
    features, _ = clouds()
    found = LogisticSolver(features, torch.zeros(240, dtype=torch.int64), 1).fit(1.0)
    assert found.converged
    assert found(features).shape == (240, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_solver__refuses_what_is_not_finite(value: float) -> None:
    features, labels = clouds()
    features[3, 1] = value
    with pytest.raises(NonFiniteError, match="1 of 240 rows of the features"):
        LogisticSolver(features, labels, 4)


def test_fit__constant_and_repeated_features_do_no_harm() -> None:
    features, labels = clouds()
    features = torch.cat([features, features[:, :1], torch.ones(len(features), 1)], dim=1)
    found = LogisticSolver(features, labels, 4).fit(1.0)
    assert torch.isfinite(found(features)).all()


def test_fit__limit_of_steps_is_told() -> None:
    features, labels = clouds()
    found = LogisticSolver(features, labels, 4, max_iterations=1).fit(100.0)
    assert not found.converged


def test_hold_out__takes_a_share_of_every_class() -> None:
    labels = np.repeat([0, 1, 2, 3], [10, 20, 5, 1])
    held_out = hold_out(labels, 0.2, seed=0)
    assert [int(held_out[labels == label].sum()) for label in range(4)] == [2, 4, 1, 0]
    assert np.array_equal(held_out, hold_out(labels, 0.2, seed=0))
    assert not np.array_equal(held_out, hold_out(labels, 0.2, seed=1))
    assert not hold_out(labels, 0.0, seed=0).any()


def test_fit_probe__bisection_finds_the_best_c_of_a_smooth_curve() -> None:
    features, labels = clouds(600)
    held_out = torch.from_numpy(hold_out(labels.numpy(), 0.5, seed=0))
    preset = PRESETS["clip_logistic"]
    everything = Preset(1, "backbone", preset.grid, "all", 0.2)
    _, c = fit_probe(features, labels, held_out, preset, num_classes=4, progress=no_progress)
    _, best = fit_probe(features, labels, held_out, everything, num_classes=4, progress=no_progress)

    def accuracy(value: float) -> float:
        probe = LogisticSolver(features[~held_out], labels[~held_out], 4).fit(value)
        return float((probe(features[held_out]).argmax(1) == labels[held_out]).double().mean())

    assert accuracy(c) >= accuracy(best) - 0.011


def test_presets__grids_are_those_of_the_papers() -> None:
    grid = PRESETS["clip_logistic"].grid
    assert len(grid) == 96
    assert grid[0] == pytest.approx(1e-6)
    assert grid[-1] == pytest.approx(1e6)
    assert len(PRESETS["dinov2_logistic"].grid) == 45
    assert PRESETS["clip_readme_logistic"].grid == (0.316,)
