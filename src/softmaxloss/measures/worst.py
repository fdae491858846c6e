"""The rows of the largest values, as found block by block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LargestRows"]


class LargestRows:
    """The k rows with the largest values, and what belongs to them; of equal values, the lower row numbers."""

    def __init__(self, k: int, columns: int) -> None:
        self.k = k
        self.values = np.empty(0)
        # The row's number, and what else was given with it.
        self.rows = np.empty((0, 1 + columns), np.int64)

    def add(self, values: NDArray[np.float64], rows: NDArray[np.int64], *others: NDArray[np.int64]) -> None:
        """Take those of these rows that are among the k largest now."""
        if self.k == 0:
            return
        if len(self.values) == self.k:
            at = np.flatnonzero(values >= self.values[-1])
        elif len(values) > self.k:
            at = np.flatnonzero(values >= np.partition(values, -self.k)[-self.k])
        else:
            at = np.arange(len(values))
        if len(at):
            self._take(values[at], np.stack([column[at] for column in (rows, *others)], axis=1))

    def merge(self, other: LargestRows) -> None:
        """Take the rows of another."""
        self._take(other.values, other.rows)

    def _take(self, values: NDArray[np.float64], rows: NDArray[np.int64]) -> None:
        values, rows = np.concatenate([self.values, values]), np.concatenate([self.rows, rows])
        order = np.lexsort((rows[:, 0], -values))[: self.k]
        self.values, self.rows = values[order], rows[order]

    def restore(self, values: NDArray[np.float64], rows: NDArray[np.int64]) -> None:
        """Become what a state told of."""
        self.values, self.rows = values, rows.reshape(-1, self.rows.shape[1])
