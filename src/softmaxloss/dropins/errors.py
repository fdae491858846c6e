"""Errors of the drop-ins, which are PyTorch's kinds of errors too, and the checks that both drop-ins make."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import _reduction

from softmaxloss.labels import LabelError

_REDUCTIONS = ("none", "mean", "sum")  # in the order of PyTorch's numbers for them


class ArgumentError(ValueError, RuntimeError, IndexError):
    """A shape, device or option that is not taken: PyTorch raises one of the three, which one depends on the case."""


class DtypeError(TypeError, NotImplementedError):
    """A dtype or kind of argument that is not taken; a `RuntimeError`, as PyTorch's `NotImplementedError` is."""


def as_pytorchs(error: TypeError | ValueError) -> Exception:
    """Return an error of ours as one that is PyTorch's too; `LabelError` is already."""
    if isinstance(error, LabelError):
        return error
    return ArgumentError(str(error)) if isinstance(error, ValueError) else DtypeError(str(error))


def check_tensors(needed: dict[str, Any], optional: dict[str, Any]) -> None:
    """Raise `TypeError` for what is no tensor."""
    for name, value in (*needed.items(), *((name, value) for name, value in optional.items() if value is not None)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; expected a PyTorch tensor")


def check_class_weight(weight: Any, dtype: torch.dtype, *, probabilities: bool, under_autocast: bool) -> None:
    """Raise `TypeError` for class weights of a dtype that PyTorch does not take."""
    if isinstance(weight, Tensor) and not probabilities and weight.dtype != dtype and not under_autocast:
        raise TypeError(f"weight has dtype {weight.dtype}; expected the input's: weight.to({dtype})")


def reduction_of(name: Any) -> str:
    """Return which reduction a name means, with those that PyTorch has deprecated."""
    return _REDUCTIONS[_reduction.get_enum(name)]
