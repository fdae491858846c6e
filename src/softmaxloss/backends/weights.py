"""Weights within a double's range: powers of two taken out of those whose products with each other would leave it."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from softmaxloss.options import LossOptions

_ORDINARY = 32  # weights from 2^-32 to 2^32 are taken as they are

# Between these exponents weights are kept where one kind of them is spread wide; between half of these where both are,
# so that their products are normal numbers too. What is left of a double's range is for the losses they weigh, and the
# sum of many.
_LEAST, _MOST = -1010, 980
_MOST_Z_LOSS = 900


class _Exponents(NamedTuple):
    """Of the least weight above 0, and of the largest."""

    least: int
    most: int

    def are_ordinary(self) -> bool:
        """Tell whether these weights can be taken as they are, whatever the others."""
        return self.least >= -_ORDINARY and self.most <= _ORDINARY

    def are_close(self) -> bool:
        """Tell whether they all are ordinary once their unit is taken out."""
        return self.most - self.least <= _ORDINARY


def in_range(options: LossOptions) -> LossOptions:
    """Return the options with powers of two moved out of the weights, into their units, where they would do harm.

    The largest weight is brought to about 1, or above it by as much as keeps the least from vanishing: labels may all
    be of the lightest class. Weights farther apart than 2^1990 (2^995 where those of rows and of classes are both more
    than 2^32 apart) cannot all be held; the lightest of them then lose digits, or count as 0.
    """
    by_row, by_class = _exponents(options.sample_weight), _exponents(options.class_weight)
    parts = 1 if by_row.are_close() or by_class.are_close() else 2
    row_unit = _unit(by_row, parts)
    class_unit = 0
    if options.class_weight is not None:
        class_unit = _unit(by_class, parts)
        if options.z_loss:
            # Which is divided by this unit, but for a mean over index labels.
            class_unit = max(class_unit, math.frexp(options.z_loss)[1] - _MOST_Z_LOSS)
        class_unit = min(class_unit, _MOST - row_unit)  # a loss of 0 times both units must not be 0 times infinity
    return options._replace(
        sample_weight=_divided(options.sample_weight, row_unit),
        sample_unit=math.ldexp(1.0, row_unit),
        class_weight=_divided(options.class_weight, class_unit),
        class_unit=math.ldexp(1.0, class_unit),
    )


def _exponents(weights: NDArray[np.float64] | None) -> _Exponents:
    if weights is None:
        return _Exponents(0, 0)
    most = float(weights.max(initial=0.0))
    least = float(weights.min(initial=most))
    if least == 0.0:
        least = float(weights.min(initial=most, where=weights > 0.0))
    return _Exponents(math.frexp(least)[1] - 1, math.frexp(most)[1] - 1) if most else _Exponents(0, 0)


def _unit(exponents: _Exponents, parts: int) -> int:
    if exponents.are_ordinary():
        return 0
    lowest = _LEAST // parts + exponents.most - exponents.least  # where the largest must be for the least to be held
    return exponents.most - min(max(0, lowest), _MOST // parts)


def _divided(weights: NDArray[np.float64] | None, exponent: int) -> NDArray[np.float64] | None:
    return weights if weights is None or exponent == 0 else np.ldexp(weights, -exponent)
