"""The loss by the best way there is for the call at hand."""

import numpy as np
import torch
from torch import Tensor

from softmaxloss import _native
from softmaxloss.backends.torch import blocks, formula, functions, native, operators
from softmaxloss.backends.torch.doors import may_use_operators, nothing_watches
from softmaxloss.backends.torch.memory import same_memory
from softmaxloss.backends.torch.problem import AS_THEY_ARE, Problem, index_of_row
from softmaxloss.backends.torch.views import new_like, view
from softmaxloss.labels import label_error, not_a_distribution


def loss(problem: Problem) -> Tensor:
    """Return the reduced loss, differentiable in every way that the call may be."""
    if native.kernel_serves(problem) and not (torch.is_grad_enabled() and problem.asks_beside_logits()):
        return _by_kernel(problem)
    if nothing_watches():
        check_labels(problem)
        return blocks.loss(problem)
    if may_use_operators() and operators.serve(problem):
        return operators.loss(problem)
    return formula.loss(problem)


def _by_kernel(problem: Problem) -> Tensor:
    differentiable = torch.is_grad_enabled() and problem.logits.requires_grad
    # Where the upstream is one number, one pass gives loss and gradient. float16 would round to 0 what it keeps.
    at_once = differentiable and problem.options.reduction != "none" and problem.logits.dtype != torch.float16
    gradient = new_like(problem.logits) if at_once else None
    try:
        answer = native.loss(problem, gradient)
    except ValueError:
        if not _may_be_any_numbers(problem):
            raise
        return blocks.loss(problem)  # negative targets, which no kernel takes
    return functions.attach(problem, answer, gradient) if differentiable else answer


def _may_be_any_numbers(problem: Problem) -> bool:
    return problem.distribution is not None and problem.tolerance == AS_THEY_ARE


def loss_in_place(problem: Problem, logits: Tensor) -> Tensor:
    """Return the reduced loss of `logits`, whose memory then holds its gradient if one is asked for."""
    if not nothing_watches() or problem.asks_beside_logits():
        raise RuntimeError(
            "inplace=True writes the gradient over the logits, for one plain backward pass and for them alone; under "
            "torch.func, forward mode, torch.compile, torch.export or a tracer, and for gradients of labels, weights "
            "or logit_bias, pass inplace=False"
        )
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return loss(problem)
    _check_may_be_written(logits)
    if problem.logits.dtype != logits.dtype:
        raise TypeError(f"inplace=True takes floating logits, not {logits.dtype}")
    return functions.attach_in_place(
        problem.logits,
        lambda: loss_and_gradient(problem, problem.logits)[0],
        by_row=problem.options.reduction == "none",
    )


def _check_may_be_written(logits: Tensor) -> None:
    base = logits._base if logits._is_view() else logits
    if base is not None and base.is_leaf and base.requires_grad:
        raise RuntimeError(
            "inplace=True would write over a leaf that requires a gradient, or over a view of one; pass what a model "
            "computes, or inplace=False"
        )
    if any(stride == 0 and size > 1 for stride, size in zip(logits.stride(), logits.shape, strict=True)):
        raise RuntimeError(
            "inplace=True, and several elements of the logits share memory; pass logits.contiguous(), or inplace=False"
        )


def loss_and_gradient(problem: Problem, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the reduced loss and its gradient by the logits, in `out` if it is there; neither keeps a graph."""
    if not nothing_watches():
        answer, pull, *_ = torch.func.vjp(lambda z: formula.loss(problem._replace(logits=z)), problem.logits)
        (gradient,) = pull(torch.ones_like(answer))
        return answer, gradient if out is None else out.copy_(gradient)
    gradient = new_like(problem.logits) if out is None else out
    gradient, in_place = gradient.detach(), same_memory(gradient, problem.logits)
    if native.kernel_serves(problem):
        try:
            answer = native.loss(problem, gradient, in_place=in_place)
        except ValueError:
            if not _may_be_any_numbers(problem):
                raise
        else:
            torch.autograd.graph.increment_version(gradient)
            return answer, gradient
    check_labels(problem)
    return blocks.loss_and_gradient(problem, gradient), gradient


def hessian_vector_product(problem: Problem, vector: Tensor) -> Tensor:
    """Return the product of the Hessian with `vector`; differentiable where one of them asks for gradients."""
    if not nothing_watches():

        def total(z: Tensor) -> Tensor:
            return formula.loss(problem._replace(logits=z)).sum()

        direction = vector.to(problem.logits.dtype)
        product: Tensor = torch.func.jvp(torch.func.grad(total), (problem.logits,), (direction,))[1]
        return product
    check_labels(problem)
    if torch.is_grad_enabled() and (
        problem.logits.requires_grad or vector.requires_grad or problem.asks_beside_logits()
    ):
        return _differentiable_product(problem, vector)
    if native.kernel_serves(problem):
        return native.hessian_vector_product(problem, vector)
    return blocks.hessian_vector_product(problem, vector)


def _differentiable_product(problem: Problem, vector: Tensor) -> Tensor:
    logits = problem.logits if problem.logits.requires_grad else problem.logits.detach().requires_grad_()
    answer = formula.loss(problem._replace(logits=logits)).sum()
    (gradient,) = torch.autograd.grad(answer, logits, create_graph=True)
    return torch.autograd.grad(gradient, logits, vector.to(gradient.dtype), create_graph=True)[0]


def check_labels(problem: Problem) -> None:
    """Raise `LabelError`, or `ValueError` for a row that is no distribution, where values can be looked at."""
    if not problem.on_host:
        return
    rows_shape, classes = problem.logits.shape[:-1], problem.logits.shape[-1]
    if problem.indices is not None:
        check_indices(problem.indices, classes, problem.options.ignore_index)
    elif problem.distribution is not None and problem.tolerance != AS_THEY_ARE:
        q = problem.distribution.detach()
        right = formula.is_distribution(q, problem.tolerance, torch.float64)
        if not right.all():
            first = int(right.reshape(-1).to(torch.uint8).argmin())
            row = q.reshape(-1, classes)[first]
            raise not_a_distribution(
                index_of_row(first, rows_shape),
                float(row.double().sum()),
                float(row.min()),
                "a label distribution; class indices have one dimension less than the logits",
            )


def check_indices(indices: Tensor, classes: int, ignore_index: int | None) -> None:
    """Raise `LabelError` for the first index that is no class, nor to be ignored."""
    labels = np.ascontiguousarray(view(indices)).reshape(indices.shape)
    bad, _, _ = _native.survey_labels(labels.reshape(-1), classes, ignore_index or 0, None, None)
    if bad >= 0:
        raise label_error(labels, bad, classes, ignore_index)
