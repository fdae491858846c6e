"""Scores, labels and weights at the door: their shapes and dtypes, and which rows of a block count."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softmaxloss.backends import is_dask
from softmaxloss.labels import LabelError

__all__ = ["Rows", "as_weights", "check_arrays", "refuse_dask", "rows_that_count", "weight_unit"]


class Rows(NamedTuple):
    """The rows of one block whose label is not ignored and whose weight is not 0."""

    kept: NDArray[np.bool_] | None  # None where that is all of them
    numbers: NDArray[np.int64]  # of those kept, among the rows of all blocks
    labels: NDArray[np.int64]
    weights: NDArray[np.float64] | None  # None where each is 1


def refuse_dask(function: str, **arrays: Any) -> None:
    """Refuse Dask arrays, all of which would be gathered in memory."""
    for name, array in arrays.items():
        if is_dask(array):
            raise TypeError(
                f"{name} is a {type(array).__name__} of Dask's, which {function} does not take: pass {name}.compute(), "
                "or a memory map where memory is too small (evaluate takes Dask arrays)"
            )


def as_weights(sample_weight: ArrayLike | None) -> NDArray[Any] | None:
    """Return weights as an array."""
    return None if sample_weight is None else np.asarray(sample_weight)


def weight_unit(weights: NDArray[Any] | None) -> int:
    """Return the exponent of the power of two next to the largest weight, 0 where each is 1.

    Sums of weights in units of it neither vanish nor overflow, and nor do those of their squares.
    """
    if weights is None or not weights.size:
        return 0
    with np.errstate(over="ignore"):
        largest = float(weights.max())
    # A weight that is out of range is refused with the row that has it.
    return math.frexp(largest)[1] if math.isfinite(largest) and largest > 0 else 0


def check_arrays(
    scores: NDArray[Any], labels: NDArray[Any], weights: NDArray[Any] | None, n_classes: int, name: str = "scores"
) -> None:
    """Refuse arrays whose shapes do not fit, labels that are no integers, and weights that are no numbers."""
    if scores.ndim != 2 or scores.shape[1] != n_classes:
        raise ValueError(f"{name} have shape {scores.shape}; expected (rows, {n_classes}), a column for each class")
    rows_shape = scores.shape[:1]
    if labels.ndim == 2:
        raise ValueError(
            f"labels have shape {labels.shape}; expected class indices of shape {rows_shape} "
            "(the argmax(axis=1) of one-hot or soft labels)"
        )
    if labels.shape != rows_shape:
        raise ValueError(f"labels have shape {labels.shape}; expected {rows_shape}: one label a row of {name}")
    # An empty list is an array of float64: it holds no label of a wrong type.
    if labels.dtype.kind not in "iu" and labels.size:
        raise TypeError(f"labels have dtype {labels.dtype}; expected integer class indices (labels.astype(int))")
    if weights is None:
        return
    if weights.shape != rows_shape:
        raise ValueError(f"sample_weight has shape {weights.shape}; expected {rows_shape}: one weight a row")
    if weights.dtype.kind not in "biuf" and weights.dtype.name != "bfloat16":
        raise TypeError(f"sample_weight has dtype {weights.dtype}; expected real numbers")


def rows_that_count(
    labels: NDArray[Any], weights: NDArray[Any] | None, first: int, n_classes: int, ignore_index: int
) -> Rows:
    """Find the rows of a block that count, the first of which is row number `first`; refuse values out of range."""
    kept = labels != ignore_index
    _check_labels(labels, kept, first, n_classes, ignore_index)
    if weights is not None:
        with np.errstate(over="ignore"):  # what becomes infinite is refused
            weights = weights.astype(np.float64, copy=False)
        _check_weights(weights, first)
        kept &= weights > 0
    if kept.all():
        numbers = np.arange(first, first + len(labels))
        return Rows(None, numbers, labels.astype(np.int64, copy=False), weights)
    numbers = first + np.flatnonzero(kept)
    return Rows(kept, numbers, labels[kept].astype(np.int64, copy=False), None if weights is None else weights[kept])


def _check_labels(labels: NDArray[Any], kept: NDArray[np.bool_], first: int, n_classes: int, ignore_index: int) -> None:
    outside = kept & ((labels < 0) | (labels >= n_classes))
    if outside.any():
        at = int(outside.argmax())
        raise LabelError(
            f"labels[{first + at}] is {labels[at]}; a label is from 0 to {n_classes - 1}, one of the "
            f"columns of the scores, or ignore_index = {ignore_index}"
        )


def _check_weights(weights: NDArray[np.float64], first: int) -> None:
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(f"sample_weight[{first + at}] is {weights[at]}; weights must be finite and not negative")
