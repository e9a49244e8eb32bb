"""Newton's method against autograd's second derivatives, and where L-BFGS gives up."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression as Oracle
from torch import Tensor

from maskclip_bench.tasks.protocols import logistic
from maskclip_bench.tasks.protocols.logistic import LogisticSolver
from maskclip_bench.tasks.protocols.logistic_newton import NewtonProblem

SAMPLES, WIDTH, CLASSES, PENALTY = 30, 4, 3, 0.02


def problem() -> tuple[NewtonProblem, Tensor, Tensor, Tensor]:
    """The problem, its features and labels, and a point [D + 1, C]."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(SAMPLES, WIDTH, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
    at = torch.randn(WIDTH + 1, CLASSES, generator=generator, dtype=torch.float64)
    return NewtonProblem(features, labels, CLASSES, PENALTY), features, labels, at


def plain(features: Tensor, labels: Tensor, at: Tensor) -> Tensor:
    loss = F.cross_entropy(features @ at[:-1] + at[-1], labels)
    return loss + PENALTY * at[:-1].square().sum() / 2


def test_point__value_and_gradient_are_those_of_autograd() -> None:
    newton, features, labels, at = problem()
    point = newton._point(at)
    free = at.clone().requires_grad_()
    value = plain(features, labels, free)
    value.backward()
    assert point.value == pytest.approx(float(value.detach()))
    torch.testing.assert_close(point.gradient, free.grad)


def test_product_and_factors__are_those_of_the_whole_second_derivative() -> None:
    newton, features, labels, at = problem()
    whole = torch.autograd.functional.hessian(lambda x: plain(features, labels, x), at)
    point = newton._point(at)
    direction = torch.randn_like(at)
    torch.testing.assert_close(
        newton._product(point.shares, direction), torch.einsum("icjd,jd->ic", whole, direction)
    )
    factors = newton._factors(point.shares)
    for number in range(CLASSES):
        block = whole[:, number, :, number].clone()
        block[-1, -1] += PENALTY  # what keeps the bias's part regular
        torch.testing.assert_close(factors[number] @ factors[number].T, block)


def skewed(num_samples: int = 900, width: int = 24, classes: int = 15) -> tuple[Tensor, Tensor]:
    """Overlapping classes on features whose variances differ by six orders of magnitude."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(num_samples) % classes
    features = torch.randn(classes, width, generator=generator)[labels]
    features = features + 1.5 * torch.randn(num_samples, width, generator=generator)
    return features * torch.logspace(0, -3, width), labels


@pytest.mark.parametrize("c", [1e2, 1e5])
def test_fit__reaches_the_optimum_where_lbfgs_gives_up(
    c: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = skewed()
    found = LogisticSolver(features, labels, 15).fit(c)
    assert found.converged
    assert found.num_iterations < 60
    monkeypatch.setattr(logistic, "NEWTON_UP_TO", 0)
    by_lbfgs = LogisticSolver(features, labels, 15, max_iterations=100).fit(c)
    assert not by_lbfgs.converged
    long = LogisticSolver(features, labels, 15, max_iterations=20_000).fit(c)
    assert long.converged
    difference = (found(features).softmax(1) - long(features).softmax(1)).abs().max()
    assert float(difference) < 5e-3


def test_fit__equals_scikit_learns_newton_on_skewed_features() -> None:
    features, labels = skewed()
    oracle = Oracle(C=100.0, tol=1e-10, max_iter=500, solver="newton-cholesky")
    oracle.fit(features.double().numpy(), labels.numpy())
    found = LogisticSolver(features, labels, 15, tolerance=1e-12).fit(100.0)
    expected = torch.from_numpy(oracle.predict_proba(features.double().numpy()))
    torch.testing.assert_close(found(features).double().softmax(1), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("c", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(
    ("num_samples", "width", "classes"),
    [(1, 3, 2), (2, 5, 2), (6, 40, 3), (40, 1, 2), (30, 4, 7)],
)
def test_fit__few_samples_wide_features_absent_classes(
    num_samples: int, width: int, classes: int, c: float
) -> None:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(num_samples, width, generator=generator)
    labels = torch.arange(num_samples) % min(classes, 5)
    found = LogisticSolver(features, labels, classes).fit(c)
    assert found.converged
    assert torch.isfinite(found(features)).all()


def test_fit__equal_features_give_the_shares_of_the_classes() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    found = LogisticSolver(torch.ones(4, 3), labels, 2).fit(1.0)
    assert found.converged
    shares = found(torch.ones(1, 3)).softmax(1)
    torch.testing.assert_close(shares, torch.tensor([[0.75, 0.25]]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e3])
def test_fit__more_axes_than_samples_with_almost_no_penalty(spread: float) -> None:
    generator = torch.Generator().manual_seed(3)
    features = spread * torch.randn(20, 60, generator=generator)
    labels = torch.arange(20) % 4
    found = LogisticSolver(features, labels, 4).fit(1e6)
    assert torch.isfinite(found.weight).all()
    assert (found(features).argmax(1) == labels).all()


def test_factors__of_a_block_that_only_rounding_makes_indefinite() -> None:
    features = 1e6 * torch.ones(8, 5, dtype=torch.float64)
    newton = NewtonProblem(features, torch.zeros(8, dtype=torch.int64), 2, 1e-12)
    shares = torch.full((8, 2), 0.5, dtype=torch.float64)
    assert torch.isfinite(newton._factors(shares)).all()


def test_fit__almost_no_penalty_takes_no_thousands_of_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The direction that all classes have in common would take them."""
    features, labels = skewed()
    made: list[int] = []
    product = NewtonProblem._product
    monkeypatch.setattr(NewtonProblem, "_product", lambda *given: made.append(1) or product(*given))
    found = LogisticSolver(features, labels, 15).fit(1e6)
    assert found.converged
    assert len(made) < 1500
    common = found.weight.mean(dim=1).abs().max() / found.weight.abs().max()
    assert float(common) < 1e-6


@pytest.mark.parametrize("c", [1e-3, 1.0, 1e4])
def test_fit__a_search_is_near_the_optimum_and_does_not_depend_on_rounding(c: float) -> None:
    features, labels = skewed()
    exact = LogisticSolver(features, labels, 15).fit(c)
    near = LogisticSolver(features, labels, 15).fit(c, exact=False)
    assert near.converged
    shifted = LogisticSolver(features.double().mul(1 + 1e-13).float(), labels, 15)
    again = shifted.fit(c, exact=False)
    difference = (near(features).softmax(1) - exact(features).softmax(1)).abs().max()
    assert float(difference) < 0.02
    torch.testing.assert_close(near(features), again(features), rtol=1e-4, atol=1e-4)


def test_solve__ends_where_only_rounding_is_left() -> None:
    newton, _, _, at = problem()
    found, steps = newton.solve(at, lambda value, gradient: False, max_steps=1000)
    assert 3 < steps < 100
    # How little is left depends on the processor: below 1e-12 on one, 2e-11 on another.
    assert float(newton._point(found).gradient.norm()) < 1e-10


def test_fit__what_is_too_large_for_newton_is_solved_by_lbfgs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, labels = skewed()
    expected = LogisticSolver(features, labels, 15).fit(10.0)
    monkeypatch.setattr(logistic, "NEWTON_UP_TO", 900 * 15 * 25**2 - 1)
    monkeypatch.setattr(NewtonProblem, "solve", None)
    solver = LogisticSolver(features, labels, 15)
    searched = solver.fit(10.0, exact=False)
    assert searched.num_iterations <= logistic.SEARCH_ITERATIONS
    found = solver.fit(10.0)
    assert found.converged
    torch.testing.assert_close(
        found(features).softmax(1), expected(features).softmax(1), rtol=1e-2, atol=1e-3
    )
