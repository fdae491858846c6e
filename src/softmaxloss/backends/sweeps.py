"""linear_cross_entropy's way over its blocks of logits, the same for every kind of array whose memory NumPy can see.

A block is computed by a product, which is the array library's own; our kernels take its rows' losses and put their
gradient in its place; two more products make the gradients by the hidden states and the weight from it.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from softmaxloss.backends.block_plan import BlockPlan
from softmaxloss.backends.linear_rows import LinearRows
from softmaxloss.backends.linear_tiles import LossOfTiles

# With more classes than this share of them left by the filter, a product of all is as quick as one of those gathered.
_FEW = 0.6
_CHUNK_BYTES = 1 << 20  # of the quotients that the filter looks at, where rows have weights of their own


class Products(Protocol):
    """The matrix products of hidden states, weight and bias, by blocks, in one buffer.

    Rows are those of `LinearRows`, in its numbering; they come in ascending order.
    """

    def logits(self, rows: slice, classes: slice) -> NDArray[Any]:
        """Return a block of logits, C-contiguous, in the buffer, where it may be written over."""

    def add_gradients(self, rows: slice, classes: slice) -> None:
        """Add to the gradients asked for what the buffer, which now holds the block's by its logits, makes of them."""

    def add_gradients_of(self, rows: slice, columns: NDArray[np.int64]) -> None:
        """Do the same with some classes of the block, counted from its first; it is 0 or left out at the others."""


def loss(rows: LinearRows, products: Products, plan: BlockPlan) -> Any:
    """Return the loss: one product."""
    if plan.holds_all_classes:
        for block in plan.row_blocks():
            rows.whole_rows(block, products.logits(block, slice(0, plan.all_classes)), gradient=False)
    else:
        _losses_of_tiles(rows, products, plan)
    return rows.result()


def loss_and_gradients(rows: LinearRows, products: Products, plan: BlockPlan, gradient_filter: float = 0.0) -> Any:
    """Return the loss, and hand every block's gradient to the products: three of them, with blocks of classes four."""
    if plan.holds_all_classes:
        for block in plan.row_blocks():
            classes = slice(0, plan.all_classes)
            logits = products.logits(block, classes)
            rows.whole_rows(block, logits, gradient=True)
            _add(rows, products, block, classes, logits, gradient_filter)
        return rows.result()
    tiles = _losses_of_tiles(rows, products, plan)
    for classes in plan.class_blocks():
        for block in plan.row_blocks():
            logits = products.logits(block, classes)
            tiles.gradient(block, classes, logits)
            _add(rows, products, block, classes, logits, gradient_filter)
    return rows.result()


def _losses_of_tiles(rows: LinearRows, products: Products, plan: BlockPlan) -> LossOfTiles:
    tiles = LossOfTiles(rows)
    for classes in plan.class_blocks():
        for block in plan.row_blocks():
            tiles.take(block, classes, products.logits(block, classes))
    tiles.finish()
    return tiles


def _add(
    rows: LinearRows, products: Products, block: slice, classes: slice, gradient: NDArray[Any], gradient_filter: float
) -> None:
    """Hand a block's gradient to the products, without the classes whose every entry the filter takes for nothing."""
    if gradient_filter > 0.0:
        passing = np.flatnonzero(_largest(gradient, rows.row_scales(block)) >= gradient_filter)
        if len(passing) < _FEW * gradient.shape[1]:
            products.add_gradients_of(block, passing)
            return
    products.add_gradients(block, classes)


def _largest(gradient: NDArray[Any], scales: float | NDArray[np.float64]) -> NDArray[Any]:
    """Return each class's largest magnitude over rows whose gradients have been multiplied by `scales`; inf for NaN."""
    if isinstance(scales, float):
        largest = _magnitude(gradient) / (scales or 1.0)
    else:
        largest = np.zeros(gradient.shape[1])
        step = max(1, _CHUNK_BYTES // (gradient.shape[1] * 8))
        divisors = np.where(scales == 0.0, 1.0, scales)[:, np.newaxis]
        for start in range(0, len(gradient), step):
            part = slice(start, start + step)
            np.maximum(largest, _magnitude(gradient[part] / divisors[part]), out=largest)
    return np.where(np.isnan(largest), np.inf, largest)


def _magnitude(gradient: NDArray[Any]) -> NDArray[Any]:
    largest: NDArray[Any] = np.maximum(gradient.max(axis=0), -gradient.min(axis=0))
    return largest
