"""What evaluation needs of each row of scores: its loss, its prediction, its label's rank, its confidence."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from softmaxloss import _native
from softmaxloss.backends.layout import kernel_dtype
from softmaxloss.labels import tolerance_of
from softmaxloss.loss import row_statistics, softmax_cross_entropy

__all__ = ["KINDS", "Kind", "RowMeasures", "confidences", "losses", "measure_rows"]

Kind = Literal["logits", "log_probabilities", "probabilities"]
KINDS: tuple[Kind, ...] = ("logits", "log_probabilities", "probabilities")

# Up to so many classes, ranking and adding up row by row is faster than what prepares for long rows.
FEW_CLASSES = 40
# The kernel takes fewer rows another way, whose last bit may differ: repeated, they get the bits of any larger block.
A_FEW_ROWS = 64


class RowMeasures(NamedTuple):
    """The rows of a block that have a loss: which they are, and what was found of each."""

    scored: NDArray[np.bool_] | None  # None where that is all of them
    scores: NDArray[Any]
    labels: NDArray[np.int64]
    loss: NDArray[np.float64]
    prediction: NDArray[np.int64]
    rank: NDArray[np.int64]  # how many classes are ahead of the label; of equal scores the lower index is
    top: NDArray[Any]  # the prediction's score


def measure_rows(
    scores: NDArray[Any], labels: NDArray[np.int64], rows: NDArray[np.int64], kind: Kind, name: str = "scores"
) -> RowMeasures:
    """Measure a block of rows, which are number `rows` among all; leave out those that have no loss."""
    given = scores.dtype
    scores = np.ascontiguousarray(scores, kernel_dtype(given))
    few = scores.shape[1] <= FEW_CLASSES
    # Wide rows are read by the kernel that gives all at once.
    statistics = None if few else row_statistics(scores, labels)
    if kind == "logits" and statistics is not None:
        loss = np.asarray(statistics.loss, np.float64)
    else:
        loss = losses(scores, labels, rows, kind, given, name)
    missing = np.isnan(loss)
    scored = ~missing if missing.any() else None
    if scored is not None:
        scores, labels, loss = scores[scored], labels[scored], loss[scored]
    if statistics is None:
        prediction, rank, top = _ranked(scores, labels)
    else:
        prediction, rank = (s if scored is None else s[scored] for s in (statistics.prediction, statistics.rank))
        rank = rank + _ties_ahead(scores, labels)
        top = _picked(scores, prediction)
    return RowMeasures(scored, scores, labels, loss, prediction, rank, top)


def losses(
    scores: NDArray[Any],
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    kind: Kind,
    given: np.dtype[Any],
    name: str = "scores",
) -> NDArray[np.float64]:
    """Compute -log p of each label, NaN for rows that have none; refuse rows that are not what `kind` says.

    `scores` are contiguous, in the dtype that the kernels compute in; `given`, the dtype that they came in, says how
    exact they can be.
    """
    if kind == "logits":
        n = len(labels)
        if 0 < n < A_FEW_ROWS:
            scores, labels = np.resize(scores, (A_FEW_ROWS, scores.shape[1])), np.resize(labels, A_FEW_ROWS)
        return np.asarray(softmax_cross_entropy(scores, labels, reduction="none")[:n], np.float64)
    own = _picked(scores, labels).astype(np.float64)
    if kind == "probabilities":
        _check_probabilities(scores, own, rows, tolerance_of(given), name)
        with np.errstate(divide="ignore"):
            return np.subtract(0.0, np.log(own))  # 0 - 0 is 0, where -0 is not
    _check_log_probabilities(scores, own, rows, tolerance_of(given), name)
    return np.subtract(0.0, own)


def confidences(measured: RowMeasures, kind: Kind) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the probability of each row's prediction, and its Brier score, the sum over classes of (p - q)^2."""
    if kind == "logits":
        exps = measured.scores - measured.top[:, None]
        np.exp(exps, out=exps)
        sums, squares = _power_sums(exps)
        confidence = 1.0 / sums
        squares /= sums * sums
    else:
        p, top = measured.scores, measured.top.astype(np.float64)
        if kind == "log_probabilities":
            p, top = np.exp(p), np.exp(top)
        confidence = top
        _, squares = _power_sums(p)
    own = np.exp(-measured.loss)
    return confidence, np.maximum(squares - 2.0 * own + 1.0, 0.0)


def _picked(scores: NDArray[Any], classes: NDArray[np.int64]) -> NDArray[Any]:
    """Return one entry of each row."""
    picked: NDArray[Any] = scores.reshape(-1)[np.arange(0, scores.size, scores.shape[1]) + classes]
    return picked


def _ranked(
    scores: NDArray[Any], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
    """Find the first largest entry of each row, how many are ahead of the label's, and the largest itself."""
    prediction, rank = np.empty((2, len(labels)), np.int64)
    largest = np.empty(len(labels), scores.dtype)
    _native.rank_rows(scores, labels, prediction, rank, largest)
    return prediction, rank, largest


def _power_sums(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each row's sum and that of its squares, the same whatever rows are around it (a matrix product is not)."""
    if values.shape[1] > FEW_CLASSES:
        sums, squares = np.einsum("ij->i", values), np.einsum("ij,ij->i", values, values)
        return sums.astype(np.float64), squares.astype(np.float64)
    sums, squares = np.empty((2, len(values)))
    _native.power_sums(values, sums, squares)
    return sums, squares


def _ties_ahead(scores: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.int64] | int:
    """Count the classes with the same score as the row's label and a lower index."""
    same = scores == _picked(scores, labels)[:, None]
    if np.count_nonzero(same) == len(labels):  # the labels themselves
        return 0
    rows, classes = np.nonzero(same)
    return np.bincount(rows[classes < labels[rows]], minlength=len(labels))


def _check_probabilities(
    scores: NDArray[Any], own: NDArray[np.float64], rows: NDArray[np.int64], tolerance: float, name: str
) -> None:
    """Refuse rows that are no distribution; set the label's probability to NaN where the row holds NaN or +inf."""
    if not scores.size:
        return
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf
        # Not a matrix product: the threads of BLAS, still awake, would hold up those of the kernels.
        rough = _power_sums(scores)[0]
        if scores.min() >= 0 and (np.abs(rough - 1) <= tolerance / 2).all():
            return
        sums = scores.sum(axis=1, dtype=np.float64)
    lowest = scores.min(axis=1)
    finite = np.isfinite(sums)
    wrong = (lowest < 0) | (finite & (np.abs(sums - 1) > tolerance))
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(
            f"{name}[{rows[at]}] sums to {sums[at]:.6g} and its least entry is {lowest[at]:.6g}; probabilities are "
            f"not negative and sum to 1 within {tolerance:g} (raw scores need kind='logits')"
        )
    own[~finite] = np.nan


def _check_log_probabilities(
    scores: NDArray[Any], own: NDArray[np.float64], rows: NDArray[np.int64], tolerance: float, name: str
) -> None:
    """Refuse rows that are no distribution; set the label's entry to NaN where the row holds NaN or +inf."""
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.exp(scores).sum(axis=1, dtype=np.float64)
    # A sum that is infinite is of a large logit, but for +inf itself, which makes a row that has no loss.
    none = np.isnan(scores).any(axis=1) | (scores == np.inf).any(axis=1) | (scores == -np.inf).all(axis=1)
    wrong = ~none & ~(np.abs(sums - 1) <= tolerance)
    if wrong.any():
        at = int(wrong.argmax())
        raise ValueError(
            f"the exponentials of {name}[{rows[at]}] sum to {sums[at]:.6g}; those of log-probabilities sum to 1 within "
            f"{tolerance:g} (raw scores need kind='logits')"
        )
    own[none] = np.nan
