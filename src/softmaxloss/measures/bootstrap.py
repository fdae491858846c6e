"""Confidence intervals by the bootstrap, of rows or groups of rows, at the cost of a few sums a row.

Each row falls into one of `CELLS` cells, chosen by a hash of the seed and of the row's number, or of its group. Sums
are kept for each cell, and the cells are what is drawn again. The rows of a cell are a random lot, and those of a group
are always together, so that the variance of a mean is estimated without bias, with a relative error of its root of
about 1 / sqrt(2 * CELLS), 2 %, however many rows there are. A hash needs no memory of other rows: any blocks, in any
order and from any machine, add up to the same cells.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softmaxloss import _native

__all__ = ["CELLS", "as_groups", "bootstrap_means", "cells_of_groups", "cells_of_rows", "percentile_interval"]

_BITS = 10
CELLS = 1 << _BITS
# Replicates are drawn this many at a time, in 8 MB.
_REPLICATES_AT_ONCE = 1000
_WORD = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


def cells_of_rows(rows: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Return the cell of each row, by its number."""
    return _cells(rows.view(np.uint64), seed)


def cells_of_groups(groups: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """Return the cell of each row, by its group: an integer or a text."""
    if groups.dtype.kind == "u":
        return _cells(groups.astype(np.uint64), seed)
    if groups.dtype.kind in "ib":
        return _cells(groups.astype(np.int64).view(np.uint64), seed)
    names, positions = np.unique(groups, return_inverse=True)
    keys = [hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in names]
    return _cells(np.frombuffer(b"".join(keys), "<u8").astype(np.uint64), seed)[positions.reshape(-1)]


def as_groups(groups: ArrayLike, rows: int) -> NDArray[Any]:
    """Return groups as an array of integers or text, one for each row.

    Raises
    ------
    ValueError
        They are not one a row.
    TypeError
        They are neither integers nor text.
    """
    array = np.asarray(groups)
    if array.dtype.kind == "O" and all(isinstance(name, str) for name in array.ravel().tolist()):
        array = array.astype(str)
    if array.shape != (rows,):
        raise ValueError(f"groups have shape {array.shape}; expected {(rows,)}: one group a row")
    if array.dtype.kind not in "iubU" and array.size:
        raise TypeError(f"groups have dtype {array.dtype}; expected integers or text")
    return array


def _cells(keys: NDArray[np.uint64], seed: int) -> NDArray[np.int64]:
    """Hash keys with the finaliser of SplitMix64 (G. L. Steele, D. Lea, C. H. Flood, 2014), twice with the seed."""
    cells = np.empty(len(keys), np.int64)
    _native.cells_of_keys(keys, _mixed(seed * _GAMMA), _BITS, cells)
    return cells


def _mixed(x: int) -> int:
    x = (x + _GAMMA) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


def bootstrap_means(
    weights: NDArray[np.float64], totals: NDArray[np.float64], replicates: int, seed: int
) -> NDArray[np.float64]:
    """Draw cells with replacement, as many as hold rows, and return the mean of each draw.

    Parameters
    ----------
    weights, totals : arrays of shape (CELLS,)
        The sum of the rows' weights in each cell, and of their weighted values.
    replicates : int
        How many draws.
    seed : int
        Which ones.

    Returns
    -------
    array of shape (replicates,)
        Empty where fewer than two cells hold rows, or a total is not finite.
    """
    filled = np.flatnonzero(weights)
    if len(filled) < 2 or not np.isfinite(totals).all():
        return np.empty(0)
    sums = np.stack([totals[filled], weights[filled]], axis=1)
    n = len(filled)
    generator = np.random.default_rng(seed)
    means = np.empty(replicates)
    for start in range(0, replicates, _REPLICATES_AT_ONCE):
        count = min(_REPLICATES_AT_ONCE, replicates - start)
        drawn = generator.integers(0, n, (count, n), np.int32)
        drawn += np.arange(0, count * n, n, dtype=np.int32)[:, None]
        times = np.bincount(drawn.reshape(-1), minlength=count * n).reshape(count, n)
        total, weight = (times.astype(np.float64) @ sums).T
        means[start : start + count] = total / weight
    return means


def percentile_interval(means: NDArray[np.float64], level: float) -> tuple[float, float]:
    """Return the central interval that holds this fraction of the replicates, NaN where there are none."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; expected a fraction above 0 and below 1, such as 0.95")
    if not len(means):
        return np.nan, np.nan
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high
