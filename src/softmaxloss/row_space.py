"""SoftmaxClassifier's objective on the space that the rows span: for sparse features that are far more than the rows.

At the minimum, and at every point that gradients lead to from 0, the coefficients are a combination of the centred
rows x_i, ``coef = sum_i a_i (x) x_i`` with a number for each class in a_i. Of these there are as many as logits, while
of coefficients there are as many as different words in all texts, say, for each class. With the rows' Gram matrix K and
the derivatives R of the mean loss by the logits,

    logits = K A + intercept        gradient by coef = X.T (R + penalty A) = X.T G

so that the inner product of two coefficients A and B is ``A . K B``, and the step of steepest descent is -G. Each
vector is kept with its product with K: then the logits of every point are known, and an evaluation takes two sparse
products, X.T G and X (X.T G). This is the representer theorem [1]_; the metric is that of the coefficients themselves.

References
----------
.. [1] G. Kimeldorf, G. Wahba, "Some results on Tchebycheffian spline functions", J. Math. Anal. Appl. 33, 1971.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from softmaxloss import _native, sparse
from softmaxloss.line_search import Point
from softmaxloss.loss import softmax_cross_entropy_and_grad
from softmaxloss.objective import CentredAndScaled, Objective
from softmaxloss.rows import LocalRows

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]

# From so many features for each row it is the rows that are few; fewer features than these are as quick by themselves.
_FEATURES_PER_ROW, _FEWEST_FEATURES = 2, 1000

# How many times as large as the smallest features the largest may be. Steps are those of features as they are, where
# the largest hide what the others say (measured: 1000 times take 660 steps where their own scales take 130).
_MOST_UNLIKE = 300.0

# Products of rows are rounded before what their means add to them is taken away, or made no use of: that may be so
# large that this share of their variance is lost.
_MOST_ROUNDED = 1e-3


def suits(objective: Objective) -> bool:
    """Tell whether there are so few rows, sparse and in this process, of features not too unlike, nor too far from 0.

    A feature is as large as the root of its mean square, but no smaller than what the penalty makes of it: see
    `Objective.centred_and_scaled`.
    """
    source = objective.source
    if not (isinstance(source, LocalRows) and source.is_sparse):
        return False
    if source.n_features < max(_FEATURES_PER_ROW * source.n_rows, _FEWEST_FEATURES):
        return False
    mean, variance = objective.moments
    if not objective.centre_and_squares[1].any():
        return False
    curvature = objective.steepest * (variance + mean**2) + objective.penalty
    are_alike = curvature.max() <= _MOST_UNLIKE**2 * curvature[curvature > 0.0].min()
    are_near = np.finfo(source.dtype).eps * np.square(mean).sum() <= _MOST_ROUNDED * variance.sum()
    return bool(are_alike and are_near)


class Gram:
    """The centred rows, divided by their typical length, and products with their Gram matrix K.

    They are the same for every penalty.

    Parameters
    ----------
    objective : Objective
        One that `suits`.
    """

    def __init__(self, objective: Objective) -> None:
        assert isinstance(objective.source, LocalRows)
        centre, squares = objective.centre_and_squares
        self.square = float(squares.sum())
        self.length = self.square**0.5
        self.mean = (centre / self.length).astype(objective.source.dtype)
        self._rows = sparse.divided(objective.source.rows.X, self.length)
        self._features = self._rows.T.tocsr()
        self._ones = np.ones(objective.source.n_rows, self.mean.dtype)
        self._by_feature = np.empty((objective.source.n_features, objective.shape[0]), self.mean.dtype)
        self._largest: float | None = None

    def combine(self, combination: Array) -> Array:
        """Return a combination of the rows, by feature, until the next is asked for."""
        dtype = self.mean.dtype
        total = combination.sum(axis=0).astype(dtype)
        sparse.product(self._features, combination.astype(dtype), less=(self.mean, total), out=self._by_feature)
        return self._by_feature

    def products(self, by_feature: Array) -> Array:
        """Return each row's products with such a combination: K times what was combined."""
        return sparse.product(self._rows, by_feature, less=(self._ones, self.mean @ by_feature))

    def largest_eigenvalue(self, along: Callable[[], Array]) -> float:
        """Return about K's largest eigenvalue: by the power method from some combination, the first that is given."""
        if self._largest is None:
            once = along()
            once = once / (np.linalg.norm(once) or 1.0)
            twice = self.products(self.combine(once)).astype(np.float64)
            there = float(np.vdot(once, twice))
            self._largest = float(np.vdot(twice, twice)) / there if there > 0.0 else 0.0
        return self._largest


class RowSpace:
    """An objective as a function of u = [A, K A, c]: combinations of rows, their logits, and scaled intercepts.

    The rows are those of `Gram`, so that both parts of u are of like size: ``coef`` is A times these rows, over their
    typical length once more. A point u is the same for every penalty.

    Parameters
    ----------
    objective : Objective
        One that `suits`.
    variables : CentredAndScaled
        Its own: gradients are measured in them as well.
    gram : Gram
        That of its rows.
    """

    def __init__(self, objective: Objective, variables: CentredAndScaled, gram: Gram) -> None:
        assert isinstance(objective.source, LocalRows)
        rows = objective.source.rows
        self.objective, self._gram, self._codes, self._weights = objective, gram, rows.codes, rows.weights
        self._shape = objective.source.n_rows, objective.shape[0]
        self._penalty = objective.penalty / gram.square
        self._scale, self._intercept_scale = variables.scale.astype(gram.mean.dtype), variables.intercept_scale
        # Where coefficients and intercepts are 0.
        self.start: Vector = np.zeros((2 * self._shape[0] + 1) * self._shape[1])

    def point(self, u: Vector) -> Point:
        """Return what is known at u; the gradient's norm is that of `minimize`, by all parameters."""
        return self._first if u is self.start else self._evaluate(u)

    @cached_property
    def preconditioner(self) -> "_Step":
        """The map from gradients to steps.

        It is the identity in the metric of the coefficients, over a bound of the steepest curvature: Boehning's (see
        `Objective.centred_and_scaled`) times the largest eigenvalue of K, nearly.
        """
        objective = self.objective
        # The derivatives at the start are those of the loss alone, whatever the penalty.
        eigenvalue = self._gram.largest_eigenvalue(lambda: self._split(self._first.gradient)[0])
        curvature = objective.steepest * eigenvalue / objective.total_weight + self._penalty
        return _Step(2.0 / curvature if curvature > 0.0 else 2.0, self._split, self._joined)

    def parameters(self, u: Vector) -> Vector:
        """Return the objective's own parameters, [coef | intercept]."""
        gram, (combination, _, intercept) = self._gram, self._split(u)
        coef = gram.combine(combination).T.astype(np.float64) / gram.length
        mean = gram.mean.astype(np.float64) * gram.length
        return np.column_stack([coef, intercept * self._intercept_scale - coef @ mean]).ravel()

    @cached_property
    def _first(self) -> Point:
        return self._evaluate(self.start)

    def _evaluate(self, u: Vector) -> Point:
        objective, (combination, of_logits, intercept) = self.objective, self._split(u)
        logits = np.zeros((self._shape[0], objective.n_classes), objective.source.dtype)
        logits[:, objective.first :] = of_logits + intercept * self._intercept_scale
        loss, by_logits = softmax_cross_entropy_and_grad(
            logits,
            self._codes,
            reduction="sum",
            sample_weight=self._weights,
            label_smoothing=objective.label_smoothing,
            out=logits,
        )
        residual = by_logits[:, objective.first :] / objective.total_weight
        by_intercept = residual.sum(axis=0, dtype=np.float64) * objective.fit_intercept
        gradient = residual + self._penalty * combination
        by_feature = self._gram.combine(gradient)
        norm, product = self._largest(by_feature, by_intercept), self._gram.products(by_feature)
        value = float(loss) / objective.total_weight
        value += 0.5 * self._penalty * float(np.vdot(combination, of_logits))
        # Along a step [B, K B] both K G . B and G . K B are the derivative: half of each.
        by_u = self._joined(0.5 * product, 0.5 * gradient, by_intercept * self._intercept_scale)
        return Point(u, u, value, by_u, norm)

    def _largest(self, by_feature: Array, by_intercept: Vector) -> float:
        """Return the largest derivative where these are the gradient; NaN if one is."""
        gram = self._gram
        norm = _native.largest_derivative(by_feature, self._scale, gram.mean, by_intercept.astype(gram.mean.dtype))
        of_intercept = np.abs(by_intercept).max(initial=0.0) * max(1.0, self._intercept_scale)
        return float(np.max([norm * gram.length, of_intercept]))

    def _split(self, u: Vector) -> tuple[Array, Array, Vector]:
        size = self._shape[0] * self._shape[1]
        return u[:size].reshape(self._shape), u[size : 2 * size].reshape(self._shape), u[2 * size :]

    @staticmethod
    def _joined(first: Array, second: Array, last: Vector) -> Vector:
        return np.concatenate([first.ravel(), second.ravel(), last], dtype=np.float64)


class _Step(NamedTuple):
    """See `solver.Preconditioner`: from [K A, A, c] to [A, K A, c]."""

    scale: float
    split: Callable[[Vector], tuple[Array, Array, Vector]]
    joined: Callable[[Array, Array, Vector], Vector]

    def __call__(self, gradient: Vector) -> Vector:
        product, combination, intercept = self.split(gradient)
        return self.joined(self.scale * combination, self.scale * product, intercept)

    @property
    def is_newton(self) -> bool:
        """Return False: it is near to the Hessian's only."""
        return False

    def gain(self, steps: list[Vector], changes: list[Vector]) -> float:
        """Return infinity: gradients are no steps without it."""
        return np.inf
