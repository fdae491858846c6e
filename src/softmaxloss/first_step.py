"""How long a step of SoftmaxClassifier's fit is where no steps before it tell: as long as a few rows say."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from softmaxloss.loss import softmax_cross_entropy_and_grad
from softmaxloss.objective import CentredAndScaled, Objective, logits_of
from softmaxloss.rows import Rows

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]

# So many rows tell it to some hundredths; they are few beside all, and their features, which may have to travel, and
# logits are no more than so many numbers.
_FEWEST_ROWS, _MOST_ROWS = 256, 2048
_SHARE_OF_ROWS = 4
_MOST_NUMBERS = 1 << 22

# Rows whose loss falls along the direction more than so many times faster or slower than that of all are not like them.
_MOST_UNLIKE = 2.0

# The shortest that is looked for, and how often what is between that and 1 is halved, in logarithms.
_SHORTEST, _HALVINGS = 2.0**-10, 7


def first_step_rows(n_rows: int, n_features: int, n_classes: int) -> int:
    """Return how many rows tell how long the first step is; 0 where they would be too few, or not few beside all."""
    count = min(_MOST_ROWS, n_rows // _SHARE_OF_ROWS, _MOST_NUMBERS // max(n_features, n_classes))
    return count if count >= _FEWEST_ROWS else 0


class FirstStep:
    r"""How far to go from u in a direction, no farther than 1: to where the objective is lowest, nearly.

    Newton's step from 0 is as long as the curvature there asks for. Where a plane can separate the rows the curvature
    of their loss falls soon, so that their loss is next to nothing at its end and all the rest is penalty; to take that
    back costs a fit of many classes more than half of its passes (measured).

    The derivative along the direction is the sum of the penalty's, which is exact, and the loss's, which is that of the
    rows given, times what makes the sum right at the beginning, where it is known of all rows.

    Parameters
    ----------
    objective : Objective
        What is minimised.
    rows : callable
        Returns some of its rows, from everywhere; not those alone that a direction was made from, along which they may
        be unlike all others.
    variables : CentredAndScaled
        Those of u.
    """

    def __init__(self, objective: Objective, rows: Callable[[], Rows], variables: CentredAndScaled) -> None:
        self._objective, self._sample, self._variables = objective, rows, variables

    def __call__(self, u: Vector, direction: Vector, slope: float) -> float:
        """Return the length, in multiples of the direction, along which the derivative at u is `slope`."""
        rows = self._sample()
        if not rows.weights.any():
            return 1.0
        with np.errstate(over="ignore", invalid="ignore"):  # what is no number leaves the length as it is
            return self._length(rows, u, direction, slope)

    def _length(self, rows: Rows, u: Vector, direction: Vector, slope: float) -> float:
        here, there = (self._layer(vector) for vector in (u, direction))
        logits, change = logits_of(rows, *here), logits_of(rows, *there)
        pull, stiffness = (self._objective.penalty * _product(coef, there[0]) for coef in (here[0], there[0]))
        share = (slope - pull) / (self._slope(rows, logits, change) or np.nan)

        def slope_at(length: float) -> float:
            of_loss = self._slope(rows, logits + logits.dtype.type(length) * change, change)
            return share * of_loss + pull + stiffness * length

        if not (1.0 / _MOST_UNLIKE < share < _MOST_UNLIKE and slope_at(1.0) > 0.0):
            return 1.0
        low, high = _SHORTEST, 1.0
        for _ in range(_HALVINGS):
            middle = (low * high) ** 0.5
            low, high = (low, middle) if slope_at(middle) > 0.0 else (middle, high)
        return float((low * high) ** 0.5)

    def _layer(self, u: Vector) -> tuple[Array, Array]:
        return self._objective.layer(self._variables.to_original(u))

    def _slope(self, rows: Rows, logits: Array, change: Array) -> float:
        """Return the derivative of the rows' mean loss, where their logits change so."""
        _, by_logits = softmax_cross_entropy_and_grad(
            logits,
            rows.codes,
            reduction="sum",
            sample_weight=rows.weights,
            label_smoothing=self._objective.label_smoothing,
        )
        return float(np.vdot(by_logits, change)) / float(rows.weights.sum())


def _product(a: Array, b: Array) -> float:
    return float(np.vdot(a.astype(np.float64), b.astype(np.float64)))
