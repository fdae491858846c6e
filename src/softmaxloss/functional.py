"""The pieces of the softmax loss by themselves: softmax, its logarithm, one-hot labels, and cross-entropy."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from softmaxloss.backends import backend_of
from softmaxloss.backends import numpy as numpy_backend
from softmaxloss.backends.kernel import reduced, reduction_scale, survey_labels
from softmaxloss.backends.layout import (
    RowIndex,
    as_logits,
    class_axis_last,
    classes_of,
    kernel_dtype,
    row_blocks,
    row_position,
    rows_a_block,
)
from softmaxloss.backends.weights import in_range
from softmaxloss.labels import (
    Labels,
    label_error,
    label_indices,
    not_a_distribution,
    resolve_labels,
    tolerance_of,
)
from softmaxloss.options import GivenOptions, LossOptions, Reduction, integer, scalar


def softmax(logits: ArrayLike, axis: int = -1, *, temperature: float = 1.0) -> NDArray[Any]:
    r"""Compute probabilities from logits: :math:`p_j = e^{z_j / T} / \sum_k e^{z_k / T}`.

    Parameters
    ----------
    logits : array_like, (..., C, ...)
        Raw scores; dtypes as in `softmax_cross_entropy`.
    axis : int
        The class axis.
    temperature : float
        The logits are divided by it first: above 1 it evens the probabilities out, below 1 it sharpens them.

    Returns
    -------
    numpy.ndarray of the logits' shape
        In the logits' dtype, float64 for integers. Each row sums to 1; a row with NaN, ``+inf`` or nothing but
        ``-inf`` is NaN.

    Raises
    ------
    ValueError
        If `temperature` is not positive and finite, or there is no such axis.
    TypeError
        A dtype or kind of array that is not taken.

    See Also
    --------
    log_softmax : Its logarithm, exact where the probability is nearly 0 or 1.

    References
    ----------
    ``scipy.special.softmax``. Bridle, "Probabilistic Interpretation of Feedforward Classification Network Outputs,
    with Relationships to Statistical Pattern Recognition", 1990.

    Examples
    --------
    >>> import softmaxloss as sl
    >>> print(sl.softmax([1.0, 2.0, 3.0]).round(8))
    [0.09003057 0.24472847 0.66524096]
    """
    backend = backend_of(logits)
    temperature = scalar("temperature", temperature, positive=True)
    result: NDArray[Any] = backend.softmax(logits, axis=axis, temperature=temperature, logarithm=False)
    return result


def log_softmax(logits: ArrayLike, axis: int = -1, *, temperature: float = 1.0) -> NDArray[Any]:
    r"""Compute log-probabilities from logits: :math:`\log p_j = z_j / T - \log \sum_k e^{z_k / T}`.

    Where one class has nearly all the probability its logarithm is minus ``log1p`` of the other classes' sum, so
    that it keeps its digits.

    Parameters
    ----------
    logits, axis, temperature
        As in `softmax`.

    Returns
    -------
    numpy.ndarray of the logits' shape
        In the logits' dtype, float64 for integers. NaN rows as in `softmax`.

    Raises
    ------
    ValueError, TypeError
        As `softmax`.

    References
    ----------
    ``scipy.special.log_softmax``.

    Examples
    --------
    >>> import numpy as np
    >>> import softmaxloss as sl
    >>> print(sl.log_softmax([1.0, 2.0, 3.0]).round(8))
    [-2.40760596 -1.40760596 -0.40760596]
    >>> print(sl.log_softmax(np.float32([20, 0, 0])))
    [-4.1223074e-09 -2.0000000e+01 -2.0000000e+01]
    """
    backend = backend_of(logits)
    temperature = scalar("temperature", temperature, positive=True)
    result: NDArray[Any] = backend.softmax(logits, axis=axis, temperature=temperature, logarithm=True)
    return result


def logsumexp(logits: ArrayLike, axis: int = -1, *, keepdims: bool = False) -> Any:
    r"""Compute :math:`\log \sum_j e^{z_j}` along an axis, without overflow.

    Parameters
    ----------
    logits : array_like, (..., C, ...)
        Dtypes as in `softmax_cross_entropy`.
    axis : int
        The axis to sum over.
    keepdims : bool
        Keep that axis, with length 1.

    Returns
    -------
    scalar or numpy.ndarray
        In the logits' dtype, float64 for integers. As in SciPy, ``-inf`` for nothing but ``-inf``, and ``inf`` where
        there is an ``inf`` and no NaN.

    Raises
    ------
    ValueError, TypeError
        As `softmax`.

    References
    ----------
    ``scipy.special.logsumexp``. Blanchard, Higham and Higham, "Accurately computing the log-sum-exp and softmax
    functions", 2021.

    Examples
    --------
    >>> import softmaxloss as sl
    >>> print(sl.logsumexp([1000.0, 1000.0]))
    1000.6931471805599
    """
    return backend_of(logits).logsumexp(logits, axis=axis, keepdims=keepdims)


def one_hot(labels: ArrayLike, num_classes: int, *, axis: int = -1, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    r"""Turn class indices into one-hot vectors: :math:`q_j = [j = y]`.

    The loss takes the indices themselves, faster and in less memory; this is for looking at, and for mixing labels.

    Parameters
    ----------
    labels : array_like of integers
        Each in ``[0, num_classes)``.
    num_classes : int
        How many classes there are, at least 1.
    axis : int
        Where in the result the class axis goes.
    dtype : data-type
        Of the result.

    Returns
    -------
    numpy.ndarray
        With one dimension more than `labels`.

    Raises
    ------
    LabelError
        A label outside ``[0, num_classes)``.
    ValueError
        If `num_classes` is less than 1, or there is no such axis.
    TypeError
        If `labels` are not integers.

    References
    ----------
    ``jax.nn.one_hot``, but that an impossible label is an error here.

    Examples
    --------
    >>> import softmaxloss as sl
    >>> print(sl.one_hot([1, 0], 3))
    [[0. 1. 0.]
     [1. 0. 0.]]
    """
    backend = backend_of(labels)
    if backend is not numpy_backend:
        answer: NDArray[Any] = backend.one_hot(labels, num_classes, axis=axis, dtype=dtype)
        return answer
    classes = integer("num_classes", num_classes)
    if classes < 1:
        raise ValueError(f"num_classes is {classes}; expected at least 1")
    indices = label_indices(labels)
    bad = (indices < 0) | (indices >= classes)
    if bad.any():
        raise label_error(indices, int(bad.argmax()), classes, None)
    class_axis = integer("axis", axis) + (indices.ndim + 1 if axis < 0 else 0)
    if not 0 <= class_axis <= indices.ndim:
        raise ValueError(f"axis is {axis}; the result has {indices.ndim + 1} dimensions")
    shape = (*indices.shape[:class_axis], classes, *indices.shape[class_axis:])
    result = np.zeros(shape, dtype)
    np.put_along_axis(result, np.expand_dims(indices, class_axis), 1, axis=class_axis)
    return result


def cross_entropy(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    reduction: Reduction = "mean",
    sample_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    ignore_index: int = -100,
) -> Any:
    r"""Compute the cross-entropy of labels and probabilities: :math:`\sum_j w_j \, q_j \, (-\log p_j)` a row.

    For probabilities that come from elsewhere. Where you have logits, `softmax_cross_entropy` is faster, has a
    gradient, and is right where a probability has underflowed to 0.

    Parameters
    ----------
    probabilities : array_like, (..., C, ...)
        Each row >= 0 along `axis`, with a sum of 1 within 1e-3 (2^-7 for 16-bit dtypes).
    labels, axis, reduction, sample_weight, class_weight, ignore_index
        As in `softmax_cross_entropy`.

    Returns
    -------
    loss : scalar, or array of the rows' shape for ``reduction="none"``
        float64 for float64 and integer probabilities, else float32. ``inf`` where the label has probability 0; NaN
        where a row holds NaN.

    Raises
    ------
    ValueError
        A row that is not a distribution; otherwise as `softmax_cross_entropy`.
    LabelError, TypeError
        As `softmax_cross_entropy`.

    References
    ----------
    ``sklearn.metrics.log_loss``, but that nothing is clipped.

    Examples
    --------
    >>> import softmaxloss as sl
    >>> print(sl.cross_entropy([[0.1, 0.2, 0.7], [0.8, 0.1, 0.1]], [2, 0]))
    0.2899092476264711
    """
    given_options = GivenOptions(reduction, sample_weight, class_weight, ignore_index)
    backend = backend_of(probabilities)
    if backend is not numpy_backend:
        return backend.cross_entropy(probabilities, labels, axis, given_options)
    given = as_logits(probabilities, "probabilities")
    p = class_axis_last(given, axis)
    rows_shape, classes = p.shape[:-1], classes_of(p)
    options = in_range(given_options.check(rows_shape, classes))
    target = resolve_labels(labels, given.shape, axis)
    survey = survey_labels(target, options, rows_shape, classes)
    losses = losses_of_rows(p, target, options)
    scale = reduction_scale(options, target, survey)
    return reduced(options, losses, float(losses.sum()), scale, kernel_dtype(given.dtype))


def losses_of_rows(probabilities: NDArray[Any], labels: Labels, options: LossOptions) -> NDArray[np.float64]:
    """Return the weighted cross-entropy of each row, class axis last, in the options' units."""
    rows_shape, classes = probabilities.shape[:-1], probabilities.shape[-1]
    losses = np.empty(rows_shape)
    for block in row_blocks(rows_shape, rows_a_block(classes, np.dtype(np.float64))):
        losses[block] = _block_cross_entropy(probabilities, labels, options, block)
    return losses if options.sample_weight is None else _weighted(options.sample_weight, losses)


def _block_cross_entropy(
    probabilities: NDArray[Any], labels: Labels, options: LossOptions, block: RowIndex
) -> NDArray[np.float64]:
    rows_shape = probabilities.shape[:-1]
    p = np.asarray(probabilities[block], dtype=np.float64)
    weight = 1.0 if options.class_weight is None else options.class_weight
    if labels.indices is not None:
        indices = np.asarray(labels.indices[block])
        kept = indices != options.ignore_index
        target = np.zeros(p.shape)
        np.put_along_axis(target, np.where(kept, indices, 0)[..., np.newaxis], kept[..., np.newaxis], axis=-1)
    else:
        assert labels.distribution is not None
        target = np.asarray(labels.distribution[block], dtype=np.float64)
        kept = np.ones(p.shape[:-1], dtype=bool)
        _check_rows(target, kept, block, rows_shape, labels.tolerance, _NOT_LABELS)
    # Rows of probabilities with NaN are NaN rows, and pass.
    numbers = kept & ~np.isnan(p).any(axis=-1)
    _check_rows(p, numbers, block, rows_shape, tolerance_of(probabilities.dtype), _NOT_PROBABILITIES)
    with np.errstate(divide="ignore", invalid="ignore"):  # log of 0, and of what ignored rows hold
        losses = _weighted(weight * target, -np.log(p)).sum(axis=-1)
    return np.where(kept, losses, 0.0)


_NOT_PROBABILITIES = "probabilities; for logits (raw scores) use softmax_cross_entropy"
_NOT_LABELS = "a label distribution; class indices have one dimension less than the probabilities"


def _check_rows(
    rows: NDArray[np.float64],
    kept: NDArray[np.bool_],
    block: RowIndex,
    rows_shape: tuple[int, ...],
    tolerance: float,
    complaint: str,
) -> None:
    """Raise `ValueError` for the first row kept that is no distribution."""
    with np.errstate(invalid="ignore"):  # inf - inf
        totals, least = rows.sum(axis=-1), rows.min(axis=-1)
    wrong = np.atleast_1d(kept & ~((np.abs(totals - 1.0) <= tolerance) & (least >= 0.0))).reshape(-1)
    if not wrong.any():
        return
    first = int(wrong.argmax())
    raise not_a_distribution(
        row_position(rows_shape, block, first), float(np.ravel(totals)[first]), float(np.ravel(least)[first]), complaint
    )


def _weighted(weight: Any, value: NDArray[np.float64]) -> NDArray[np.float64]:
    """Multiply, but that 0 times infinity is 0; NaN stays."""
    product: NDArray[np.float64] = weight * np.where((weight == 0.0) & np.isinf(value), 0.0, value)
    return product
