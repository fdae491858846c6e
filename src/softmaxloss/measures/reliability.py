"""Reliability: whether the confidence of predictions says how often they are right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Reliability", "calibration_error", "n_cells", "reliability"]

# Confidence is sorted into at least so many cells of equal width, a whole number of them in each bin of equal width:
# bins of equal weight are then made of cells, whose sums merge, where sorted rows would not.
LEAST_CELLS = 4096


class Reliability(NamedTuple):
    """Bins of predictions by their confidence: arrays of shape (bins,), without the bins that hold no row.

    Parameters
    ----------
    low, high : float64
        The confidences that the bin is for, `high` not included but for 1.
    n_rows : int64
        How many rows.
    weight : float64
        Their share of the weight of all rows.
    confidence, accuracy : float64
        The mean probability of the predicted class, and the fraction of predictions that are right.

    Examples
    --------
    >>> import softmaxloss as sl
    >>> probabilities = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]
    >>> found = sl.evaluate(probabilities, [0, 1, 1, 0], kind="probabilities", bins=2)
    >>> found.reliability.confidence, found.reliability.accuracy
    (array([0.75]), array([0.5]))
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n_rows: NDArray[np.int64]
    weight: NDArray[np.float64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def n_cells(bins: int) -> int:
    """Return the number of cells for this many bins."""
    return bins * -(-LEAST_CELLS // bins)


def reliability(counts: NDArray[np.int64], sums: NDArray[np.float64], bins: int, *, adaptive: bool) -> Reliability:
    """Put cells together to bins of equal width, or as nearly as cells allow of equal weight.

    Parameters
    ----------
    counts : array of shape (cells,)
        Rows.
    sums : array of shape (3, cells)
        Sums of weights, of weighted confidences, and of the weights of rows whose prediction is right.
    """
    cells, weight = len(counts), float(sums[0].sum())
    used = np.flatnonzero(sums[0])
    if not len(used):
        none = np.empty(0)
        return Reliability(none, none, np.empty(0, np.int64), none, none, none)
    if adaptive:
        # A cell belongs where the middle of its weight lies.
        middle = (np.cumsum(sums[0]) - sums[0] / 2) * (bins / weight)
        bin_of = np.minimum(middle[used].astype(np.int64), bins - 1)
    else:
        bin_of = used // (cells // bins)
    starts = np.flatnonzero(np.diff(bin_of, prepend=-1))
    in_bin = np.add.reduceat(sums[:, used], starts, axis=1)
    if adaptive:
        low, high = used[starts] / cells, (used[[*(starts[1:] - 1), -1]] + 1) / cells
    else:
        low, high = bin_of[starts] / bins, (bin_of[starts] + 1) / bins
    return Reliability(
        low,
        high,
        np.add.reduceat(counts[used], starts),
        in_bin[0] / weight,
        in_bin[1] / in_bin[0],
        in_bin[2] / in_bin[0],
    )


def calibration_error(found: Reliability) -> float:
    """Return the mean distance of confidence and accuracy over bins, by their weight; NaN without rows."""
    if not len(found.n_rows):
        return np.nan
    return float((found.weight * np.abs(found.confidence - found.accuracy)).sum())
