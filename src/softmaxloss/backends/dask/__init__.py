"""Dask arrays: the functions of backends/numpy.py, lazily, on chunks that hold all classes of their rows.

arrays.py is the door, where all is checked that can be without values; chunks.py computes one chunk.
"""

from functools import partial
from typing import Any

import dask.array as da
import numpy as np

from softmaxloss.backends import is_dask
from softmaxloss.backends.dask import chunks
from softmaxloss.backends.dask.arrays import Operands, Rows, as_dask
from softmaxloss.backends.dask.problem import LossProblem, aligned_indices, checked_transform
from softmaxloss.backends.layout import kernel_dtype, result_dtype
from softmaxloss.labels import label_indices
from softmaxloss.options import GivenOptions, GivenTransform, integer

__all__ = [
    "cross_entropy",
    "hessian_vector_product",
    "linear_cross_entropy",
    "linear_cross_entropy_and_grad",
    "logsumexp",
    "one_hot",
    "row_statistics",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_and_grad",
]


def softmax_cross_entropy(logits: Any, labels: Any, axis: int, options: GivenOptions) -> Any:
    """Return the loss."""
    return LossProblem(Rows(logits, axis), labels, options).loss(chunks.loss)


def softmax_cross_entropy_and_grad(
    logits: Any, labels: Any, axis: int, options: GivenOptions, out: Any
) -> tuple[Any, Any]:
    """Return the loss and its gradient, in the chunks of the logits: both of one task a chunk."""
    if out is not None:
        raise TypeError(
            "out is given and the logits are a Dask array, which is computed later and never written to: leave out=None"
        )
    return LossProblem(Rows(logits, axis), labels, options).loss_and_gradient()


def hessian_vector_product(logits: Any, labels: Any, vector: Any, axis: int, options: GivenOptions) -> Any:
    """Return the product of the loss's Hessian with `vector`, in the logits' dtype and chunks."""
    rows = Rows(logits, axis)
    problem = LossProblem(rows, labels, options)
    direction = rows.reals(vector, "vector", rows.shape, "that of the logits")
    operands: Operands = {**problem.operands(), "vector": (direction, rows.index)}
    dtype = result_dtype(rows.dtype)
    product = rows.map(chunks.hessian_vector_product, operands, "logits", dtype, plan=problem.plan)
    return rows.like_given(product)


def cross_entropy(probabilities: Any, labels: Any, axis: int, options: GivenOptions) -> Any:
    """Return the cross-entropy of probabilities."""
    return LossProblem(Rows(probabilities, axis, "probabilities"), labels, options).loss(chunks.cross_entropy)


def row_statistics(logits: Any, labels: Any, axis: int, transform: GivenTransform) -> tuple[Any, Any, Any, Any, Any]:
    """Return each row's loss, logsumexp, log-probability, prediction and rank; those of labels None without them."""
    rows = Rows(logits, axis)
    operands: Operands = {"logits": (rows.array, rows.index)}
    if is_dask(transform.logit_bias):
        operands["logit_bias"] = (rows.by_class(transform.logit_bias, "logit_bias"), (rows.axis,))
    if labels is not None:
        operands["labels"] = (aligned_indices(rows, labels), rows.rows_index)
    checked = checked_transform(transform, rows.classes)
    settings = {"transform": checked, "axis": rows.axis}
    whole: Operands = {
        "found": (rows.map(chunks.row_statistics, operands, "rows", object, **settings), rows.rows_index)
    }
    dtype = kernel_dtype(rows.dtype)
    loss, lse, log_probability, prediction, rank = (
        rows.map(chunks.one_of, whole, "rows", of_one, which=which)
        for which, of_one in enumerate((dtype, dtype, dtype, np.int64, np.int64))
    )
    if labels is None:
        return None, lse, None, prediction, None
    return loss, lse, log_probability, prediction, rank


def softmax(logits: Any, *, axis: int, temperature: float, logarithm: bool) -> Any:
    """Return softmax or its logarithm, of the logits' shape, dtype and chunks."""
    rows = Rows(logits, axis)
    settings = {"axis": rows.axis, "temperature": temperature, "logarithm": logarithm}
    operands: Operands = {"logits": (rows.array, rows.index)}
    return rows.like_given(rows.map(chunks.softmax, operands, "logits", result_dtype(rows.dtype), **settings))


def logsumexp(logits: Any, *, axis: int, keepdims: bool) -> Any:
    """Return the logsumexp of each row, in the logits' dtype."""
    rows = Rows(logits, axis)
    operands: Operands = {"logits": (rows.array, rows.index)}
    value = rows.map(chunks.logsumexp, operands, "rows", result_dtype(rows.dtype), axis=rows.axis)
    return value[(*(slice(None),) * rows.axis, np.newaxis)] if keepdims else value


def one_hot(labels: Any, num_classes: int, *, axis: int, dtype: Any) -> Any:
    """Return one-hot vectors, zeros for a label that is no class; the class axis is one chunk."""
    classes, axis = integer("num_classes", num_classes), integer("axis", axis)
    if classes < 1:
        raise ValueError(f"num_classes is {classes}; expected at least 1")
    array, dtype = as_dask(labels, "labels"), np.dtype(dtype)
    label_indices(np.zeros(1, array.dtype))  # refuses what are no integers
    if not -array.ndim - 1 <= axis <= array.ndim:
        raise ValueError(f"axis is {axis}; the result has {array.ndim + 1} dimensions")
    axis %= array.ndim + 1
    index = tuple(range(array.ndim))
    return da.blockwise(
        partial(chunks.one_hot, classes=classes, axis=axis, dtype=dtype),
        (*index[:axis], array.ndim, *index[axis:]),
        array,
        index,
        new_axes={array.ndim: classes},
        dtype=dtype,
        meta=np.empty((0,) * (array.ndim + 1), dtype),
    )


def linear_cross_entropy(*_: Any) -> Any:
    """Refuse: a linear head is computed of arrays in memory."""
    raise TypeError(
        "hidden is a Dask array, which linear_cross_entropy does not take: pass softmax_cross_entropy the logits "
        "hidden @ weight.T + bias, or call linear_cross_entropy on each block of hidden (hidden.to_delayed())"
    )


linear_cross_entropy_and_grad = linear_cross_entropy
