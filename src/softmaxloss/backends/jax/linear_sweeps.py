"""The sweeps over blocks of rows: a block's logits are computed, used and forgotten before the next one's are.

A sweep for the loss takes one product of matrices, one for the loss and its gradients three: a block's gradient is
there as soon as its loss is. The products with a block's gradient are taken for one part of the classes after another:
XLA has none that adds to what is there, and a whole one beside the sum would be as large as the weight; and one over
all classes at once needs memory of its own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from softmaxloss.backends.jax import derivatives
from softmaxloss.backends.jax.linear_problem import (
    DIFFERENTIATED_BYTES,
    GRADIENT_BYTES,
    LOSS_BYTES,
    Blocks,
    Head,
    LinearOperands,
    LinearPlan,
    blocks_of,
    folded_rows,
    kept_rows,
    with_one_divisor,
)

# Of hidden states, weight and bias: which gradients are wanted.
Wanted = tuple[bool, bool, bool]

# How many of the columns that a gradient filter leaves are gathered, and multiplied, at a time.
_GATHERED = 1024


class _Sweep(NamedTuple):
    """What stays the same from block to block of a sweep for gradients."""

    plan: LinearPlan
    wanted: Wanted
    operands: LinearOperands
    blocks: Blocks
    factor: Any  # what rows' gradients are multiplied by: a number each, one for all, or None for 1
    least: Any  # the gradient filter, as it applies to rows of sample weight 1


class _Block(NamedTuple):
    """Some rows of the operands."""

    hidden: Any
    labels: Any
    sample_weight: Any
    factor: Any


def loss(plan: LinearPlan, operands: LinearOperands, block_bytes: int = LOSS_BYTES) -> Any:
    """Return the loss: one number, or one a row."""
    operands, scale, _ = with_one_divisor(plan, operands)
    blocks = blocks_of(plan, operands, block_bytes)
    if blocks.number == 0:
        return reduced(plan, varying_like(operands, jnp.zeros(0, operands.computed_in)), scale)

    @jax.checkpoint  # for derivatives by labels and weights, lest a loop keeps the logits of all blocks
    def losses(operands: LinearOperands, block: _Block) -> Any:
        return derivatives.loss(plan.of_rows._replace(reduction="none"), _folded(operands, block))[:, 0]

    def step(rows: Any, start: Any) -> tuple[Any, None]:
        of_block = losses(operands, _block(operands, None, start, blocks.rows))
        return lax.dynamic_update_slice_in_dim(rows, of_block, start, 0), None

    first = losses(operands, _block(operands, None, 0, blocks.first))
    # In one array from the first block on: else XLA computes the logits of this one, and keeps them beside the loop's.
    rows = jnp.pad(first, (0, operands.shape[0] - blocks.first))
    if blocks.number > 1:
        rows, _ = lax.scan(step, rows, _starts(blocks))
    return reduced(plan, rows, scale)


def loss_and_gradients(
    plan: LinearPlan,
    wanted: Wanted,
    operands: LinearOperands,
    by_row: Any = None,
    block_bytes: int = GRADIENT_BYTES,
) -> tuple[Any, Head]:
    """Return the loss, and its gradients in the dtype computed in; of the sum for "none".

    `by_row` has numbers to multiply the gradients of rows' losses by, and is for "none".
    """
    operands, scale, ratio = with_one_divisor(plan, operands)
    factor, unit = _factor_and_unit(operands, scale if by_row is None else by_row)
    blocks = blocks_of(plan, operands, min(block_bytes, DIFFERENTIATED_BYTES) if plan.of_rows.soft else block_bytes)
    sweep = _Sweep(plan, wanted, operands, blocks, factor, plan.gradient_filter * ratio)
    if sweep.blocks.number == 0:
        gradients, rows = Head(*(_zeros(sweep, i) for i in range(3))), jnp.zeros(0, operands.computed_in)
        return reduced(plan, varying_like(operands, rows), scale), gradients

    def step(gradients: Head, start: Any) -> tuple[Head, Any]:
        return _with_block(sweep, gradients, start, sweep.blocks.rows)

    gradients, rows = _with_block(sweep, None, 0, sweep.blocks.first)
    if sweep.blocks.number > 1:
        gradients, others = lax.scan(step, gradients, _starts(sweep.blocks))
        rows = jnp.concatenate([rows, others.reshape(-1)])
    if unit is not None:
        gradients = jax.tree.map(lambda gradient: gradient * unit, gradients)
    return reduced(plan, rows, scale), gradients


def reduced(plan: LinearPlan, rows: Any, scale: Any) -> Any:
    """Return the loss of rows' losses; `scale` is that of `with_one_divisor`."""
    if plan.of_rows.reduction == "none":
        return rows
    # By way of sums of parts: one after another, the last rows would be added to a number much larger than they are.
    part = max(1, round(rows.size**0.5))
    whole = rows.size // part * part
    total = rows[:whole].reshape(-1, part).sum(1).sum() + rows[whole:].sum()
    return total if scale is None else total * scale


def varying_like(operands: LinearOperands, array: Any) -> Any:
    """Return an array which, inside `jax.shard_map`, varies along all axes of the mesh that any operand does.

    A loop asks that of what it starts from; and a weight that all devices share has as its gradient the sum of theirs.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return array
    return array + sum(x.reshape(-1)[:0].astype(array.dtype).sum() for x in jax.tree.leaves(operands))


def _starts(blocks: Blocks) -> Any:
    return blocks.first + blocks.rows * jnp.arange(blocks.number - 1)


def _block(operands: LinearOperands, factor: Any, start: Any, size: int) -> _Block:
    def rows(array: Any) -> Any:
        return None if array is None else lax.dynamic_slice_in_dim(array, start, size)

    return _Block(
        rows(operands.head.hidden),
        rows(operands.labels),
        rows(operands.sample_weight),
        factor if factor is None or factor.ndim == 0 else rows(factor)[:, None],
    )


def _folded(operands: LinearOperands, block: _Block) -> Any:
    """Return a block's logits with all that belongs to them."""
    logits = _product(operands, block.hidden, operands.head.weight, (1, 1))
    if operands.head.bias is not None:
        logits += operands.head.bias.astype(logits.dtype)
    return folded_rows(operands, logits, block.labels, block.sample_weight)


def _product(operands: LinearOperands, a: Any, b: Any, axes: tuple[int, int]) -> Any:
    """Return the product of two matrices over one axis of each."""
    a, b = (x.astype(operands.multiplied_in) for x in (a, b))
    over = ((axes[0],), (axes[1],))
    return lax.dot_general(a, b, (over, ((), ())), preferred_element_type=operands.computed_in)


def _factor_and_unit(operands: LinearOperands, factor: Any) -> tuple[Any, Any]:
    """Return what to multiply rows' gradients by, and sums of them afterwards; None stands for 1.

    Where products take 16 bits, the first is about 1: small ones would leave the numbers that these hold.
    """
    if factor is None or operands.multiplied_in == operands.computed_in:
        return factor, None
    largest = jnp.max(jnp.abs(factor))
    unit = jnp.where((largest > 0.0) & (largest < jnp.inf), largest, 1.0)
    return factor / unit, unit


def _zeros(sweep: _Sweep, which: int) -> Any:
    """Return a gradient to which nothing has been added, or None where it is not wanted."""
    if not sweep.wanted[which]:
        return None
    operands = sweep.operands
    return varying_like(operands, jnp.zeros_like(operands.head[which], dtype=operands.computed_in))


def _with_block(sweep: _Sweep, gradients: Head | None, start: Any, size: int) -> tuple[Head, Any]:
    """Return gradients with a block's added, and the losses of its rows. The first block begins with None."""
    operands = sweep.operands
    block = _block(operands, sweep.factor, start, size)
    # Where a row has no distribution of labels after all, the kernel begins again, for which it needs the logits.
    plan = sweep.plan.of_rows._replace(reduction="none", consumes=not sweep.plan.of_rows.soft)
    rows, gradient = derivatives.loss_and_gradient(plan, _folded(operands, block))
    gradient = gradient[..., 0]
    if gradients is None:
        # A first product of all classes is the total, where it needs no copy of the gradient in 16 bits.
        in_parts = sweep.plan.gradient_filter or operands.multiplied_in != operands.computed_in
        gradients = Head(_zeros(sweep, 0), _zeros(sweep, 1) if in_parts else None, None)
    of_hidden, of_weight, of_bias = gradients
    if sweep.wanted[2]:
        added = (gradient if block.factor is None else gradient * block.factor).sum(0)
        of_bias = added if of_bias is None else of_bias + added
    hidden = _scaled(sweep, block, block.hidden.astype(gradient.dtype))
    products = _filtered_products if sweep.plan.gradient_filter else _products
    by_hidden, of_weight = products(sweep, block, gradient, hidden, of_weight)
    if sweep.wanted[0]:
        of_hidden = lax.dynamic_update_slice_in_dim(of_hidden, _scaled(sweep, block, by_hidden), start, 0)
    return Head(of_hidden, of_weight, of_bias), rows[:, 0]


def _scaled(sweep: _Sweep, block: _Block, values: Any) -> Any:
    """Return rows times their factors, 0 in ignored ones whatever is there."""
    values = values if block.factor is None else values * block.factor
    kept = kept_rows(sweep.plan, block.labels)
    return values if kept is None else jnp.where(kept[:, None], values, 0.0)


def _products(sweep: _Sweep, block: _Block, gradient: Any, hidden: Any, total: Any) -> tuple[Any, Any]:
    """Return a block's product with the weight, and the total plus its product, transposed, with its hidden states."""
    operands, (by_hidden, by_weight, _) = sweep.operands, sweep.wanted
    classes, part = gradient.shape[1], sweep.blocks.classes
    if by_weight and total is None:
        total, by_weight = _product(operands, gradient, hidden, (0, 0)), False
    product = None
    if by_hidden and operands.multiplied_in != operands.computed_in:
        # All classes at once: of parts of a weight in 16 bits XLA makes a whole one in 32 first.
        product, by_hidden = _product(operands, gradient, operands.head.weight, (1, 0)), False

    def add(i: Any, sums: tuple[Any, Any]) -> tuple[Any, Any]:
        of_block, total = sums
        start = jnp.minimum(i * part, classes - part)  # the last part begins among classes that are done
        columns = lax.dynamic_slice_in_dim(gradient, start, part, 1)
        if classes % part:
            columns = jnp.where(start + jnp.arange(part) >= i * part, columns, 0.0)
        if by_hidden:
            weight = lax.dynamic_slice_in_dim(operands.head.weight, start, part)
            of_block = of_block + _product(operands, columns, weight, (1, 0))
        if by_weight:
            added = _product(operands, columns, hidden, (0, 0))
            so_far = lax.dynamic_slice_in_dim(total, start, part)
            total = lax.dynamic_update_slice_in_dim(total, so_far + added, start, 0)
        return of_block, total

    if by_hidden:
        product = varying_like(operands, jnp.zeros_like(hidden))
    if by_hidden or by_weight:
        product, total = lax.fori_loop(0, -(-classes // part), add, (product, total))
    return product, total


def _filtered_products(sweep: _Sweep, block: _Block, gradient: Any, hidden: Any, total: Any) -> tuple[Any, Any]:
    """Return a block's product with the weight, and the total of `_with_product`, of the columns that matter.

    A column matters where the derivative of any row's unweighted loss is at least the filter's, or NaN.
    """
    operands, (by_hidden, by_weight, _) = sweep.operands, sweep.wanted
    least = sweep.least
    if block.sample_weight is not None:
        least = least * block.sample_weight.astype(gradient.dtype)[:, None]
    matters = ~((jnp.abs(gradient) < least) | (gradient == 0.0)).all(0)
    classes = gradient.shape[1]
    size = min(_GATHERED, classes)
    columns = jnp.nonzero(matters, size=-(-classes // size) * size, fill_value=classes)[0]

    def add(i: Any, sums: tuple[Any, Any]) -> tuple[Any, Any]:
        of_block, total = sums
        some = lax.dynamic_slice_in_dim(columns, i * size, size)
        of_some = gradient.at[:, some].get(mode="fill", fill_value=0.0)
        if by_hidden:
            weight = operands.head.weight.at[some].get(mode="fill", fill_value=0.0)
            of_block = of_block + _product(operands, of_some, weight, (1, 0))
        if by_weight:
            added = _product(operands, of_some, hidden, (0, 0))
            total = total.at[some].add(added, mode="drop", indices_are_sorted=True)
        return of_block, total

    start = varying_like(operands, jnp.zeros_like(hidden)) if by_hidden else None
    of_block, total = lax.fori_loop(0, -(-matters.sum() // size), add, (start, total))
    return of_block, total
