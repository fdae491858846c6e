"""A loss of Dask arrays: labels and options beside the logits' chunks, and the reductions over them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from softmaxloss import _native
from softmaxloss.backends import is_dask
from softmaxloss.backends.dask import chunks
from softmaxloss.backends.dask.arrays import SURVEY, UNITS, Operands, Rows, as_dask, reduced_by_tree
from softmaxloss.backends.layout import class_axis_last, converted, kernel_dtype, result_dtype
from softmaxloss.labels import label_error, label_indices, not_a_distribution, resolve_labels
from softmaxloss.options import GivenOptions, GivenTransform, LossOptions, Transform, as_array, is_real

__all__ = ["LossProblem", "aligned_indices", "checked_transform"]


class LossProblem:
    """Logits, labels and options, checked but for the values of Dask arrays.

    Parameters
    ----------
    rows : Rows
        The logits.
    labels
        As given.
    given : GivenOptions
        As given, arrays of Dask's among them or not.
    """

    def __init__(self, rows: Rows, labels: Any, given: GivenOptions) -> None:
        self.rows = rows
        options, beside = _checked_options(rows, given)
        targets, soft = _targets(rows, labels, options)
        self.plan = chunks.Plan(rows.axis, rows.classes, soft, options)
        self._beside: Operands = {"labels": (targets, rows.index if soft else rows.rows_index), **beside}
        self._common = self._of_all_rows() if options.reduction == "mean" else {}

    def operands(self) -> Operands:
        """Return what the functions of chunks.py take of each chunk."""
        return {"logits": (self.rows.array, self.rows.index), **self._beside, **self._common}

    def loss(self, function: Callable[..., Any]) -> Any:
        """Return the loss by one of the functions of chunks.py."""
        return self._reduced(self.operands(), function, plan=self.plan)

    def loss_and_gradient(self) -> tuple[Any, Any]:
        """Return the loss, and the gradient in the logits' chunks."""
        rows = self.rows
        both = rows.map(chunks.loss_and_gradient, self.operands(), "logits", object, plan=self.plan)
        operands: Operands = {"found": (both, rows.index)}
        gradient = rows.map(chunks.one_of, operands, "logits", result_dtype(rows.dtype), which=1)
        return self._reduced(operands, chunks.one_of, which=0), rows.like_given(gradient)

    def _reduced(self, operands: Operands, function: Callable[..., Any], **settings: Any) -> Any:
        """Return the loss that the reduction asks for, of a function of chunks."""
        dtype = kernel_dtype(self.rows.dtype)
        if self.plan.options.reduction == "none":
            return self.rows.map(function, operands, "rows", dtype, **settings)
        parts = self.rows.map(function, operands, "chunks", np.float64, **settings)
        total = reduced_by_tree(parts, self.rows.ndim - 1, np.sum)
        return total if dtype == np.float64 else total.map_blocks(_as_float32, dtype=dtype, meta=np.empty((), dtype))

    def _of_all_rows(self) -> Operands:
        """Return what the mean needs to know of all rows: their weights' extent, and what it divides by."""
        common: Operands = {}
        axes = self.rows.ndim - 1
        if "sample_weight" in self._beside:
            weights: Operands = {"sample_weight": self._beside["sample_weight"]}
            extents = self.rows.map(chunks.extent, weights, "chunks", np.float64, extra=2)
            common["extent"] = (reduced_by_tree(extents, axes, np.min), (UNITS,))
        known: Operands = {**self._beside, **common}
        surveys = self.rows.map(chunks.survey, known, "chunks", np.float64, extra=3, plan=self.plan)
        return {**common, "survey": (reduced_by_tree(surveys, axes, np.sum), (SURVEY,))}


def checked_transform(given: GivenTransform, classes: int) -> Transform:
    """Return the options of the logits checked, without a bias that is a Dask array."""
    return given._replace(logit_bias=_unless_dask(given.logit_bias)).check(classes)


def aligned_indices(rows: Rows, labels: Any) -> Any:
    """Return class indices for `row_statistics` in the chunks of the rows."""
    targets, soft = _targets(rows, labels, None)
    if soft:
        raise ValueError(
            "labels have the logits' shape, which makes them distributions; row_statistics takes class indices, "
            "one dimension less: of one-hot labels, labels.argmax along the class axis"
        )
    return targets


def _checked_options(rows: Rows, given: GivenOptions) -> tuple[LossOptions, Operands]:
    """Return the options checked, without arrays that have rows or are Dask's, and these as operands."""
    sample_weight = given.sample_weight
    at_hand = {name: _unless_dask(getattr(given, name)) for name in ("sample_weight", "class_weight", "logit_bias")}
    if any(map(math.isnan, rows.rows_shape)):
        at_hand["sample_weight"] = None  # refused below for its shape
    options = given._replace(**at_hand).check(rows.rows_shape, rows.classes)
    beside: Operands = {}
    if sample_weight is not None:
        values = sample_weight if options.sample_weight is None else options.sample_weight
        weights = rows.reals(values, "sample_weight", rows.rows_shape, "one weight a row")
        beside["sample_weight"] = (weights, rows.rows_index)
    for name in ("class_weight", "logit_bias"):
        if is_dask(getattr(given, name)):
            beside[name] = (rows.by_class(getattr(given, name), name), (rows.axis,))
    return options._replace(sample_weight=None), beside


def _unless_dask(values: Any) -> Any:
    return None if is_dask(values) else values


def _targets(rows: Rows, labels: Any, options: LossOptions | None) -> tuple[Any, bool]:
    """Return labels in the chunks of the rows, and whether they are distributions; values are checked where at hand."""
    if not is_dask(labels):
        labels = as_array("labels", labels)
    elif not hasattr(labels, "ndim") or hasattr(labels, "to_dask_array"):
        labels = as_dask(labels, "labels")
    expected = (
        f"logits of shape {rows.shape} with the class axis at {rows.axis} take class indices of shape "
        f"{rows.rows_shape} or distributions of shape {rows.shape}"
    )
    soft = labels.ndim == rows.ndim
    if not soft and labels.ndim != rows.ndim - 1:
        raise ValueError(f"labels have shape {labels.shape}; {expected}")
    aligned = rows.along(labels, "labels", rows.shape if soft else rows.rows_shape, expected)
    if soft:
        if not is_real(labels.dtype):
            raise TypeError(f"label distributions have dtype {labels.dtype}; expected real numbers")
        if options is not None:
            options.check_distributions_are_allowed()
    else:
        label_indices(np.zeros(1, labels.dtype))  # refuses what are no integers
    if not is_dask(labels):
        _check_values(rows, labels, options)
    return aligned, soft


def _check_values(rows: Rows, labels: Any, options: LossOptions | None) -> None:
    """Raise for the first label at hand that is impossible."""
    resolved = resolve_labels(labels, tuple(int(n) for n in rows.shape), rows.axis)
    if resolved.indices is not None:
        ignored = None if options is None else options.ignore_index
        valid = 0 if ignored is None else ignored  # a label that is valid where there is any class
        bad, _, _ = _native.survey_labels(resolved.indices.reshape(-1), rows.classes, valid, None, None)
        if bad >= 0:
            raise label_error(resolved.indices, bad, rows.classes, ignored)
        return
    distributions = converted(class_axis_last(labels, rows.axis), np.dtype(np.float64))
    found = _native.bad_distribution(distributions, resolved.tolerance)
    if found is not None:
        row, total, least = found
        where = tuple(int(i) for i in np.unravel_index(row, distributions.shape[:-1]))
        complaint = "a label distribution; class indices have one dimension less than the logits"
        raise not_a_distribution(where, total, least, complaint)


def _as_float32(total: Any) -> Any:
    with np.errstate(over="ignore"):  # what is too large is inf
        return np.asarray(total, np.float32)
