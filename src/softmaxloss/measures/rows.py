"""What evaluation needs of each row of scores: its loss, its prediction, its label's rank, its confidence."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from softmaxloss import _native
from softmaxloss.backends.layout import kernel_dtype
from softmaxloss.labels import tolerance_of
from softmaxloss.loss import row_statistics, softmax_cross_entropy

__all__ = ["KINDS", "Kind", "RowMeasures", "losses", "measure_rows"]

Kind = Literal["logits", "log_probabilities", "probabilities"]
KINDS: tuple[Kind, ...] = ("logits", "log_probabilities", "probabilities")

# Rows of up to so many classes are taken together by the loss's kernel, and where their logits lie far apart the last
# bit of one depends on the others; it seldom does of few classes, where a row by itself takes several times as long.
FEW_CLASSES, MOST_TOGETHER = 40, 256
# The kernel takes fewer rows another way, whose last bit may differ: repeated, they get the bits of any larger block.
A_FEW_ROWS = 64


class RowMeasures(NamedTuple):
    """The rows of a block that have a loss: which they are, and what was found of each."""

    scored: NDArray[np.bool_] | None  # None where that is all of them
    labels: NDArray[np.int64]
    loss: NDArray[np.float64]
    prediction: NDArray[np.int64]
    rank: NDArray[np.int64]  # how many classes are ahead of the label; of equal scores the lower index is
    confidence: NDArray[np.float64]  # the probability of the prediction
    brier: NDArray[np.float64]  # the sum over classes of (p - q)^2


def measure_rows(
    scores: NDArray[Any], labels: NDArray[np.int64], rows: NDArray[np.int64], kind: Kind, name: str = "scores"
) -> RowMeasures:
    """Measure a block of rows, which are number `rows` among all; leave out those that have no loss."""
    given, n = scores.dtype, len(labels)
    scores = np.ascontiguousarray(scores, kernel_dtype(given))
    judged = np.empty((2, n), np.int64), np.empty((2, n))
    sums = _judge(scores, labels, kind, *judged[0], *judged[1])
    if kind == "logits":
        loss = _losses_of_logits(scores, labels)
    else:
        loss = _checked_losses(scores, labels, rows, kind, tolerance_of(given), name, *sums)
    measures = [labels, loss, *judged[0], *judged[1]]
    missing = np.isnan(loss)
    if not missing.any():
        return RowMeasures(None, *measures)
    scored = ~missing
    return RowMeasures(scored, *(measure[scored] for measure in measures))


def losses(scores: NDArray[Any], labels: NDArray[np.int64], rows: NDArray[np.int64], kind: Kind) -> NDArray[np.float64]:
    """Compute -log p of each label, NaN for rows that have none; refuse rows that are not what `kind` says."""
    given, scores = scores.dtype, np.ascontiguousarray(scores, kernel_dtype(scores.dtype))
    if kind == "logits":
        return _losses_of_logits(scores, labels)
    sums = _judge(scores, labels, kind)
    return _checked_losses(scores, labels, rows, kind, tolerance_of(given), "scores", *sums)


def _losses_of_logits(scores: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    n, classes = scores.shape
    if FEW_CLASSES < classes <= MOST_TOGETHER:
        return np.asarray(row_statistics(scores, labels).loss, np.float64)
    if 0 < n < A_FEW_ROWS:
        scores, labels = np.resize(scores, (A_FEW_ROWS, classes)), np.resize(labels, A_FEW_ROWS)
    return np.asarray(softmax_cross_entropy(scores, labels, reduction="none")[:n], np.float64)


def _checked_losses(
    scores: NDArray[Any],
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    kind: Kind,
    tolerance: float,
    name: str,
    sums: NDArray[np.float64],
    least: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Compute losses of probabilities or their logarithms, of which each row's sum and least are known roughly."""
    own = scores.reshape(-1)[np.arange(0, scores.size, scores.shape[1]) + labels].astype(np.float64)
    passed = np.abs(sums - 1) <= tolerance / 2
    if kind == "log_probabilities":
        if not passed.all():
            _check_log_probabilities(scores, own, rows, tolerance, name)
        return np.asarray(0.0 - own)
    if not (passed & (least >= 0)).all():
        _check_probabilities(scores, own, rows, tolerance, name)
    with np.errstate(divide="ignore"):
        return np.asarray(0.0 - np.log(own, out=own))  # 0 where it is 0, not -0


def _judge(
    scores: NDArray[Any], labels: NDArray[np.int64], kind: Kind, *found: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each row's sum of probabilities and the least of them; put into `found` what else is asked for."""
    sums, least = np.empty((2, len(labels)))
    wanted = found or (None,) * 4
    _native.judge_rows(scores, labels, KINDS.index(kind), sums, least, *wanted)
    return sums, least


def _check_probabilities(
    scores: NDArray[Any], own: NDArray[np.float64], rows: NDArray[np.int64], tolerance: float, name: str
) -> None:
    """Refuse rows that are no distribution; set the label's probability to NaN where the row holds NaN or +inf."""
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf
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
