"""Weighted means and variances that merge without cancellation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Moments"]


@dataclass(frozen=True)
class Moments:
    """Weighted sum of values and of squared deviations from their mean, which merge without cancellation."""

    weight: float = 0.0
    total: float = 0.0
    scatter: float = 0.0

    @classmethod
    def of(cls, values: NDArray[np.float64], weights: NDArray[np.float64] | None) -> Moments:
        """Sum values with weights, or each with weight 1."""
        weight = float(len(values)) if weights is None else float(weights.sum())
        if weight == 0.0:
            return cls()
        # An infinite loss leaves the scatter NaN, and one of 1e200 leaves it infinite: so be it.
        with np.errstate(invalid="ignore", over="ignore"):
            total = float((values if weights is None else weights * values).sum())
            squares = (values - total / weight) ** 2
            scatter = float((squares if weights is None else weights * squares).sum())
        return cls(weight, total, scatter)

    def merge(self, other: Moments) -> Moments:
        """Return the moments of the values of both."""
        if self.weight == 0.0 or other.weight == 0.0:
            return self if other.weight == 0.0 else other
        weight = self.weight + other.weight
        # T. F. Chan, G. H. Golub, R. J. LeVeque, Updating formulae and a pairwise algorithm for computing
        # sample variances (1979).
        apart = self.total / self.weight - other.total / other.weight
        between = self.weight * (other.weight / weight) * apart * apart
        return Moments(weight, self.total + other.total, self.scatter + other.scatter + between)

    def times(self, power_of_two: int) -> Moments:
        """Return the moments for weights 2**power_of_two times as large."""
        weight, total, scatter = np.ldexp([self.weight, self.total, self.scatter], power_of_two).tolist()
        return Moments(weight, total, scatter)

    def standard_error(self, n: int, mean: float, weight: float) -> float:
        """Return the standard error of the mean of n rows, of this total weight, where these weights are its squares.

        W. G. Cochran, Sampling Techniques, 3rd edition (1977), chapter 6: the linearised one of a ratio of sums.
        """
        if n < 2 or not math.isfinite(mean):
            return math.nan
        offset = self.total / self.weight - mean
        return math.sqrt(n / (n - 1) * (self.scatter + self.weight * offset * offset)) / weight
