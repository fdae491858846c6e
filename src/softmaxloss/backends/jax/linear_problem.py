"""A linear cross-entropy as its sweeps take it: what is fixed while a program is traced, its arrays, and its blocks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from softmaxloss.backends.block_plan import plan_blocks
from softmaxloss.backends.jax.problem import Operands, Plan, Serving, computed_in

# What a block's logits take unless the caller says, for less than 64 MiB in all: for losses alone; with a gradient,
# which the kernels put in the logits' place, and its products; and where it is beside them, with labels that are
# distributions and in a sweep that is differentiated. Plain JAX needs several times what a block does for each.
LOSS_BYTES, GRADIENT_BYTES, DIFFERENTIATED_BYTES, _PLAIN_BYTES = 54 << 20, 40 << 20, 30 << 20, 13 << 20

# What the weight and a block's gradient take of a part of the classes, which are multiplied with each other at a time.
_PART_BYTES = 5 << 20


class Head(NamedTuple):
    """What logits are made of; or gradients or tangents of that, None for those nobody asked for.

    Parameters
    ----------
    hidden : (rows, features)
    weight : (classes, features)
    bias : (classes,) or None
    """

    hidden: Any
    weight: Any
    bias: Any = None


class LinearOperands(NamedTuple):
    """The arrays.

    Parameters
    ----------
    head : Head
        Of floating dtypes. (None among the tangents of all other arrays.)
    labels : (rows,) of int32 or int64, or (rows, classes) of the dtype computed in
        Class indices, or distributions.
    sample_weight : (rows,) or None
        Like the next two of float32 or float64.
    class_weight, logit_bias : (classes,) or None
        One number a class.
    """

    head: Any
    labels: Any
    sample_weight: Any = None
    class_weight: Any = None
    logit_bias: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        """The logits' shape."""
        return self.head.hidden.shape[0], self.head.weight.shape[0]

    @property
    def multiplied_in(self) -> Any:
        """The dtype in which the products take their arguments."""
        return jnp.promote_types(self.head.hidden.dtype, self.head.weight.dtype)

    @property
    def computed_in(self) -> Any:
        """The dtype of logits, losses and sums."""
        return computed_in(self.multiplied_in)


class LinearPlan(NamedTuple):
    """What a traced program has built into it, hashable."""

    of_rows: Plan  # the loss of a block's rows
    gradient_filter: float
    max_block_bytes: int | None


class Blocks(NamedTuple):
    """In how many rows the logits are taken, and for how many classes there are products with their gradient at a time.

    The first block has as many rows as remain from the others, which all have the same number.
    """

    number: int
    first: int
    rows: int
    classes: int


def blocks_of(plan: LinearPlan, operands: LinearOperands, block_bytes: int) -> Blocks:
    """Return the sizes of blocks, of at least one row and of all classes; `block_bytes` as above."""
    rows, classes = operands.shape
    features = operands.head.hidden.shape[1]
    logit = np.dtype(operands.computed_in).itemsize
    budget = plan.max_block_bytes
    if budget is None:
        budget = block_bytes if _kernels_will_serve(plan.of_rows.serving) else _PLAIN_BYTES
    planned = plan_blocks(rows, classes, logit, budget)
    a_block = planned.rows if planned.holds_all_classes else max(1, budget // (classes * logit))
    number = -(-rows // a_block)
    if number == 2 < rows:  # XLA takes the second out of its loop, and computes the logits of both at once
        number, a_block = 3, -(-rows // 3)
    parts = max(1, -(-classes * (features + a_block) * logit // _PART_BYTES))
    part = -(-classes // parts)
    return Blocks(number, rows - max(0, number - 1) * a_block, a_block, part)


def _kernels_will_serve(serving: Serving) -> bool:
    return serving == "kernels" or (serving == "either" and jax.default_backend() == "cpu")


def kept_rows(plan: LinearPlan, labels: Any) -> Any:
    """Return which rows are not ignored, or None where none can be."""
    of_rows = plan.of_rows
    if of_rows.soft:
        return None
    limits = np.iinfo(labels.dtype)
    return labels != of_rows.ignore_index if limits.min <= of_rows.ignore_index <= limits.max else None


class Divided(NamedTuple):
    """Operands of which the mean is the sum of the rows' losses times one number.

    The z term of a mean has a divisor of its own where class weights are in the other: then these are multiplied by the
    ratio of both.
    """

    operands: LinearOperands
    scale: Any = None  # that number: NaN for a mean over no rows or of no weight; None for other reductions
    ratio: Any = 1.0


def with_one_divisor(plan: LinearPlan, operands: LinearOperands) -> Divided:
    """Return the operands so, and unchanged for other reductions."""
    of_rows, (rows, classes), dtype = plan.of_rows, operands.shape, operands.computed_in
    if of_rows.reduction != "mean":
        return Divided(operands)
    labels, class_weight = operands.labels, operands.class_weight
    weight = jnp.ones(rows, dtype) if operands.sample_weight is None else operands.sample_weight.astype(dtype)
    counted = (weight >= 0.0) & (weight < jnp.inf)
    if of_rows.soft:
        counted &= (jnp.abs(labels.sum(1) - 1.0) <= of_rows.tolerance) & (labels.min(1) >= 0.0)
        class_weight = None
    else:
        kept = kept_rows(plan, labels)
        counted &= (labels >= 0) & (labels < classes) & (True if kept is None else kept)
    weight = jnp.where(counted, weight, 0.0)
    divisor, ratio = weight.sum(), jnp.ones((), dtype)
    if class_weight is not None:
        share = class_weight.astype(dtype)[jnp.where(counted, labels, 0)]
        by_class = (weight * jnp.where(counted, share, 0.0)).sum()
        if of_rows.z_loss:
            ratio = divisor / by_class  # of no weight NaN, as then are all rows
            operands = operands._replace(class_weight=class_weight.astype(dtype) * ratio)
        else:
            divisor = by_class
    return Divided(operands, jnp.where(divisor == 0.0, jnp.nan, 1.0 / divisor), ratio)


def folded_rows(operands: LinearOperands, logits: Any, labels: Any, sample_weight: Any) -> Operands:
    """Return a block of logits, with its labels and weights, as the functions of dense logits take them."""
    weight = None if sample_weight is None else sample_weight[:, None]
    return Operands(
        logits.reshape(*logits.shape, 1), labels[..., None], weight, operands.class_weight, operands.logit_bias
    )
