"""Running totals of losses and hits over rows: what evaluation keeps of data it reads a block at a time."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softmaxloss import _native
from softmaxloss.backends.layout import as_logits, kernel_dtype, rows_a_block
from softmaxloss.measures.bootstrap import CELLS, as_groups, cells_of_groups, cells_of_rows
from softmaxloss.measures.confusion import ConfusionCounts
from softmaxloss.measures.inputs import Rows, as_weights, check_arrays, rows_that_count
from softmaxloss.measures.moments import Moments
from softmaxloss.measures.reliability import n_cells
from softmaxloss.measures.rows import KINDS, Kind, RowMeasures, losses, measure_rows
from softmaxloss.measures.worst import LargestRows

__all__ = ["Kind", "Totals"]

# Weights are summed as they are unless the largest leaves 2^-32 .. 2^32: the squares of those of 1e-200 would vanish.
ORDINARY_EXPONENT = 32


@dataclass(eq=False, repr=False)
class Totals:
    """What rows add up to: fed a block at a time, merged with the totals of other rows, asked for averages.

    For scores that do not come as one array; `evaluate` is the short form for those that do.
    ``Evaluation.of(totals)`` puts the averages together.

    Parameters
    ----------
    n_classes : int
        Number of classes C, at least 1.
    kind, top_k, ignore_index, bins, worst, seed, first_row, only_loss
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
    >>> morning, evening = Totals(2), Totals(2, first_row=2)
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
    bins: int = 15
    worst: int = 10
    seed: int = 0
    first_row: int = 0
    only_loss: bool = False
    # The number that the next row gets.
    next_row: int = field(init=False)
    n_ignored: int = field(default=0, init=False)
    n_nonfinite: int = field(default=0, init=False)
    n_infinite_loss: int = field(default=0, init=False)
    # The sums count weights in units of 2**exponent: any average is the same in any unit.
    exponent: int = field(default=0, init=False)
    counts: dict[str, NDArray[np.int64]] = field(init=False)
    # All are linear in the weights.
    sums: dict[str, NDArray[np.float64]] = field(init=False)
    # Of the losses weighted by the squares of the rows' weights, as the standard error needs them.
    moments: Moments = field(default=Moments(), init=False)
    confusion: ConfusionCounts = field(init=False)
    worst_rows: LargestRows = field(init=False)

    def __post_init__(self) -> None:
        """Check the options and start every sum at zero."""
        self._check_options()
        self.next_row = self.first_row
        cells = n_cells(self.bins)
        self.counts = {"class": np.zeros(self.n_classes, np.int64), "reliability": np.zeros(cells, np.int64)}
        self.sums = {
            "class_weight": np.zeros(self.n_classes),
            "class_loss": np.zeros(self.n_classes),
            "class_hits": np.zeros(self.n_classes),
            "top_k_hits": np.zeros(len(self.top_k)),
            "brier": np.zeros(1),
            # Weights, losses and hits by the cells of the bootstrap.
            "cells": np.zeros((3, CELLS)),
            # Weights, confidences and hits by the cells of confidence.
            "reliability": np.zeros((3, cells)),
        }
        self.confusion = ConfusionCounts(self.n_classes)
        self.worst_rows = LargestRows(self.worst, columns=2)

    def _check_options(self) -> None:
        for name in ("n_classes", "ignore_index", "bins", "worst", "seed", "first_row"):
            setattr(self, name, operator.index(getattr(self, name)))
        self.top_k = tuple(operator.index(k) for k in self.top_k)
        self.only_loss = bool(self.only_loss)
        if self.n_classes < 1:
            raise ValueError(f"the number of classes is {self.n_classes}; expected at least 1")
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; expected 'logits' or 'probabilities' or 'log_probabilities'")
        if any(k < 1 for k in self.top_k):
            raise ValueError(f"top_k is {self.top_k}; expected integers of at least 1")
        if self.bins < 1:
            raise ValueError(f"bins is {self.bins}; expected at least 1")
        for name in ("worst", "seed", "first_row"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 0")

    @property
    def class_count(self) -> NDArray[np.int64]:
        """How many scored rows each class has."""
        return self.counts["class"]

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
        return float(self.sums["class_weight"].sum())

    @property
    def loss(self) -> float:
        """Weighted mean loss, NaN before the first scored row."""
        return self.average("class_loss")

    @property
    def loss_standard_error(self) -> float:
        """Standard error of the mean loss by the formula in `evaluate`, NaN for fewer than two rows."""
        return self.moments.standard_error(self.n_scored, self.loss, self.weight)

    def average(self, name: str) -> float:
        """Divide a weighted sum by the weight of the scored rows."""
        return float(self.sums[name].sum()) / self.weight if self.weight else math.nan

    def class_average(self, name: str) -> NDArray[np.float64]:
        """Divide each class's weighted sum by the weight of its rows."""
        with np.errstate(invalid="ignore"):  # 0 / 0, NaN, for a class without rows
            return self.sums[name] / self.sums["class_weight"]

    def add(
        self,
        scores: ArrayLike,
        labels: ArrayLike,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> None:
        """Add rows: scores (N, C), labels (N,), weights (N,) and groups (N,), read and refused as `evaluate` says.

        An error names the row, counted from `first_row` and the first one ever added; the rows of earlier blocks stay
        added.
        """
        scores, labels, weights = as_logits(scores, "scores"), np.asarray(labels), as_weights(sample_weight)
        check_arrays(scores, labels, weights, self.n_classes)
        names = None if groups is None else as_groups(groups, len(labels))
        # A block is small enough for the cache, so that the passes after the first do not read main memory again.
        rows = rows_a_block(self.n_classes, kernel_dtype(scores.dtype))
        for start in range(0, len(scores), rows):
            block = slice(start, start + rows)
            parts = (None if array is None else array[block] for array in (weights, names))
            self._add_block(scores[block], labels[block], *parts)

    def merge(self, other: Totals) -> None:
        """Add the rows of other totals, which stay as they are.

        Rows that are added later go on from the highest row number of both.

        Raises
        ------
        ValueError
            The other totals have other classes or options.
        """
        names = ("n_classes", "kind", "top_k", "ignore_index", "bins", "worst", "seed", "only_loss")
        mine, theirs = (tuple(getattr(t, name) for name in names) for t in (self, other))
        if mine != theirs:
            raise ValueError(f"the other totals have ({', '.join(names)}) = {theirs}; expected {mine}, the same")
        # The larger unit holds the weights of both; totals without rows have none yet.
        self._set_unit(max((t.exponent for t in (self, other) if t.n_scored), default=0))
        shift = other.exponent - self.exponent
        self.first_row, self.next_row = min(self.first_row, other.first_row), max(self.next_row, other.next_row)
        self.n_ignored += other.n_ignored
        self.n_nonfinite += other.n_nonfinite
        self.n_infinite_loss += other.n_infinite_loss
        for name, count in self.counts.items():
            count += other.counts[name]
        for name, total in self.sums.items():
            total += np.ldexp(other.sums[name], shift)
        self.moments = self.moments.merge(other.moments.times(2 * shift))
        self.confusion.merge(other.confusion)
        self.worst_rows.merge(other.worst_rows)

    def _add_block(
        self, scores: NDArray[Any], labels: NDArray[Any], weights: NDArray[Any] | None, groups: NDArray[Any] | None
    ) -> None:
        rows = rows_that_count(labels, weights, self.next_row, self.n_classes, self.ignore_index)
        if rows.kept is not None:
            scores = scores[rows.kept]
            groups = None if groups is None else groups[rows.kept]
        if self.only_loss:
            self._add_losses(scores, rows, len(labels))
            return
        measured = measure_rows(scores, rows.labels, rows.numbers, self.kind)
        scored = slice(None) if measured.scored is None else measured.scored
        weights = None if rows.weights is None else rows.weights[scored]
        self._count(len(labels), len(rows.labels), measured.loss)
        if not len(measured.loss):
            return
        weights = self._in_unit(weights, len(measured.loss))
        self._add_loss(measured.loss, measured.labels, weights)
        self._add_details(measured, rows.numbers[scored], weights, None if groups is None else groups[scored])

    def _add_losses(self, scores: NDArray[Any], rows: Rows, n: int) -> None:
        loss = losses(scores, rows.labels, rows.numbers, self.kind)
        labels, weights = rows.labels, rows.weights
        missing = np.isnan(loss)
        if missing.any():
            loss, labels = loss[~missing], labels[~missing]
            weights = None if weights is None else weights[~missing]
        self._count(n, len(rows.labels), loss)
        if len(loss):
            self._add_loss(loss, labels, self._in_unit(weights, len(loss)))

    def _count(self, n: int, n_kept: int, loss: NDArray[np.float64]) -> None:
        self.next_row += n
        self.n_ignored += n - n_kept
        self.n_nonfinite += n_kept - len(loss)
        self.n_infinite_loss += int(np.count_nonzero(np.isinf(loss)))

    def _in_unit(self, weights: NDArray[np.float64] | None, n: int) -> NDArray[np.float64] | None:
        """Return weights in the unit of the sums, after changing it where they are of another magnitude."""
        exponent = 0 if weights is None else math.frexp(float(weights.max()))[1] - 1
        unused = not self.moments.weight
        if exponent - self.exponent > ORDINARY_EXPONENT or (exponent < -ORDINARY_EXPONENT and unused):
            self._set_unit(exponent)
        if self.exponent == 0:
            return weights
        return np.ldexp(np.ones(n) if weights is None else weights, -self.exponent)

    # The sums are added to in the order of the rows, one after another: they are the same for any blocks.

    def _add_loss(
        self, loss: NDArray[np.float64], labels: NDArray[np.int64], weights: NDArray[np.float64] | None
    ) -> None:
        by_class = self.sums["class_weight"], self.sums["class_loss"]
        _native.add_losses(labels, weights, loss, self.class_count, *by_class)
        self.moments = self.moments.merge(Moments.of(loss, None if weights is None else weights * weights))

    def _add_details(
        self,
        measured: RowMeasures,
        rows: NDArray[np.int64],
        weights: NDArray[np.float64] | None,
        groups: NDArray[Any] | None,
    ) -> None:
        loss, labels = measured.loss, measured.labels
        ks = np.array([min(k, self.n_classes) for k in self.top_k], np.int64)
        cell = cells_of_rows(rows, self.seed) if groups is None else cells_of_groups(groups, self.seed)
        _native.add_details(
            labels,
            weights,
            measured.rank,
            loss,
            measured.confidence,
            measured.brier,
            cell,
            self.sums["class_hits"],
            ks,
            self.sums["top_k_hits"],
            self.sums["brier"],
            self.sums["cells"],
            self.sums["reliability"],
            self.counts["reliability"],
        )
        self.confusion.add(labels, measured.prediction)
        self.worst_rows.add(loss, rows, labels, measured.prediction)

    def _set_unit(self, exponent: int) -> None:
        """Go over to sums in units of ``2**exponent``: exact, but for weights that are nothing beside the largest."""
        shift = self.exponent - exponent
        if shift == 0:
            return
        self.exponent = exponent
        self.sums = {name: np.ldexp(total, shift) for name, total in self.sums.items()}
        self.moments = self.moments.times(2 * shift)
