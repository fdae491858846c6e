"""The exact loss and gradient of a row of logits, by mpmath, kept as pairs of float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from mpmath import mp, mpf
from numpy.typing import NDArray

# Nothing below cancels but z - z_label, which this many bits hold to far more digits than the answers have: a sum of
# 131072 terms is right to 2^-140, and what is then kept, a pair of float64, to 2^-105.
PRECISION = 160


@dataclass(frozen=True)
class Exact:
    """Numbers as the sums of two float64, the second less than half a unit in the last place of the first."""

    high: NDArray[np.float64]
    low: NDArray[np.float64]

    @classmethod
    def of(cls, values: list[mpf]) -> Exact:
        high = [float(value) for value in values]
        low = [float(value - rounded) for value, rounded in zip(values, high, strict=True)]
        return cls(np.array(high), np.array(low))

    def relative_errors(self, found: Any) -> NDArray[np.float64]:
        """Give |found - exact| / |exact|: 0 for a zero that is one, infinity for a zero that is not, NaN for NaN."""
        found = np.asarray(found).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            errors = np.abs((found - self.high) - self.low) / np.abs(self.high)
        return np.where((self.high == 0) & (found == 0), 0.0, errors)


def softmax_loss(logits: NDArray[np.floating], label: int) -> tuple[Exact, Exact]:
    """Give the loss of one row with an index label, and its gradient; -inf masks a class that is not the label."""
    with mp.workprec(PRECISION):
        z_label = mpf(float(logits[label]))
        terms = [mp.exp(mpf(z) - z_label) for z in logits.tolist()]
        # The label's own term is 1, and left out: what is small stays exact.
        others = mp.fsum(terms[:label] + terms[label + 1 :])
        total = 1 + others
        gradient = [term / total for term in terms]
        gradient[label] = -others / total
        return Exact.of([mp.log1p(others)]), Exact.of(gradient)
