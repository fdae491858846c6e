"""Running totals of losses and hits over rows: what evaluation keeps of data it reads a block at a time."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softmaxloss.backends.layout import as_logits, kernel_dtype, rows_a_block
from softmaxloss.functional import cross_entropy
from softmaxloss.labels import LabelError, tolerance_of
from softmaxloss.loss import softmax_cross_entropy

__all__ = ["Kind", "Totals"]

Kind = Literal["logits", "probabilities"]

# Weights are summed as they are unless the largest leaves 2^-32 .. 2^32: the squares of those of 1e-200 would vanish.
ORDINARY_EXPONENT = 32


@dataclass(frozen=True)
class _Moments:
    """Weighted sum of values and of squared deviations from their mean, which merge without cancellation."""

    weight: float = 0.0
    total: float = 0.0
    scatter: float = 0.0

    @classmethod
    def of(cls, values: NDArray[np.float64], weights: NDArray[np.float64]) -> _Moments:
        weight = float(weights.sum())
        if weight == 0.0:
            return cls()
        # An infinite loss leaves the scatter NaN, and one of 1e200 leaves it infinite: so be it.
        with np.errstate(invalid="ignore", over="ignore"):
            total = float((weights * values).sum())
            scatter = float((weights * (values - total / weight) ** 2).sum())
        return cls(weight, total, scatter)

    def merge(self, other: _Moments) -> _Moments:
        if self.weight == 0.0 or other.weight == 0.0:
            return self if other.weight == 0.0 else other
        weight = self.weight + other.weight
        # T. F. Chan, G. H. Golub, R. J. LeVeque, Updating formulae and a pairwise algorithm for computing
        # sample variances (1979).
        apart = self.total / self.weight - other.total / other.weight
        between = self.weight * (other.weight / weight) * apart * apart
        return _Moments(weight, self.total + other.total, self.scatter + other.scatter + between)

    def times(self, power_of_two: int) -> _Moments:
        """Return the moments for weights 2**power_of_two times as large."""
        weight, total, scatter = np.ldexp([self.weight, self.total, self.scatter], power_of_two).tolist()
        return _Moments(weight, total, scatter)

    def scatter_about(self, center: float) -> float:
        offset = self.total / self.weight - center
        return self.scatter + self.weight * offset * offset


@dataclass(eq=False, repr=False)
class Totals:
    """What rows add up to: fed a block at a time, merged with the totals of other rows, asked for averages.

    For scores that do not come as one array; `evaluate` is the short form for those that do.
    ``Evaluation.of(totals)`` puts the averages together.

    Parameters
    ----------
    n_classes : int
        Number of classes C, at least 1.
    kind, top_k, ignore_index
        As in `evaluate`.

    Raises
    ------
    ValueError
        An option is out of range.
    TypeError
        An option is not of its type.

    Examples
    --------
    >>> from softmaxloss.evaluation import Evaluation, Totals
    >>> morning, evening = Totals(2), Totals(2)
    >>> morning.add([[1.0, 0.0], [0.0, 1.0]], [0, 1])
    >>> evening.add([[3.0, 0.0]], [1])
    >>> morning.merge(evening)
    >>> evaluation = Evaluation.of(morning)
    >>> evaluation.n_rows, round(evaluation.accuracy, 4)
    (3, 0.6667)
    """

    n_classes: int
    kind: Kind = "logits"
    top_k: tuple[int, ...] = (1, 5)
    ignore_index: int = -100
    n_ignored: int = field(default=0, init=False)
    n_nonfinite: int = field(default=0, init=False)
    n_infinite_loss: int = field(default=0, init=False)
    # The sums below count weights in units of 2**exponent: any average is the same in any unit.
    exponent: int = field(default=0, init=False)
    class_count: NDArray[np.int64] = field(init=False)
    class_weight_sum: NDArray[np.float64] = field(init=False)
    class_loss_sum: NDArray[np.float64] = field(init=False)
    class_hits: NDArray[np.float64] = field(init=False)
    top_k_hits: NDArray[np.float64] = field(init=False)
    # Of the losses weighted by the squares of the rows' weights, as the standard error needs them.
    _moments: _Moments = field(default=_Moments(), init=False)

    def __post_init__(self) -> None:
        """Check the options and start every sum at zero."""
        self.n_classes = operator.index(self.n_classes)
        self.ignore_index = operator.index(self.ignore_index)
        self.top_k = tuple(operator.index(k) for k in self.top_k)
        if self.n_classes < 1:
            raise ValueError(f"the number of classes is {self.n_classes}; expected at least 1")
        if self.kind not in ("logits", "probabilities"):
            raise ValueError(f"kind is {self.kind!r}; expected 'logits' or 'probabilities'")
        if any(k < 1 for k in self.top_k):
            raise ValueError(f"top_k is {self.top_k}; expected integers of at least 1")
        self.class_count = np.zeros(self.n_classes, np.int64)
        self.class_weight_sum = np.zeros(self.n_classes)
        self.class_loss_sum = np.zeros(self.n_classes)
        self.class_hits = np.zeros(self.n_classes)
        self.top_k_hits = np.zeros(len(self.top_k))

    @property
    def n_scored(self) -> int:
        """Rows that count in the averages."""
        return int(self.class_count.sum())

    @property
    def n_rows(self) -> int:
        """All rows so far, those left out included."""
        return self.n_scored + self.n_ignored + self.n_nonfinite

    @property
    def weight(self) -> float:
        """Total weight of the scored rows, in units of ``2**exponent``."""
        return float(self.class_weight_sum.sum())

    @property
    def loss(self) -> float:
        """Weighted mean loss, NaN before the first scored row."""
        return self.average(float(self.class_loss_sum.sum()))

    @property
    def loss_standard_error(self) -> float:
        """Standard error of the mean loss by the formula in `evaluate`, NaN for fewer than two rows."""
        n, loss = self.n_scored, self.loss
        if n < 2 or not math.isfinite(loss):
            return math.nan
        return math.sqrt(n / (n - 1) * self._moments.scatter_about(loss)) / self.weight

    def average(self, total: float) -> float:
        """Divide a weighted total by the weight of the scored rows."""
        return total / self.weight if self.weight else math.nan

    def class_average(self, total: NDArray[np.float64]) -> NDArray[np.float64]:
        """Divide each class's weighted total by the weight of its rows."""
        with np.errstate(invalid="ignore"):  # 0 / 0, NaN, for a class without rows
            return total / self.class_weight_sum

    def add(self, scores: ArrayLike, labels: ArrayLike, sample_weight: ArrayLike | None = None) -> None:
        """Add rows: scores (N, C), labels (N,) and weights (N,), read and refused as `evaluate` says.

        An error names the row, counted from the first one ever added; the rows of earlier blocks stay added.
        """
        scores, labels = as_logits(scores, "scores"), np.asarray(labels)
        weights = np.broadcast_to(1.0, len(scores)) if sample_weight is None else np.asarray(sample_weight)
        _check_arrays(scores, labels, weights, self.n_classes)
        # A block is small enough for the cache, so that the passes after the first do not read main memory again.
        rows = rows_a_block(self.n_classes, kernel_dtype(scores.dtype))
        for start in range(0, len(scores), rows):
            block = slice(start, start + rows)
            self._add_block(scores[block], labels[block], weights[block])

    def merge(self, other: Totals) -> None:
        """Add the rows of other totals, which stay as they are.

        Raises
        ------
        ValueError
            The other totals have other classes or options.
        """
        mine, theirs = ((t.n_classes, t.kind, t.top_k, t.ignore_index) for t in (self, other))
        if mine != theirs:
            raise ValueError(
                f"the other totals have (n_classes, kind, top_k, ignore_index) = {theirs}; expected {mine}, the same"
            )
        self.n_ignored += other.n_ignored
        self.n_nonfinite += other.n_nonfinite
        self.n_infinite_loss += other.n_infinite_loss
        # The larger unit holds the weights of both; totals without rows have none yet.
        self._set_unit(max((t.exponent for t in (self, other) if t.n_scored), default=0))
        shift = other.exponent - self.exponent
        self.class_count += other.class_count
        self.class_weight_sum += np.ldexp(other.class_weight_sum, shift)
        self.class_loss_sum += np.ldexp(other.class_loss_sum, shift)
        self.class_hits += np.ldexp(other.class_hits, shift)
        self.top_k_hits += np.ldexp(other.top_k_hits, shift)
        self._moments = self._moments.merge(other._moments.times(2 * shift))

    def _add_block(self, scores: NDArray[Any], labels: NDArray[Any], weights: NDArray[Any]) -> None:
        first = self.n_rows
        with np.errstate(over="ignore"):  # what becomes infinite is refused below
            weights = weights.astype(np.float64, copy=False)
        kept = labels != self.ignore_index
        self._check_labels(labels, kept, first)
        _check_weights(weights, first)
        kept &= weights > 0
        rows = first + np.flatnonzero(kept)
        if len(rows) < len(kept):
            scores, labels, weights = scores[kept], labels[kept], weights[kept]
        labels = labels.astype(np.int64, copy=False)
        given, scores = scores, scores.astype(kernel_dtype(scores.dtype), copy=False)
        if self.kind == "probabilities":
            loss = _probability_losses(given, scores, labels, rows)
        else:
            loss = np.asarray(softmax_cross_entropy(scores, labels, reduction="none"), np.float64)
        ranks = _label_ranks(scores, labels)
        scored = ~np.isnan(loss)
        self.n_ignored += len(kept) - len(rows)
        self.n_nonfinite += len(rows) - int(np.count_nonzero(scored))
        self._add_rows(loss[scored], ranks[scored], labels[scored], weights[scored])

    def _add_rows(
        self,
        loss: NDArray[np.float64],
        ranks: NDArray[np.intp],
        labels: NDArray[np.int64],
        weights: NDArray[np.float64],
    ) -> None:
        if not len(loss):
            return
        exponent = math.frexp(float(weights.max()))[1] - 1
        if exponent - self.exponent > ORDINARY_EXPONENT or (exponent < -ORDINARY_EXPONENT and not self.n_scored):
            self._set_unit(exponent)
        weights = np.ldexp(weights, -self.exponent)
        self.n_infinite_loss += int(np.count_nonzero(np.isinf(loss)))
        # add.at touches only the classes at hand: a block may hold a few rows of very many classes.
        np.add.at(self.class_count, labels, 1)
        np.add.at(self.class_weight_sum, labels, weights)
        np.add.at(self.class_loss_sum, labels, weights * loss)
        np.add.at(self.class_hits, labels, weights * (ranks == 0))
        self.top_k_hits += [weights[ranks < k].sum() for k in self.top_k]
        self._moments = self._moments.merge(_Moments.of(loss, weights * weights))

    def _set_unit(self, exponent: int) -> None:
        """Go over to sums in units of ``2**exponent``: exact, but for weights that are nothing beside the largest."""
        shift = self.exponent - exponent
        self.exponent = exponent
        self.class_weight_sum = np.ldexp(self.class_weight_sum, shift)
        self.class_loss_sum = np.ldexp(self.class_loss_sum, shift)
        self.class_hits = np.ldexp(self.class_hits, shift)
        self.top_k_hits = np.ldexp(self.top_k_hits, shift)
        self._moments = self._moments.times(2 * shift)

    def _check_labels(self, labels: NDArray[Any], kept: NDArray[np.bool_], first: int) -> None:
        outside = kept & ((labels < 0) | (labels >= self.n_classes))
        if outside.any():
            at = int(outside.argmax())
            raise LabelError(
                f"labels[{first + at}] is {labels[at]}; a label is from 0 to {self.n_classes - 1}, one of the "
                f"columns of the scores, or ignore_index = {self.ignore_index}"
            )


def _check_arrays(scores: NDArray[Any], labels: NDArray[Any], weights: NDArray[Any], n_classes: int) -> None:
    if scores.ndim != 2 or scores.shape[1] != n_classes:
        raise ValueError(f"scores have shape {scores.shape}; expected (rows, {n_classes}), a column for each class")
    rows_shape = scores.shape[:1]
    if labels.ndim == 2:
        raise ValueError(
            f"labels have shape {labels.shape}; expected class indices of shape {rows_shape} "
            "(the argmax(axis=1) of one-hot or soft labels)"
        )
    if labels.shape != rows_shape:
        raise ValueError(f"labels have shape {labels.shape}; expected {rows_shape}: one label a row of scores")
    # An empty list is an array of float64: it holds no label of a wrong type.
    if labels.dtype.kind not in "iu" and labels.size:
        raise TypeError(f"labels have dtype {labels.dtype}; expected integer class indices (labels.astype(int))")
    if weights.shape != rows_shape:
        raise ValueError(f"sample_weight has shape {weights.shape}; expected {rows_shape}: one weight a row")
    if weights.dtype.kind not in "biuf" and weights.dtype.name != "bfloat16":
        raise TypeError(f"sample_weight has dtype {weights.dtype}; expected real numbers")


def _check_weights(weights: NDArray[Any], first: int) -> None:
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(f"sample_weight[{first + at}] is {weights[at]}; weights must be finite and not negative")


def _probability_losses(
    given: NDArray[Any], scores: NDArray[Any], labels: NDArray[np.int64], rows: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Compute -log p of each label, NaN for rows with NaN or +inf; refuse rows that are no distribution.

    `scores` are those given, in the dtype that the kernels compute in; the dtype given says how exact they can be.
    """
    tolerance = tolerance_of(given.dtype)
    with np.errstate(invalid="ignore"):  # inf - inf in the sum
        sums = scores.sum(axis=1, dtype=np.float64)
    lowest = scores.min(axis=1)
    finite = np.isfinite(sums)
    wrong = (lowest < 0) | (finite & (np.abs(sums - 1) > tolerance))
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(
            f"scores[{rows[at]}] sums to {sums[at]:.6g} and its least entry is {lowest[at]:.6g}; probabilities are "
            f"not negative and sum to 1 within {tolerance:g} (raw scores need kind='logits')"
        )
    loss = np.full(len(scores), np.nan)
    if finite.all():
        loss[:] = cross_entropy(given, labels, reduction="none")
    elif finite.any():
        loss[finite] = cross_entropy(given[finite], labels[finite], reduction="none")
    return loss


def _label_ranks(scores: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.intp]:
    """Count the classes ahead of each row's label: larger score, or the same and a lower index."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    ranks: NDArray[np.intp] = np.count_nonzero(scores > own, axis=1)
    tied = np.flatnonzero(np.count_nonzero(scores == own, axis=1) > 1)
    lower = np.arange(scores.shape[1]) < labels[tied, None]
    ranks[tied] += np.count_nonzero((scores[tied] == own[tied]) & lower, axis=1)
    return ranks
