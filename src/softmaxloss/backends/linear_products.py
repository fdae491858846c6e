"""The matrix products of linear_cross_entropy for NumPy arrays, and for hidden states that SciPy holds as sparse."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softmaxloss.backends.block_plan import BlockPlan
from softmaxloss.backends.layout import converted, result_dtype
from softmaxloss.backends.linear_layer import Layer
from softmaxloss.backends.linear_rows import LinearRows, rows_of

# Of weights that are converted or gathered, and of products that are to be added, together with what BLAS makes of the
# gradients in them. Larger ones leave less room for blocks; smaller ones have BLAS's threads wait for each other.
_PIECE_BYTES = 6 << 20
# Of a block in the weight's gradient, so much at most is copied out of its way.
_COPIED_BYTES = 24 << 20
_SUMMED_ROWS = 1024  # of which a gradient's columns are added in its own dtype

# By hidden states (None where they are sparse), weight and bias (None without one).
Gradients = tuple[NDArray[Any] | None, NDArray[Any], NDArray[Any] | None]


def products_of(layer: Layer, rows: LinearRows, plan: BlockPlan) -> "DenseProducts":
    """Return the products for what the hidden states are."""
    return SparseProducts(layer, rows, plan) if layer.is_sparse else DenseProducts(layer, rows, plan)


def with_room_in_gradient(layer: Layer, plan: BlockPlan) -> BlockPlan:
    """Return the plan for blocks the first of which lies where the weight's gradient will be, if that is larger."""
    return plan if layer.is_sparse else plan.with_first_block(layer.weight.shape[1] // 2)


class DenseProducts:
    """See `sweeps.Products`.

    The first block that has a part in a gradient writes it: that is quicker than to clear it, and to add to it. Until
    then the memory of the weight's gradient is free for a block that is larger than the buffer: see
    `with_room_in_gradient`.
    """

    def __init__(self, layer: Layer, rows: LinearRows, plan: BlockPlan) -> None:
        self._layer, self._rows, self._dtype = layer, rows, layer.dtype
        self._bias = None if layer.bias is None else converted(layer.bias, layer.dtype)
        self._holds_all_classes, self._first_rows = plan.holds_all_classes, plan.first_rows
        self._buffer = np.empty(plan.rows * plan.classes, layer.dtype)
        # Of the block whose logits were asked for last.
        self._block = self._buffer.reshape(plan.rows, plan.classes)
        self._classes = slice(0, 0)
        self._hidden: Any = None
        # Sums that become the gradients.
        self._by_hidden: NDArray[Any] | None = None
        self._by_weight: NDArray[Any] | None = None
        self._by_bias = np.zeros(len(layer.weight))
        # Of a product that is to be added: memory that is new to it would take longer to get than to fill.
        self._piece = np.empty(0, layer.dtype)

    def logits(self, rows: slice, classes: slice) -> NDArray[Any]:
        """Return hidden @ weight.T + bias for a block."""
        height, width = rows.stop - rows.start, classes.stop - classes.start
        in_gradient = rows.start == 0 and self._first_rows > 0
        memory = self._weight_sum().reshape(-1)[-height * width :] if in_gradient else self._buffer[: height * width]
        self._block, self._classes = memory.reshape(height, width), classes
        self._hidden = self._hidden_rows(rows)
        self._multiply()
        if self._bias is not None:
            self._block += self._bias[classes]
        return self._block

    def add_gradients(self, rows: slice, classes: slice) -> None:
        """Add what the block's gradient makes of the gradients by hidden states, weight and bias."""
        self._add_by_bias(classes, self._block)
        self._add_by_hidden(rows, ((self._block[:, columns], weight) for columns, weight in self._weights(classes)))
        if rows.start == 0 and self._first_rows:
            self._replace_by_weight_gradient()
        else:
            self._add_by_weight(self._weight_sum()[classes], self._block, begun=rows.start > 0)

    def add_gradients_of(self, rows: slice, columns: NDArray[np.int64]) -> None:
        """Add the same of these columns of the block alone."""
        if rows.start == 0:
            self._weight_sum()[self._classes] = 0.0
        self._add_by_hidden(rows, self._gathered(columns))

    def gradients(self) -> Gradients:
        """Return the gradients, each in the dtype of what it is by."""
        layer, by_weight = self._layer, self._weight_sum()
        if self._rows.count == 0:
            by_weight[...] = 0.0
        by_bias = None if layer.bias is None else _in(result_dtype(layer.bias.dtype), self._by_bias)
        return self._hidden_gradient(), _in(result_dtype(layer.weight.dtype), by_weight), by_bias

    def _gathered(self, columns: NDArray[np.int64]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Yield columns of the block and their weights, by pieces, once they are in the weight's and bias's sums."""
        by_weight, step = self._weight_sum(), self._piece_length()
        for start in range(0, len(columns), step):
            piece = columns[start : start + step]
            gradient, classes = np.take(self._block, piece, axis=1), piece + self._classes.start
            by_weight[classes] += self._weight_part(gradient)
            self._add_by_bias(classes, gradient)
            yield gradient, self._layer.weight[classes].astype(self._dtype, copy=False)

    def _weights(self, classes: slice) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield the weights of some classes in the products' dtype, and where among them: all, or by pieces."""
        weight = self._layer.weight
        if weight.dtype == self._dtype and weight.flags.forc:
            yield slice(0, classes.stop - classes.start), weight[classes]
            return
        step = self._piece_length()
        for start in range(classes.start, classes.stop, step):
            stop = min(start + step, classes.stop)
            yield slice(start - classes.start, stop - classes.start), converted(weight[start:stop], self._dtype)

    def _piece_length(self) -> int:
        """Return how many classes make a piece."""
        rows, features = self._hidden.shape
        return max(1, _PIECE_BYTES // (self._dtype.itemsize * max(1, int(rows) + int(features))))

    def _hidden_rows(self, rows: slice) -> Any:
        """Return hidden states in the products' dtype."""
        chosen = rows_of(self._layer.hidden, self._rows.numbers(rows))
        return chosen if chosen.dtype == self._dtype else converted(chosen, self._dtype)

    def _multiply(self) -> None:
        """Put hidden @ weight.T in the block."""
        for columns, weight in self._weights(self._classes):
            np.matmul(self._hidden, weight.T, out=self._block[:, columns])

    def _add_by_hidden(self, rows: slice, parts: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> None:
        """Add the products of these gradients and weights to the hidden states' gradient."""
        total, numbers = self._hidden_sum(), self._rows.numbers(rows)
        in_place, begun = isinstance(numbers, slice) and total.dtype == self._dtype, self._classes.start > 0
        out = total[numbers] if in_place or begun else np.empty(self._hidden.shape, self._dtype)
        for gradient, weight in parts:
            self._multiply_into(out, gradient, weight, begun=begun)
            begun = True
        if not begun:
            out[...] = 0.0
        if not in_place:
            with np.errstate(over="ignore"):
                total[numbers] = out

    def _add_by_weight(self, total: NDArray[Any], block: NDArray[Any], *, begun: bool) -> None:
        # A piece at a time in any case: BLAS takes as much memory as the block does to rearrange all of it.
        step = self._piece_length()
        for start in range(0, len(total), step):
            piece = slice(start, start + step)
            self._multiply_into(total[piece], block[:, piece].T, self._hidden, begun=begun)

    def _replace_by_weight_gradient(self) -> None:
        """Write the weight's gradient over the block that lies at the end of its memory.

        As far as there is room before the block; what is left of it is then moved to the end, and so on.
        """
        total, block = self._weight_sum(), self._block
        classes, features = total.shape
        memory, height, done = total.reshape(-1), len(block), 0
        while block.nbytes > _COPIED_BYTES:
            room = (len(memory) - block.size) // features
            if room == done:  # of so few classes that none fits
                break
            self._add_by_weight(total[done:room], block[:, : room - done], begun=False)
            left = memory[len(memory) - height * (classes - room) :].reshape(height, classes - room)
            for row in range(height - 1, -1, -1):  # upwards in memory: the last first
                left[row] = block[row, room - done :]
            block, done = left, room
        self._add_by_weight(total[done:], block.copy(), begun=False)

    def _multiply_into(self, out: NDArray[Any], a: NDArray[Any], b: NDArray[Any], *, begun: bool) -> None:
        """Put a @ b in `out`, or add it to what is there."""
        if not begun:
            np.matmul(a, b, out=out)
            return
        if len(self._piece) < out.size:
            self._piece = np.empty(out.size, self._dtype)
        product = self._piece[: out.size].reshape(out.shape)
        out += np.matmul(a, b, out=product)

    def _weight_part(self, gradient: NDArray[Any]) -> NDArray[Any]:
        part: NDArray[Any] = gradient.T @ self._hidden
        return part

    def _add_by_bias(self, classes: slice | NDArray[np.int64], gradient: NDArray[Any]) -> None:
        if self._bias is not None:
            for start in range(0, len(gradient), _SUMMED_ROWS):
                self._by_bias[classes] += gradient[start : start + _SUMMED_ROWS].sum(axis=0)

    def _hidden_sum(self) -> NDArray[Any]:
        """Return the sum for the hidden states; one block alone has a part in each row of it if it has all classes."""
        if self._by_hidden is None:
            hidden = self._layer.hidden
            dtype = result_dtype(hidden.dtype) if self._holds_all_classes else self._dtype
            all_rows = self._rows.count > 0 and isinstance(self._rows.numbers(slice(0, 0)), slice)
            shape = (int(np.prod(hidden.shape[:-1])), hidden.shape[-1])
            self._by_hidden = np.empty(shape, dtype) if all_rows else np.zeros(shape, dtype)
        return self._by_hidden

    def _weight_sum(self) -> NDArray[Any]:
        if self._by_weight is None:
            self._by_weight = np.empty(self._layer.weight.shape, self._dtype)
        return self._by_weight

    def _hidden_gradient(self) -> NDArray[Any] | None:
        hidden = self._layer.hidden
        return _in(result_dtype(hidden.dtype), self._hidden_sum()).reshape(hidden.shape)


class SparseProducts(DenseProducts):
    """Those of sparse hidden states, which are data: there is no gradient by them."""

    def _hidden_rows(self, rows: slice) -> Any:
        return self._layer.hidden[self._rows.numbers(rows)].astype(self._dtype, copy=False)

    def _multiply(self) -> None:
        step = self._piece_length()
        for start in range(self._classes.start, self._classes.stop, step):
            stop = min(start + step, self._classes.stop)
            columns = slice(start - self._classes.start, stop - self._classes.start)
            weight = self._layer.weight[start:stop].astype(self._dtype, copy=False)
            self._block[:, columns] = self._hidden @ weight.T

    def _add_by_hidden(self, rows: slice, parts: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> None:
        for _ in parts:
            pass  # whatever else they do

    def _add_by_weight(self, total: NDArray[Any], block: NDArray[Any], *, begun: bool) -> None:
        step = self._piece_length()
        for start in range(0, len(total), step):
            product = self._weight_part(block[:, start : start + step])
            if begun:
                total[start : start + step] += product
            else:
                total[start : start + step] = product

    def _weight_part(self, gradient: NDArray[Any]) -> NDArray[Any]:
        part: NDArray[Any] = (self._hidden.T @ gradient).T
        return part

    def _hidden_gradient(self) -> NDArray[Any] | None:
        return None


def _in(dtype: np.dtype[Any], sums: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return sums.astype(dtype, copy=False)
