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

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from softmaxloss.line_search import Point
from softmaxloss.loss import softmax_cross_entropy_and_grad
from softmaxloss.objective import CentredAndScaled, Objective
from softmaxloss.rows import LocalRows, in_threads, threads_for

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]

# From so many features for each row it is the rows that are few; fewer features than these are as quick by themselves.
_FEATURES_PER_ROW, _FEWEST_FEATURES = 2, 1000

# Products are taken in so many parts at least, of about so many bytes at most, that stay in a cache while all that is
# to be done with them is done.
_FEWEST_PARTS, _PART_BYTES = 16, 1 << 20


# How many times as large as the smallest features the largest may be. Steps are those of features as they are, which
# the largest dominate; and their rounding errors hide the smallest.
_MOST_UNLIKE = 300.0


def suits(objective: Objective, variables: CentredAndScaled) -> bool:
    """Tell whether there are so few rows, sparse and in this process, of features that are not too unlike.

    A feature is as large as the root of its mean square, but no smaller than what the penalty makes of it: see
    `Objective.centred_and_scaled`.
    """
    source = objective.source
    if not (isinstance(source, LocalRows) and source.is_sparse):
        return False
    if source.n_features < max(_FEATURES_PER_ROW * source.n_rows, _FEWEST_FEATURES) or not variables.scale.any():
        return False
    mean, variance = objective.moments
    curvature = objective.steepest * (variance + mean**2) + objective.penalty
    return bool(curvature.max() <= _MOST_UNLIKE**2 * curvature[curvature > 0.0].min())


class _Part(NamedTuple):
    """Some rows of a sparse matrix."""

    where: slice
    matrix: csr_array


class RowSpace:
    """An objective as a function of u = [A, K A, c]: combinations of rows, their logits, and scaled intercepts.

    K is that of the rows divided by their typical length, so that both parts of u are of like size: ``coef`` is A times
    the rows over the square of this length.

    Parameters
    ----------
    objective : Objective
        One that `suits`.
    variables : CentredAndScaled
        Its own: the rows are centred by their mean, and gradients are measured in them as well.
    """

    def __init__(self, objective: Objective, variables: CentredAndScaled) -> None:
        assert isinstance(objective.source, LocalRows)
        rows, dtype = objective.source.rows, objective.source.dtype
        self._stored = objective.source.stored
        self.objective, self._codes, self._weights = objective, rows.codes, rows.weights
        self._shape = objective.source.n_rows, objective.shape[0]
        self._mean, self._scale = (each.astype(dtype)[:, np.newaxis] for each in (variables.mean, variables.scale))
        self._intercept_scale = variables.intercept_scale
        mean, variance = objective.moments
        self._square = float((variance if objective.fit_intercept else variance + mean**2).sum())  # of that length
        self._penalty = objective.penalty / self._square
        self._rows = list(_parts(rows.X, self._shape[1]))
        self._features = list(_parts(rows.X.T.tocsr(), self._shape[1]))
        self._by_feature = np.empty((objective.source.n_features, self._shape[1]), dtype)
        # Where coefficients and intercepts are 0.
        self.start: Vector = np.zeros((2 * self._shape[0] + 1) * self._shape[1])

    def point(self, u: Vector) -> Point:
        """Return what is known at u; the gradient's norm is that of `minimize`, by all parameters."""
        return self._first if u is self.start else self._evaluate(u)

    @cached_property
    def preconditioner(self) -> "_Step":
        """The map from gradients to steps.

        It is the identity in the metric of the coefficients, over a bound of the steepest curvature: Boehning's (see
        `Objective.centred_and_scaled`) times the largest eigenvalue of K, nearly, by the power method from the
        gradient at the start.
        """
        objective = self.objective
        once = self._split(self._first.gradient)[0]
        once = once / (np.linalg.norm(once) or 1.0)
        twice = self._times_gram(once, np.zeros(self._shape[1]))[0].astype(np.float64)
        along = float(np.vdot(once, twice))
        eigenvalue = float(np.vdot(twice, twice)) / along if along > 0.0 else 0.0
        curvature = objective.steepest * eigenvalue / objective.total_weight + self._penalty
        return _Step(2.0 / curvature if curvature > 0.0 else 2.0, self._split, self._joined)

    def parameters(self, u: Vector) -> Vector:
        """Return the objective's own parameters, [coef | intercept]."""
        combination, _, intercept = self._split(u)
        self._combine(combination.astype(self._by_feature.dtype), np.zeros(self._shape[1]))
        coef = self._by_feature.T.astype(np.float64)
        return np.column_stack([coef, intercept * self._intercept_scale - coef @ self._mean[:, 0]]).ravel()

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
        product, norm = self._times_gram(gradient, by_intercept)
        value = float(loss) / objective.total_weight
        value += 0.5 * self._penalty * float(np.vdot(combination, of_logits))
        # Along a step [B, K B] both K G . B and G . K B are the derivative: half of each.
        by_u = self._joined(0.5 * product, 0.5 * gradient, by_intercept * self._intercept_scale)
        return Point(u, u, value, by_u, norm)

    def _times_gram(self, combination: Array, by_intercept: Vector) -> tuple[Array, float]:
        """Return K times a combination, and the largest derivative if it and `by_intercept` are the gradient."""
        shift, norm = self._combine(combination.astype(self._by_feature.dtype), by_intercept)
        product = np.empty(self._shape, self._by_feature.dtype)

        def fill(part: _Part) -> None:
            product[part.where] = part.matrix @ self._by_feature - shift

        in_threads(fill, self._rows, self._threads())
        return product, norm

    def _combine(self, combination: Array, by_intercept: Vector) -> tuple[Array, float]:
        """Put the combination of centred rows, over that square, in `_by_feature`; return its product with the mean.

        And the largest entry of it before it was divided, as a gradient by all parameters.
        """
        total, dtype = combination.sum(axis=0), combination.dtype
        of_mean = by_intercept.astype(dtype)

        def fill(part: _Part) -> tuple[Array, float]:
            mean, scale = self._mean[part.where], self._scale[part.where]
            found = self._by_feature[part.where]
            np.subtract(part.matrix @ combination, mean * total, out=found)
            norm = max(_largest(found * scale), _largest(found + mean * of_mean))
            found /= self._square
            return mean[:, 0] @ found, norm

        shifts, norms = zip(*in_threads(fill, self._features, self._threads()), strict=True)
        of_intercept = _largest(by_intercept) * max(1.0, self._intercept_scale)
        return np.sum(shifts, axis=0), float(np.max([*norms, of_intercept]))  # NaN if one is

    def _threads(self) -> int:
        return min(threads_for(self._stored), _FEWEST_PARTS)

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


def _largest(array: Array) -> float:
    return max(float(array.max(initial=0.0)), -float(array.min(initial=0.0)))  # NaN if one is NaN


def _parts(matrix: Any, columns: int) -> Iterator[_Part]:
    """Yield a CSR matrix in parts with equally many stored numbers, whose products have so many columns."""
    rows, stored = matrix.shape[0], matrix.indptr
    count = max(_FEWEST_PARTS, rows * columns * matrix.dtype.itemsize // _PART_BYTES)
    bounds = np.searchsorted(stored, stored[-1] * np.arange(1, count) // count)
    for start, stop in zip([0, *bounds], [*bounds, rows], strict=True):
        inside = slice(stored[start], stored[stop])
        part = (matrix.data[inside], matrix.indices[inside], stored[start : stop + 1] - stored[start])
        yield _Part(slice(start, stop), csr_array(part, shape=(stop - start, matrix.shape[1])))
