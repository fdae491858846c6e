"""How the loss differentiates in plain eager mode: what a forward pass keeps, and what a backward pass makes of it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softmaxloss.backends.torch import formula, native
from softmaxloss.backends.torch.doors import nothing_watches
from softmaxloss.backends.torch.problem import Problem


class Answer(NamedTuple):
    """What the kernels have computed, and what it was computed from.

    Parameters
    ----------
    loss : Tensor
        The reduced loss.
    gradient : Tensor or None
        Its gradient by the logits; None to form it when it is asked for, with the upstream inside.
    tensors : tuple of Tensor or None
        All that it depends on.
    problem : callable
        Makes the problem of these again.
    """

    loss: Tensor
    gradient: Tensor | None
    tensors: tuple[Tensor | None, ...]
    problem: Callable[[tuple[Tensor | None, ...]], Problem]


class Loss(torch.autograd.Function):
    """A loss that the kernels have computed, with its gradient where the upstream is one number.

    That gradient is scaled in place by the first backward pass, and given away; a second one forms it anew, as all do
    for ``"none"``, and for float16, which rounds to 0 what the upstream would have kept. What has been rounded to
    bfloat16 is given away as it is, for an upstream of 1, or formed anew.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, answer: Answer) -> Tensor:
        """Return the loss, as a function of the logits."""
        loss, ctx.gradient, tensors, ctx.problem = answer
        ctx.save_for_backward(*tensors)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        """Return the gradient by the logits."""
        if torch.is_grad_enabled() or not nothing_watches():
            return _differentiable_gradient(ctx.problem(ctx.saved_tensors), upstream), None
        gradient, ctx.gradient = ctx.gradient, None
        factor = math.nan if gradient is None else float(upstream)
        if factor == 1.0:
            return gradient, None
        if gradient is None or gradient.dtype is torch.bfloat16:
            del gradient  # before there is another
            return native.gradient(ctx.problem(ctx.saved_tensors), upstream), None
        return gradient.mul_(factor), None


def _differentiable_gradient(problem: Problem, upstream: Tensor) -> Tensor:
    """Return the gradient as a function of logits and upstream that has derivatives itself."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        logits = problem.logits if create_graph else problem.logits.detach().requires_grad_()
        loss = formula.loss(problem._replace(logits=logits))
    return torch.autograd.grad(loss, logits, upstream, create_graph=create_graph)[0]


class LossInPlace(torch.autograd.Function):
    """A loss whose gradient has been written over the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, write: Callable[[], Tensor], by_row: bool) -> Tensor:
        """Return the loss, once `write` has computed it and put its gradient where the logits were.

        Here, where the graph behind the logits has been noted already: PyTorch makes that of a view anew, and copies in
        it, where it finds that the memory has been written.
        """
        loss = write()
        ctx.by_row, ctx.spent = by_row, False
        ctx.save_for_backward(logits.detach())  # shares the logits' version: what is written there later is found out
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        """Return the gradient, where the logits were."""
        if torch.is_grad_enabled() or not nothing_watches():
            raise RuntimeError(
                "the loss was computed with inplace=True, which leaves nothing to differentiate the gradient by; for "
                "double backward, batched gradients and forward mode pass inplace=False"
            )
        if ctx.spent:
            raise RuntimeError(
                "the gradient of a loss computed with inplace=True has been handed out already, in the logits' memory; "
                "for a second backward pass inplace=False"
            )
        ctx.spent = True
        (gradient,) = ctx.saved_tensors
        if ctx.by_row:
            return gradient.mul_(upstream.unsqueeze(-1)), None, None
        is_whole = upstream.is_cpu and float(upstream) == 1.0
        return gradient if is_whole else gradient.mul_(upstream), None, None


def attach(problem: Problem, loss: Tensor, gradient: Tensor | None) -> Tensor:
    """Return the loss as a function of the problem's logits."""
    tensors = problem.tensors()
    static = problem.with_tensors((None,) * len(tensors))  # what is kept beside the graph keeps no tensor
    # (PyTorch has no types for `apply`.)
    answer: Tensor = Loss.apply(problem.logits, Answer(loss, gradient, tensors, static.with_tensors))  # type: ignore[no-untyped-call]
    return answer


def attach_in_place(logits: Tensor, write: Callable[[], Tensor], *, by_row: bool) -> Tensor:
    """Return the loss that `write` computes as a function of the logits, which it leaves holding the gradient."""
    # (PyTorch has no types for `apply`.)
    answer: Tensor = LossInPlace.apply(logits, write, by_row)  # type: ignore[no-untyped-call]
    return answer
