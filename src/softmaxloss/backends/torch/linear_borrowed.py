"""A sweep whose logits are all kept, in memory that is there anyway: that of the weight's gradient.

Where classes are so many that a block of whole rows has few of them, products are slow: the weight is read for each
block anew. But then its gradient is larger than the logits of as many rows as there are features. So blocks of classes
of all rows are computed into it, each where the gradient by these classes will be; and once every row's logsumexp is
known, block after block is taken out, turned into gradients, and written over: three products of all rows at once.
"""

from typing import Any

from softmaxloss.backends.block_plan import BlockPlan
from softmaxloss.backends.linear_rows import LinearRows
from softmaxloss.backends.linear_tiles import LossOfTiles
from softmaxloss.backends.torch.linear_problem import LinearProblem
from softmaxloss.backends.torch.linear_products import Asked, Products

_ENOUGH_ROWS = 256  # for products that take no longer than they need


def plan_in_weight(problem: LinearProblem, rows: LinearRows, plan: BlockPlan, asked: Asked) -> BlockPlan | None:
    """Return the blocks of classes in which to go, None where this way is none or not the better one."""
    fits = asked[1] and not problem.positions and rows.count <= problem.hidden.shape[-1]
    # Plain logits, once looked at, are still what the gradient can be made of.
    if not (rows.are_plain and fits) or problem.gradient_filter:
        return None
    if plan.holds_all_classes and plan.rows >= min(rows.count, _ENOUGH_ROWS):
        return None
    most = max(1, problem.max_block_bytes // (rows.count * plan.itemsize))
    parts = -(-problem.classes // most)
    return BlockPlan(rows.count, problem.classes, rows.count, -(-problem.classes // parts), plan.itemsize)


def loss_and_gradients(rows: LinearRows, products: Products, plan: BlockPlan) -> Any:
    """Return the loss, and leave the gradients with the products."""
    tiles, everything = LossOfTiles(rows), slice(0, rows.count)
    for classes in plan.class_blocks():
        tiles.take(everything, classes, products.logits_in_weight(everything, classes))
    tiles.finish()
    for classes in plan.class_blocks():
        tiles.gradient(everything, classes, products.taken_out(everything, classes))
        products.add_gradients(everything, classes)
    return rows.result()
