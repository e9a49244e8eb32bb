"""Newton's method for multinomial logistic regression with an L2 penalty (see `logistic`).

The objective at weights W [D, C] and biases b [C], with P = softmax(X W + b):

    f = mean cross-entropy + penalty |W|^2 / 2

Its second derivative in a direction V (of weights and biases; U = X V_W + V_b, [N, C]) is

    H V = X^T (P * (U - sum over classes of P * U)) / N + penalty V_W        (likewise by b)

A step solves H V = -gradient by conjugate gradients, to a tenth. What that takes depends on how
differently f curves along the classes and axes of features, and with a weak penalty it is thousands
of products; so they are preconditioned with the blocks of H that belong to one class each,

    H_c = X^T diag(P_c (1 - P_c)) X / N + penalty        [D + 1, D + 1], with the bias

whose Cholesky factors are kept as long as they serve: tens of products a step are left. What all
classes have in common changes no P, and at the optimum it is 0; it is kept out of all steps, since
there H is the penalty alone, and its blocks know nothing of that.

N samples, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

RESIDUAL = 0.1
"""Of the linear system of a step, against its right side, in the norm of the preconditioner."""

MAX_PRODUCTS = 300
"""Products with H in a step."""

FACTOR_AGAIN = 25
"""Products of a step after which the next one has new factors."""

SUFFICIENT = 1e-4
"""Share of the linear gain that a step must bring (Armijo)."""

SMALLEST_STEP = 2.0**-30

ROUNDING = 1e-14
"""Share of a block's largest value that is added to a diagonal that has no Cholesky factor."""

MAX_ADDED = 12
"""Times that it is added, ten times as much each time."""

ROWS_AT_A_TIME = 4_096


@dataclass(frozen=True, eq=False)
class _Point:
    """Weights and what the objective is there.

    Attributes:
        at: [D + 1, C]; the last row are the biases.
        value: f.
        shares: P [N, C].
        gradient: [D + 1, C].
    """

    at: Tensor
    value: float
    shares: Tensor
    gradient: Tensor


class NewtonProblem:
    """The objective on one training set with one penalty.

    Args:
        features: float64 [N, D].
        labels: int64 [N].
        num_classes: C.
        penalty: Of |W|^2 / 2, above 0.
    """

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int, penalty: float) -> None:
        self.features = features
        self.penalty = penalty
        self._labels = labels[:, None]
        self._num_classes = num_classes

    def solve(
        self, start: Tensor, solved: Callable[[float, Tensor], bool], *, max_steps: int
    ) -> tuple[Tensor, int]:
        """Newton steps until `solved`, or until no step gains anything.

        Args:
            start: [D + 1, C], the last row are the biases.
            solved: Asked with f and its gradient [D + 1, C].
            max_steps: Limit of steps.

        Returns:
            The point, as `start`, and the steps it took.
        """
        point, steps = self._point(_centred(start)), 0
        factors: Tensor | None = None
        while not solved(point.value, point.gradient) and steps < max_steps:
            if factors is None:
                factors = self._factors(point.shares)
            direction, products = self._direction(point, factors)
            moved = self._search(point, direction)
            if moved is None or _no_better(moved, point):
                break
            point, steps = moved, steps + 1
            if products > FACTOR_AGAIN:
                factors = None
        return point.at, steps

    def _point(self, at: Tensor) -> _Point:
        logits = self.features @ at[:-1] + at[-1]
        log_shares = logits.log_softmax(dim=1)
        loss = -float(log_shares.gather(1, self._labels).mean())
        shares = log_shares.exp_()
        value = loss + 0.5 * self.penalty * float(at[:-1].square().sum())
        error = shares.scatter_add(1, self._labels, shares.new_full(self._labels.shape, -1.0))
        return _Point(at, value, shares, self._by_weights(error, at))

    def _by_weights(self, by_logits: Tensor, at: Tensor) -> Tensor:
        """Of a mean over samples to weights and biases, with the penalty's part."""
        num_samples = len(by_logits)
        by_weight = self.features.T @ by_logits / num_samples + self.penalty * at[:-1]
        return torch.cat([by_weight, by_logits.mean(dim=0, keepdim=True)])

    def _product(self, shares: Tensor, direction: Tensor) -> Tensor:
        """H V."""
        change = self.features @ direction[:-1] + direction[-1]  # U
        mean = (shares * change).sum(dim=1, keepdim=True)
        return self._by_weights(shares * (change - mean), direction)

    def _factors(self, shares: Tensor) -> Tensor:
        """Cholesky factors of the blocks H_c, [C, D + 1, D + 1]."""
        num_samples, width = self.features.shape
        blocks = shares.new_zeros(self._num_classes, width + 1, width + 1)
        for start in range(0, num_samples, ROWS_AT_A_TIME):
            rows = slice(start, start + ROWS_AT_A_TIME)
            features = self.features[rows]
            padded = torch.cat([features, features.new_ones(len(features), 1)], dim=1)
            curvature = shares[rows] * (1 - shares[rows])
            for block, weights in zip(blocks, curvature.T, strict=True):
                block.addmm_(padded.T, padded * weights[:, None])
        blocks /= num_samples
        # The bias has no penalty: where P is 0 or 1 everywhere its block would be singular.
        diagonal = blocks.diagonal(dim1=1, dim2=2)
        diagonal.add_(self.penalty)
        factors, failed = torch.linalg.cholesky_ex(blocks)
        more = ROUNDING * diagonal.amax(dim=1, keepdim=True)
        for _ in range(MAX_ADDED):  # fewer samples than axes: rounding is more than the penalty
            if not bool(failed.any()):
                break
            diagonal.add_(more)
            factors, failed = torch.linalg.cholesky_ex(blocks)
            more = 10 * more
        return factors

    def _direction(self, point: _Point, factors: Tensor) -> tuple[Tensor, int]:
        """Conjugate gradients: V with H V = -gradient, about; and the products it took."""

        def precondition(residual: Tensor) -> Tensor:
            return _centred(torch.cholesky_solve(residual.T[:, :, None], factors)[:, :, 0].T)

        residual = -point.gradient
        solution = torch.zeros_like(residual)
        preconditioned = precondition(residual)
        search = preconditioned
        size = first = float((residual * preconditioned).sum())
        for number in range(1, MAX_PRODUCTS + 1):
            product = self._product(point.shares, search)
            curvature = float((search * product).sum())
            if not curvature > 0:  # rounding: no more can be gained
                return solution if number > 1 else search, number
            length = size / curvature
            solution = solution + length * search
            residual = residual - length * product
            preconditioned = precondition(residual)
            before, size = size, float((residual * preconditioned).sum())
            if size <= RESIDUAL**2 * first:
                break
            search = preconditioned + (size / before) * search
        return solution, number

    def _search(self, point: _Point, direction: Tensor) -> _Point | None:
        """The first of the steps 1, 1/2, 1/4... that gains enough; None if none does."""
        slope = float((point.gradient * direction).sum())
        step = 1.0
        while slope < 0 and step >= SMALLEST_STEP:
            moved = self._point(point.at + step * direction)
            if moved.value <= point.value + SUFFICIENT * step * slope:
                return moved
            step /= 2
        return None


def _no_better(moved: _Point, point: _Point) -> bool:
    """Whether a step changed nothing but rounding."""
    flat = moved.value >= point.value
    return flat and float(moved.gradient.norm()) >= float(point.gradient.norm())


def _centred(values: Tensor) -> Tensor:
    """Without what all classes have in common, [D + 1, C]."""
    return values - values.mean(dim=1, keepdim=True)
