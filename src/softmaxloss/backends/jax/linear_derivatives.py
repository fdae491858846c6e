"""What the linear cross-entropy is differentiated by: rules that are sweeps themselves, in every mode and to any order.

The tangent of a loss that is one number is its gradients, which one sweep finds together with it, times the tangents
of what they are by; transposed, it is the gradients times what comes from above. The tangent of the losses of rows is
a sweep, and so is what that is transposed to. Second derivatives by hidden states, weight and bias are the tangent of
the sweep for gradients, and transposed the same, since a Hessian is symmetric: no loop is run backwards for them, for
which JAX would keep all blocks. Derivatives by labels and weights are JAX's own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from softmaxloss.backends.jax import linear_sweeps
from softmaxloss.backends.jax.derivatives import is_zero
from softmaxloss.backends.jax.linear_problem import (
    DIFFERENTIATED_BYTES,
    LOSS_BYTES,
    Head,
    LinearOperands,
    LinearPlan,
    with_one_divisor,
)
from softmaxloss.backends.jax.linear_sweeps import Wanted, varying_like
from softmaxloss.backends.jax.whole import whole


def loss(plan: LinearPlan, operands: LinearOperands, block_bytes: int = LOSS_BYTES) -> Any:
    """Return the loss: one number, or one a row."""
    return whole(partial(_loss, plan, block_bytes), operands, one_by_one=True, in_batch=partial(_loss_of_batch, plan))


def loss_and_gradients(plan: LinearPlan, wanted: Wanted, operands: LinearOperands) -> tuple[Any, Head]:
    """Return the loss and its gradients in the dtype computed in, of the sum for "none"."""
    answer: tuple[Any, Head] = whole(partial(_loss_and_gradients, plan, wanted), operands, one_by_one=True)
    return answer


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _loss(plan: LinearPlan, block_bytes: int, operands: LinearOperands) -> Any:
    return linear_sweeps.loss(plan, operands, block_bytes)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _loss_and_gradients(plan: LinearPlan, wanted: Wanted, operands: LinearOperands) -> Any:
    return linear_sweeps.loss_and_gradients(plan, wanted, operands)


@partial(_loss.defjvp, symbolic_zeros=True)
def _loss_jvp(
    plan: LinearPlan, _block_bytes: int, primals: tuple[LinearOperands], tangents: tuple[LinearOperands]
) -> tuple[Any, Any]:
    (operands,), (directions,) = primals, tangents
    head = _moved(directions.head, operands)
    if not any(_which(head)) or plan.of_rows.reduction == "none":
        # XLA may begin with the derivative before this is done.
        value, gradients = loss(plan, operands, DIFFERENTIATED_BYTES), None
    else:
        value, gradients = loss_and_gradients(plan, _which(head), operands)
    return value, _change(plan, operands, directions, head, value, gradients)


@partial(_loss_and_gradients.defjvp, symbolic_zeros=True)
def _loss_and_gradients_jvp(
    plan: LinearPlan, wanted: Wanted, primals: tuple[LinearOperands], tangents: tuple[LinearOperands]
) -> tuple[Any, Any]:
    (operands,), (directions,) = primals, tangents
    value, gradients = loss_and_gradients(plan, wanted, operands)
    head = _moved(directions.head, operands)
    known = gradients
    if plan.of_rows.reduction != "none" and any(m and not w for m, w in zip(_which(head), wanted, strict=True)):
        _, known = loss_and_gradients(plan, _which(head), operands)
    change = _change(plan, operands, directions, head, value, known)
    exactly = plan._replace(gradient_filter=0.0)
    wide = _widened(operands)
    bent = jax.tree.map(jnp.zeros_like, gradients)
    if any(_which(head)):
        by_head = whole(
            partial(_bent, exactly, wanted),
            wide,
            head,
            linear=True,
            transposed=partial(_bent, exactly, _which(head)),
            one_by_one=True,
        )
        bent = jax.tree.map(jnp.add, bent, by_head)
    if not _are_zero(directions._replace(head=None)):
        by_others = _jvp_of_moving(
            lambda others: _differentiable_gradients(exactly, wanted, others._replace(head=wide.head)),
            wide._replace(head=None),
            directions._replace(head=None),
        )
        bent = jax.tree.map(jnp.add, bent, by_others)
    return (value, gradients), (change, bent)


def _change(
    plan: LinearPlan, operands: LinearOperands, directions: LinearOperands, head: Head, value: Any, gradients: Any
) -> Any:
    """Return the loss's tangent; `gradients` have those by all of the head that moves, unless each row has its own."""
    change = jnp.zeros_like(value)
    if any(_which(head)):
        if plan.of_rows.reduction == "none":
            change += whole(
                partial(_pushed, plan),
                operands,
                head,
                linear=True,
                transposed=partial(_pulled, plan, _which(head)),
                one_by_one=True,
            )
        else:
            change += sum((g * d).sum() for g, d in zip(gradients, head, strict=True) if d is not None)
    others = directions._replace(head=None)
    if not _are_zero(others):
        change += _jvp_of_moving(
            lambda others: _differentiable_loss(plan, others._replace(head=operands.head)),
            operands._replace(head=None),
            others,
        )
    return change


def _pushed(plan: LinearPlan, operands: LinearOperands, head: Head) -> Any:
    """Return the tangent of the losses of rows."""
    return _jvp_of_moving(partial(_at, partial(_differentiable_loss, plan), operands), _widened(operands).head, head)


def _pulled(plan: LinearPlan, wanted: Wanted, operands: LinearOperands, by_row: Any) -> Head:
    """Return the gradients of the losses of rows, each times a number of its own."""
    return linear_sweeps.loss_and_gradients(plan, wanted, operands, by_row, DIFFERENTIATED_BYTES)[1]


def _bent(plan: LinearPlan, wanted: Wanted, operands: LinearOperands, head: Head) -> Head:
    """Return the tangent of the gradients: the Hessian times that of the head."""
    gradients = partial(_differentiable_gradients, plan, wanted)
    bent: Head = _jvp_of_moving(partial(_at, gradients, operands), operands.head, head)
    return bent


def _differentiable_loss(plan: LinearPlan, operands: LinearOperands) -> Any:
    return linear_sweeps.loss(plan, operands, DIFFERENTIATED_BYTES)


def _differentiable_gradients(plan: LinearPlan, wanted: Wanted, operands: LinearOperands) -> Head:
    return linear_sweeps.loss_and_gradients(plan, wanted, operands, block_bytes=DIFFERENTIATED_BYTES)[1]


def _at(function: Callable[[LinearOperands], Any], operands: LinearOperands, head: Head) -> Any:
    return function(operands._replace(head=head))


def _loss_of_batch(plan: LinearPlan, arguments: tuple[LinearOperands], mapped: tuple[LinearOperands], size: int) -> Any:
    """Return the losses of a batch with one weight for all as those of so many more rows, which share its products."""
    (operands,), (is_mapped,) = arguments, mapped
    of_rows = plan.of_rows
    shared = is_mapped._replace(head=is_mapped.head._replace(hidden=None), labels=None, sample_weight=None)
    own_ratio = of_rows.reduction == "mean" and of_rows.z_loss and operands.class_weight is not None
    if any(jax.tree.leaves(shared)) or own_ratio:
        return None

    def each(array: Any, is_mapped: Any) -> Any:
        if array is None or is_mapped:
            return array
        return jnp.broadcast_to(array, (size, *array.shape))

    hidden = each(operands.head.hidden, is_mapped.head.hidden)
    labels, weight = each(operands.labels, is_mapped.labels), each(operands.sample_weight, is_mapped.sample_weight)
    hidden_rows, labels_rows, weight_rows = (
        None if x is None else x.reshape(-1, *x.shape[2:]) for x in (hidden, labels, weight)
    )
    by_row = plan._replace(of_rows=of_rows._replace(reduction="none"))
    rows = loss(
        by_row, LinearOperands(operands.head._replace(hidden=hidden_rows), labels_rows, weight_rows, *operands[3:])
    )

    def reduced(rows: Any, hidden: Any, labels: Any, weight: Any) -> Any:
        one = operands._replace(head=operands.head._replace(hidden=hidden), labels=labels, sample_weight=weight)
        return linear_sweeps.reduced(plan, rows, with_one_divisor(plan, one).scale)

    return jax.vmap(reduced)(rows.reshape(size, -1), hidden, labels, weight)


def _moved(head: Head, operands: LinearOperands) -> Head:
    """Return the tangents in the dtype computed in, None in place of those known to be zero.

    In which gradients too are given: rounded before they are multiplied by what comes from above, they would lose
    small numbers.
    """

    def one(tangent: Any) -> Any:
        if is_zero(tangent):
            return None
        return varying_like(operands, tangent.astype(operands.computed_in))

    return Head(*map(one, head))


def _which(head: Head) -> Wanted:
    hidden, weight, bias = (tangent is not None for tangent in head)
    return hidden, weight, bias


def _widened(operands: LinearOperands) -> LinearOperands:
    """Return the operands with a head whose tangents can be those of `_moved`."""

    def one(array: Any) -> Any:
        return None if array is None else varying_like(operands, array.astype(operands.computed_in))

    return operands._replace(head=Head(*map(one, operands.head)))


def _are_zero(tangents: Any) -> bool:
    return all(map(is_zero, jax.tree.leaves(tangents)))


def _jvp_of_moving(function: Callable[[Any], Any], primals: Any, tangents: Any) -> Any:
    """Return the function's tangent, of tangents of which some are None or known to be zero."""
    leaves, structure = jax.tree.flatten(primals, is_leaf=_is_none)
    directions = jax.tree.leaves(tangents, is_leaf=_is_none)
    moving = [not is_zero(direction) for direction in directions]

    def of_moving(*moved: Any) -> Any:
        remaining = iter(moved)
        given = [next(remaining) if m else x for x, m in zip(leaves, moving, strict=True)]
        return function(jax.tree.unflatten(structure, given))

    return jax.jvp(
        of_moving,
        [x for x, m in zip(leaves, moving, strict=True) if m],
        [direction for direction, m in zip(directions, moving, strict=True) if m],
    )[1]


def _is_none(x: Any) -> bool:
    return x is None
