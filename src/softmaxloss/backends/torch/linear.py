"""The loss of hidden states and a weight, on tensors: by the best way there is for the call at hand."""

from functools import reduce
from typing import Any

import torch
from torch import Tensor

from softmaxloss.backends.torch import linear_composed, linear_functions, linear_operators
from softmaxloss.backends.torch.doors import is_under_autocast, may_use_operators, nothing_watches
from softmaxloss.backends.torch.linear_problem import LinearProblem, linear_problem_of
from softmaxloss.backends.torch.linear_products import Gradients
from softmaxloss.options import GivenOptions


def linear_cross_entropy(
    hidden: Tensor,
    weight: Any,
    labels: Any,
    bias: Any,
    options: GivenOptions,
    gradient_filter: float = 0.0,
    max_block_bytes: int | None = None,
) -> Tensor:
    """Return the loss."""
    h, w, b = _in_one_dtype(hidden, weight, bias)
    return loss(linear_problem_of(h, w, labels, b, options, gradient_filter, max_block_bytes))


def linear_cross_entropy_and_grad(
    hidden: Tensor,
    weight: Any,
    labels: Any,
    bias: Any,
    options: GivenOptions,
    gradient_filter: float = 0.0,
    max_block_bytes: int | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor | None]]:
    """Return the loss and its gradients by hidden, weight and bias; none keeps a graph."""
    h, w, b = _in_one_dtype(hidden, weight, bias)
    problem = linear_problem_of(h, w, labels, b, options, gradient_filter, max_block_bytes)
    if nothing_watches():
        found, gradients = linear_functions.loss_and_gradients(problem, (True, True, bias is not None))
    else:
        found, gradients = _loss_and_gradients(problem)
    by_hidden, by_weight, by_bias = (
        gradient if gradient is None or not given.is_floating_point() else gradient.to(given.dtype)
        for gradient, given in zip(gradients, (hidden, weight, bias), strict=True)
    )
    assert by_hidden is not None
    assert by_weight is not None
    return found, (by_hidden, by_weight, by_bias)


def loss(problem: LinearProblem) -> Tensor:
    """Return the reduced loss, differentiable in every way that the call may be."""
    if nothing_watches() and not (torch.is_grad_enabled() and problem.losses.asks_beside_logits()):
        return linear_functions.loss(problem)
    if may_use_operators() and linear_operators.serve(problem):
        return linear_operators.loss(problem)
    return linear_composed.loss(problem)


def _in_one_dtype(hidden: Tensor, weight: Any, bias: Any) -> tuple[Tensor, Any, Any]:
    """Return operands in the floating dtype that holds them all, where they are real numbers."""
    tensors = [x for x in (hidden, weight, bias) if isinstance(x, Tensor)]
    if any(x.is_complex() for x in tensors) or is_under_autocast(hidden.device.type):
        return hidden, weight, bias
    floating = [x.dtype for x in tensors if x.is_floating_point()]
    dtype = reduce(torch.promote_types, floating) if floating else torch.get_default_dtype()
    weight, bias = (x.to(dtype) if isinstance(x, Tensor) else x for x in (weight, bias))
    return hidden.to(dtype), weight, bias


def _loss_and_gradients(problem: LinearProblem) -> tuple[Tensor, Gradients]:
    """Return them where every operation has to be seen."""
    operands = [operand for operand in problem.operands() if operand is not None]

    def of_operands(*values: Tensor) -> Tensor:
        bias = values[2] if len(values) > 2 else None
        return linear_composed.loss_by_formula(problem._replace(hidden=values[0], weight=values[1], bias=bias))

    answer: Tensor
    answer, pull, *_ = torch.func.vjp(of_operands, *operands)
    by_hidden, by_weight, *by_bias = pull(torch.ones_like(answer))
    return answer, (by_hidden, by_weight, by_bias[0] if by_bias else None)
