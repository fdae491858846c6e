"""The softmax loss of logits and labels, and its gradient."""

from typing import Any

from numpy.typing import ArrayLike, NDArray

from softmaxloss.backends import backend_of
from softmaxloss.options import Reduction


def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    reduction: Reduction = "mean",
    sample_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Any:
    r"""Compute the softmax loss: the cross-entropy of labels and the softmax of logits, fused.

    For a row of logits :math:`z` with label :math:`y`, class weights :math:`w` and label smoothing
    :math:`\varepsilon`:

    .. math::

        \log p = z - \log \sum_j e^{z_j}, \qquad
        q'_j = (1 - \varepsilon) [j = y] + \varepsilon / C, \qquad
        \mathrm{loss} = \sum_j w_j \, q'_j \, (-\log p_j)

    A row whose label is certain to nine digits still has a loss right to seven: it is ``log1p`` of the other
    classes' sum.

    Parameters
    ----------
    logits : array_like, (..., C, ...)
        Raw scores, C of them along `axis`: float16, bfloat16, float32 or float64; integers and bool become float64.
        Any strides and byte order. ``-inf`` masks a class.
    labels : array_like
        Class indices, of the logits' shape without `axis` and any integer dtype, each in ``[0, C)`` or
        `ignore_index`; or distributions, one-hot or soft, of the logits' shape, any real dtype, entries >= 0 that sum
        to 1 along `axis` within 1e-3 (2^-7 for 16-bit labels). The number of dimensions alone tells which.
    axis : int
        The class axis.
    reduction : {"mean", "sum", "none"}
        ``"mean"`` is ``sum(sample_weight * loss) / sum(sample_weight * class_weight[label])`` over the rows not
        ignored (for distributions the divisor is ``sum(sample_weight)``), as in PyTorch; NaN over no rows.
    sample_weight : array_like of the rows' shape, optional
        One weight >= 0 a row.
    class_weight : array_like, (C,), optional
        One weight >= 0 a class.
    ignore_index : int
        Rows with this index label have loss 0 and count in no mean, whatever their logits hold.
    label_smoothing : float
        Share of the label, in [0, 1], that is spread evenly over all classes.

    Returns
    -------
    loss : scalar, or array of the rows' shape for ``reduction="none"``
        float64 for float64 and integer logits, else float32. A row with NaN, ``+inf`` or nothing but ``-inf`` has
        loss NaN; one whose label is masked has loss ``inf``.

    Raises
    ------
    LabelError
        A label outside ``[0, C)``. It is a `ValueError` and an `IndexError`.
    ValueError
        Shapes that do not match, an option out of its range, a row of `labels` that is not a distribution.
    TypeError
        A dtype or kind of array that is not taken.

    See Also
    --------
    softmax_cross_entropy_and_grad : The same with its gradient.
    cross_entropy : For probabilities in place of logits.

    References
    ----------
    ``torch.nn.functional.cross_entropy`` defines the same loss. Label smoothing: Szegedy et al., "Rethinking the
    Inception Architecture for Computer Vision", 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import softmaxloss as sl
    >>> print(sl.softmax_cross_entropy([1.0, 2.0, 3.0], [0, 1, 0]))  # one row, a one-hot label
    1.4076059644443804
    >>> logits = np.array([[1.0, 2.0, 3.0], [3.0, 0.0, -1.0]], dtype=np.float32)
    >>> print(sl.softmax_cross_entropy(logits, [1, 0], reduction="none").round(6))
    [1.407606 0.065884]
    >>> print(sl.softmax_cross_entropy(np.float32([[20, 0, 0]]), [0]))
    4.1223074e-09
    """
    backend = backend_of(logits)
    loss, _ = backend.softmax_cross_entropy(
        logits,
        labels,
        axis=axis,
        want_gradient=False,
        reduction=reduction,
        sample_weight=sample_weight,
        class_weight=class_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
    return loss


def softmax_cross_entropy_and_grad(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    reduction: Reduction = "mean",
    sample_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    out: NDArray[Any] | None = None,
) -> tuple[Any, NDArray[Any]]:
    r"""Compute the softmax loss and its gradient with respect to the logits, in one pass.

    With the notation of `softmax_cross_entropy`, a row's gradient is

    .. math::

        \frac{\partial\,\mathrm{loss}}{\partial z_j} = p_j \sum_k w_k \, q'_k - w_j \, q'_j ,

    which is :math:`p - y` where there are no options, times the row's share in the reduction (one over the divisor
    for ``"mean"``; for ``"none"`` the gradient of each row's own loss).

    Parameters
    ----------
    logits, labels, axis, reduction, sample_weight, class_weight, ignore_index, label_smoothing
        As in `softmax_cross_entropy`.
    out : numpy.ndarray of the logits' shape and dtype, optional
        Where to write the gradient. It may be `logits` itself: then the gradient takes their place. Large gradients
        are much faster to write into memory that has been used before.

    Returns
    -------
    loss : scalar, or array of the rows' shape
        As `softmax_cross_entropy` returns it.
    grad : numpy.ndarray of the logits' shape and dtype
        `out` where it was given. 0 in ignored rows, NaN in rows whose loss is NaN.

    Raises
    ------
    LabelError, ValueError, TypeError
        As `softmax_cross_entropy`; also where `out` has another shape or dtype, is read-only, or overlaps an input
        in any way but being the logits. Nothing has been written then, but for a row that is not a distribution,
        which may leave `out` partly written, never when `out` is `logits`.

    Examples
    --------
    >>> import numpy as np
    >>> import softmaxloss as sl
    >>> logits = np.array([[1.0, 2.0, 3.0]])
    >>> loss, grad = sl.softmax_cross_entropy_and_grad(logits, [1])
    >>> print(grad.round(8))
    [[ 0.09003057 -0.75527153  0.66524096]]
    >>> _, same = sl.softmax_cross_entropy_and_grad(logits, [1], out=logits)  # in place
    >>> same is logits
    True
    """
    backend = backend_of(logits)
    loss, gradient = backend.softmax_cross_entropy(
        logits,
        labels,
        axis=axis,
        want_gradient=True,
        out=out,
        reduction=reduction,
        sample_weight=sample_weight,
        class_weight=class_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
    return loss, gradient
