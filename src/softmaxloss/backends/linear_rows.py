"""The rows of a linear cross-entropy: hidden states that count, in one row after another, and what is known of them."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softmaxloss.backends.kernel import LossOfRows
from softmaxloss.backends.layout import RowIndex
from softmaxloss.labels import Labels
from softmaxloss.options import LossOptions

# Which rows of all these are, or all from here to there.
RowNumbers = slice | NDArray[np.int64]


class LinearRows(LossOfRows):
    """A loss whose rows are taken as one axis, those left out that are ignored: no product needs to be made of them.

    Parameters
    ----------
    labels, options, rows_shape, classes
        As for `LossOfRows`.
    logits_dtype : numpy.dtype
        What blocks of logits will be computed in.
    """

    def __init__(
        self,
        labels: Labels,
        options: LossOptions,
        rows_shape: tuple[int, ...],
        classes: int,
        logits_dtype: np.dtype[Any],
    ) -> None:
        super().__init__(labels, options, rows_shape, classes, logits_dtype)
        self._kept = self._flatten()
        self.count = math.prod(rows_shape) if self._kept is None else len(self._kept)
        self.row_loss = np.empty(self.count)
        self.totals: list[float] = []

    @property
    def are_plain(self) -> bool:
        """Whether a kernel takes blocks of their logits as they are, and their targets are labels and nothing else."""
        temperature, softcap, bias = self.options.transform
        by_label = self.labels.indices is not None and self.targets.dense is None
        return temperature == 1.0 and softcap is None and bias is None and by_label and self.dtype == self.loss_dtype

    def numbers(self, rows: slice) -> RowNumbers:
        """Return which of all rows, numbered in order, these are of those that are not ignored."""
        return rows if self._kept is None else self._kept[rows]

    def with_upstream(self, upstream: Any) -> None:
        """Multiply each row's gradient by a number of its own, of any sign, in an array of the rows' shape."""
        by_row = np.asarray(upstream, dtype=np.float64).reshape(-1)
        by_row = by_row if self._kept is None else by_row[self._kept]
        weight = self.options.sample_weight
        self.options = self.options._replace(sample_weight=np.array(by_row) if weight is None else weight * by_row)

    def row_scales(self, rows: slice) -> float | NDArray[np.float64]:
        """Return the magnitude of what each row's own gradient is multiplied by, one number where it is the same."""
        scale, weight = abs(self.gradient_scale), self.options.sample_weight
        return scale if weight is None else scale * np.abs(weight[rows])

    def distribution(self, rows: slice) -> NDArray[Any] | None:
        """Return the label distributions of some rows, a copy of them only where they do not lie as one axis."""
        given = self.labels.distribution
        if given is None or given.ndim == 2:
            return None if given is None else given[rows]
        return rows_of(given, rows)

    def whole_rows(self, rows: slice, logits: NDArray[Any], *, gradient: bool) -> None:
        """Take a block of rows' logits; their gradient takes their place if it is asked for."""
        self.totals.append(
            self.of_block((rows,), logits, self.distribution(rows), self.row_loss, logits if gradient else None)
        )

    def result(self) -> Any:
        """Return the loss, once all rows have been taken."""
        if self._kept is None:
            return self.reduced(self.row_loss.reshape(self.rows_shape), self.totals)
        rows = np.zeros(math.prod(self.rows_shape))
        rows[self._kept] = self.row_loss
        return self.reduced(rows.reshape(self.rows_shape), self.totals)

    def _flatten(self) -> NDArray[np.int64] | None:
        """Take labels and weights as one axis, without ignored rows; return the numbers of the others if there are."""
        indices, distribution, tolerance = self.labels
        weight = self.options.sample_weight
        weight = None if weight is None else weight.reshape(-1)
        kept = None
        if indices is not None:
            indices = indices.reshape(-1)
            counted = indices != self.options.ignore_index
            if not counted.all():
                kept = np.flatnonzero(counted)
                indices = indices[kept]
                weight = None if weight is None else weight[kept]
        elif distribution is not None and distribution.ndim == 1:
            distribution = distribution[np.newaxis]
        self.labels = Labels(indices, distribution, tolerance)
        self.options = self.options._replace(sample_weight=weight)
        return kept

    def _position(self, block: RowIndex, row: int) -> tuple[int, ...]:
        (rows,) = block
        assert isinstance(rows, slice)
        return tuple(int(i) for i in np.unravel_index(rows.start + row, self.rows_shape)) if self.rows_shape else ()


def rows_of(array: NDArray[Any], numbers: RowNumbers) -> NDArray[Any]:
    """Return some rows, (rows, last axis), of an array whose leading axes are all rows: a view where there is one."""
    if array.ndim == 2:
        return array[numbers]
    if array.flags.c_contiguous:
        return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])[numbers]
    chosen = np.arange(numbers.start, numbers.stop) if isinstance(numbers, slice) else numbers
    return array[np.unravel_index(chosen, array.shape[:-1])]
