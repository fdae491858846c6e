"""The loss kernels' calls: what options and reduction become for them, and arrays as they lie or in blocks."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from softmaxloss import _native
from softmaxloss.backends.layout import (
    RowIndex,
    converted,
    elements,
    flat,
    kernel_dtype,
    kernel_reads,
    row_blocks,
    row_position,
    rows_a_block,
    storage_of,
)
from softmaxloss.labels import Labels, label_error, not_a_distribution
from softmaxloss.options import LossOptions

_FLOAT64 = np.dtype(np.float64)
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class LabelSurvey(NamedTuple):
    """What the mean divides by."""

    counted: int  # rows that are not ignored
    loss_weight: float  # the cross-entropy's divisor; for index labels the sum of sample_weight * class_weight[label]
    row_weight: float  # the divisor of the z_loss term: the sum of sample_weight


def survey_labels(labels: Labels, options: LossOptions, rows_shape: tuple[int, ...], classes: int) -> LabelSurvey:
    """Return how many rows count and the weights that the mean divides by, or raise `LabelError`."""
    weight = options.sample_weight
    if labels.indices is None:
        counted = math.prod(rows_shape)
        total = float(counted if weight is None else weight.sum())
        return LabelSurvey(counted, total, total)
    indices, ignored = labels.indices.reshape(-1), options.ignore_index
    weights = None if weight is None else weight.reshape(-1)
    bad, counted, loss_weight = _native.survey_labels(indices, classes, ignored, weights, options.class_weight)
    if bad >= 0:
        raise label_error(labels.indices, bad, classes, ignored)
    row_weight = loss_weight
    if options.z_loss and options.class_weight is not None and options.reduction == "mean":
        _, _, row_weight = _native.survey_labels(indices, classes, ignored, weights, None)
    return LabelSurvey(counted, loss_weight, row_weight)


def reduction_scale(options: LossOptions, labels: Labels, survey: LabelSurvey) -> float:
    """Return what turns the sum of the rows' losses into the loss, and each row's gradient into its part of the whole.

    NaN for a mean over no rows or of no weight.
    """
    if options.reduction != "mean":
        return options.class_unit * options.sample_unit
    # The mean over index labels divides by class weights as well, and both units cancel.
    unit = 1.0 if labels.distribution is None else options.class_unit
    return unit / survey.loss_weight if survey.counted and survey.loss_weight else math.nan


def z_loss_beside_the_cross_entropy(options: LossOptions, labels: Labels, survey: LabelSurvey) -> float:
    """Return `z_loss` for the kernels, whose rows are all multiplied by one number, `reduction_scale`.

    The cross-entropy's scale is that number. The scale of the z term has no class weights, neither their unit nor
    their sum in the mean over index labels: with U the units, w the sample weights and c the class weights,

    ======================  ==================================  ================
    reduction               cross-entropy                       z term
    ======================  ==================================  ================
    none, sum               U_c U_w                             U_w
    mean of indices         1 / sum(w c[label])                 1 / sum(w)
    mean of distributions   U_c / sum(w)                        1 / sum(w)
    ======================  ==================================  ================
    """
    if options.class_weight is None or not options.z_loss:
        return options.z_loss
    if options.reduction == "mean" and labels.distribution is None:
        # Without any weight the mean is NaN whatever this is.
        return options.z_loss * (survey.loss_weight / survey.row_weight) if survey.row_weight else 0.0
    return options.z_loss / options.class_unit


def reduced(options: LossOptions, rows: NDArray[np.float64], total: float, scale: float, dtype: np.dtype[Any]) -> Any:
    """Return the loss that the reduction asks for, of rows' losses and their sum."""
    if options.reduction != "none":
        return rounded(total * scale, dtype)
    with np.errstate(over="ignore"):
        return (rows if scale == 1.0 else rows * scale).astype(dtype, copy=False)[()]


def rounded(value: float, dtype: np.dtype[Any]) -> Any:
    """Return a number as a scalar of `dtype`, infinite where it is too large for it."""
    if dtype == _FLOAT64:
        return np.float64(value)
    if -_FLOAT32_MAX <= value <= _FLOAT32_MAX:
        return np.float32(value)
    with np.errstate(over="ignore"):
        return np.float32(value)


class _Targets(NamedTuple):
    """The label options as the kernels take them: see Targets in native/problem.hpp."""

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
    label_share = weight * (1.0 - smoothing)
    even_share = weight * (smoothing / classes)
    if labels.distribution is not None:
        return _Targets(scale=_masses(label_share, dtype), shift=_masses(even_share, dtype))
    if smoothing == 0.0:
        return _Targets(spike=label_share)
    dense = _masses(even_share, dtype)
    # The sum of what the kernel reads: where all of it cancels, nothing of the rounding may be left.
    return _Targets(spike=label_share, dense=dense, dense_sum=float(dense.sum(dtype=np.float64)))


def _masses(masses: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a copy of labels' masses in the kernels' dtype; what is above 0 stays above 0, so that a mask meets it."""
    copy = converted(masses, dtype)  # an entry that becomes infinite is no distribution's
    if masses.dtype.kind == "f" and masses.dtype.itemsize > dtype.itemsize and not copy.all():
        vanished = (copy == 0) & (np.atleast_1d(masses) != 0)
        copy[vanished] = np.finfo(dtype).smallest_subnormal
    return copy


# What a kernel finds: nothing, or a row that is no distribution, its place in the block, sum and least entry.
_Found = tuple[int, float, float] | None

# The logits, storage, labels and distribution, as every loss kernel takes them.
_Inputs = tuple[Any, ...]

# Calls one kernel for a block of rows, with its own input besides these (or None), and its output (or None).
_Call = Callable[[RowIndex, _Inputs, NDArray[Any] | None, Any], _Found]


class LossKernel:
    """One loss: its inputs, class axis last, and the two ways to run a kernel over them, as they lie or in blocks."""

    def __init__(self, logits: NDArray[Any], labels: Labels, options: LossOptions) -> None:
        rows_shape, classes = logits.shape[:-1], logits.shape[-1]
        self.logits, self.labels, self.options = logits, labels, options
        self.dtype = kernel_dtype(logits.dtype)
        self.tolerance = labels.tolerance
        survey = survey_labels(labels, options, rows_shape, classes)
        self.scale = reduction_scale(options, labels, survey)
        # Where every row is ignored the mean is NaN, and its gradient 0.
        self.gradient_scale = self.scale if survey.counted else 1.0
        self.z_loss = z_loss_beside_the_cross_entropy(options, labels, survey)
        self.targets = _targets(options, labels, classes, self.dtype)

    def loss(self, gradient: NDArray[Any] | None, *, in_place: bool = False) -> Any:
        """Return the reduced loss, and fill `gradient`, which may be the logits themselves (`in_place`)."""
        distribution = self.labels.distribution
        if distribution is not None and in_place:
            self._check_distribution(distribution)
            # The kernel adds in another order; it must not find fault when part has been written.
            self.tolerance = math.inf
        rows, total = np.empty(self.logits.shape[:-1]), 0.0

        def call(block: RowIndex, inputs: _Inputs, _: Any, output: Any) -> _Found:
            nonlocal total
            arguments = (*inputs, flat(rows, block), output, *self._formula(block))
            total, bad = _native.loss(*arguments)
            return bad

        if not self._run_as_it_lies(call, None, gradient):
            self._run_in_blocks(call, None, gradient)
            total = float(rows.sum())
        return reduced(self.options, rows, total, self.scale, self.dtype)

    def hessian_vector_product(self, vector: NDArray[Any], product: NDArray[Any]) -> None:
        """Fill `product` with the Hessian of the reduced loss (of the sum for "none") times `vector`."""

        def call(block: RowIndex, inputs: _Inputs, direction: Any, output: Any) -> _Found:
            arguments = (*inputs, direction, output, *self._formula(block))
            return _native.hessian_vector_product(*arguments)

        if not self._run_as_it_lies(call, vector, product):
            self._run_in_blocks(call, vector, product)

    def _formula(self, block: RowIndex) -> tuple[Any, ...]:
        """Return the arguments that every loss kernel ends with."""
        options, targets, transform = self.options, self.targets, self.options.transform
        return (
            self.gradient_scale,
            flat(options.sample_weight, block),
            options.ignore_index,
            targets.spike,
            targets.dense,
            targets.dense_sum,
            targets.scale,
            targets.shift,
            self.tolerance,
            transform.temperature,
            transform.softcap or 0.0,
            transform.logit_bias,
            self.z_loss,
            options.focal_gamma,
            options.poly_epsilon,
        )

    def _run_as_it_lies(self, call: _Call, vector: NDArray[Any] | None, output: NDArray[Any] | None) -> bool:
        """Call the kernel once, over all rows, and return True if it can use every array as it lies."""
        logits, distribution = self.logits, self.labels.distribution
        dtype = logits.dtype
        storage = storage_of(dtype)
        readable = (
            storage is not None
            and kernel_reads(logits, dtype)
            and (output is None or kernel_reads(output, dtype))
            and (vector is None or kernel_reads(vector, self.dtype))
            # A distribution can be read beside logits of its own dtype only.
            and (distribution is None or (dtype == self.dtype and kernel_reads(distribution, dtype)))
        )
        if readable:
            inputs = (elements(logits), storage, flat(self.labels.indices, (...,)), distribution)
            self._raise_bad(call((...,), inputs, vector, None if output is None else elements(output)), (...,))
        return readable

    def _run_in_blocks(self, call: _Call, vector: NDArray[Any] | None, output: NDArray[Any] | None) -> None:
        rows_shape, classes = self.logits.shape[:-1], self.logits.shape[-1]
        for block in row_blocks(rows_shape, rows_a_block(classes, self.dtype)):
            self._run_block(block, call, vector, output)

    def _run_block(
        self, block: RowIndex, call: _Call, vector: NDArray[Any] | None, output: NDArray[Any] | None
    ) -> None:
        distribution = self.labels.distribution
        rows = converted(self.logits[block], self.dtype)
        q = None if distribution is None else _masses(distribution[block], self.dtype)
        v = None if vector is None else converted(vector[block], self.dtype)
        # The rows are our own copy, so that the gradient may take their place.
        result = None if output is None else rows if vector is None else np.empty_like(rows)
        inputs = (rows, storage_of(self.dtype), flat(self.labels.indices, block), q)
        self._raise_bad(call(block, inputs, v, result), block)
        if output is not None:
            with np.errstate(over="ignore"):  # what is too large for its dtype is inf
                output[block] = result

    def _check_distribution(self, distribution: NDArray[Any]) -> None:
        rows_shape, classes = distribution.shape[:-1], distribution.shape[-1]
        as_it_lies = kernel_reads(distribution, self.dtype)
        blocks = [(...,)] if as_it_lies else row_blocks(rows_shape, rows_a_block(classes, self.dtype))
        for block in blocks:
            rows = distribution if as_it_lies else _masses(distribution[block], self.dtype)
            self._raise_bad(_native.bad_distribution(rows, self.labels.tolerance), block)

    def _raise_bad(self, bad: _Found, block: RowIndex) -> None:
        """Raise `ValueError` for the row of a block, if there is one, that the kernel found to be no distribution."""
        if bad is None:
            return
        row, total, least = bad
        where = row_position(self.logits.shape[:-1], block, row)
        raise not_a_distribution(
            where, total, least, "a label distribution; class indices have one dimension less than the logits"
        )
