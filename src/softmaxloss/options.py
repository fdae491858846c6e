"""The options of the loss, checked once at the door and then passed whole."""

import math
import operator
import sys
from numbers import Real
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Reduction = Literal["mean", "sum", "none"]

_FLOAT64 = np.dtype(np.float64)
_REDUCTIONS = get_args(Reduction)
_INT64 = np.iinfo(np.int64)


class Transform(NamedTuple):
    """What is done with the logits before the softmax: `GivenTransform`, checked.

    Parameters
    ----------
    temperature : float
        The logits are divided by it.
    softcap : float or None
        What is left is kept within -softcap and softcap by a tanh.
    logit_bias : (C,) float64 array or None
        Added to that; ``-inf`` masks a class.
    """

    temperature: float
    softcap: float | None
    logit_bias: NDArray[np.float64] | None


class LossOptions(NamedTuple):
    """What turns rows of logits and labels into the loss asked for: `GivenOptions`, checked.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}
        What is done with the rows' losses.
    sample_weight : float64 array of the rows' shape, or None
        One weight a row.
    class_weight : (C,) float64 array or None
        One weight a class.
    ignore_index : int
        Index labels of this value are left out.
    label_smoothing : float
        Share of each label spread evenly over all classes, in [0, 1].
    transform : Transform
        What is done with the logits first.
    z_loss, focal_gamma, poly_epsilon : float
        The terms of the formula that these scale; 0 where there is no such term.
    sample_unit, class_unit : float
        What these weights are to be multiplied by: powers of two, other than 1 where `in_range` of backends/weights.py
        has taken them out.
    """

    reduction: Reduction
    sample_weight: NDArray[np.float64] | None
    class_weight: NDArray[np.float64] | None
    ignore_index: int
    label_smoothing: float
    transform: Transform
    z_loss: float
    focal_gamma: float
    poly_epsilon: float
    sample_unit: float = 1.0
    class_unit: float = 1.0

    def check_distributions_are_allowed(self) -> None:
        """Raise `ValueError` where a term is defined for class indices alone."""
        if self.focal_gamma or self.poly_epsilon:
            raise ValueError(
                f"focal_gamma is {self.focal_gamma:g} and poly_epsilon {self.poly_epsilon:g}, and the labels are "
                "distributions; both terms are defined for class indices alone: pass those (of one-hot labels, "
                "labels.argmax along the class axis), or leave both at 0"
            )


class GivenTransform(NamedTuple):
    """The options of the logits as the user gave them, in the order of the public functions' keywords."""

    temperature: float = 1.0
    softcap: float | None = None
    logit_bias: ArrayLike | None = None

    def check(self, classes: int) -> Transform:
        """Return these options checked, or raise `ValueError` or `TypeError` naming the one that is wrong."""
        return Transform(
            temperature=scalar("temperature", self.temperature, positive=True),
            softcap=None if self.softcap is None else scalar("softcap", self.softcap, positive=True),
            logit_bias=None if self.logit_bias is None else _bias(self.logit_bias, classes),
        )


class GivenOptions(NamedTuple):
    """The options of the loss as the user gave them, in the order of the public functions' keywords."""

    reduction: str = "mean"
    sample_weight: ArrayLike | None = None
    class_weight: ArrayLike | None = None
    ignore_index: int = -100
    label_smoothing: float = 0.0
    temperature: float = 1.0
    softcap: float | None = None
    logit_bias: ArrayLike | None = None
    z_loss: float = 0.0
    focal_gamma: float = 0.0
    poly_epsilon: float = 0.0

    def check(self, rows_shape: tuple[int, ...], classes: int) -> LossOptions:
        """Return these options checked, or raise `ValueError` or `TypeError` naming the one that is wrong."""
        if not isinstance(self.reduction, str) or self.reduction not in _REDUCTIONS:
            raise ValueError(f"reduction is {self.reduction!r}; expected 'mean', 'sum' or 'none'")
        checked = LossOptions(
            reduction=self.reduction,  # type: ignore[arg-type]  # the check above narrows it, mypy cannot see that
            sample_weight=_weights("sample_weight", self.sample_weight, rows_shape, "one weight a row"),
            class_weight=_weights("class_weight", self.class_weight, (classes,), "one weight a class"),
            ignore_index=_ignore_index(self.ignore_index),
            label_smoothing=scalar("label_smoothing", self.label_smoothing, at_least=0.0, at_most=1.0),
            transform=GivenTransform(self.temperature, self.softcap, self.logit_bias).check(classes),
            z_loss=scalar("z_loss", self.z_loss, at_least=0.0),
            focal_gamma=scalar("focal_gamma", self.focal_gamma, at_least=0.0),
            poly_epsilon=scalar("poly_epsilon", self.poly_epsilon),
        )
        if checked.label_smoothing and (checked.focal_gamma or checked.poly_epsilon):
            raise ValueError(
                f"label_smoothing is {checked.label_smoothing:g} with focal_gamma {checked.focal_gamma:g} and "
                f"poly_epsilon {checked.poly_epsilon:g}; these two terms are defined for labels that are not smoothed: "
                "leave label_smoothing at 0, or leave both of them at 0"
            )
        return checked


def scalar(
    name: str, value: Any, *, at_least: float = -math.inf, at_most: float = math.inf, positive: bool = False
) -> float:
    """Return a scalar option as a float, checked to be finite and within its range."""
    number = value if type(value) is float else _as_float(name, value)
    if positive:
        valid, expected = 0.0 < number < math.inf, "positive and finite"
    elif at_most < math.inf:
        valid, expected = at_least <= number <= at_most, f"from {at_least:g} to {at_most:g}"
    elif at_least > -math.inf:
        valid, expected = at_least <= number < math.inf, f"at least {at_least:g} and finite"
    else:
        valid, expected = -math.inf < number < math.inf, "finite"
    if not valid:
        raise ValueError(f"{name} is {number}; it must be {expected}")
    return number


def _as_float(name: str, value: Any) -> float:
    if isinstance(value, np.generic | np.ndarray):
        is_number = is_real(value.dtype) and value.dtype.kind != "b" and value.ndim == 0
    else:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number:
        raise TypeError(f"{name} is {value!r}; expected a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def integer(name: str, value: Any) -> int:
    """Return an integer option as an int; a bool is none."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} is {value!r}; expected an integer")


def as_array(name: str, values: Any) -> NDArray[Any]:
    """Return `values` as an array, itself where it is one; `TypeError` for a masked array, whose mask would be lost."""
    if is_masked(values):
        raise TypeError(
            f"{name} is a masked array, whose mask we do not follow; pass its data, with ignore_index as the label of "
            "rows to leave out or -inf as the logit of classes to leave out"
        )
    return np.asarray(values)


def is_masked(values: Any) -> bool:
    """Tell whether this is a masked array of NumPy's."""
    module = sys.modules.get("numpy.ma")  # not imported: where nobody has, there are none
    return module is not None and isinstance(values, module.MaskedArray)


def is_real(dtype: np.dtype[Any]) -> bool:
    """Tell whether arrays of this dtype hold real numbers."""
    return dtype.kind in "fiub" or dtype.name == "bfloat16"


def contiguous(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the array in this dtype, C-contiguous and aligned: itself where it is all that, else a copy."""
    flags = array.flags
    if flags.c_contiguous and flags.aligned and array.dtype == dtype:
        return array
    return np.array(array, dtype, order="C")


def position(index: tuple[Any, ...]) -> str:
    """Return an array index as a user would write it: ``[2, 5]``, or nothing for a scalar's."""
    return f"[{', '.join(str(int(i)) for i in index)}]" if index else ""


def _ignore_index(value: int) -> int:
    index = integer("ignore_index", value)
    if not _INT64.min <= index <= _INT64.max:
        raise ValueError(f"ignore_index is {index}; it must fit in 64 bits")
    return index


def _vector(name: str, values: ArrayLike, shape: tuple[int, ...], meaning: str) -> NDArray[np.float64]:
    """Return real numbers of a given shape as float64, contiguous; what is too large becomes infinite."""
    array = as_array(name, values)
    if not is_real(array.dtype):
        raise TypeError(f"{name} has dtype {array.dtype}; expected real numbers")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; expected {shape}: {meaning}")
    with np.errstate(over="ignore"):
        return contiguous(array, _FLOAT64)


def _weights(name: str, values: ArrayLike | None, shape: tuple[int, ...], meaning: str) -> NDArray[np.float64] | None:
    if values is None:
        return None
    weights = _vector(name, values, shape, meaning)
    # One comparison finds negative numbers, infinities and NaN, which compare false.
    _refuse(name, weights, (weights >= 0.0) & (weights < math.inf), "weights must be finite and not negative")
    return weights


def _bias(values: ArrayLike, classes: int) -> NDArray[np.float64]:
    bias = _vector("logit_bias", values, (classes,), "one number a class")
    _refuse("logit_bias", bias, bias < math.inf, "it must be finite, or -inf to mask a class")
    return bias


def _refuse(name: str, values: NDArray[np.float64], valid: NDArray[np.bool_], rule: str) -> None:
    """Raise `ValueError` for the first number that is not valid."""
    if not valid.all():
        where = np.unravel_index(int(valid.argmin()), values.shape)
        raise ValueError(f"{name}{position(where)} is {values[where]}; {rule}")
