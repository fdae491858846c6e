"""PyTorch tensors: from what the public functions are given to what they return, differentiable.

A loss has three ways to go, since none of them opens everywhere:

- in plain eager mode on the host, the kernels, with an `autograd.Function` around them (`functions`); tensors of other
  devices, and gradients by labels, weights or bias, take `formula` a block of rows at a time (`blocks`);
- under torch.func, forward mode, torch.export, tracers and tensors that dispatch to Python, and for derivatives of
  derivatives, `formula`: PyTorch's own operations, which everything can see and batch;
- under torch.compile, the kernels as operators (`operators`).

The loss of hidden states and a weight goes the same ways (`linear`): sweeps over blocks of logits, all logits by the
formula, and the sweeps as operators.
"""

from typing import Any

import torch
from torch import Tensor

from softmaxloss.backends.torch import answers
from softmaxloss.backends.torch.linear import linear_cross_entropy, linear_cross_entropy_and_grad
from softmaxloss.backends.torch.memory import check_out
from softmaxloss.backends.torch.pieces import cross_entropy, logsumexp, one_hot, row_statistics, softmax
from softmaxloss.backends.torch.problem import class_axis_last, problem_of
from softmaxloss.options import GivenOptions

__all__ = [
    "cross_entropy",
    "hessian_vector_product",
    "linear_cross_entropy",
    "linear_cross_entropy_and_grad",
    "logsumexp",
    "one_hot",
    "row_statistics",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_and_grad",
]


def softmax_cross_entropy(logits: Tensor, labels: Any, axis: int, options: GivenOptions) -> Tensor:
    """Return the loss."""
    return answers.loss(problem_of(logits, labels, axis, options))


def softmax_cross_entropy_and_grad(
    logits: Tensor, labels: Any, axis: int, options: GivenOptions, out: Any
) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient, in `out` if it is a tensor; neither keeps a graph."""
    problem = problem_of(logits, labels, axis, options)
    if out is None:
        answer, gradient = answers.loss_and_gradient(problem, None)
        return answer, gradient.movedim(-1, axis)
    others = (labels, options.sample_weight, options.class_weight, options.logit_bias)
    check_out(out, logits, *others)
    answer, _ = answers.loss_and_gradient(problem, class_axis_last(out, axis))
    return answer, out


def hessian_vector_product(logits: Tensor, labels: Any, vector: Any, axis: int, options: GivenOptions) -> Tensor:
    """Return the product of the loss's Hessian with `vector`, in the logits' dtype."""
    problem = problem_of(logits, labels, axis, options)
    direction = torch.as_tensor(vector, device=logits.device)
    if direction.is_complex():
        raise TypeError(f"vector has dtype {direction.dtype}; expected real numbers")
    if direction.shape != logits.shape:
        raise ValueError(f"vector has shape {tuple(direction.shape)}; expected the logits' {tuple(logits.shape)}")
    return answers.hessian_vector_product(problem, class_axis_last(direction, axis)).movedim(-1, axis)
