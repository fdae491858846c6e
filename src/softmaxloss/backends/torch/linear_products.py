"""The three products of a block of logits: logits of hidden states, and the gradients of hidden states and weight."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softmaxloss.backends.block_plan import BlockPlan
from softmaxloss.backends.linear_rows import RowNumbers
from softmaxloss.backends.torch.linear_problem import LinearProblem
from softmaxloss.backends.torch.views import new_empty, view

Asked = tuple[bool, bool, bool]  # for the gradients of hidden, weight and bias
Gradients = tuple[Tensor | None, ...]  # by these

_WHOLE = slice(None)

# Of a weight in 16 bits so much is converted at a time; of one that is gathered, so many rows.
_TILE_BYTES, _TILE_COLUMNS = 1 << 23, 4096

# On the host MKL takes up to half as long again for a product larger than the caches as for its parts: of so many
# columns, from so many rows on; and a tenth longer to add one to what is there, where it has more rows than these.
_PRODUCT_COLUMNS, _PRODUCT_ROWS = 512, 64
_SUM_ROWS = 4096


class _Segment(NamedTuple):
    """The part of a block that belongs to one position of the weight."""

    inside: slice  # of the block's rows
    position: int
    numbers: slice | Tensor  # of the rows of hidden


class Products:
    """A problem's products, block by block, with gradients that add up: `Products` of backends/sweeps.py.

    A loss's rows are those of hidden for the weight's first position, then for its second, and so on. On the host
    numbers of 16 bits are multiplied as float32, which loses nothing. The gradients are added up in float32 as well,
    everywhere.

    Parameters
    ----------
    problem : LinearProblem
        With the operands.
    numbers : callable
        Gives the numbers, among all of a loss's rows, of some of those that are visited.
    asked : Asked
        What gradients are asked for.
    plan : BlockPlan
        The blocks.
    """

    def __init__(
        self, problem: LinearProblem, numbers: Callable[[slice], RowNumbers], asked: Asked, plan: BlockPlan
    ) -> None:
        features, device, dtype = problem.hidden.shape[-1], problem.hidden.device, product_dtype(problem)
        positions = problem.positions_count
        self._hidden = problem.hidden.detach().reshape(problem.hidden.shape[:-1].numel(), features)
        self._weight = problem.weight.detach().reshape(problem.classes, positions, features)
        self._bias = (
            None if problem.bias is None else problem.bias.detach().reshape(problem.classes, positions).to(dtype)
        )
        self._shapes = problem.hidden.shape, problem.weight.shape, problem.weight.shape[:-1]
        self._numbers, self._plan, self._asked = numbers, plan, asked
        self._logits = new_empty((plan.rows * plan.classes,), dtype, device)
        self._rows = torch.empty(plan.rows, features, dtype=dtype, device=device)
        self._tile: Tensor | None = None
        self._classes = slice(0, 0)  # of the block whose logits were asked for last
        # Where every row is in one block of rows and every class in one of classes, the first product can write.
        apart = plan.all_rows > 0 and positions == 1 and not problem.gradient_filter
        self._begun_rows: set[int] | None = set() if apart and isinstance(numbers(slice(0, 0)), slice) else None
        self._begun_classes: set[int] | None = set() if apart else None
        self._sums = self._new_sums(torch.float32 if dtype.itemsize == 2 else dtype)

    def _new_sums(self, dtype: torch.dtype) -> Gradients:
        shapes = tuple(self._hidden.shape), tuple(self._weight.shape), tuple(self._weight.shape[:2])
        sums = [
            new_empty(shape, dtype, self._hidden.device) if wanted else None
            for shape, wanted in zip(shapes, self._asked, strict=True)
        ]
        for total, begun in zip(sums, (self._begun_rows, self._begun_classes, None), strict=True):
            if total is not None and begun is None:
                total.zero_()
        return tuple(sums)

    def logits(self, rows: slice, classes: slice) -> NDArray[Any]:
        """Return the logits of a block, in memory that the next block's will take."""
        self._classes = classes
        return np.asarray(view(self.tensor_of_logits(rows, classes)))

    def logits_in_weight(self, rows: slice, classes: slice) -> NDArray[Any]:
        """Return the same in the memory of the gradient by the weight, where that by these classes will be."""
        return np.asarray(view(self._fill(self._block_in_weight(rows, classes), rows, classes)))

    def taken_out(self, rows: slice, classes: slice) -> NDArray[Any]:
        """Return a block that is in the weight's gradient, in the memory for blocks, so that the gradient can be."""
        return np.asarray(view(self._block(rows, classes).copy_(self._block_in_weight(rows, classes))))

    def tensor_of_logits(self, rows: slice, classes: slice) -> Tensor:
        """Return the logits of a block as a tensor."""
        return self._fill(self._block(rows, classes), rows, classes)

    def _fill(self, block: Tensor, rows: slice, classes: slice) -> Tensor:
        for inside, position, numbers in self._segments(rows):
            part, hidden = block[inside], self._hidden_rows(numbers, inside)
            for columns, weight in self._tiles(position, classes):
                out = part[:, columns]
                for piece in _pieces(weight, _PRODUCT_COLUMNS if len(hidden) >= _PRODUCT_ROWS else len(weight)):
                    torch.mm(hidden, weight[piece].T, out=out[:, piece])
            if self._bias is not None:
                part += self._bias[classes, position]
        return block

    def add_gradients(self, rows: slice, classes: slice) -> None:
        """Add what a block's gradient, now where its logits were, makes of the gradients asked for."""
        self.add(rows, classes, self._block(rows, classes))

    def add(self, rows: slice, classes: slice, gradient: Tensor) -> None:
        """Add what this gradient of a block's logits makes of the gradients asked for."""
        by_hidden, by_weight, by_bias = self._sums
        for inside, position, numbers in self._segments(rows):
            part = gradient[inside]
            if by_bias is not None:
                by_bias[classes, position] += part.sum(0, dtype=by_bias.dtype)
            if by_weight is not None:
                hidden = self._hidden_rows(numbers, inside)
                begun = _begun(self._begun_classes, classes.start)
                total = by_weight[classes, position]
                for piece in _pieces(total, _SUM_ROWS):
                    _add_product(total[piece], part[:, piece].T, hidden, begun=begun)
            if by_hidden is not None:
                self._add_by_hidden(numbers, inside, part, self._tiles(position, classes))

    def add_gradients_of(self, rows: slice, columns: NDArray[np.int64]) -> None:
        """Add the same of these columns alone, of the block whose logits were asked for last."""
        block, first = self._block(rows, self._classes), self._classes.start
        for inside, position, numbers in self._segments(rows):
            for start in range(0, len(columns), _TILE_COLUMNS):
                chosen = torch.from_numpy(columns[start : start + _TILE_COLUMNS])
                part = block[inside].index_select(1, chosen)
                self._add_columns(numbers, inside, position, chosen + first, part)

    def gradients(self) -> Gradients:
        """Return the gradients by hidden, weight and bias, None for what is not asked for."""
        return tuple(
            None if total is None else total.reshape(shape)
            for total, shape in zip(self._sums, self._shapes, strict=True)
        )

    def _add_columns(self, numbers: slice | Tensor, inside: slice, position: int, chosen: Tensor, part: Tensor) -> None:
        by_hidden, by_weight, by_bias = self._sums
        if by_bias is not None:
            by_bias[:, position].index_add_(0, chosen, part.sum(0, dtype=by_bias.dtype))
        if by_weight is not None:
            hidden = self._hidden_rows(numbers, inside)
            by_weight[:, position].index_add_(0, chosen, torch.mm(part.T, hidden))
        if by_hidden is not None:
            weight = self._weight[:, position].index_select(0, chosen).to(part.dtype)
            self._add_by_hidden(numbers, inside, part, iter([(_WHOLE, weight)]))

    def _add_by_hidden(
        self, numbers: slice | Tensor, inside: slice, part: Tensor, tiles: Iterator[tuple[slice, Tensor]]
    ) -> None:
        total = self._sums[0]
        assert total is not None
        for columns, weight in tiles:
            if isinstance(numbers, slice):
                begun = _begun(self._begun_rows, numbers.start)
                _add_product(total[numbers], part[:, columns], weight, begun=begun)
            else:
                total.index_add_(0, numbers, torch.mm(part[:, columns], weight).to(total.dtype))

    def _block(self, rows: slice, classes: slice) -> Tensor:
        shape = rows.stop - rows.start, classes.stop - classes.start
        return self._logits[: shape[0] * shape[1]].view(shape)

    def _block_in_weight(self, rows: slice, classes: slice) -> Tensor:
        total, shape = self._sums[1], (rows.stop - rows.start, classes.stop - classes.start)
        assert total is not None
        return total.view(-1)[classes.start * total.shape[-1] :][: shape[0] * shape[1]].view(shape)

    def _segments(self, rows: slice) -> Iterator[_Segment]:
        """Yield the parts of a block's rows, by the weight's positions."""
        numbers, count = self._numbers(rows), len(self._hidden)
        if self._weight.shape[1] == 1:
            where = numbers if isinstance(numbers, slice) else torch.from_numpy(numbers).to(self._hidden.device)
            yield _Segment(slice(0, rows.stop - rows.start), 0, where)
            return
        chosen = np.arange(numbers.start, numbers.stop) if isinstance(numbers, slice) else numbers
        positions = chosen // count
        ends = [*(np.flatnonzero(np.diff(positions)) + 1).tolist(), len(chosen)]
        for start, stop in zip([0, *ends], ends, strict=False):
            within = torch.from_numpy(chosen[start:stop] % count).to(self._hidden.device)
            yield _Segment(slice(start, stop), int(positions[start]), within)

    def _hidden_rows(self, numbers: slice | Tensor, inside: slice) -> Tensor:
        """Return rows of hidden in the products' dtype."""
        if isinstance(numbers, slice) and self._hidden.dtype == self._rows.dtype:
            return self._hidden[numbers]
        rows = self._rows[inside]
        if isinstance(numbers, slice):
            return rows.copy_(self._hidden[numbers])
        if self._hidden.dtype == rows.dtype:
            return torch.index_select(self._hidden, 0, numbers, out=rows)
        return rows.copy_(self._hidden.index_select(0, numbers))

    def _tiles(self, position: int, classes: slice) -> Iterator[tuple[slice, Tensor]]:
        """Yield the weight of some classes in the products' dtype, whole or in parts: columns of a block, and rows."""
        weight, dtype = self._weight[classes, position], self._rows.dtype
        if weight.dtype == dtype:
            yield _WHOLE, weight
            return
        if self._tile is None:
            features = weight.shape[1]
            most = max(1, _TILE_BYTES // max(1, features * dtype.itemsize))
            self._tile = weight.new_empty(min(most, self._plan.classes), features, dtype=dtype)
        for start in range(0, len(weight), len(self._tile)):
            part = weight[start : start + len(self._tile)]
            yield slice(start, start + len(part)), self._tile[: len(part)].copy_(part)


def product_dtype(problem: LinearProblem) -> torch.dtype:
    """Return what a problem's products are computed in."""
    on_host = problem.hidden.device.type == "cpu"
    return torch.float32 if on_host and problem.dtype.itemsize == 2 else problem.dtype


def _pieces(along: Tensor, length: int) -> Iterator[slice]:
    """Yield the rows of a tensor in pieces of a length, all of them at once where it is not on the host."""
    step = max(1, length if along.device.type == "cpu" else len(along))
    for start in range(0, len(along), step):
        yield slice(start, start + step)


def _begun(begun: set[int] | None, start: int) -> bool:
    """Tell whether there is something already where a part of a gradient starts, and note that there is from now on."""
    if begun is None or start in begun:
        return True
    begun.add(start)
    return False


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, begun: bool) -> None:
    """Add a product to a total, or write it where nothing has begun yet."""
    if total.dtype != a.dtype:
        product = torch.mm(a, b)
        total.add_(product) if begun else total.copy_(product)
    elif begun:
        total.addmm_(a, b)
    else:
        torch.mm(a, b, out=total)
