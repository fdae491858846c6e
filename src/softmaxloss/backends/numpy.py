"""NumPy arrays, and whatever `numpy.asarray` takes: from what the public functions are given to what they return."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softmaxloss import _native
from softmaxloss.backends.kernel import LossKernel, rounded
from softmaxloss.backends.layout import (
    as_logits,
    class_axis_last,
    classes_of,
    computed_as_it_lies,
    converted,
    flat,
    kernel_dtype,
    kernel_reads,
    readable_rows,
    result_dtype,
    row_blocks,
    rows_a_block,
    storage_of,
)
from softmaxloss.backends.linear import linear_cross_entropy as linear_cross_entropy
from softmaxloss.backends.linear import linear_cross_entropy_and_grad as linear_cross_entropy_and_grad
from softmaxloss.backends.memory import check_out, is_plain, same_memory
from softmaxloss.labels import Labels, label_error, resolve_labels
from softmaxloss.options import GivenOptions, GivenTransform, as_array, is_real

_FLOAT32, _FLOAT64, _INT64 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64)
_NO_LABEL_IGNORED = 0  # as ignore_index of a survey: a label that is valid where there is any class


def quick_loss(logits: Any, labels: Any, reduction: str) -> Any | None:
    """Return the loss of a call without options, or None: then the functions below have the answer or the error."""
    if not _is_quick(logits, labels):
        return None
    loss = _native.quick_loss(logits, labels, None, reduction == "mean")
    return None if loss is None else rounded(loss, logits.dtype)


def quick_loss_and_grad(logits: Any, labels: Any, reduction: str, out: Any) -> tuple[Any, NDArray[Any]] | None:
    """Return the loss and gradient of a call without options, or None as `quick_loss`."""
    if not _is_quick(logits, labels):
        return None
    if out is None:
        out = np.empty(logits.shape, logits.dtype) if logits.flags.c_contiguous else np.empty_like(logits)
    elif not is_plain(out, logits.dtype):
        return None
    loss = _native.quick_loss(logits, labels, out, reduction == "mean")
    return None if loss is None else (rounded(loss, logits.dtype), out)


def _is_quick(logits: Any, labels: Any) -> bool:
    """Tell whether these are arrays that the kernel for calls without options can look at."""
    if type(logits) is not np.ndarray or type(labels) is not np.ndarray or labels.dtype != _INT64:
        return False
    dtype, flags = logits.dtype, logits.flags
    return (
        dtype in (_FLOAT32, _FLOAT64)
        and logits.ndim > 0
        and flags.aligned
        and labels.flags.aligned
        and (flags.c_contiguous or kernel_reads(logits, dtype))
    )


def softmax_cross_entropy(logits: ArrayLike, labels: ArrayLike, axis: int, options: GivenOptions) -> Any:
    """Return the loss."""
    _, kernel = _problem(logits, labels, axis, options)
    return kernel.loss(None)


def softmax_cross_entropy_and_grad(
    logits: ArrayLike, labels: ArrayLike, axis: int, options: GivenOptions, out: Any
) -> tuple[Any, NDArray[Any]]:
    """Return the loss and its gradient, in `out` if it is an array."""
    given, kernel = _problem(logits, labels, axis, options)
    dtype, in_place = result_dtype(given.dtype), False
    if out is None:
        gradient = np.empty_like(given, dtype=dtype, subok=False)
    else:
        others = (labels, options.sample_weight, options.class_weight, options.logit_bias)
        gradient = check_out(out, given, dtype, *others)
        in_place = out is given or (kernel.labels.distribution is not None and same_memory(out, given))
    return kernel.loss(class_axis_last(gradient, axis), in_place=in_place), gradient


def hessian_vector_product(
    logits: ArrayLike, labels: ArrayLike, vector: ArrayLike, axis: int, options: GivenOptions
) -> NDArray[Any]:
    """Return the product of the loss's Hessian with `vector`, in the logits' dtype."""
    given, kernel = _problem(logits, labels, axis, options)
    direction = as_array("vector", vector)
    if not is_real(direction.dtype):
        raise TypeError(f"vector has dtype {direction.dtype}; expected real numbers")
    if direction.shape != given.shape:
        raise ValueError(f"vector has shape {direction.shape}; expected the logits' {given.shape}")
    product = np.empty_like(given, dtype=result_dtype(given.dtype), subok=False)
    kernel.hessian_vector_product(class_axis_last(direction, axis), class_axis_last(product, axis))
    return product


def _problem(logits: ArrayLike, labels: ArrayLike, axis: int, options: GivenOptions) -> tuple[NDArray[Any], LossKernel]:
    """Return the logits as an array, and the loss with all that was given checked."""
    given = as_logits(logits)
    z = class_axis_last(given, axis)
    checked = options.check(z.shape[:-1], classes_of(z))
    targets = resolve_labels(labels, given.shape, axis)
    if targets.distribution is not None:
        checked.check_distributions_are_allowed()
    return given, LossKernel(z, targets, checked)


def row_statistics(
    logits: ArrayLike, labels: ArrayLike | None, axis: int, transform: GivenTransform
) -> tuple[Any, Any, Any, Any, Any]:
    """Return each row's loss, logsumexp, log-probability, prediction and rank; those of labels None without them."""
    given = as_logits(logits)
    z = class_axis_last(given, axis)
    rows_shape, classes, dtype = z.shape[:-1], classes_of(z), kernel_dtype(given.dtype)
    checked = transform.check(classes)
    indices = None if labels is None else _checked_indices(resolve_labels(labels, given.shape, axis), classes)
    lse, prediction = np.empty(rows_shape), np.empty(rows_shape, np.int64)
    loss = None if indices is None else np.empty(rows_shape)
    rank = None if indices is None else np.empty(rows_shape, np.int64)
    for block, rows, storage in readable_rows(z):
        _native.row_statistics(
            rows,
            storage,
            flat(indices, block),
            checked.temperature,
            checked.softcap or 0.0,
            checked.logit_bias,
            flat(loss, block),
            flat(lse, block),
            flat(prediction, block),
            flat(rank, block),
        )
    with np.errstate(over="ignore"):
        lse = lse.astype(dtype, copy=False)[()]
        if loss is None or rank is None:
            return None, lse, None, prediction[()], None
        loss = loss.astype(dtype, copy=False)[()]
    log_probability = dtype.type(0) - loss  # the logarithm of 1 is 0, not -0
    return loss, lse, log_probability, prediction[()], rank[()]


def _checked_indices(labels: Labels, classes: int) -> NDArray[np.int64]:
    if labels.indices is None:
        raise ValueError(
            "labels have the logits' shape, which makes them distributions; row_statistics takes class indices, "
            "one dimension less: of one-hot labels, labels.argmax along the class axis"
        )
    bad, _, _ = _native.survey_labels(labels.indices.reshape(-1), classes, _NO_LABEL_IGNORED, None, None)
    if bad >= 0:
        raise label_error(labels.indices, bad, classes, None)
    return labels.indices


def softmax(logits: ArrayLike, *, axis: int, temperature: float, logarithm: bool) -> NDArray[Any]:
    """Return softmax or its logarithm, of the logits' shape and dtype."""
    given = as_logits(logits)
    z = class_axis_last(given, axis)
    classes_of(z)
    result = np.empty_like(given, dtype=result_dtype(given.dtype), subok=False)
    output, dtype = class_axis_last(result, axis), kernel_dtype(given.dtype)
    storage = storage_of(dtype)
    assert storage is not None  # of both dtypes that kernels compute in
    if computed_as_it_lies(z):
        _native.softmax(z, storage, output, None, temperature, logarithm)
        return result
    for block in row_blocks(z.shape[:-1], rows_a_block(z.shape[-1], dtype)):
        rows = converted(z[block], dtype)
        _native.softmax(rows, storage, rows, None, temperature, logarithm)
        with np.errstate(over="ignore"):  # a logarithm too large for float16 is -inf
            output[block] = rows
    return result


def logsumexp(logits: ArrayLike, *, axis: int, keepdims: bool) -> Any:
    """Return the logsumexp of each row, in the logits' dtype."""
    given = as_logits(logits)
    z = class_axis_last(given, axis)
    classes_of(z)
    result = np.empty(z.shape[:-1])
    for block, rows, storage in readable_rows(z, computed_only=True):
        _native.softmax(rows, storage, None, flat(result, block), 1.0, False)
    with np.errstate(over="ignore"):
        in_dtype = result.astype(result_dtype(given.dtype))
    return np.expand_dims(in_dtype, axis) if keepdims else in_dtype[()]
