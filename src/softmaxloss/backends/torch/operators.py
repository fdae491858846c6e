"""The kernels as operators of PyTorch, which torch.compile takes into its graphs whole."""

from typing import Any

import torch
from torch import Tensor

from softmaxloss.backends.torch import native
from softmaxloss.backends.torch.problem import AS_THEY_ARE, Problem, checked_on_host
from softmaxloss.backends.torch.views import kernels_take
from softmaxloss.options import GivenOptions


def serve(problem: Problem) -> bool:
    """Tell whether the kernels can be asked, for derivatives by the logits alone."""
    return (
        problem.logits.device.type == "cpu"
        and kernels_take(problem.logits.dtype)
        and not problem.asks_beside_logits()
        and (problem.distribution is None or problem.tolerance != AS_THEY_ARE)  # no kernel takes negative targets
    )


def loss(problem: Problem) -> Tensor:
    """Return the reduced loss."""
    answer: Tensor = _loss(*_arguments(problem))
    return answer


def _arguments(problem: Problem) -> tuple[Any, ...]:
    return (*problem.tensors(), *scalars_of(problem))


def scalars_of(problem: Problem) -> tuple[Any, ...]:
    """Return a problem's arguments of operators beside its tensors."""
    options, transform = problem.options, problem.options.transform
    return (
        options.reduction,
        options.ignore_index,
        options.label_smoothing,
        transform.temperature,
        transform.softcap,
        options.z_loss,
        options.focal_gamma,
        options.poly_epsilon,
        problem.tolerance,
        problem.loss_dtype,
    )


@torch.library.custom_op("softmaxloss::loss", mutates_args=())
def _loss(
    logits: Tensor,
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
) -> Tensor:
    scalars = (reduction, ignore_index, label_smoothing, temperature, softcap, z_loss, focal_gamma, poly_epsilon)
    tensors = (logits, indices, distribution, sample_weight, class_weight, logit_bias)
    return native.loss(problem_of_arguments(tensors, (*scalars, tolerance, loss_dtype)), None)


@_loss.register_fake
def _(logits: Tensor, *arguments: Any) -> Tensor:
    shape = logits.shape[:-1] if arguments[_REDUCTION] == "none" else ()
    return logits.new_empty(shape, dtype=arguments[-1])


@torch.library.custom_op("softmaxloss::gradient", mutates_args=())
def _gradient(
    upstream: Tensor,
    logits: Tensor,
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
) -> Tensor:
    scalars = (reduction, ignore_index, label_smoothing, temperature, softcap, z_loss, focal_gamma, poly_epsilon)
    tensors = (logits, indices, distribution, sample_weight, class_weight, logit_bias)
    return native.gradient(problem_of_arguments(tensors, (*scalars, tolerance, loss_dtype)), upstream)


@_gradient.register_fake
def _(upstream: Tensor, logits: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(logits)


_TENSORS = 6
_REDUCTION = _TENSORS - 1  # among the arguments that follow the logits


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:_TENSORS])
    ctx.scalars = inputs[_TENSORS:]


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    gradient = _gradient(upstream, *ctx.saved_tensors, *ctx.scalars)
    return (gradient, *[None] * (_TENSORS - 1 + len(ctx.scalars)))


_loss.register_autograd(_backward, setup_context=_keep)


def problem_of_arguments(tensors: tuple[Any, ...], scalars: tuple[Any, ...]) -> Problem:
    """Return the problem of an operator's arguments, which are memory when it runs."""
    reduction, ignore_index, label_smoothing, temperature, softcap, z_loss, focal_gamma, poly_epsilon, *rest = scalars
    tolerance, loss_dtype = rest
    given = GivenOptions(
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        temperature=temperature,
        softcap=softcap,
        z_loss=z_loss,
        focal_gamma=focal_gamma,
        poly_epsilon=poly_epsilon,
    )
    options = checked_on_host(given, tensors[3:], tensors[0].shape, tolerance)
    return Problem._make((*tensors, options, tolerance, True, loss_dtype))  # on the host
