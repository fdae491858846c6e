"""Which class is taken for which: a matrix of counts, or for many classes a list of the pairs that occur."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_CLASSES_IN_A_MATRIX", "ConfusionCounts"]

# A matrix of more is larger than 8 MB, and mostly of zeros.
MOST_CLASSES_IN_A_MATRIX = 1024
_MOST_PENDING = 1 << 20


class ConfusionCounts:
    """How often each label met each prediction; rows are labels, columns predictions."""

    def __init__(self, n_classes: int) -> None:
        self.n_classes = n_classes
        self._matrix = np.zeros(n_classes * n_classes, np.int64) if n_classes <= MOST_CLASSES_IN_A_MATRIX else None
        self._codes, self._counts = np.empty((2, 0), np.int64)
        self._pending: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []

    def add(self, labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> None:
        """Count rows."""
        codes = labels * self.n_classes + predictions
        if self._matrix is None:
            self._add_pairs(*np.unique(codes, return_counts=True))
        elif len(codes) < len(self._matrix):
            np.add.at(self._matrix, codes, 1)
        else:
            self._matrix += np.bincount(codes, minlength=len(self._matrix))

    def merge(self, other: ConfusionCounts) -> None:
        """Add the counts of another."""
        self.add_pairs(*other.pairs())

    def add_pairs(self, codes: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Add counts of distinct pairs, ``label * n_classes + prediction``."""
        if self._matrix is not None:
            self._matrix[codes] += counts
        else:
            self._add_pairs(codes, counts)

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the pairs that occur, ``label * n_classes + prediction`` ascending, and how often each does."""
        if self._matrix is not None:
            codes = np.flatnonzero(self._matrix)
            return codes, self._matrix[codes]
        self._settle()
        return self._codes, self._counts

    def matrix(self) -> NDArray[np.int64] | None:
        """Return the matrix, None where the classes are too many."""
        return None if self._matrix is None else self._matrix.reshape(self.n_classes, self.n_classes).copy()

    def top(self, n: int) -> list[tuple[int, int, int]]:
        """Return the n most frequent (label, other class predicted, count), equal ones in the order of the classes."""
        codes, counts = self.pairs()
        labels, predictions = np.divmod(codes, self.n_classes)
        wrong = np.flatnonzero(labels != predictions)
        order = wrong[np.argsort(-counts[wrong], kind="stable")][:n]
        columns = (labels[order].tolist(), predictions[order].tolist(), counts[order].tolist())
        return list(zip(*columns, strict=True))

    def _add_pairs(self, codes: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        self._pending.append((codes, counts))
        # Sorting anew for each block would take a time that grows with the square of their number.
        if sum(len(codes) for codes, _ in self._pending) > max(_MOST_PENDING, len(self._codes)):
            self._settle()

    def _settle(self) -> None:
        if not self._pending:
            return
        codes = np.concatenate([self._codes, *(codes for codes, _ in self._pending)])
        counts = np.concatenate([self._counts, *(counts for _, counts in self._pending)])
        self._codes, positions = np.unique(codes, return_inverse=True)
        self._counts = np.zeros(len(self._codes), np.int64)
        np.add.at(self._counts, positions.reshape(-1), counts)
        self._pending = []
