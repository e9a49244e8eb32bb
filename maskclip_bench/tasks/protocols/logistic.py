"""Multinomial logistic regression with an L2 penalty, solved to the optimum and warm-started.

The objective is scikit-learn's, divided by C times the number of samples N:

    mean cross-entropy(X W + b, y) + |W|^2 / (2 C N)        (b is not penalised)

It is convex, so what a solver starts from does not change the answer, only the time: of a sequence
of C, each is solved from its nearest neighbour. Features are centred and turned into their
principal axes, and each axis is scaled by what the curvature there must be about,
(variance / num_classes + 1 / (C N)), to the power -1/2; the penalty stays that of the unscaled
weights. L-BFGS then needs tens of steps where it needed hundreds. With a weak penalty it still
needs thousands to the optimum, and where it is stopped before depends on rounding; so fits of a
size that allows it are done by Newton's method (`logistic_newton`).

A fit ends when it is known to be near the optimum. The penalty makes the objective strongly convex
in W, so that it is at most |gradient by W|^2 C N / 2 above its minimum; of the bias, whose
curvature is about the objective itself, |gradient by b|^2 / (2 objective). The sum of the two may
be `TOLERANCE` of the objective. (A limit of the gradient alone says nothing where classes are
separable: there the objective and its gradient both go to 0, long before the optimum.)

N samples, D features, C classes (the penalty's C is `c` in code).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from maskclip_bench.tasks.metrics import check_finite
from maskclip_bench.tasks.protocols.logistic_newton import NewtonProblem

BLOCK = 65_536
"""Samples whose logits are in memory at a time."""

DOUBLE_UP_TO = 200_000_000
"""Products N x D x C up to which an exact fit is done in float64."""

NEWTON_UP_TO = 5_000_000_000
"""Products N x C x D x D for its factors up to which fits are done by Newton's method: with more,
making them takes longer than the steps of L-BFGS."""

TOLERANCE = 1e-8
"""How far above its minimum the objective of an exact fit may be, as a share of it. At 1e-6 single
test images still change their class."""

LBFGS_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""The same for L-BFGS, at least: of the gradients in float32, which are not more exact."""

SEARCH_GAP = 1e-4
"""The same for Newton's fits that only serve to choose C."""

SEARCH_ITERATIONS = 60
"""Limit of L-BFGS's steps in a fit that only serves to choose C."""

SEARCH_TOLERANCE = 3e-4
"""Its largest gradient component that counts as solved."""

FLOAT32_STALL = 1e-9
"""Relative gain of a step below which float32 can tell no difference."""


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """logits = features @ weight + bias.

    Attributes:
        weight: [D, C].
        bias: [C].
        num_iterations: Steps of Newton's method or of L-BFGS that it took.
        converged: Whether the objective is within the tolerance of its minimum; False where the
            limit of steps, or the arithmetic, ended the fit before.
    """

    weight: Tensor
    bias: Tensor
    num_iterations: int
    converged: bool

    def __call__(self, features: Tensor) -> Tensor:
        """[N, D] -> [N, C]."""
        return torch.cat(
            [part.to(self.weight) @ self.weight + self.bias for part in features.split(BLOCK)]
        )


class LogisticSolver:
    """The solver on one training set; starts from the nearest problem that it has solved.

    Args:
        features: [N, D], on the device to compute on.
        labels: int64 [N].
        num_classes: C.
        max_iterations: Limit of steps of an exact fit.
        tolerance: See `TOLERANCE`.
        start: Where the first fit starts, e.g. the answer on a part of the samples.

    Raises:
        NonFiniteError: Features are NaN or infinite.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        num_classes: int,
        *,
        max_iterations: int = 1000,
        tolerance: float = TOLERANCE,
        start: LinearClassifier | None = None,
    ) -> None:
        check_finite(features, "features")
        num_samples, width = features.shape
        small = num_samples * width * num_classes <= DOUBLE_UP_TO
        self._exact_dtype = torch.float64 if small else torch.float32
        products = num_samples * num_classes * (width + 1) ** 2
        self._newton = small and products <= NEWTON_UP_TO
        self._num_classes = num_classes
        self._max_iterations = max_iterations
        self._tolerance = tolerance
        self._labels = labels
        self._mean = features.mean(dim=0, dtype=torch.float64)  # [D]
        covariance = torch.zeros(width, width, dtype=torch.float64, device=features.device)
        for part in features.split(BLOCK):
            centred = part.double() - self._mean
            covariance += centred.T @ centred
        variance, self._axes = torch.linalg.eigh(covariance / num_samples)  # [D], [D, D]
        self._variance = variance.clamp_min(0)
        self._rotated = {
            dtype: torch.cat(
                [
                    ((part.double() - self._mean) @ self._axes).to(dtype)
                    for part in features.split(BLOCK)
                ]
            )
            for dtype in {self._exact_dtype, torch.float64 if self._newton else torch.float32}
        }  # [N, D] each
        self._start = start
        self._solutions: dict[float, tuple[Tensor, Tensor]] = {}

    def fit(self, c: float, *, exact: bool = True) -> LinearClassifier:
        """Solve for one inverse penalty strength.

        Args:
            c: As in scikit-learn: weight of the summed cross-entropy against |W|^2 / 2.
            exact: To the optimum, in float64 where the size allows; else as far as it takes to
                compare values of C (`SEARCH_GAP`, or `SEARCH_ITERATIONS` steps in float32).
        """
        if self._newton:
            return self._fit_by_newton(c, exact=exact)
        dtype = self._exact_dtype if exact else torch.float32
        num_samples, width = self._rotated[dtype].shape
        penalty = 1 / (c * num_samples)
        scale = (self._variance / self._num_classes + penalty).rsqrt()[:, None]  # [D, 1]
        gap = 0.0  # upper bound of (objective - minimum) / objective, at the point `seen`
        seen: NDArray[np.float64] | None = None

        def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            nonlocal gap, seen
            seen = flat.copy()
            scaled = torch.from_numpy(flat).to(self._mean.device).reshape(width + 1, -1)
            weight = scale * scaled[:-1]
            loss, by_weight, by_bias = self._loss_and_gradient(weight, scaled[-1], dtype)
            loss += 0.5 * penalty * float((weight * weight).sum())
            by_weight += penalty * weight
            gap = _relative_gap(loss, by_weight, by_bias, penalty)
            gradient = torch.cat([scale * by_weight, by_bias[None]])
            return loss, gradient.reshape(-1).cpu().numpy()

        weight, bias = self._nearest(c)
        start = torch.cat([weight / scale, bias[None]]).reshape(-1).cpu().numpy()
        tolerance = max(self._tolerance, LBFGS_TOLERANCE[dtype])
        found, num_iterations = self._minimize(
            objective, start, lambda: gap <= tolerance, exact=exact, dtype=dtype
        )
        if seen is None or not np.array_equal(seen, found):
            objective(found)  # the gap there
        solution = torch.from_numpy(found).to(self._mean.device).reshape(width + 1, -1)
        return self._solved(
            c, scale * solution[:-1], solution[-1], num_iterations, converged=gap <= tolerance
        )

    def _fit_by_newton(self, c: float, *, exact: bool) -> LinearClassifier:
        features = self._rotated[torch.float64]
        penalty = 1 / (c * len(features))
        tolerance = self._tolerance if exact else max(self._tolerance, SEARCH_GAP)
        gap = 0.0

        def solved(objective: float, gradient: Tensor) -> bool:
            nonlocal gap
            gap = _relative_gap(objective, gradient[:-1], gradient[-1], penalty)
            return gap <= tolerance

        problem = NewtonProblem(features, self._labels, self._num_classes, penalty)
        weight, bias = self._nearest(c)
        found, steps = problem.solve(
            torch.cat([weight, bias[None]]), solved, max_steps=self._max_iterations
        )
        return self._solved(c, found[:-1], found[-1], steps, converged=gap <= tolerance)

    def _solved(
        self, c: float, rotated: Tensor, bias: Tensor, num_iterations: int, *, converged: bool
    ) -> LinearClassifier:
        """Note a solution to start from; back from the principal axes."""
        self._solutions[c] = (rotated, bias)
        weight = self._axes @ rotated
        return LinearClassifier(
            weight=weight.float(),
            bias=(bias - self._mean @ weight).float(),
            num_iterations=num_iterations,
            converged=converged,
        )

    def _minimize(
        self,
        objective: Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]],
        start: NDArray[np.float64],
        solved: Callable[[], bool],
        *,
        exact: bool,
        dtype: torch.dtype,
    ) -> tuple[NDArray[np.float64], int]:
        """L-BFGS until `solved` -> the point, and the steps it took."""

        def stop(intermediate_result: OptimizeResult) -> None:
            if exact and solved():
                raise StopIteration

        if exact:
            objective(start)
            if solved():
                return start, 0
        limit = self._max_iterations if exact else SEARCH_ITERATIONS
        found = minimize(
            objective,
            start,
            jac=True,
            method="L-BFGS-B",
            callback=stop,
            options={
                "maxiter": limit,
                "maxfun": 2 * limit,
                "maxcor": 20,
                "gtol": 0.0 if exact else SEARCH_TOLERANCE,
                "ftol": 0.0 if dtype == torch.float64 else FLOAT32_STALL,
            },
        )
        return found.x, int(found.nit)

    def _nearest(self, c: float) -> tuple[Tensor, Tensor]:
        """Weight and bias of the solved problem whose C is nearest, zeros if there is none."""
        if self._start is not None and not self._solutions:
            weight = self._start.weight.double().to(self._mean.device)
            return self._axes.T @ weight, self._start.bias.double().to(weight) + self._mean @ weight
        if self._solutions:
            return self._solutions[min(self._solutions, key=lambda other: abs(log(other / c)))]
        width = len(self._variance)
        weight = torch.zeros(width, self._num_classes, dtype=torch.float64)
        return weight.to(self._mean.device), weight.new_zeros(self._num_classes).to(
            self._mean.device
        )

    def _loss_and_gradient(
        self, weight: Tensor, bias: Tensor, dtype: torch.dtype
    ) -> tuple[float, Tensor, Tensor]:
        """Mean cross-entropy and its gradients [D, C] and [C], a block of samples at a time."""
        rotated = self._rotated[dtype]
        num_samples = len(rotated)
        typed_weight, typed_bias = weight.to(dtype), bias.to(dtype)
        loss, by_weight, by_bias = 0.0, torch.zeros_like(weight), torch.zeros_like(bias)
        for start in range(0, num_samples, BLOCK):
            features = rotated[start : start + BLOCK]  # [B, D]
            labels = self._labels[start : start + BLOCK, None]  # [B, 1]
            log_probabilities = (features @ typed_weight + typed_bias).log_softmax(dim=1)
            loss -= float(log_probabilities.gather(1, labels).double().sum())
            error = log_probabilities.exp_()  # [B, C]
            error.scatter_add_(1, labels, -torch.ones_like(labels, dtype=error.dtype))
            by_weight += (features.T @ error).double()
            by_bias += error.sum(dim=0).double()
        return loss / num_samples, by_weight / num_samples, by_bias / num_samples


def _relative_gap(loss: float, by_weight: Tensor, by_bias: Tensor, penalty: float) -> float:
    """Upper bound of (objective - minimum) / objective; see the top of this file."""
    if loss <= 0:
        return 0.0
    above = float(by_weight.square().sum()) / (2 * penalty)
    above += float(by_bias.square().sum()) / (2 * loss)
    return above / loss
