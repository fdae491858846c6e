"""How large the blocks of logits are that linear_cross_entropy computes one after another: arithmetic, no arrays."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from softmaxloss.options import integer

# What the buffer of logits takes unless the caller says: with the rest of what is needed, less than 64 MiB.
DEFAULT_BLOCK_BYTES = 48 << 20

# A product with few rows takes longer for each: the weights are read, and arranged, for every block anew. Measured:
# 1.03 times as long with 512 rows, 1.1 with 256, 1.25 with 128, 1.45 with 64, against one product of them all.
# With fewer rows than these it is quicker to take blocks of classes as well. That costs a loss no product more; but a
# gradient takes four in place of three.
_ENOUGH_ROWS_FOR_LOSS, _ENOUGH_ROWS_FOR_GRADIENTS = 256, 48

# A block of rows and classes: of this size where the budget allows, to be found in a third-level cache; and of a size
# to be found in the second-level ones where its loss is all that is made of it.
_TILE_BYTES, _TILE_ROWS = 16 << 20, 1024
_LOSS_TILE_BYTES = 4 << 20

_ROWS_UNIT, _CLASSES_UNIT = 16, 64  # whole groups of what a product takes at a time


class BlockPlan(NamedTuple):
    """Blocks that cover a matrix of logits.

    Parameters
    ----------
    all_rows, all_classes : int
        Of the matrix.
    rows, classes : int
        Of a block; the last ones may have fewer.
    itemsize : int
        Of a logit.
    first_rows : int
        Of the first block, where there is memory elsewhere for a larger one; else 0.
    """

    all_rows: int
    all_classes: int
    rows: int
    classes: int
    itemsize: int
    first_rows: int = 0

    @property
    def holds_all_classes(self) -> bool:
        """Whether a block has all the logits of its rows."""
        return self.classes == self.all_classes

    @property
    def bytes(self) -> int:
        """What a block takes."""
        return self.rows * self.classes * self.itemsize

    def row_blocks(self) -> Iterator[slice]:
        """Yield the blocks' rows."""
        if self.first_rows:
            yield slice(0, self.first_rows)
        yield from _slices(self.first_rows, self.all_rows, self.rows)

    def class_blocks(self) -> Iterator[slice]:
        """Yield the blocks' classes."""
        return _slices(0, self.all_classes, self.classes)

    def with_first_block(self, rows: int) -> "BlockPlan":
        """Return the plan with a first block of as many rows, if that is worth it."""
        rows = min(rows, self.all_rows)
        return self._replace(first_rows=rows) if self.holds_all_classes and rows >= 1.5 * self.rows else self


def plan_blocks(
    rows: int, classes: int, itemsize: int, max_block_bytes: int | None = None, *, gradient: bool = True
) -> BlockPlan:
    """Return the blocks in which to take logits that are not to be held all at once.

    Whole rows where enough of them fit, else rows and classes. `ValueError` where not even one logit fits.
    """
    logits = _budget(itemsize, max_block_bytes) // itemsize
    enough = min(rows, _ENOUGH_ROWS_FOR_GRADIENTS if gradient else _ENOUGH_ROWS_FOR_LOSS)
    fitting = logits // classes
    if fitting and fitting >= enough:
        return BlockPlan(rows, classes, _even(max(1, rows), fitting, _ROWS_UNIT), classes, itemsize)
    return _tiles(rows, classes, itemsize, min(logits, _TILE_BYTES // itemsize))


def plan_loss_tiles(rows: int, classes: int, itemsize: int, max_block_bytes: int | None = None) -> BlockPlan:
    """Return blocks of rows and classes for losses without gradients, small enough for a second-level cache."""
    logits = max(1, min(_budget(itemsize, max_block_bytes), _LOSS_TILE_BYTES) // itemsize)
    return _tiles(rows, classes, itemsize, logits)


def _budget(itemsize: int, max_block_bytes: int | None) -> int:
    budget = DEFAULT_BLOCK_BYTES if max_block_bytes is None else integer("max_block_bytes", max_block_bytes)
    if budget < itemsize:
        raise ValueError(f"max_block_bytes is {budget}; expected {itemsize} or more, the bytes of one logit")
    return budget


def _tiles(rows: int, classes: int, itemsize: int, logits: int) -> BlockPlan:
    """Return blocks of so many logits at most, as many rows as classes or fewer."""
    height = max(1, rows)
    tile_rows = _even(height, min(_TILE_ROWS, max(1, math.isqrt(logits))), _ROWS_UNIT)
    tile_classes = _even(classes, logits // tile_rows, _CLASSES_UNIT)
    if tile_classes == classes:
        tile_rows = _even(height, logits // classes, _ROWS_UNIT)
    return BlockPlan(rows, classes, tile_rows, tile_classes, itemsize)


def _even(length: int, most: int, unit: int) -> int:
    """Return the length of equal parts of `length`, none above `most`, in whole units where there is room for them."""
    most = min(most, length)
    part = -(-length // -(-length // most))
    whole = -(-part // unit) * unit
    return whole if whole <= most else part


def _slices(start: int, stop: int, step: int) -> Iterator[slice]:
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))
