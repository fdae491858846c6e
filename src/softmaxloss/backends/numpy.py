"""NumPy arrays: how they reach the kernels without a copy, or a block at a time where one cannot be avoided."""

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softmaxloss import _native
from softmaxloss.labels import Labels, label_error, not_a_distribution, resolve_labels
from softmaxloss.options import LossOptions, check_options, integer

# Arrays that the kernels cannot read as they lie (another dtype or byte order) are converted in blocks of this size.
_BLOCK_BYTES = 1 << 22
_MAX_DIMENSIONS = 33  # native/problem.hpp's kMaxDimensions and the class axis

RowIndex = tuple[int | slice | EllipsisType, ...]


def as_logits(logits: ArrayLike, name: str = "logits") -> NDArray[Any]:
    """Return `logits` as an array whose dtype we take, itself where it is one."""
    array = np.asarray(logits)
    if not (array.dtype.kind in "iub" or array.dtype.name in ("float16", "bfloat16", "float32", "float64")):
        raise TypeError(
            f"{name} have dtype {array.dtype}; expected float16, bfloat16, float32, float64, an integer or bool"
        )
    if not 1 <= array.ndim <= _MAX_DIMENSIONS:
        raise ValueError(f"{name} have {array.ndim} dimensions; expected 1 (one row of classes) to {_MAX_DIMENSIONS}")
    return array


def class_axis_last(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """Return a view with the class axis last; `AxisError` (a `ValueError`) where there is no such axis."""
    axis = integer("axis", axis)
    if axis in (-1, array.ndim - 1):
        return array
    return np.moveaxis(array, axis, -1)


def classes_of(logits: NDArray[Any]) -> int:
    """Return the length of the class axis, the last one."""
    if logits.shape[-1] == 0:
        raise ValueError(f"the class axis has length 0 in logits of shape {logits.shape} (class axis last)")
    return int(logits.shape[-1])


def result_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of gradients and probabilities: the logits' own, float64 for integers."""
    return np.dtype(np.float64) if dtype.kind in "iub" else dtype.newbyteorder("=")


def kernel_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that the kernels compute in: float64 for float64 and integers, else float32."""
    return np.dtype(np.float64) if dtype.kind in "iub" or dtype.itemsize == 8 else np.dtype(np.float32)


def kernel_reads(array: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Tell whether the kernels can use the array as it lies: native dtype, every element aligned."""
    return array.dtype == dtype and array.flags.aligned and all(s % dtype.itemsize == 0 for s in array.strides)


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


def check_out(out: Any, logits: NDArray[Any], dtype: np.dtype[Any], *others: NDArray[Any] | None) -> NDArray[Any]:
    """Return `out` if the gradient may be written there: right shape and dtype, and nothing that is read in the way.

    The one overlap allowed is `out` being the logits themselves, element for element.
    """
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out is a {type(out).__name__}; expected a NumPy array")
    if out.shape != logits.shape:
        raise ValueError(f"out has shape {out.shape}; expected the logits' {logits.shape}")
    if out.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"out has dtype {out.dtype}; the gradient of {logits.dtype} logits is {dtype}")
    if not out.flags.writeable:
        raise ValueError("out is read-only; pass an array that may be written")
    if _overlaps_itself(out):
        raise ValueError("several elements of out share memory; pass an array with its own memory for each")
    if not same_memory(out, logits) and _overlap(out, logits):
        raise ValueError("out overlaps the logits; pass the logits themselves (in place) or separate memory")
    if any(other is not None and _overlap(out, other) for other in others):
        raise ValueError("out overlaps the labels or weights; pass separate memory")
    return out


def same_memory(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Tell whether two arrays of one shape are the same elements in the same places."""
    steps_a, steps_b = (
        [stride for stride, size in zip(array.strides, array.shape, strict=True) if size > 1] for array in (a, b)
    )
    return a.dtype == b.dtype and steps_a == steps_b and a.ctypes.data == b.ctypes.data


def _overlap(a: NDArray[Any], b: NDArray[Any]) -> bool:
    # Exact: arrays whose bounds overlap may still share no element. For strided arrays of few axes it is quick.
    return bool(np.shares_memory(a, b))


def _overlaps_itself(array: NDArray[Any]) -> bool:
    extent = array.itemsize
    for stride, size in sorted((abs(stride), n) for stride, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < extent:
            return True
        extent += stride * (size - 1)
    return False


def _distribution_rows(rows: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a copy of rows of a label distribution in the kernels' dtype; what is above 0 stays above 0."""
    with np.errstate(over="ignore"):  # an entry that becomes infinite is no distribution's
        converted = np.array(rows, dtype=dtype, order="C", ndmin=1)
    if rows.dtype.kind == "f" and rows.dtype.itemsize > dtype.itemsize:
        vanished = (converted == 0) & (np.atleast_1d(rows) != 0)
        converted[vanished] = np.finfo(dtype).smallest_subnormal
    return converted


@dataclass(frozen=True, slots=True)
class _Targets:
    """The options as the kernels take them: see Targets in native/problem.hpp."""

    spike: NDArray[np.float64] | None = None
    dense: NDArray[Any] | None = None
    dense_sum: float = 0.0
    scale: NDArray[Any] | None = None
    shift: NDArray[Any] | None = None


def _targets(options: LossOptions, labels: Labels, classes: int, dtype: np.dtype[Any]) -> _Targets:
    smoothing = options.label_smoothing
    if smoothing == 0.0 and options.class_weight is None:
        return _Targets()
    weight = np.ones(classes) if options.class_weight is None else options.class_weight
    label_share = np.ascontiguousarray(weight * (1.0 - smoothing))
    even_share = weight * (smoothing / classes)
    if labels.distribution is not None:
        return _Targets(scale=label_share.astype(dtype), shift=even_share.astype(dtype))
    if smoothing == 0.0:
        return _Targets(spike=label_share)
    return _Targets(spike=label_share, dense=even_share.astype(dtype), dense_sum=float(even_share.sum()))


def softmax_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, *, axis: int, want_gradient: bool, out: Any = None, **options: Any
) -> tuple[Any, NDArray[Any] | None]:
    """Return the loss, and its gradient where it is wanted; the arguments are those of the public functions."""
    given = as_logits(logits)
    z = class_axis_last(given, axis)
    rows_shape, classes = z.shape[:-1], classes_of(z)
    checked = check_options(rows_shape=rows_shape, classes=classes, **options)
    targets = resolve_labels(labels, given.shape, axis)
    counted, total_weight = survey_labels(targets, checked, rows_shape, classes)

    gradient = None
    if want_gradient:
        dtype = result_dtype(given.dtype)
        if out is None:
            gradient = np.empty_like(given, dtype=dtype, subok=False)
        else:
            gradient = check_out(
                out, given, dtype, targets.indices, targets.distribution, checked.sample_weight, checked.class_weight
            )

    row_loss = np.empty(math.prod(rows_shape))
    scale = reduction_scale(checked, targets, counted, total_weight)
    kernel = _LossKernel(z, targets, checked, row_loss, scale if counted else 1.0)
    with np.errstate(over="ignore"):  # what is too large for its dtype is inf
        total = kernel.run(None if gradient is None else class_axis_last(gradient, axis))
    return reduced(checked, row_loss.reshape(rows_shape), total, scale, kernel_dtype(given.dtype)), gradient


def survey_labels(labels: Labels, options: LossOptions, rows_shape: tuple[int, ...], classes: int) -> tuple[int, float]:
    """Return how many rows count and the weight that the mean divides by, or raise `LabelError`."""
    weight = options.sample_weight
    if labels.indices is None:
        counted = math.prod(rows_shape)
        return counted, float(counted if weight is None else weight.sum())
    bad, counted, total_weight = _native.survey_labels(
        labels.indices.reshape(-1),
        classes,
        options.ignore_index,
        None if weight is None else weight.reshape(-1),
        options.class_weight,
    )
    if bad >= 0:
        raise label_error(labels.indices, bad, classes, options.ignore_index)
    return counted, total_weight


def reduction_scale(options: LossOptions, labels: Labels, counted: int, total_weight: float) -> float:
    """Return what turns the sum of the rows' losses into the loss, and each row's gradient into its part of the whole.

    NaN for a mean over no rows or of no weight.
    """
    if options.reduction != "mean":
        return options.class_unit * options.sample_unit
    # The mean over index labels divides by class weights as well, and both units cancel.
    unit = 1.0 if labels.distribution is None else options.class_unit
    return unit / total_weight if counted and total_weight else math.nan


def reduced(options: LossOptions, rows: NDArray[np.float64], total: float, scale: float, dtype: np.dtype[Any]) -> Any:
    """Return the loss that the reduction asks for, of rows' losses and their sum."""
    with np.errstate(over="ignore"):
        if options.reduction == "none":
            return (rows if scale == 1.0 else rows * scale).astype(dtype, copy=False)[()]
        return np.float64(total * scale).astype(dtype)


class _LossKernel:
    """One call's inputs, and the two ways to run the kernel over them: as they lie, or converted in blocks."""

    def __init__(
        self,
        logits: NDArray[Any],
        labels: Labels,
        options: LossOptions,
        row_loss: NDArray[np.float64],
        gradient_scale: float,
    ) -> None:
        self.logits, self.labels, self.options = logits, labels, options
        self.row_loss, self.gradient_scale = row_loss, gradient_scale
        self.dtype = kernel_dtype(logits.dtype)
        self.targets = _targets(options, labels, logits.shape[-1], self.dtype)

    def run(self, gradient: NDArray[Any] | None) -> float:
        """Fill `row_loss` and `gradient`; return the sum of `row_loss`."""
        distribution = self.labels.distribution
        self.tolerance = self.labels.tolerance
        if distribution is not None and gradient is not None and same_memory(gradient, self.logits):
            self._check_distribution(distribution)
            # The kernel adds in another order; it must not find fault when part has been written.
            self.tolerance = math.inf
        arrays = [array for array in (self.logits, distribution, gradient) if array is not None]
        if all(kernel_reads(array, self.dtype) for array in arrays):
            return self._call(self.logits, distribution, gradient, (...,))
        return self._run_in_blocks(gradient)

    def _run_in_blocks(self, gradient: NDArray[Any] | None) -> float:
        rows_shape, classes = self.logits.shape[:-1], self.logits.shape[-1]
        losses = self.row_loss.reshape(rows_shape)
        for block in row_blocks(rows_shape, rows_a_block(classes, self.dtype)):
            logits = np.array(self.logits[block], dtype=self.dtype, order="C", ndmin=1)
            distribution = self.labels.distribution
            if distribution is not None:
                distribution = _distribution_rows(distribution[block], self.dtype)
            # The block is our own copy, so that its gradient may take its place.
            self._call(logits, distribution, None if gradient is None else logits, block)
            if gradient is not None:
                gradient[block] = logits
        return float(losses.sum())

    def _call(
        self,
        logits: NDArray[Any],
        distribution: NDArray[Any] | None,
        gradient: NDArray[Any] | None,
        block: RowIndex,
    ) -> float:
        rows_shape = self.logits.shape[:-1]

        def of_block(rows: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if rows is None else rows.reshape(rows_shape)[block].reshape(-1)

        row_loss = of_block(self.row_loss)
        assert row_loss is not None
        total, bad = _native.loss(
            logits,
            of_block(self.labels.indices),
            distribution,
            row_loss,
            gradient,
            self.gradient_scale,
            of_block(self.options.sample_weight),
            self.options.ignore_index,
            self.targets.spike,
            self.targets.dense,
            self.targets.dense_sum,
            self.targets.scale,
            self.targets.shift,
            self.tolerance,
        )
        if bad is not None:
            raise self._distribution_error(bad, block)
        return total

    def _check_distribution(self, distribution: NDArray[Any]) -> None:
        rows_shape, classes = distribution.shape[:-1], distribution.shape[-1]
        as_it_lies = kernel_reads(distribution, self.dtype)
        blocks = [(...,)] if as_it_lies else row_blocks(rows_shape, rows_a_block(classes, self.dtype))
        for block in blocks:
            rows = distribution if as_it_lies else _distribution_rows(distribution[block], self.dtype)
            bad = _native.bad_distribution(rows, self.labels.tolerance)
            if bad is not None:
                raise self._distribution_error(bad, block)

    def _distribution_error(self, bad: tuple[int, float, float], block: RowIndex) -> ValueError:
        row, total, least = bad
        where = row_position(self.logits.shape[:-1], block, row)
        return not_a_distribution(
            where, total, least, "a label distribution; class indices have one dimension less than the logits"
        )


def softmax(logits: ArrayLike, *, axis: int, temperature: float, logarithm: bool) -> NDArray[Any]:
    """Return softmax or its logarithm, of the logits' shape and dtype."""
    given = as_logits(logits)
    z = class_axis_last(given, axis)
    classes_of(z)
    result = np.empty_like(given, dtype=result_dtype(given.dtype), subok=False)
    output, dtype = class_axis_last(result, axis), kernel_dtype(given.dtype)
    if kernel_reads(z, dtype):
        _native.softmax(z, output, None, temperature, logarithm)
        return result
    for block in row_blocks(z.shape[:-1], rows_a_block(z.shape[-1], dtype)):
        rows = np.array(z[block], dtype=dtype, order="C", ndmin=1)
        _native.softmax(rows, rows, None, temperature, logarithm)
        with np.errstate(over="ignore"):  # a logarithm too large for float16 is -inf
            output[block] = rows
    return result


def logsumexp(logits: ArrayLike, *, axis: int, keepdims: bool) -> Any:
    """Return the logsumexp of each row, in the logits' dtype."""
    given = as_logits(logits)
    z = class_axis_last(given, axis)
    classes_of(z)
    result, dtype = np.empty(z.shape[:-1]), kernel_dtype(given.dtype)
    if kernel_reads(z, dtype):
        _native.softmax(z, None, result.reshape(-1), 1.0, False)
    else:
        for block in row_blocks(z.shape[:-1], rows_a_block(z.shape[-1], dtype)):
            of_block = np.empty(result[block].shape)
            rows = np.array(z[block], dtype=dtype, order="C", ndmin=1)
            _native.softmax(rows, None, of_block.reshape(-1), 1.0, False)
            result[block] = of_block
    rounded = result.astype(result_dtype(given.dtype))
    return np.expand_dims(rounded, axis) if keepdims else rounded[()]
