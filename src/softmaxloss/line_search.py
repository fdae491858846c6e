"""How far to go in a direction that leads down."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

# The line search takes a step that brings this share of the fall that the slope promises and leaves no more than this
# share of the slope (Wolfe's conditions).
_FALL = 1e-4
_SLOPE = 0.9
_MOST_TRIALS = 25

# The first length tried is 1, the quadratic model's; but where the last step had to be shorter, so many times as long:
# the curvature may rise for many steps in a row.
_GROWTH = 2.0

# The value's rounding error may be this share of it: that of a mean of float32 losses.
_ROUNDING = 1e-7


@dataclass(frozen=True)
class Point:
    """A point u in the scaled variables, x in the original ones (or u again), with what is known there.

    `gradient` is with respect to u, `gradient_norm` the largest entry of it and of the one with respect to x.
    """

    u: Vector
    x: Vector
    value: float
    gradient: Vector
    gradient_norm: float


def step_along(
    evaluate: Callable[[Vector], Point], old: Point, direction: Vector, *, after: float = 1.0
) -> tuple[Point, float] | None:
    """Return a point in this direction that satisfies Wolfe's conditions, or failing that one that is lower.

    Or one where the gradient is, if rounding hides which is: there the gradient is all that can be seen. And how far
    it is, in multiples of the direction; the step before was `after` such multiples of its own.
    """
    slope = float(old.gradient @ direction)
    if not slope < 0.0:
        return None
    length, low, high = min(1.0, _GROWTH * after), (0.0, slope), None
    lower: tuple[Point, float] | None = None
    calmer: tuple[Point, float] | None = None
    too_long = 0
    for _ in range(_MOST_TRIALS):
        new = evaluate(old.u + length * direction)
        new_slope = float(new.gradient @ direction)
        if np.isfinite(new.value + new_slope) and _falls_enough(old, new, length, slope, new_slope):
            lower = new, length
            if new_slope >= _SLOPE * slope:
                return lower
            low, too_long = (length, new_slope), 0
        else:
            too_long += 1
            high = (length, new_slope)
            calmest = old if calmer is None else calmer[0]
            if new.gradient_norm < calmest.gradient_norm and _is_hidden(old, new):
                calmer = new, length
        length = _next_length(low, high, too_long)
    return lower or calmer


def _falls_enough(old: Point, new: Point, length: float, slope: float, new_slope: float) -> bool:
    """Tell whether a step lowers the function by its share; by the slopes where rounding hides it in the values."""
    wanted = -_FALL * length * slope
    if not _is_hidden(old, new):
        return old.value - new.value >= wanted
    return -0.5 * length * (slope + new_slope) >= wanted


def _is_hidden(old: Point, new: Point) -> bool:
    """Tell whether rounding may be all that their values differ by."""
    return abs(new.value - old.value) <= _ROUNDING * abs(old.value)


def _next_length(low: tuple[float, float], high: tuple[float, float] | None, too_long: int) -> float:
    """Return where the slope would be 0 if it were linear between two (length, slope), but well between them.

    After several lengths that were too long, the slope is far from linear: nearer to the first each time.
    """
    start, slope = low
    if high is None:
        return 4.0 * start
    end, new_slope = high
    share = slope / (slope - new_slope) if new_slope > slope else 0.0  # NaN is not larger
    most = 0.5 if new_slope <= 0.0 or not np.isfinite(new_slope) else 0.9
    return start + min(max(share, 0.1), most / 2.0 ** max(0, too_long - 2)) * (end - start)
