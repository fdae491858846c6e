"""Numbers that nothing can be computed from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["extreme", "extreme_value"]

# A number beyond this, squared and summed over rows, is infinite: no mean and no variance comes of it.
LARGEST_NUMBER = 1e150


def extreme(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which numbers are infinite or too large."""
    # A float32 of any size is small enough, as its squares are float64.
    largest = min(LARGEST_NUMBER, float(np.finfo(values.dtype).max))
    return np.asarray((values > largest) | (values < -largest))


def extreme_value(value: Any) -> str:
    """Say what is wrong with such a number."""
    if np.isinf(value):
        return "an infinite number"
    return f"{value:g}, a number too large to compute with (above {LARGEST_NUMBER:g} in magnitude)"
