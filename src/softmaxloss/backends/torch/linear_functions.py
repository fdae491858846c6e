"""How the loss of hidden states and a weight differentiates in plain eager mode."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softmaxloss.backends.torch import linear_composed
from softmaxloss.backends.torch.doors import nothing_watches
from softmaxloss.backends.torch.linear_problem import LinearProblem
from softmaxloss.backends.torch.linear_products import Asked, Gradients, product_dtype
from softmaxloss.backends.torch.linear_sweep import sweep

_NOTHING: Asked = (False, False, False)


class _Call(NamedTuple):
    """What a problem's operands come with: its other tensors, and what makes the problem of all of them again."""

    others: tuple[Tensor | None, ...]
    problem: Callable[[tuple[Tensor | None, ...]], LinearProblem]


class LinearLoss(torch.autograd.Function):
    """The loss, with its gradients where the upstream is one number: three products, or fewer if fewer are asked for.

    The gradients are scaled in place by the first backward pass, and given away. A second one sweeps anew, as all do
    for ``"none"``, whose rows have each an upstream of their own: four products.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, call: _Call) -> Tensor:
        """Return the loss, as a function of the operands."""
        tensors = (hidden, weight, bias, *call.others)
        problem = call.problem(tensors)
        ctx.save_for_backward(*tensors)
        ctx.problem, ctx.asked = call.problem, tuple(ctx.needs_input_grad[:3])
        loss, gradients = sweep(problem, ctx.asked if _at_once(problem) else _NOTHING)
        ctx.gradients = gradients if _at_once(problem) else None
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        """Return the gradients by the operands."""
        problem: LinearProblem = ctx.problem(ctx.saved_tensors)
        if torch.is_grad_enabled() or not nothing_watches():
            return *_differentiable_gradients(problem, ctx.asked, upstream), None
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            gradients = sweep(problem, ctx.asked, upstream).gradients
        else:
            _scale(gradients, upstream)
        return *_in_dtypes(gradients, problem), None


def loss(problem: LinearProblem) -> Tensor:
    """Return the reduced loss as a function of the operands."""
    if not (torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in problem.operands())):
        return sweep(problem, _NOTHING).loss
    call = _Call(problem.tensors()[3:], problem.without_tensors().with_tensors)
    # (PyTorch has no types for `apply`.)
    answer: Tensor = LinearLoss.apply(*problem.operands(), call)  # type: ignore[no-untyped-call]
    return answer


def loss_and_gradients(problem: LinearProblem, asked: Asked) -> tuple[Tensor, Gradients]:
    """Return the reduced loss and its gradients by the operands that are asked for; none keeps a graph."""
    found, gradients = sweep(problem, asked)
    return found, _in_dtypes(gradients, problem)


def _at_once(problem: LinearProblem) -> bool:
    """Tell whether the gradients can be had before the upstream is known."""
    # A float16 gradient has no room for the small numbers of a mean that the upstream would have made larger.
    return problem.losses.options.reduction != "none" and product_dtype(problem) != torch.float16


def _scale(gradients: Gradients, upstream: Tensor) -> None:
    if upstream.is_cpu and float(upstream) == 1.0:
        return
    for gradient in gradients:
        if gradient is not None:
            gradient.mul_(upstream)


def _in_dtypes(gradients: Gradients, problem: LinearProblem) -> Gradients:
    return tuple(
        None if gradient is None or operand is None else gradient.to(operand.dtype)
        for gradient, operand in zip(gradients, problem.operands(), strict=True)
    )


def _differentiable_gradients(problem: LinearProblem, asked: Asked, upstream: Tensor) -> list[Tensor | None]:
    """Return the gradients as functions of operands and upstream that have derivatives themselves."""
    create_graph = torch.is_grad_enabled()
    tensors = list(problem.tensors())
    with torch.enable_grad():
        if not create_graph:
            for number, wanted in enumerate(asked):
                tensor = tensors[number]
                tensors[number] = tensor.detach().requires_grad_(wanted) if tensor is not None else None
        answer = linear_composed.loss_by_formula(problem.with_tensors(tensors))
    leaves = [tensor for tensor, wanted in zip(tensors, asked, strict=False) if wanted and tensor is not None]
    found = iter(torch.autograd.grad(answer, leaves, upstream, create_graph=create_graph, materialize_grads=True))
    return [next(found) if wanted else None for wanted in asked]
