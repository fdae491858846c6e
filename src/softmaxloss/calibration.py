"""Temperature scaling: the one number to divide logits by that makes their probabilities fit best."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softmaxloss.backends.layout import as_logits, rows_a_block
from softmaxloss.functional import softmax
from softmaxloss.measures.inputs import as_weights, check_arrays, refuse_dask, rows_that_count, weight_unit

__all__ = ["fit_temperature"]

# The last step is this small a part of the inverse temperature; the step after it would be about its square.
TOLERANCE = 1e-9
MAX_PASSES = 200
# Far from the optimum Newton's steps may be wild: each goes at most by this factor.
MAX_FACTOR = 10.0


def fit_temperature(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
) -> float:
    r"""Find the temperature T that minimises the mean softmax cross-entropy of ``logits / T``.

    Fit it on rows that the model was not trained on. Dividing by T changes no prediction and no accuracy; it makes the
    probabilities less sure (T > 1) or surer (T < 1).

    With :math:`\beta = 1 / T` the loss is convex, and its derivatives are exact sums over rows::

        L(b)   = sum_i w_i (logsumexp(b z_i) - b z_iy)
        L'(b)  = sum_i w_i (E_i[z_i] - z_iy)              E_i, Var_i under p_i = softmax(b z_i)
        L''(b) = sum_i w_i Var_i[z_i]

    Newton's method, kept between the bounds that the signs of L' have shown, takes a handful of passes over the
    logits, which are read in blocks of about 4 MB: a memory map larger than memory will do.

    Parameters
    ----------
    logits : array of shape (N, C)
        One row of C classes for each label, in any dtype that `evaluate` takes. -inf masks a class.
    labels : integer array of shape (N,)
        Class indices in [0, C), or `ignore_index`.
    sample_weight : array of shape (N,), optional
        Finite weights of at least 0. A row of weight 0 is ignored.
    ignore_index : int
        The label of rows to leave out, whatever their logits hold.

    Returns
    -------
    float
        T > 0, to rounding.

    Raises
    ------
    LabelError
        A label is neither a class index nor `ignore_index`.
    ValueError
        There is no such T: no row counts; every label has the largest logit of its row, so that the loss falls for
        ever as T goes to 0; labels have on average no larger a logit than the other classes, so that it falls for ever
        as T grows; a row has no finite loss at any T. Also for shapes and weights as in `evaluate`.
    TypeError
        The labels are not integers, or the logits not real numbers.

    References
    ----------
    C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks" (2017).

    Examples
    --------
    >>> import numpy as np
    >>> import softmaxloss as sl
    >>> rng = np.random.default_rng(0)
    >>> logits = rng.normal(scale=2.0, size=(20000, 4))
    >>> labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)  # drawn from softmax(logits)
    >>> round(sl.fit_temperature(3.0 * logits, labels), 1)
    3.0
    """
    refuse_dask("fit_temperature", logits=logits)
    z, given, weights = as_logits(logits, "logits"), np.asarray(labels), as_weights(sample_weight)
    if z.ndim != 2 or z.shape[1] == 0:
        raise ValueError(f"logits have shape {z.shape}; expected (rows, classes), at least one class")
    check_arrays(z, given, weights, z.shape[1], "logits")
    problem = _Problem(z, given, weights, operator.index(ignore_index))
    start = problem.at_zero()
    inverse = _newton(problem, -start.slope / start.curvature)
    return 1 / inverse


class _Derivatives(NamedTuple):
    slope: float
    curvature: float


class _Problem(NamedTuple):
    """The loss as a function of the inverse temperature."""

    logits: NDArray[Any]
    labels: NDArray[Any]
    weights: NDArray[Any] | None
    ignore_index: int

    def at_zero(self) -> _Derivatives:
        """Return the derivatives where all classes not masked are equally probable; refuse what has no minimum."""
        slope = curvature = short = total = 0.0
        for gaps, weights, numbers in self._blocks():
            without_loss = ~(gaps < np.inf).all(axis=1)  # NaN is not less either
            if without_loss.any():
                at = int(without_loss.argmax())
                raise ValueError(
                    f"logits[{numbers[at]}] hold NaN or +inf, or -inf for the label, so that its loss is not finite at "
                    "any temperature; leave the row out by labelling it ignore_index"
                )
            possible = gaps > -np.inf
            share = possible / np.count_nonzero(possible, axis=1)[:, None]
            found = _block_derivatives(gaps, share, weights)
            slope, curvature = slope + found.slope, curvature + found.curvature
            short += float(weights @ gaps.max(axis=1))
            total += float(weights.sum())
        if not total:
            raise ValueError("no row counts; expected at least one with a label and a weight above 0")
        if short == 0:
            raise ValueError(
                "every label has the largest logit of its row, so the loss falls for ever as the temperature goes to "
                "0 and none is the best; fit it on rows that the model was not trained on, or on more of them"
            )
        if slope >= 0:
            raise ValueError(
                "the labels' logits are on average no larger than the other classes', so the loss falls for ever as "
                "the temperature grows and none is the best; check that labels and logits belong together"
            )
        return _Derivatives(slope, curvature)

    def derivatives(self, inverse: float) -> _Derivatives:
        """Return the first and second derivative of the summed loss."""
        slope = curvature = 0.0
        for gaps, weights, _ in self._blocks():
            found = _block_derivatives(gaps, softmax(gaps * inverse), weights)
            slope, curvature = slope + found.slope, curvature + found.curvature
        return _Derivatives(slope, curvature)

    def _blocks(self) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]]:
        """Yield each block's logits less those of their labels, weights and row numbers; rows that count only."""
        n, classes = self.logits.shape
        step, unit = rows_a_block(classes, np.dtype(np.float64)), weight_unit(self.weights)
        for start in range(0, n, step):
            block = slice(start, start + step)
            part = None if self.weights is None else self.weights[block]
            rows = rows_that_count(self.labels[block], part, start, classes, self.ignore_index)
            kept = slice(None) if rows.kept is None else rows.kept
            z = self.logits[block][kept].astype(np.float64)
            with np.errstate(invalid="ignore"):  # inf - inf
                z -= np.take_along_axis(z, rows.labels[:, None], axis=1)
            weights = np.ones(len(z)) if rows.weights is None else np.ldexp(rows.weights, -unit)
            yield z, weights, rows.numbers


def _block_derivatives(gaps: NDArray[np.float64], p: Any, weights: NDArray[np.float64]) -> _Derivatives:
    gaps = np.where(np.isneginf(gaps), 0.0, gaps)  # masked: there p is 0
    means = np.einsum("ij,ij->i", p, gaps)
    gaps -= means[:, None]
    variances = np.einsum("ij,ij,ij->i", p, gaps, gaps)
    return _Derivatives(float(weights @ means), float(weights @ variances))


def _newton(problem: _Problem, inverse: float) -> float:
    """Find where the slope is 0, which is known to be once, above 0."""
    low, high = 0.0, math.inf
    for _ in range(MAX_PASSES):
        slope, curvature = problem.derivatives(inverse)
        if slope == 0:
            return inverse
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        if high - low <= TOLERANCE * low:
            return math.sqrt(low * high)
        with np.errstate(divide="ignore", over="ignore"):
            following = inverse - float(np.divide(slope, curvature))
        if abs(following - inverse) <= TOLERANCE * inverse:
            return following
        following = min(max(following, inverse / MAX_FACTOR), inverse * MAX_FACTOR)
        if not low < following < high:
            # Newton's step left what the signs allow: halve that, as the eye sees it on a scale of logarithms.
            following = math.sqrt(max(low, inverse / MAX_FACTOR) * min(high, inverse * MAX_FACTOR))
        inverse = following
        if not 1e-300 < inverse < 1e300:
            break
    raise ValueError(
        f"the temperature that fits best is out of range, about {1 / max(inverse, 1e-300):.3g}; scale the logits, and "
        "check that the labels belong to them"
    )
