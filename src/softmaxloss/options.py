"""The options of the loss, checked once at the door and then passed whole."""

import math
import operator
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Reduction = Literal["mean", "sum", "none"]

_INT64 = np.iinfo(np.int64)
_ORDINARY_EXPONENT = 32  # weights whose largest is within 2^-32 .. 2^32 are taken as they are


@dataclass(frozen=True, slots=True)
class LossOptions:
    """What turns rows of cross-entropy into the loss asked for.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
        What is done with the rows' losses.
    ignore_index : int
        Index labels of this value are left out.
    label_smoothing : float
        Share of each label spread evenly over all classes, in [0, 1].
    class_weight : (C,) float64 array or None
        One weight a class.
    sample_weight : float64 array of the rows' shape, or None
        One weight a row.
    class_unit, sample_unit : float
        What these weights are to be multiplied by: powers of two, other than 1 where the weights were so far from 1
        that their products would leave the range of a dtype.
    """

    reduction: Reduction
    ignore_index: int
    label_smoothing: float
    class_weight: NDArray[np.float64] | None
    sample_weight: NDArray[np.float64] | None
    class_unit: float
    sample_unit: float


def check_options(
    *,
    rows_shape: tuple[int, ...],
    classes: int,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    class_weight: ArrayLike | None,
    sample_weight: ArrayLike | None,
) -> LossOptions:
    """Return the options as `LossOptions`, or raise `ValueError` or `TypeError` naming the one that is wrong."""
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction is {reduction!r}; expected 'mean', 'sum' or 'none'")
    by_class, class_unit = _weights("class_weight", class_weight, (classes,), "one weight a class")
    by_row, sample_unit = _weights("sample_weight", sample_weight, rows_shape, "one weight a row")
    return LossOptions(
        reduction=reduction,  # type: ignore[arg-type]  # the check above narrows it, mypy cannot see that
        ignore_index=_ignore_index(ignore_index),
        label_smoothing=scalar("label_smoothing", label_smoothing, at_least=0.0, at_most=1.0),
        class_weight=by_class,
        sample_weight=by_row,
        class_unit=class_unit,
        sample_unit=sample_unit,
    )


def scalar(
    name: str, value: Any, *, at_least: float = -math.inf, at_most: float = math.inf, positive: bool = False
) -> float:
    """Return a scalar option as a float, checked against its range."""
    kind = np.asarray(value).dtype.kind if isinstance(value, np.generic | np.ndarray) else ""
    if not (kind in "iuf" and np.ndim(value) == 0 if kind else isinstance(value, Real) and not isinstance(value, bool)):
        raise TypeError(f"{name} is {value!r}; expected a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if positive and not 0.0 < number < math.inf:
        raise ValueError(f"{name} is {number}; it must be positive and finite")
    if not at_least <= number <= at_most:
        raise ValueError(f"{name} is {number}; it must be from {at_least:g} to {at_most:g}")
    return number


def integer(name: str, value: Any) -> int:
    """Return an integer option as an int."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected an integer") from None


def _ignore_index(value: int) -> int:
    index = integer("ignore_index", value)
    if not _INT64.min <= index <= _INT64.max:
        raise ValueError(f"ignore_index is {index}; it must fit in 64 bits")
    return index


def _weights(
    name: str, values: ArrayLike | None, shape: tuple[int, ...], meaning: str
) -> tuple[NDArray[np.float64] | None, float]:
    """Return weights, contiguous, and the power of two that was taken out of them."""
    if values is None:
        return None, 1.0
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} has dtype {array.dtype}; expected real numbers")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; expected {shape}: {meaning}")
    weights = np.ascontiguousarray(array, dtype=np.float64).reshape(shape)
    # One comparison finds negative numbers, infinities and NaN, which compare false.
    wrong = ~((weights >= 0.0) & (weights < math.inf))
    if wrong.any():
        where = np.unravel_index(int(wrong.argmax()), shape)
        raise ValueError(f"{name}{position(where)} is {weights[where]}; weights must be finite and not negative")
    exponent = math.frexp(float(weights.max(initial=0.0)))[1] - 1
    if abs(exponent) <= _ORDINARY_EXPONENT:
        return weights, 1.0
    return np.ldexp(weights, -exponent), math.ldexp(1.0, exponent)


def position(index: tuple[Any, ...]) -> str:
    """Return an array index as a user would write it: ``[2, 5]``, or nothing for a scalar's."""
    return f"[{', '.join(str(int(i)) for i in index)}]" if index else ""
