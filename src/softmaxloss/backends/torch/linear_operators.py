"""Sweeps as operators of PyTorch, which torch.compile takes into its graphs whole."""

from typing import Any

import torch
from torch import Tensor

from softmaxloss.backends.torch.linear_problem import LinearProblem, stand_in
from softmaxloss.backends.torch.linear_products import Gradients
from softmaxloss.backends.torch.linear_sweep import sweep
from softmaxloss.backends.torch.operators import problem_of_arguments, scalars_of
from softmaxloss.backends.torch.problem import AS_THEY_ARE

_TENSORS = 8  # the first arguments


def serve(problem: LinearProblem) -> bool:
    """Tell whether the operators can be asked, for derivatives by the operands alone."""
    losses = problem.losses
    return problem.hidden.device.type == "cpu" and not (
        (torch.is_grad_enabled() and losses.asks_beside_logits())
        or (losses.distribution is not None and losses.tolerance == AS_THEY_ARE)  # no kernel takes negative targets
    )


def loss(problem: LinearProblem) -> Tensor:
    """Return the reduced loss."""
    asked = [
        operand is not None and operand.requires_grad and torch.is_grad_enabled() for operand in problem.operands()
    ]
    if problem.losses.options.reduction == "none":
        asked = [False, False, False]  # until the rows' upstream is known
    answer: Tensor = _loss(*_arguments(problem), *asked)[0]
    return answer


def _arguments(problem: LinearProblem) -> tuple[Any, ...]:
    losses = problem.losses
    own = (losses.logits.dtype, problem.gradient_filter, problem.max_block_bytes)
    return (*problem.tensors(), *scalars_of(losses), *own)


@torch.library.custom_op("softmaxloss::linear_loss", mutates_args=())
def _loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    indices: Tensor | None,
    distribution: Tensor | None,
    sample_weight: Tensor | None,
    class_weight: Tensor | None,
    logit_bias: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    temperature: float,
    softcap: float | None,
    z_loss: float,
    focal_gamma: float,
    poly_epsilon: float,
    tolerance: float,
    loss_dtype: torch.dtype,
    logits_dtype: torch.dtype,
    gradient_filter: float,
    max_block_bytes: int,
    by_hidden: bool,
    by_weight: bool,
    by_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tensors = (hidden, weight, bias, indices, distribution, sample_weight, class_weight, logit_bias)
    scalars = (reduction, ignore_index, label_smoothing, temperature, softcap, z_loss, focal_gamma, poly_epsilon)
    rest = (tolerance, loss_dtype, logits_dtype, gradient_filter, max_block_bytes)
    problem = _problem(tensors, (*scalars, *rest))
    found, gradients = sweep(problem, (by_hidden, by_weight, by_bias))
    return (found, *_all_there(gradients, hidden))


@_loss.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    reduction, loss_dtype = arguments[5], arguments[14]
    shape = (*hidden.shape[:-1], *weight.shape[1:-1]) if reduction == "none" else ()
    return (hidden.new_empty(shape, dtype=loss_dtype), *_fake_gradients(hidden, weight, bias, *arguments))


def _fake_gradients(hidden: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    logits_dtype, asked = arguments[15], arguments[-3:]
    dtype = torch.float32 if logits_dtype.itemsize == 2 else logits_dtype
    gradients = (
        operand.new_empty(operand.shape, dtype=dtype) if wanted and operand is not None else None
        for operand, wanted in zip((hidden, weight, bias), asked, strict=True)
    )
    return _all_there(tuple(gradients), hidden)


@torch.library.custom_op("softmaxloss::linear_gradients", mutates_args=())
def _gradients(
    upstream: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    indices: Tensor | None,
    distribution: Tensor | None,
    sample_weight: Tensor | None,
    class_weight: Tensor | None,
    logit_bias: Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    temperature: float,
    softcap: float | None,
    z_loss: float,
    focal_gamma: float,
    poly_epsilon: float,
    tolerance: float,
    loss_dtype: torch.dtype,
    logits_dtype: torch.dtype,
    gradient_filter: float,
    max_block_bytes: int,
    by_hidden: bool,
    by_weight: bool,
    by_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (hidden, weight, bias, indices, distribution, sample_weight, class_weight, logit_bias)
    scalars = (reduction, ignore_index, label_smoothing, temperature, softcap, z_loss, focal_gamma, poly_epsilon)
    rest = (tolerance, loss_dtype, logits_dtype, gradient_filter, max_block_bytes)
    problem = _problem(tensors, (*scalars, *rest))
    return _all_there(sweep(problem, (by_hidden, by_weight, by_bias), upstream).gradients, hidden)


@_gradients.register_fake
def _(upstream: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return _fake_gradients(*arguments)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:_TENSORS], *output[1:])
    ctx.scalars = inputs[_TENSORS:-3]


def _backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    tensors, gradients = ctx.saved_tensors[:_TENSORS], ctx.saved_tensors[_TENSORS:]
    asked = ctx.needs_input_grad[:3]
    if ctx.scalars[0] == "none":
        gradients = _gradients(upstream, *tensors, *ctx.scalars, *asked)
    else:
        gradients = tuple(gradient * upstream for gradient in gradients)
    found = (
        gradient.to(operand.dtype) if wanted else None
        for gradient, operand, wanted in zip(gradients, tensors, asked, strict=False)
    )
    return (*found, *[None] * (_TENSORS + len(ctx.scalars)))


_loss.register_autograd(_backward, setup_context=_keep)


def _problem(tensors: tuple[Any, ...], scalars: tuple[Any, ...]) -> LinearProblem:
    """Return the problem of an operator's arguments, which are memory when it runs."""
    *of_losses, logits_dtype, gradient_filter, max_block_bytes = scalars
    hidden, weight, bias, *others = tensors
    logits = stand_in(hidden, weight, logits_dtype)
    losses = problem_of_arguments((logits, *others), tuple(of_losses))
    return LinearProblem(hidden, weight, bias, losses, gradient_filter, max_block_bytes)


def _all_there(gradients: Gradients, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients, an empty tensor for each that is not asked for."""
    by_hidden, by_weight, by_bias = (like.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return by_hidden, by_weight, by_bias
