"""Dask arrays at the door: logits in chunks of whole rows, and labels and weights in the chunks that go with them."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from softmaxloss.backends import is_dask
from softmaxloss.backends.layout import as_logits
from softmaxloss.options import integer, is_masked, is_real

__all__ = ["SURVEY", "UNITS", "Operands", "Rows", "as_dask", "reduced_by_tree", "same_shape"]

# Chunks of part of the classes are merged; up to so many bytes no rows are split for it.
_SMALL_CHUNK_BYTES = 1 << 24

# What functions of chunks take: by the name of the argument, an array and the axes of the logits that it has.
Operands = dict[str, tuple[Any, tuple[int, ...]]]

# Axes beside those of the logits, of which there are at most 33: of what is told of all rows, and of an answer's own.
UNITS, SURVEY, EXTRA = 97, 98, 99


def as_dask(values: Any, name: str) -> Any:
    """Return a Dask array of NumPy arrays; of a table of Dask's its values, whose chunks are of unknown length."""
    array = values.to_dask_array() if hasattr(values, "to_dask_array") else values
    if not isinstance(array, da.Array):
        raise TypeError(f"{name} is a {type(values).__name__} of Dask's; expected a Dask array, dataframe or series")
    if not isinstance(array._meta, np.ndarray) or is_masked(array._meta):
        raise TypeError(f"{name} is a Dask array of {type(array._meta).__name__}; expected one of plain NumPy arrays")
    return array


def same_shape(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Tell whether two shapes may be the same: an unknown length, NaN, may be any."""
    return len(one) == len(other) and all(
        a == b or math.isnan(a) or math.isnan(b) for a, b in zip(one, other, strict=True)
    )


class Rows:
    """Logits in chunks that hold all classes of their rows, and functions of these chunks.

    Parameters
    ----------
    logits : dask.array.Array, or a table of Dask's
        As the user gave it.
    axis : int
        The class axis.
    name : str
        What the user calls it.
    """

    def __init__(self, logits: Any, axis: int, name: str = "logits") -> None:
        self.given, self.name = as_dask(logits, name), name
        as_logits(np.empty((0,) * self.given.ndim, self.given.dtype), name)  # refuses dtypes and too many dimensions
        self.dtype, self.shape, self.ndim = self.given.dtype, self.given.shape, self.given.ndim
        axis = integer("axis", axis)
        if not -self.ndim <= axis < self.ndim:
            raise np.exceptions.AxisError(axis, self.ndim)
        self.axis = axis % self.ndim
        self.index = tuple(range(self.ndim))
        self.rows_index = self.index[: self.axis] + self.index[self.axis + 1 :]
        self.rows_shape = tuple(self.shape[i] for i in self.rows_index)
        if math.isnan(self.shape[self.axis]):
            raise ValueError(
                f"the number of classes of the {name} is unknown; call compute_chunk_sizes() on them first"
            )
        self.classes = int(self.shape[self.axis])
        if self.classes == 0:
            raise ValueError(
                f"the class axis has length 0 in {name} of shape {(*self.rows_shape, 0)} (class axis last)"
            )
        self.array = _with_whole_rows(self.given, self.axis)
        self.rows_chunks = tuple(self.array.chunks[i] for i in self.rows_index)

    def along(self, values: Any, name: str, shape: tuple[float, ...], meaning: str) -> Any:
        """Return an array of this shape, the rows' or the logits', in the chunks of the rows.

        Where lengths of chunks are unknown there must be as many, which are then taken to be of the same rows.
        """
        chunks = self.rows_chunks if len(shape) < self.ndim else self.array.chunks
        array = as_dask(values, name) if is_dask(values) else None
        given = np.shape(values) if array is None else array.shape
        if not same_shape(given, shape):
            raise ValueError(f"{name} {_has_shape(name, given)}; expected {shape}: {meaning}")
        unknown = [i for i, sizes in enumerate(chunks) if any(map(math.isnan, sizes))]
        if array is None:
            if unknown:
                raise ValueError(
                    f"the chunks of the {self.name} are of unknown length, and {name} no Dask array that could "
                    f"have the same; call compute_chunk_sizes() on the {self.name} first"
                )
            return da.from_array(np.asarray(values), chunks=chunks)
        unknown = unknown + [i for i, n in enumerate(array.shape) if math.isnan(n) and i not in unknown]
        for i in unknown:
            if array.numblocks[i] != len(chunks[i]):
                raise ValueError(
                    f"{name} and the {self.name} have {array.numblocks[i]} and {len(chunks[i])} chunks of unknown "
                    "length along the rows; expected as many of both: call compute_chunk_sizes() on both first"
                )
        return array.rechunk({i: sizes for i, sizes in enumerate(chunks) if i not in unknown})

    def reals(self, values: Any, name: str, shape: tuple[float, ...], meaning: str) -> Any:
        """Return real numbers as `along` does."""
        dtype = as_dask(values, name).dtype if is_dask(values) else np.asarray(values).dtype
        if not is_real(dtype):
            raise TypeError(f"{name} has dtype {dtype}; expected real numbers")
        return self.along(values, name, shape, meaning)

    def by_class(self, values: Any, name: str) -> Any:
        """Return one real number a class, in one chunk."""
        array = as_dask(values, name)
        if not is_real(array.dtype):
            raise TypeError(f"{name} has dtype {array.dtype}; expected real numbers")
        if not same_shape(array.shape, (self.classes,)):
            raise ValueError(f"{name} has shape {array.shape}; expected {(self.classes,)}: one number a class")
        return array.rechunk({0: -1}) if array.numblocks[0] > 1 else array

    def map(
        self,
        function: Callable[..., Any],
        operands: Operands,
        of: Literal["logits", "rows", "chunks"],
        dtype: Any,
        *,
        extra: int = 0,
        **settings: Any,
    ) -> Any:
        """Return what a function makes of each chunk: as large as its logits, its rows, or 1 along every axis of rows.

        `extra` is the length of one more axis, the last one.
        """
        index = self.index if of == "logits" else self.rows_index
        if extra:
            index = (*index, EXTRA)
        arguments = [part for array_and_axes in operands.values() for part in array_and_axes]
        return da.blockwise(
            partial(_called, function, tuple(operands), settings),
            index,
            *arguments,
            new_axes={EXTRA: extra} if extra else {},
            adjust_chunks=dict.fromkeys(self.rows_index, 1) if of == "chunks" else None,
            align_arrays=False,
            concatenate=None,
            dtype=dtype,
            meta=np.empty((0,) * len(index), dtype),
            name=None,
            token=getattr(function, "__name__", "softmaxloss"),
        )

    def like_given(self, array: Any) -> Any:
        """Return an array of the logits' shape in the chunks in which they were given."""
        if self.array is self.given:
            return array
        return array.rechunk({i: sizes for i, sizes in enumerate(self.given.chunks) if not any(map(math.isnan, sizes))})


def reduced_by_tree(array: Any, axes: int, combine: Callable[..., Any]) -> Any:
    """Return an array with its first axes reduced, by a tree over chunks, by NumPy's `sum`, `min` or `max`."""
    if not axes:
        return array
    step = partial(_quietly, combine)
    return da.reduction(
        array,
        chunk=step,
        aggregate=step,
        axis=tuple(range(axes)),
        dtype=array.dtype,
        concatenate=True,
        meta=np.empty((0,) * (array.ndim - axes), array.dtype),
    )


def _with_whole_rows(array: Any, axis: int) -> Any:
    """Return the array with one chunk along an axis; chunks that would be large for it hold fewer rows."""
    if array.numblocks[axis] == 1:
        return array
    largest = math.prod(max(sizes) for sizes in array.chunks) * array.dtype.itemsize
    merged = largest / max(array.chunks[axis]) * array.shape[axis]
    limit = max(largest, _SMALL_CHUNK_BYTES)
    if math.isnan(merged) or merged <= limit:
        return array.rechunk({axis: -1})
    others = {i: "auto" for i in range(array.ndim) if i != axis}
    return array.rechunk({**others, axis: -1}, block_size_limit=int(limit))


def _has_shape(name: str, shape: tuple[float, ...]) -> str:
    return f"{'have' if name in ('labels', 'groups') else 'has'} shape {shape}"


def _called(function: Callable[..., Any], names: tuple[str, ...], settings: dict[str, Any], *chunks: Any) -> Any:
    """Call a function of one chunk; Dask gives what has axes that the answer has not in lists, here of one chunk."""
    return function(**{name: _only(chunk) for name, chunk in zip(names, chunks, strict=True)}, **settings)


def _only(chunk: Any) -> Any:
    while isinstance(chunk, list):
        (chunk,) = chunk
    return chunk


def _quietly(combine: Callable[..., Any], array: NDArray[Any], axis: Any, keepdims: bool) -> Any:
    with np.errstate(over="ignore", invalid="ignore"):  # infinite losses, of either sign
        return combine(array, axis=axis, keepdims=keepdims)
