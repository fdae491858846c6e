"""How NumPy arrays lie in memory: dtypes, the class axis, what the kernels can read, and blocks of what they cannot."""

import math
import operator
from collections.abc import Iterator
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softmaxloss.options import as_array, integer

# Arrays that the kernels cannot read as they lie (another dtype or byte order) are converted in blocks of this size.
_BLOCK_BYTES = 1 << 22
_MAX_DIMENSIONS = 33  # native/problem.hpp's kMaxDimensions and the class axis

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)

# The dtypes that the kernels read and write, in native byte order, and their numbers in native/problem.hpp.
_STORAGE = {_FLOAT32: 0, _FLOAT64: 1, np.dtype(np.float16): 2}
_BFLOAT16_STORAGE = 3

RowIndex = tuple[int | slice | EllipsisType, ...]


def as_logits(logits: ArrayLike, name: str = "logits") -> NDArray[Any]:
    """Return `logits` as an array whose dtype we take, itself where it is one."""
    array = as_array(name, logits)
    dtype = array.dtype
    if not (dtype.kind in "iub" or (dtype.kind == "f" and dtype.itemsize <= 8) or dtype.name == "bfloat16"):
        raise TypeError(f"{name} have dtype {dtype}; expected float16, bfloat16, float32, float64, an integer or bool")
    if not 1 <= array.ndim <= _MAX_DIMENSIONS:
        raise ValueError(f"{name} have {array.ndim} dimensions; expected 1 (one row of classes) to {_MAX_DIMENSIONS}")
    return array


def class_axis_last(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """Return a view with the class axis last; `AxisError` (a `ValueError`) where there is no such axis."""
    axis = integer("axis", axis)
    if axis in (-1, array.ndim - 1):
        return array
    if not -array.ndim <= axis < array.ndim:
        raise np.exceptions.AxisError(axis, array.ndim)
    return np.moveaxis(array, axis, -1)


def classes_of(logits: NDArray[Any]) -> int:
    """Return the length of the class axis, the last one."""
    if logits.shape[-1] == 0:
        raise ValueError(f"the class axis has length 0 in logits of shape {logits.shape} (class axis last)")
    return int(logits.shape[-1])


def result_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of gradients and probabilities: the logits' own, float64 for integers."""
    return _FLOAT64 if dtype.kind in "iub" else dtype.newbyteorder("=")


def kernel_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that the kernels compute in: float64 for float64 and integers, else float32."""
    return _FLOAT64 if dtype.kind in "iub" or dtype.itemsize == 8 else _FLOAT32


def storage_of(dtype: np.dtype[Any]) -> int | None:
    """Return the kernels' number for a dtype, None where none takes it (integers, foreign byte order).

    The softmax kernel takes float32 and float64 alone.
    """
    storage = _STORAGE.get(dtype)
    return _BFLOAT16_STORAGE if storage is None and dtype.name == "bfloat16" else storage


def kernel_reads(array: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Tell whether the kernels can use the array as it lies: this dtype, every element aligned."""
    return array.dtype == dtype and array.flags.aligned and not any(s % dtype.itemsize for s in array.strides)


def computed_as_it_lies(array: NDArray[Any]) -> bool:
    """Tell whether a kernel that takes only what it computes in, float32 or float64, can use the array as it lies."""
    return array.dtype in (_FLOAT32, _FLOAT64) and kernel_reads(array, array.dtype)


def elements(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array as the kernels take it: 16-bit floats as the integers of the same bits."""
    return array.view(np.uint16) if array.itemsize == 2 else array


def converted(rows: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a contiguous copy in another dtype; what is too large for it becomes infinite."""
    with np.errstate(over="ignore"):
        return np.array(rows, dtype=dtype, order="C", ndmin=1)


def readable_rows(logits: NDArray[Any], *, computed_only: bool = False) -> Iterator[tuple[RowIndex, NDArray[Any], int]]:
    """Yield logits as the kernels take them, and their storage: as they lie, or copies of their blocks.

    `computed_only` is for kernels that take only what they compute in, float32 and float64.
    """
    dtype = kernel_dtype(logits.dtype)
    storage = storage_of(logits.dtype)
    takes = computed_as_it_lies(logits) if computed_only else kernel_reads(logits, logits.dtype)
    if storage is not None and takes:
        yield (...,), elements(logits), storage
        return
    for block in row_blocks(logits.shape[:-1], rows_a_block(logits.shape[-1], dtype)):
        yield block, converted(logits[block], dtype), _STORAGE[dtype]


def flat(rows: NDArray[Any] | None, block: RowIndex) -> Any:
    """Return one block of an array of the rows' shape, contiguous, as a vector that shares its memory."""
    return None if rows is None else rows[block].reshape(-1)


def row_blocks(rows_shape: tuple[int, ...], rows_a_block: int) -> Iterator[RowIndex]:
    """Yield indices that together cover an array of this shape, each at most `rows_a_block` elements (at least 1)."""
    if not rows_shape:
        yield (...,)  # an index of () would make a scalar, not a view
        return
    inner = math.prod(rows_shape[1:])
    if inner <= rows_a_block:
        step = max(1, rows_a_block // max(1, inner))
        for start in range(0, rows_shape[0], step):
            yield (slice(start, min(start + step, rows_shape[0])),)
        return
    for i in range(rows_shape[0]):
        for rest in row_blocks(rows_shape[1:], rows_a_block):
            yield (i, *rest)


def rows_a_block(classes: int, dtype: np.dtype[Any]) -> int:
    """Return how many rows of so many classes fill a block."""
    return max(1, _BLOCK_BYTES // (classes * dtype.itemsize))


def row_position(rows_shape: tuple[int, ...], block: RowIndex, row: int) -> tuple[int, ...]:
    """Return the index, among all rows, of row number `row` of one of the blocks of `row_blocks`."""
    *leading, last = block
    if not isinstance(last, slice):  # the whole
        return tuple(int(i) for i in np.unravel_index(row, rows_shape))
    first, *others = np.unravel_index(row, (last.stop - last.start, *rows_shape[len(leading) + 1 :]))
    return tuple(operator.index(i) for i in (*leading, last.start + first, *others))
