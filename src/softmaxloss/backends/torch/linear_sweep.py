"""The loss of hidden states and a weight, and its gradients, with memory for one block of logits at a time."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from softmaxloss.backends import sweeps
from softmaxloss.backends.block_plan import BlockPlan, plan_blocks, plan_loss_tiles
from softmaxloss.backends.linear_rows import LinearRows
from softmaxloss.backends.torch import formula, linear_borrowed
from softmaxloss.backends.torch.answers import check_labels
from softmaxloss.backends.torch.doors import without_autocast
from softmaxloss.backends.torch.linear_problem import LinearProblem
from softmaxloss.backends.torch.linear_products import Asked, Gradients, Products, product_dtype
from softmaxloss.backends.torch.problem import AS_THEY_ARE, Problem
from softmaxloss.backends.torch.views import view
from softmaxloss.labels import Labels

_FORMULA_ARRAYS = 8  # of a block's size, that PyTorch's operations make to differentiate the formula


class Swept(NamedTuple):
    """What a sweep finds: the loss, and the gradients asked for, in the dtype that they were added up in."""

    loss: Tensor
    gradients: Gradients


def sweep(problem: LinearProblem, asked: Asked, upstream: Tensor | None = None) -> Swept:
    """Return the reduced loss and the gradients, of the sum of its numbers times `upstream`, that are asked for."""
    if problem.positions:
        check_labels(problem.losses)  # which are told below in another order
    with torch.no_grad(), without_autocast(problem.hidden.device.type):
        if problem.losses.on_host:
            try:
                return _by_kernels(problem, asked, upstream)
            except ValueError:
                if problem.losses.distribution is None or problem.losses.tolerance != AS_THEY_ARE:
                    raise
                # Negative targets, which no kernel takes.
        return _by_formula(problem, asked, upstream)


def _by_kernels(problem: LinearProblem, asked: Asked, upstream: Tensor | None) -> Swept:
    rows = _rows_of(problem)
    if upstream is not None and problem.losses.options.reduction == "none":
        rows.with_upstream(view(_by_position(upstream, problem)))
    elif upstream is not None:
        rows.gradient_scale *= float(upstream)
    plan = _plan(problem, rows, asked)
    in_weight = linear_borrowed.plan_in_weight(problem, rows, plan, asked)
    products = Products(problem, rows.numbers, asked, in_weight or plan)
    if in_weight:
        found = linear_borrowed.loss_and_gradients(rows, products, in_weight)
    elif any(asked):
        found = sweeps.loss_and_gradients(rows, products, plan, problem.gradient_filter)
    else:
        found = sweeps.loss(rows, products, plan)
    loss = torch.from_numpy(np.asarray(found)).to(problem.losses.loss_dtype)
    return Swept(_in_rows(loss, problem), products.gradients())


def _plan(problem: LinearProblem, rows: LinearRows, asked: Asked) -> BlockPlan:
    itemsize, budget = product_dtype(problem).itemsize, problem.max_block_bytes
    if rows.are_plain and not any(asked):
        return plan_loss_tiles(rows.count, problem.classes, itemsize, budget)
    return plan_blocks(rows.count, problem.classes, itemsize, budget, gradient=any(asked))


def _rows_of(problem: LinearProblem) -> LinearRows:
    losses, options = problem.losses, problem.losses.options
    indices, distribution, _ = (_by_position(tensor, problem) for tensor in losses.tensors()[1:4])
    if indices is not None:
        labels = Labels(np.ascontiguousarray(view(indices)).reshape(indices.shape), None, 0.0)
    else:
        labels = Labels(None, view(distribution), losses.tolerance)
    if problem.positions and options.sample_weight is not None:
        weight = options.sample_weight.reshape(*_rows_shape(problem)[::-1]).T
        options = options._replace(sample_weight=np.ascontiguousarray(weight))
    dtype = np.dtype(np.float64 if product_dtype(problem) == torch.float64 else np.float32)
    return LinearRows(labels, options, _rows_shape(problem), problem.classes, dtype)


def _rows_shape(problem: LinearProblem) -> tuple[int, ...]:
    """Return the shape of all losses as sweeps go over them: (positions, rows) where there are positions."""
    shape = tuple(problem.hidden.shape[:-1])
    return (problem.positions_count, math.prod(shape)) if problem.positions else shape


def _by_position(tensor: Tensor | None, problem: LinearProblem) -> Any:
    """Return a tensor of the losses' shape, or with an axis for classes besides, in the order of `_rows_shape`."""
    if tensor is None or not problem.positions:
        return tensor
    axes = problem.losses.logits.ndim - 1
    positions, rows = _rows_shape(problem)
    return tensor.detach().reshape(rows, positions, *tensor.shape[axes:]).movedim(1, 0)


def _in_rows(loss: Tensor, problem: LinearProblem) -> Tensor:
    """Return the loss in the order of hidden's rows."""
    if loss.ndim == 0 or not problem.positions:
        return loss
    return loss.T.reshape(problem.losses.logits.shape[:-1])


def _by_formula(problem: LinearProblem, asked: Asked, upstream: Tensor | None) -> Swept:
    """Return the same by PyTorch's operations, on any device: no value is looked at, so no row is left out."""
    check_labels(problem.losses)
    losses = _in_one_axis(problem)
    count, classes = losses.logits.shape
    if upstream is not None and problem.losses.options.reduction == "none":
        upstream = _by_position(upstream, problem).reshape(-1)
    most = max(1, problem.max_block_bytes // (_FORMULA_ARRAYS * max(1, classes) * losses.dtype.itemsize))
    plan = BlockPlan(count, classes, min(most, max(1, count)), classes, losses.dtype.itemsize)
    products = Products(problem._replace(gradient_filter=0.0), _as_numbered, asked, plan)
    rows = _empty_rows(losses)
    by_row = _derivatives(losses, rows, upstream)
    for block in plan.row_blocks():
        logits = products.tensor_of_logits(block, slice(0, classes))
        gradient = _block(losses, block, logits, rows, by_row if any(asked) else None)
        if gradient is not None:
            products.add(block, slice(0, classes), gradient)
    shape = problem.losses.logits.shape[:-1]
    loss = formula.reduced(losses, rows)
    if loss.ndim:
        loss = _in_rows(loss.reshape(_rows_shape(problem)), problem).reshape(shape)
    return Swept(loss, products.gradients())


def _as_numbered(rows: slice) -> slice:
    return rows


def _in_one_axis(problem: LinearProblem) -> Problem:
    """Return the losses with one axis for all rows."""
    losses = problem.losses
    axes, classes, count = losses.logits.ndim - 1, problem.classes, losses.logits.shape[:-1].numel()
    indices, distribution, sample_weight = (
        None if tensor is None else _by_position(tensor.detach(), problem).reshape(count, *tensor.shape[axes:])
        for tensor in losses.tensors()[1:4]
    )
    return losses._replace(
        logits=losses.logits.new_empty(()).expand(count, classes),
        indices=indices,
        distribution=distribution,
        sample_weight=sample_weight,
    )


def _empty_rows(losses: Problem) -> formula.Rows:
    zeros = torch.zeros(losses.logits.shape[:-1], dtype=losses.dtype, device=losses.logits.device)
    return formula.Rows(zeros, torch.zeros_like(zeros) if losses.options.z_loss else None)


def _parts(rows: formula.Rows) -> list[Tensor]:
    return [part for part in rows if part is not None]


def _derivatives(losses: Problem, rows: formula.Rows, upstream: Tensor | None) -> list[Tensor]:
    """Return the derivatives of the reduced loss by the rows' parts, in which it is linear: no row is needed."""
    leaves = [part.clone().requires_grad_() for part in _parts(rows)]
    with torch.enable_grad():
        answer = formula.reduced(losses, formula.Rows(leaves[0], leaves[1] if leaves[1:] else None))
    upstream = torch.ones_like(answer) if upstream is None else upstream.to(answer.dtype)
    return list(torch.autograd.grad(answer, leaves, upstream))


def _block(
    losses: Problem, block: slice, logits: Tensor, rows: formula.Rows, by_row: list[Tensor] | None
) -> Tensor | None:
    """Fill a block of rows; return the gradient by its logits, of the derivatives by its rows, if there are some."""
    labels = [None if tensor is None else tensor[block] for tensor in losses.tensors()[1:3]]
    differentiate: Callable[[], Any] = torch.no_grad if by_row is None else torch.enable_grad
    with differentiate():
        z = logits.detach().requires_grad_(by_row is not None)
        found = formula.rows(losses.with_tensors([z, *labels, *losses.tensors()[3:]]))
    for whole, part in zip(_parts(rows), _parts(found), strict=True):
        whole[block] = part.detach()
    if by_row is None:
        return None
    return torch.autograd.grad(_parts(found), z, [each[block] for each in by_row])[0]
