"""What is computed of one chunk, a NumPy array: as NumPy's backend does, but that an invalid row is NaN and no error.

These run in the scheduler's workers, the kernels on one thread where it is one of a pool's: Dask fills the processors.
"""

import math
import threading
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from softmaxloss import _native
from softmaxloss.backends import numpy as numpy_backend
from softmaxloss.backends.kernel import LabelSurvey, LossKernel, reduced, reduction_scale, sum_of_blocks, survey_labels
from softmaxloss.backends.layout import class_axis_last, converted, kernel_dtype, kernel_reads, result_dtype
from softmaxloss.backends.weights import in_range
from softmaxloss.labels import Labels, tolerance_of
from softmaxloss.options import GivenTransform, LossOptions, Transform

# Threads of these pools serve a scheduler of Dask's; the synchronous one computes in the user's own thread.
_POOLS = ("ThreadPoolExecutor", "Dask")

Array = NDArray[Any]


class Plan(NamedTuple):
    """What all chunks have in common: the class axis and classes, and the options but for arrays given as Dask's."""

    axis: int
    classes: int
    soft: bool
    options: LossOptions


class _Problem(NamedTuple):
    """The labels and options of one chunk with invalid rows taken out."""

    labels: Labels
    options: LossOptions
    invalid: NDArray[np.bool_]
    survey: LabelSurvey | None  # of all chunks, where the mean needs it

    def seen(self, array: Array, axis: int) -> Array:
        """Return an array of the logits' shape with NaN in the rows that are invalid."""
        if self.invalid.any():
            class_axis_last(array, axis)[self.invalid] = np.nan
        return array


def work_alone_in_pools() -> None:
    """Keep the kernels to this thread where it is one of several that compute chunks."""
    if threading.current_thread().name.startswith(_POOLS):
        _native.work_alone()


def extent(sample_weight: Array) -> Array:
    """Return the least weight above 0 and the largest, negated: the minimum of both over chunks is that of all."""
    weights = sample_weight.astype(np.float64)
    weights = weights[(weights > 0.0) & (weights < math.inf)]
    found = [weights.min(initial=math.inf), -weights.max(initial=0.0)]
    return np.reshape(found, (1,) * sample_weight.ndim + (2,))


def survey(plan: Plan, **operands: Any) -> Array:
    """Return what the mean divides by, of the rows of one chunk: a `LabelSurvey` as a vector."""
    problem = _problem(plan, **operands)
    rows = problem.invalid.shape
    found = survey_labels(problem.labels, problem.options, rows, plan.classes)
    if problem.labels.indices is None:
        found = found._replace(counted=found.counted - int(np.count_nonzero(problem.invalid)))
    return np.reshape(np.array(found, np.float64), (1,) * len(rows) + (3,))


def loss(plan: Plan, logits: Array, **operands: Any) -> Array:
    """Return the rows' losses, or this chunk's part of the sum or mean, with length 1 along every axis of rows."""
    return _loss(plan, logits, None, **operands)


def loss_and_gradient(plan: Plan, logits: Array, **operands: Any) -> tuple[Array, Array]:
    """Return the same and the gradient."""
    gradient = np.empty_like(logits, dtype=result_dtype(logits.dtype), subok=False)
    return _loss(plan, logits, gradient, **operands), gradient


def one_of(found: tuple[Any, ...], which: int) -> Any:
    """Return one of several answers of a chunk."""
    return found[which]


def _loss(plan: Plan, logits: Array, gradient: Array | None, **operands: Any) -> Array:
    work_alone_in_pools()
    z = class_axis_last(logits, plan.axis)
    problem = _problem(plan, **operands)
    kernel = LossKernel(z, problem.labels, problem.options, problem.survey)
    rows, totals = kernel.swept(None if gradient is None else class_axis_last(gradient, plan.axis))
    if gradient is not None:
        problem.seen(gradient, plan.axis)
    return _value(problem, kernel.options, rows, sum_of_blocks(totals), kernel.scale, z)


def _value(
    problem: _Problem, options: LossOptions, rows: NDArray[np.float64], total: float, scale: float, z: Array
) -> Array:
    if options.reduction == "none":
        rows[problem.invalid] = np.nan
        return np.asarray(reduced(options, rows, 0.0, scale, kernel_dtype(z.dtype)))
    value = math.nan if problem.invalid.any() else float(total) * scale
    return np.full((1,) * rows.ndim, value)


def hessian_vector_product(plan: Plan, logits: Array, vector: Array, **operands: Any) -> Array:
    """Return the Hessian of the loss times a vector."""
    work_alone_in_pools()
    problem = _problem(plan, **operands)
    z = class_axis_last(logits, plan.axis)
    product = np.empty_like(logits, dtype=result_dtype(logits.dtype), subok=False)
    kernel = LossKernel(z, problem.labels, problem.options, problem.survey)
    kernel.hessian_vector_product(class_axis_last(vector, plan.axis), class_axis_last(product, plan.axis))
    return problem.seen(product, plan.axis)


def cross_entropy(plan: Plan, logits: Array, **operands: Any) -> Array:
    """Return what `loss` does, of probabilities."""
    from softmaxloss import functional  # which has imported the package of this module

    p = class_axis_last(logits, plan.axis)
    problem = _problem(plan, **operands)
    wrong = ~(_sum_to_one(p, tolerance_of(p.dtype)) | np.isnan(p).any(axis=-1))
    if problem.labels.indices is not None:
        wrong &= problem.labels.indices != problem.options.ignore_index
    if wrong.any():
        p = _with_first_class(p, wrong)
    options = problem.options if problem.survey is not None else in_range(problem.options)
    whole = problem.survey or survey_labels(problem.labels, options, p.shape[:-1], plan.classes)
    rows = np.asarray(functional.losses_of_rows(p, problem.labels, options))
    scale = reduction_scale(options, problem.labels, whole)
    problem = problem._replace(invalid=problem.invalid | wrong)
    return _value(problem, options, rows, float(rows.sum()), scale, p)


def row_statistics(
    transform: Transform, axis: int, logits: Array, labels: Array | None = None, logit_bias: Array | None = None
) -> tuple[Any, ...]:
    """Return what NumPy's backend does of rows; an impossible label has loss NaN and rank -1."""
    work_alone_in_pools()
    bias, all_invalid = transform.logit_bias, False
    if logit_bias is not None:
        bias, all_invalid = (logit_bias, False) if _is_bias(logit_bias) else (None, True)
    classes = logits.shape[axis]
    indices, invalid = None, None
    if labels is not None:
        indices, invalid = _indices(labels, classes, None, 0)
    given = numpy_backend.row_statistics(
        logits, indices, axis, GivenTransform(transform.temperature, transform.softcap, bias)
    )
    value, lse, log_probability, prediction, rank = (None if x is None else np.array(x) for x in given)
    if all_invalid:
        lse = np.full_like(lse, np.nan)
    if value is not None and log_probability is not None and rank is not None:
        invalid = np.ones_like(invalid) if all_invalid else invalid
        value[invalid], log_probability[invalid], rank[invalid] = np.nan, np.nan, -1
    return value, lse, log_probability, prediction, rank


def softmax(logits: Array, **settings: Any) -> Array:
    """Return softmax or its logarithm."""
    work_alone_in_pools()
    return numpy_backend.softmax(logits, **settings)


def logsumexp(logits: Array, axis: int) -> Array:
    """Return the logsumexp of rows."""
    work_alone_in_pools()
    return np.asarray(numpy_backend.logsumexp(logits, axis=axis, keepdims=False))


def one_hot(labels: Array, classes: int, axis: int, dtype: Any) -> Array:
    """Return one-hot vectors, zeros for a label that is no class."""
    indices, invalid = _indices(labels, classes, None, 0)
    result = np.zeros((*labels.shape, classes), dtype)
    np.put_along_axis(result, indices[..., np.newaxis], (~invalid)[..., np.newaxis].astype(dtype), axis=-1)
    return np.moveaxis(result, -1, axis)


def _problem(
    plan: Plan,
    labels: Array,
    sample_weight: Array | None = None,
    class_weight: Array | None = None,
    logit_bias: Array | None = None,
    survey: Array | None = None,
    extent: Array | None = None,
) -> _Problem:
    """Return the labels and options of a chunk; rows whose label or weight is none are left out, and told."""
    options, all_invalid = plan.options, False
    if class_weight is not None:
        values = class_weight.astype(np.float64)
        fits = bool(_are_weights(values).all())
        options = options._replace(class_weight=values if fits else None)
        all_invalid |= not fits
    if logit_bias is not None:
        fits = _is_bias(logit_bias)
        bias = logit_bias.astype(np.float64) if fits else None
        options = options._replace(transform=options.transform._replace(logit_bias=bias))
        all_invalid |= not fits
    weights = None if sample_weight is None else np.array(sample_weight, np.float64, order="C")
    if plan.soft:
        rows = class_axis_last(labels, plan.axis)
        invalid = ~_are_distributions(rows, tolerance_of(rows.dtype)) | all_invalid
    else:
        indices, invalid = _indices(labels, plan.classes, options.ignore_index, options.ignore_index)
        invalid |= all_invalid & (indices != options.ignore_index)
    if weights is not None:
        wrong = ~_are_weights(weights)
        invalid |= wrong if plan.soft else wrong & (indices != options.ignore_index)
        weights[wrong] = 0.0
    if plan.soft:
        if invalid.any():
            rows = _with_first_class(rows, invalid)
            weights = np.ones(invalid.shape) if weights is None else weights
            weights[invalid] = 0.0
        target = Labels(None, rows, math.inf)  # they have been looked at
    else:
        indices[invalid] = options.ignore_index
        target = Labels(indices, None, 0.0)
    options = options._replace(sample_weight=weights)
    if survey is None and extent is None and options.reduction != "mean":
        return _Problem(target, options, invalid, None)
    options = _in_common_units(options, extent)
    whole = None if survey is None else LabelSurvey(int(survey[0]), float(survey[1]), float(survey[2]))
    return _Problem(target, options, invalid, whole)


def _in_common_units(options: LossOptions, extent: Array | None) -> LossOptions:
    """Return the options with weights in units that are the same in every chunk: see `in_range`."""
    if extent is None:  # no weights were given, or such as are 0 where a row is invalid
        return in_range(options._replace(sample_weight=None))._replace(sample_weight=options.sample_weight)
    least, most = float(extent[0]), -float(extent[1])
    scaled = in_range(options._replace(sample_weight=np.array([least, most] if most else [0.0])))
    weights, unit = options.sample_weight, math.frexp(scaled.sample_unit)[1] - 1
    assert weights is not None
    return scaled._replace(sample_weight=np.ldexp(weights, -unit) if unit else weights)


def _indices(
    labels: Array, classes: int, ignored: int | None, instead: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return labels as int64, those that are neither a class nor ignored as `instead`, and which these are."""
    valid = (labels >= 0) & (labels < classes)
    if ignored is not None:
        valid |= labels == ignored
    indices = np.where(valid, labels, 0).astype(np.int64)
    indices[~valid] = instead
    return indices, np.asarray(~valid)


def _are_distributions(rows: Array, tolerance: float) -> NDArray[np.bool_]:
    """Tell which rows are >= 0 and sum to 1 within the tolerance."""
    readable = rows.dtype in (np.float32, np.float64) and kernel_reads(rows, rows.dtype)
    looked_at = rows if readable else converted(rows, np.dtype(np.float64)).reshape(rows.shape)
    if _native.bad_distribution(looked_at, tolerance) is None:
        return np.ones(rows.shape[:-1], np.bool_)
    return _sum_to_one(looked_at, tolerance)


def _sum_to_one(rows: Array, tolerance: float) -> NDArray[np.bool_]:
    """Tell the same of each row without asking the kernel first."""
    with np.errstate(invalid="ignore", over="ignore"):  # inf - inf
        total = rows.sum(axis=-1, dtype=np.float64)
        return np.asarray((np.abs(total - 1.0) <= tolerance) & (rows.min(axis=-1) >= 0))


def _with_first_class(rows: Array, which: NDArray[np.bool_]) -> Array:
    """Return a copy of distributions in which some are certain of the first class."""
    rows = np.array(rows)
    rows[which] = 0
    rows[..., 0][which] = 1
    return rows


def _are_weights(values: Array) -> NDArray[np.bool_]:
    return np.asarray((values >= 0.0) & (values < math.inf))


def _is_bias(values: Array) -> bool:
    return bool((values.astype(np.float64) < math.inf).all())
