"""The loss kernels' calls: what options and reduction become for them, and arrays as they lie or in blocks."""

import math
from collections.abc import Callable, Iterable
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
    result_dtype,
    row_blocks,
    row_position,
    rows_a_block,
    storage_of,
)
from softmaxloss.backends.weights import in_range
from softmaxloss.labels import Labels, label_error, not_a_distribution
from softmaxloss.options import LossOptions

_FLOAT64 = np.dtype(np.float64)
_LEAST_SINGLE, _MOST_SINGLE = 2.0**-100, 2.0**60  # labels' masses that float32 holds, with room for products
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

    def fit_single(self) -> bool:
        """Tell whether float32 holds what masses there are; the spikes alone are float64 in every kernel."""
        return all(_fits_single(masses) for masses in (self.dense, self.scale, self.shift) if masses is not None) and (
            self.dense is None or self.spike is None or _fits_single(self.spike)
        )

    def held_in(self, dtype: np.dtype[Any]) -> "_Targets":
        """Return these targets with the masses in the kernels' dtype."""
        if self.dense is None and self.scale is None:
            return self
        dense, scale, shift = (
            None if masses is None else masses.astype(dtype) for masses in (self.dense, self.scale, self.shift)
        )
        # The sum of what the kernel reads: where all of it cancels, nothing of the rounding may be left.
        dense_sum = 0.0 if dense is None else float(dense.sum(dtype=np.float64))
        return _Targets(self.spike, dense, dense_sum, scale, shift)


def _targets(options: LossOptions, labels: Labels, classes: int) -> _Targets:
    """Return the targets in float64."""
    smoothing = options.label_smoothing
    if smoothing == 0.0 and options.class_weight is None:
        return _Targets()
    weight = np.ones(classes) if options.class_weight is None else options.class_weight
    label_share = weight * (1.0 - smoothing)
    even_share = weight * (smoothing / classes)
    if labels.distribution is not None:
        return _Targets(scale=label_share, shift=even_share)
    return _Targets(spike=label_share) if smoothing == 0.0 else _Targets(spike=label_share, dense=even_share)


def _fits_single(masses: NDArray[np.float64]) -> bool:
    return bool(((masses == 0.0) | ((masses >= _LEAST_SINGLE) & (masses <= _MOST_SINGLE))).all())


def distribution_in(dtype: np.dtype[Any], rows: NDArray[Any]) -> NDArray[Any]:
    """Return a copy of distributions in the kernels' dtype; what is above 0 stays above 0, so that a mask meets it.

    What float32 would round to 0 becomes its least subnormal number, about 1e-45: that is no more than rounding to
    such numbers costs in any case, and the loss of a class that is masked is infinite whatever its label's mass.
    """
    copy = converted(rows, dtype)  # an entry that becomes infinite is no distribution's
    if rows.dtype.kind == "f" and rows.dtype.itemsize > dtype.itemsize and not copy.all():
        vanished = (copy == 0) & (np.atleast_1d(rows) != 0)
        copy[vanished] = np.copysign(np.finfo(dtype).smallest_subnormal, np.atleast_1d(rows)[vanished])
    return copy


# What a kernel finds: nothing, or a row that is no distribution, its place in the block, sum and least entry.
_Found = tuple[int, float, float] | None


class _Inputs(NamedTuple):
    """A block of rows as the kernels read it."""

    logits: NDArray[Any]
    storage: int
    distribution: NDArray[Any] | None


# Calls one kernel for a block of rows, with its own input besides these (or None), and its output (or None).
_Call = Callable[[_Inputs, NDArray[Any] | None, Any], _Found]


class LossOfRows:
    """One loss apart from its logits: what the kernels are told besides them, for all rows at once or block by block.

    Parameters
    ----------
    labels, options
        Of all rows; checked but for the labels' values, which are surveyed here (`LabelError`).
    rows_shape : tuple of int
        The shape of all rows.
    classes : int
        Their number of classes.
    logits_dtype : numpy.dtype
        What the logits will come in.
    survey : LabelSurvey, optional
        Where the mean is over more rows than these: of all of them. The options are then those of `in_range` already.
    """

    def __init__(
        self,
        labels: Labels,
        options: LossOptions,
        rows_shape: tuple[int, ...],
        classes: int,
        logits_dtype: np.dtype[Any],
        survey: LabelSurvey | None = None,
    ) -> None:
        if survey is None:
            options = in_range(options)
            survey = survey_labels(labels, options, rows_shape, classes)
        self.labels, self.options, self.rows_shape, self.classes = labels, options, rows_shape, classes
        self.scale = reduction_scale(options, labels, survey)
        # Where every row is ignored the mean is NaN, and its gradient 0.
        self.gradient_scale = self.scale if survey.counted else 1.0
        self.z_loss = z_loss_beside_the_cross_entropy(options, labels, survey)
        targets = _targets(options, labels, classes)
        # The kernels compute in `dtype`, and read logits and write gradients in `stored`, one of the dtypes computed
        # in it. Weights farther apart than float32 holds are for the float64 kernel.
        self.loss_dtype = kernel_dtype(logits_dtype)
        single = self.loss_dtype != _FLOAT64 and targets.fit_single()
        self.dtype = self.loss_dtype if single else _FLOAT64
        self.stored = result_dtype(logits_dtype) if single else _FLOAT64
        self.targets = targets.held_in(self.dtype)

    def of_block(
        self,
        block: RowIndex,
        logits: NDArray[Any],
        distribution: NDArray[Any] | None,
        row_loss: NDArray[np.float64],
        gradient: NDArray[Any] | None,
        *,
        tolerance: float | None = None,
    ) -> float:
        """Fill `row_loss`, all rows' losses, for one block of them; return their sum.

        `logits` and `distribution` are the block's own, and `gradient`, where it is asked for, which may be the logits.
        """
        tolerance = self.labels.tolerance if tolerance is None else tolerance
        total = 0.0

        def call(inputs: _Inputs, _: Any, output: Any) -> _Found:
            nonlocal total
            terms = self._terms(block, inputs.distribution, tolerance)
            total, bad = _native.loss(inputs.logits, inputs.storage, terms, flat(row_loss, block), output)
            return bad

        self._run_block(block, call, logits, distribution, None, gradient)
        return total

    def check_distribution(self, block: RowIndex, distribution: NDArray[Any]) -> None:
        """Raise `ValueError` where a row of a block's distributions is none, without looking at any logits."""
        rows = distribution if kernel_reads(distribution, self.dtype) else distribution_in(self.dtype, distribution)
        self._raise_bad(_native.bad_distribution(rows, self.labels.tolerance), block)

    def reduced(self, row_loss: NDArray[np.float64], totals: list[float]) -> Any:
        """Return the loss asked for, of rows' losses and the sums of those of blocks that make up the whole."""
        return reduced(self.options, row_loss, sum_of_blocks(totals), self.scale, self.loss_dtype)

    def _terms(self, block: RowIndex, distribution: NDArray[Any] | None, tolerance: float) -> _native.LossTerms:
        """Return what the kernels are told of a block besides its logits."""
        options, targets, transform = self.options, self.targets, self.options.transform
        return _native.LossTerms(
            flat(self.labels.indices, block),
            distribution,
            self.gradient_scale,
            flat(options.sample_weight, block),
            options.ignore_index,
            targets.spike,
            targets.dense,
            targets.dense_sum,
            targets.scale,
            targets.shift,
            tolerance,
            transform.temperature,
            transform.softcap or 0.0,
            transform.logit_bias,
            self.z_loss,
            options.focal_gamma,
            options.poly_epsilon,
        )

    def _run_block(
        self,
        block: RowIndex,
        call: _Call,
        logits: NDArray[Any],
        distribution: NDArray[Any] | None,
        vector: NDArray[Any] | None,
        output: NDArray[Any] | None,
    ) -> None:
        """Call the kernel for a block: of each array what it can use as it lies, and a copy of what it cannot."""
        if distribution is not None and not kernel_reads(distribution, self.dtype):
            distribution = distribution_in(self.dtype, distribution)
        if vector is not None:
            vector = _readable(vector, self.dtype)
        rows = _readable(logits, self.stored)
        storage = storage_of(self.stored)
        assert storage is not None  # the dtypes computed in, and those kept in 16 bits
        inputs = _Inputs(elements(rows), storage, distribution)
        if output is None or kernel_reads(output, self.stored):
            self._raise_bad(call(inputs, vector, None if output is None else elements(output)), block)
            return
        result = np.empty(rows.shape, self.stored)
        self._raise_bad(call(inputs, vector, elements(result)), block)
        with np.errstate(over="ignore"):  # what is too large for its dtype is inf
            output[...] = result

    def _raise_bad(self, bad: _Found, block: RowIndex) -> None:
        """Raise `ValueError` for the row of a block, if there is one, that the kernel found to be no distribution."""
        if bad is None:
            return
        row, total, least = bad
        raise not_a_distribution(
            self._position(block, row),
            total,
            least,
            "a label distribution; class indices have one dimension less than the logits",
        )

    def _position(self, block: RowIndex, row: int) -> tuple[int, ...]:
        """Return the index, among all rows, of a row of a block."""
        return row_position(self.rows_shape, block, row)


class LossKernel(LossOfRows):
    """One loss of logits that are there as an array, class axis last: as they lie, or in blocks."""

    def __init__(
        self, logits: NDArray[Any], labels: Labels, options: LossOptions, survey: LabelSurvey | None = None
    ) -> None:
        super().__init__(labels, options, logits.shape[:-1], logits.shape[-1], logits.dtype, survey)
        self.logits = logits

    def loss(self, gradient: NDArray[Any] | None, *, in_place: bool = False) -> Any:
        """Return the reduced loss, and fill `gradient`, which may be the logits themselves (`in_place`)."""
        return self.reduced(*self.swept(gradient, in_place=in_place))

    def swept(
        self, gradient: NDArray[Any] | None, *, in_place: bool = False
    ) -> tuple[NDArray[np.float64], list[float]]:
        """Return the rows' losses and the sums of those of blocks, before `scale`; fill `gradient` as `loss` does."""
        q, tolerance = self.labels.distribution, self.labels.tolerance
        if q is not None and in_place:
            self._check_distribution(q)
            # The kernel adds in another order; it must not find fault when part has been written.
            tolerance = math.inf
        rows = np.empty(self.rows_shape)
        totals = [
            self.of_block(block, self.logits[block], _part(q, block), rows, _part(gradient, block), tolerance=tolerance)
            for block in self._blocks(None, gradient)
        ]
        return rows, totals

    def hessian_vector_product(self, vector: NDArray[Any], product: NDArray[Any]) -> None:
        """Fill `product` with the Hessian of the reduced loss (of the sum for "none") times `vector`."""
        q = self.labels.distribution
        for block in self._blocks(vector, product):

            def call(inputs: _Inputs, direction: Any, output: Any, block: RowIndex = block) -> _Found:
                terms = self._terms(block, inputs.distribution, self.labels.tolerance)
                return _native.hessian_vector_product(inputs.logits, inputs.storage, terms, direction, output)

            self._run_block(block, call, self.logits[block], _part(q, block), vector[block], product[block])

    def _blocks(self, vector: NDArray[Any] | None, output: NDArray[Any] | None) -> Iterable[RowIndex]:
        """Return all rows as one block, if the kernel can use every array as it lies; else blocks to be copied."""
        distribution = self.labels.distribution
        as_they_lie = (
            kernel_reads(self.logits, self.stored)
            and (output is None or kernel_reads(output, self.stored))
            and (vector is None or kernel_reads(vector, self.dtype))
            and (distribution is None or kernel_reads(distribution, self.dtype))
        )
        return [(...,)] if as_they_lie else row_blocks(self.rows_shape, rows_a_block(self.classes, self.dtype))

    def _check_distribution(self, distribution: NDArray[Any]) -> None:
        as_it_lies = kernel_reads(distribution, self.dtype)
        for block in [(...,)] if as_it_lies else row_blocks(self.rows_shape, rows_a_block(self.classes, self.dtype)):
            self.check_distribution(block, distribution[block])


def _part(array: NDArray[Any] | None, block: RowIndex) -> NDArray[Any] | None:
    return None if array is None else array[block]


def _readable(rows: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return rows as they lie where the kernels can read them so, else a copy in this dtype."""
    return rows if kernel_reads(rows, dtype) else converted(rows, dtype)


def sum_of_blocks(totals: list[float]) -> float:
    """Return the sum of blocks' totals, each itself rounded once, or of the one there is."""
    try:
        return math.fsum(totals)
    except (OverflowError, ValueError):  # beyond the range of a double on the way, or infinities of either sign
        return sum(totals)
