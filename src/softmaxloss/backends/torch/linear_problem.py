"""What is asked of the loss of hidden states and a weight: the operands of the product, and the loss of its logits."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softmaxloss.backends.block_plan import DEFAULT_BLOCK_BYTES
from softmaxloss.backends.torch.doors import is_plain, is_under_autocast
from softmaxloss.backends.torch.problem import Problem, problem_of
from softmaxloss.options import GivenOptions, integer, scalar


class LinearProblem(NamedTuple):
    """One loss of ``hidden @ weight.T + bias``.

    Parameters
    ----------
    hidden : Tensor, (rows..., D)
        What the logits are made of.
    weight : Tensor, (C, positions..., D)
        One row a class; with positions, as many losses for each row of `hidden`.
    bias : Tensor, (C, positions...), or None
        Added to the logits.
    losses : Problem
        The loss of the logits, (rows..., positions..., C). In their place stands a tensor of their shape and dtype that
        holds none of them.
    gradient_filter : float
        Gradients below it may be left out of the products that follow; 0 for none.
    max_block_bytes : int
        What a block of logits may take at most.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    losses: Problem
    gradient_filter: float
    max_block_bytes: int

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.weight.shape[0])

    @property
    def positions(self) -> tuple[int, ...]:
        """The shape of the losses that each row of `hidden` has: () but for weights of more than two dimensions."""
        return tuple(self.weight.shape[1:-1])

    @property
    def positions_count(self) -> int:
        """How many losses each row of `hidden` has."""
        return math.prod(self.positions)

    @property
    def dtype(self) -> torch.dtype:
        """The logits' dtype."""
        return self.losses.logits.dtype

    def operands(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what gradients go through here."""
        return self[:3]

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return all that the loss depends on."""
        return *self.operands(), *self.losses.tensors()[1:]

    def with_tensors(self, tensors: Any) -> "LinearProblem":
        """Return the problem with other tensors in the place of these."""
        losses = self.losses.with_tensors((self.losses.logits, *tensors[3:]))
        return self._replace(hidden=tensors[0], weight=tensors[1], bias=tensors[2], losses=losses)

    def without_tensors(self) -> "LinearProblem":
        """Return what is left without them, for `with_tensors` later on."""
        return self.with_tensors((None,) * 8)


def linear_problem_of(
    hidden: Tensor,
    weight: Any,
    labels: Any,
    bias: Any,
    given: GivenOptions,
    gradient_filter: float = 0.0,
    max_block_bytes: int | None = None,
    *,
    axis: int = -1,
    tolerance: float | None = None,
) -> LinearProblem:
    """Return the problem, or raise as the public functions do; `axis` is that of the classes in distributions."""
    _check_operands(hidden, weight, bias)
    logits = stand_in(hidden, weight, _logits_dtype(hidden)).movedim(-1, axis)
    losses = problem_of(logits, labels, axis, given, tolerance)
    if losses.on_host and not is_plain(hidden, weight, bias):
        losses = losses._replace(on_host=False)
    return LinearProblem(
        hidden,
        weight,
        bias,
        losses,
        scalar("gradient_filter", gradient_filter, at_least=0.0),
        _block_bytes(max_block_bytes, max(4, losses.logits.itemsize)),
    )


def _check_operands(hidden: Tensor, weight: Any, bias: Any) -> None:
    """Raise unless the operands are floating numbers in one dtype, of shapes that fit."""
    for name, value in (("weight", weight), ("bias", bias)):
        if not isinstance(value, Tensor) and not (value is None and name == "bias"):
            raise TypeError(f"{name} is a {type(value).__name__}; expected a PyTorch tensor, as hidden is")
    if not hidden.is_floating_point():
        raise TypeError(f"hidden has dtype {hidden.dtype}; expected floating-point numbers")
    if hidden.ndim < 1:
        raise ValueError("hidden has 0 dimensions; expected 1 (one row of features) or more")
    if weight.ndim < 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; expected (classes, features)")
    if hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}; expected the same number of "
            "features in both, their last dimension"
        )
    if bias is not None and bias.shape != weight.shape[:-1]:
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}; expected {tuple(weight.shape[:-1])}, that of weight without features"
        )
    for name, value in (("weight", weight), ("bias", bias)):
        if value is None:
            continue
        if value.device != hidden.device:
            raise ValueError(
                f"{name} is on device {value.device}, and hidden on {hidden.device}; move one to the other's: "
                f"{name}.to(hidden.device)"
            )
        under_autocast = value.is_floating_point() and is_under_autocast(hidden.device.type)
        if value.dtype != hidden.dtype and not under_autocast:
            raise TypeError(f"{name} has dtype {value.dtype}; expected hidden's: {name}.to({hidden.dtype})")


def stand_in(hidden: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor of the logits' shape, class axis last, that is one element."""
    shape = (*hidden.shape[:-1], *weight.shape[1:-1], weight.shape[0])
    return torch.empty((), dtype=dtype, device=hidden.device).expand(shape)


def _logits_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    if is_under_autocast(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def _block_bytes(given: int | None, itemsize: int) -> int:
    budget = DEFAULT_BLOCK_BYTES if given is None else integer("max_block_bytes", given)
    if budget < itemsize:
        raise ValueError(f"max_block_bytes is {budget}; expected {itemsize} or more, the bytes of one logit")
    return budget
