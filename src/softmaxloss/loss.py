"""The softmax loss of logits and labels, its gradient, its Hessian times a vector, and statistics of its rows."""

from typing import Any, NamedTuple

from numpy.typing import ArrayLike, NDArray

from softmaxloss.backends import backend_of
from softmaxloss.backends.numpy import quick_loss, quick_loss_and_grad
from softmaxloss.options import GivenOptions, GivenTransform, Reduction


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
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: ArrayLike | None = None,
    z_loss: float = 0.0,
    focal_gamma: float = 0.0,
    poly_epsilon: float = 0.0,
) -> Any:
    r"""Compute the softmax loss: the cross-entropy of labels and the softmax of logits, fused.

    For a row of logits :math:`z` with label :math:`y` or label distribution :math:`q`, temperature :math:`T`, softcap
    :math:`s`, bias :math:`\beta`, class weights :math:`w` and label smoothing :math:`\varepsilon`:

    .. math::

        v_j &= s \tanh\frac{z_j}{T s} + \beta_j \quad (\text{without a softcap } z_j / T + \beta_j), \qquad
        \mathrm{lse} = \log \sum_j e^{v_j}, \qquad \log p = v - \mathrm{lse} \\
        q'_j &= (1 - \varepsilon) \, q_j + \varepsilon / C, \qquad q_j = [j = y] \text{ for a class index} \\
        \mathrm{CE} &= \sum_j w_j \, q'_j \, (-\log p_j) \\
        \mathrm{loss} &= (1 - p_y)^{\gamma} \, \mathrm{CE} + w_y \, \epsilon_1 (1 - p_y)^{\gamma + 1}
        + \zeta \, \mathrm{lse}^2

    with :math:`\gamma` = `focal_gamma`, :math:`\epsilon_1` = `poly_epsilon` and :math:`\zeta` = `z_loss`, all 0 unless
    given, and all of it times the row's `sample_weight`.

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
        ``"mean"`` is ``sum(sample_weight * CE) / sum(sample_weight * class_weight[label])`` over the rows not
        ignored (for distributions the divisor is ``sum(sample_weight)``), as in PyTorch, CE with its focal and poly
        terms, plus ``z_loss * sum(sample_weight * lse**2) / sum(sample_weight)``. NaN over no rows or no weight.
    sample_weight : array_like of the rows' shape, optional
        One weight >= 0 a row.
    class_weight : array_like, (C,), optional
        One weight >= 0 a class.
    ignore_index : int
        Rows with this index label have loss 0 and count in no mean, whatever their logits hold.
    label_smoothing : float
        Share of the label, in [0, 1], that is spread evenly over all classes.
    temperature : float
        What the logits are divided by, > 0. (To learn a temperature, divide the logits by it yourself.)
    softcap : float, optional
        > 0: keeps the logits within -softcap and softcap. Masked classes stay masked.
    logit_bias : array_like, (C,), optional
        Added to the logits last, such as the logarithms of the classes' frequencies; ``-inf`` masks a class in
        every row.
    z_loss : float
        >= 0: weight of ``lse**2``, which keeps the logsumexp near 0. 1e-4 is usual.
    focal_gamma : float
        >= 0: lessens the loss of rows that are right already. For class indices without label smoothing.
    poly_epsilon : float
        Weight of the first term of the cross-entropy's expansion in powers of :math:`1 - p_y`, any finite number. For
        class indices without label smoothing.

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
        Shapes that do not match, an option out of its range, a row of `labels` that is not a distribution, a focal or
        poly term with distributions or label smoothing.
    TypeError
        A dtype or kind of array that is not taken.

    See Also
    --------
    softmax_cross_entropy_and_grad : The same with its gradient.
    row_statistics : Each row's loss, prediction and rank, in one pass.
    cross_entropy : For probabilities in place of logits.

    References
    ----------
    ``torch.nn.functional.cross_entropy`` defines the same loss. Label smoothing: Szegedy et al., "Rethinking the
    Inception Architecture for Computer Vision", 2016. Temperature: Hinton et al., "Distilling the Knowledge in a
    Neural Network", 2015. Softcap: Bello et al., "Neural Combinatorial Optimization with Reinforcement Learning",
    2016; Gemma Team, "Gemma 2", 2024. Bias: Menon et al., "Long-tail learning via logit adjustment", 2021. z_loss:
    Mesh TensorFlow; Chowdhery et al., "PaLM", 2022. Focal: Lin et al., "Focal Loss for Dense Object Detection", 2017.
    Poly: Leng et al., "PolyLoss", 2022.

    Examples
    --------
    >>> import numpy as np
    >>> import softmaxloss as sl
    >>> print(sl.softmax_cross_entropy([1.0, 2.0, 3.0], [0, 1, 0]))  # one row, a one-hot label
    1.4076059644443804
    >>> logits = np.array([[1.0, 2.0, 3.0], [3.0, 0.0, -1.0]], dtype=np.float32)
    >>> print(sl.softmax_cross_entropy(logits, [1, 0], reduction="none").round(6))
    [1.407606 0.065884]
    >>> print(sl.softmax_cross_entropy(logits, [1, 0], reduction="none", focal_gamma=2.0, z_loss=1e-4).round(6))
    [0.804109 0.001208]
    >>> print(sl.softmax_cross_entropy(np.float32([[20, 0, 0]]), [0]))
    4.1223074e-09
    """
    weighting = (reduction, sample_weight, class_weight, ignore_index, label_smoothing)
    formula = (temperature, softcap, logit_bias, z_loss, focal_gamma, poly_epsilon)
    if _is_plain(axis, weighting, formula):
        quick = quick_loss(logits, labels, reduction)
        if quick is not None:
            return quick
    return backend_of(logits).softmax_cross_entropy(logits, labels, axis, GivenOptions(*(weighting + formula)))


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
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: ArrayLike | None = None,
    z_loss: float = 0.0,
    focal_gamma: float = 0.0,
    poly_epsilon: float = 0.0,
    out: NDArray[Any] | None = None,
) -> tuple[Any, NDArray[Any]]:
    r"""Compute the softmax loss and its gradient with respect to the logits, in one pass.

    With the notation of `softmax_cross_entropy`, a row's gradient is made of two numbers a row, a and b:

    .. math::

        \frac{\partial\,\mathrm{loss}}{\partial z_j} =
        \Bigl(a \, p_j - b \, w_j \, q'_j\Bigr) \, \frac{1 - \tanh^2 (z_j / T s)}{T} , \qquad
        a = b \sum_k w_k \, q'_k + 2 \zeta \, \mathrm{lse}

    where b is 1 but for focal and poly terms, for which it is

    .. math::

        b = (1 - p_y)^{\gamma} \Bigl( 1 + p_y \bigl( \gamma \, \frac{-\log p_y}{1 - p_y}
        + \epsilon_1 (\gamma + 1) \bigr) \Bigr) .

    Without options that is :math:`p - y`. Every row's gradient is multiplied by its share in the reduction (one over
    the divisor for ``"mean"``; for ``"none"`` the gradient is that of each row's own loss).

    Parameters
    ----------
    logits, labels, axis, reduction, sample_weight, class_weight, ignore_index, label_smoothing
        As in `softmax_cross_entropy`.
    temperature, softcap, logit_bias, z_loss, focal_gamma, poly_epsilon
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

    References
    ----------
    Those of `softmax_cross_entropy`.

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
    weighting = (reduction, sample_weight, class_weight, ignore_index, label_smoothing)
    formula = (temperature, softcap, logit_bias, z_loss, focal_gamma, poly_epsilon)
    if _is_plain(axis, weighting, formula):
        quick = quick_loss_and_grad(logits, labels, reduction, out)
        if quick is not None:
            return quick
    options = GivenOptions(*(weighting + formula))
    answer: tuple[Any, NDArray[Any]] = backend_of(logits).softmax_cross_entropy_and_grad(
        logits, labels, axis, options, out
    )
    return answer


def hessian_vector_product(
    logits: ArrayLike,
    labels: ArrayLike,
    vector: ArrayLike,
    *,
    axis: int = -1,
    reduction: Reduction = "mean",
    sample_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: ArrayLike | None = None,
    z_loss: float = 0.0,
    focal_gamma: float = 0.0,
    poly_epsilon: float = 0.0,
) -> NDArray[Any]:
    r"""Compute the product of the loss's Hessian with a vector, for second-order methods: nothing of size C x C.

    The Hessian with respect to the logits has one block a row. Without options a row :math:`x` of `vector` becomes

    .. math::

        H x = p \odot \Bigl( x - \sum_k p_k \, x_k \Bigr)

    times the row's share in the reduction. With options it is the derivative, at 0 with respect to :math:`t`, of the
    gradient of `softmax_cross_entropy_and_grad` at :math:`z + t x`, all of its terms included.

    Parameters
    ----------
    logits, labels
        As in `softmax_cross_entropy`.
    vector : array_like of the logits' shape
        What the Hessian is multiplied by, in any real dtype.
    axis, reduction, sample_weight, class_weight, ignore_index, label_smoothing
        As in `softmax_cross_entropy`. ``"none"`` gives the Hessian of the sum, as ``"sum"`` does: no row's loss
        depends on another row's logits.
    temperature, softcap, logit_bias, z_loss, focal_gamma, poly_epsilon
        As in `softmax_cross_entropy`.

    Returns
    -------
    numpy.ndarray of the logits' shape
        In the gradient's dtype. 0 in ignored rows, NaN in rows whose loss is NaN.

    Raises
    ------
    LabelError, ValueError, TypeError
        As `softmax_cross_entropy`; also where `vector` has another shape than the logits or is not real.

    References
    ----------
    Pearlmutter, "Fast Exact Multiplication by the Hessian", 1994. ``jax.jvp`` of ``jax.grad`` is the same product.

    Examples
    --------
    >>> import softmaxloss as sl
    >>> print(sl.hessian_vector_product([1.0, 2.0, 3.0], 1, [1.0, 0.0, 0.0]).round(8))
    [ 0.08192507 -0.02203304 -0.05989202]
    """
    weighting = (reduction, sample_weight, class_weight, ignore_index, label_smoothing)
    formula = (temperature, softcap, logit_bias, z_loss, focal_gamma, poly_epsilon)
    options = GivenOptions(*(weighting + formula))
    product: NDArray[Any] = backend_of(logits).hessian_vector_product(logits, labels, vector, axis, options)
    return product


class RowStatistics(NamedTuple):
    r"""What `row_statistics` returns: for each row, with the notation of `softmax_cross_entropy`, five numbers.

    Parameters
    ----------
    loss : scalar or array of the rows' shape, or None without labels
        :math:`-\log p_y`.
    logsumexp : scalar or array
        :math:`\log \sum_j e^{v_j}`.
    log_probability : scalar or array, or None without labels
        :math:`\log p_y`, the label's.
    prediction : integer scalar or array
        The class of the largest :math:`v_j`, the first of them where several are.
    rank : integer scalar or array, or None without labels
        How many classes have a larger :math:`v_j` than the label: 0 where the prediction is right or tied.

    Examples
    --------
    >>> import softmaxloss as sl
    >>> statistics = sl.row_statistics([[1.0, 2.0, 3.0], [3.0, 0.0, -1.0]], [1, 0])
    >>> print((statistics.rank < 2).mean())  # accuracy among the first two
    1.0
    """

    loss: Any
    logsumexp: Any
    log_probability: Any
    prediction: Any
    rank: Any


def row_statistics(
    logits: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    axis: int = -1,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: ArrayLike | None = None,
) -> RowStatistics:
    r"""Compute what evaluation needs of each row in one pass: :math:`-\log p_y`, lse, :math:`\arg\max v`, rank of y.

    The notation is that of `softmax_cross_entropy`; the loss is its loss without weights.

    Parameters
    ----------
    logits, axis, temperature, softcap, logit_bias
        As in `softmax_cross_entropy`.
    labels : array_like of integers, optional
        Class indices in ``[0, C)``, of the logits' shape without `axis`. Without them, `loss`, `log_probability` and
        `rank` are None.

    Returns
    -------
    RowStatistics
        Arrays of the rows' shape, scalars for one row of logits. The first three are float64 for float64 and integer
        logits, else float32; `prediction` and `rank` are int64. A row with NaN, ``+inf`` or nothing but ``-inf`` has
        NaN for them; its prediction is that of ``numpy.argmax``, its rank the number of comparisons that hold.

    Raises
    ------
    LabelError
        A label outside ``[0, C)``; here no label is ignored.
    ValueError
        Shapes that do not match, distributions as labels, an option out of its range.
    TypeError
        A dtype or kind of array that is not taken.

    See Also
    --------
    evaluate : Averages of these over data sets of any size.

    References
    ----------
    ``sklearn.metrics.top_k_accuracy_score`` and ``log_loss``, from logits.

    Examples
    --------
    >>> import softmaxloss as sl
    >>> statistics = sl.row_statistics([[1.0, 2.0, 3.0], [3.0, 0.0, -1.0]], [1, 0])
    >>> print(statistics.loss.round(6))
    [1.407606 0.065884]
    >>> print(statistics.prediction, statistics.rank)
    [2 0] [1 0]
    >>> print(sl.row_statistics([1.0, 2.0, 3.0]).logsumexp.round(6))
    3.407606
    """
    transform = GivenTransform(temperature, softcap, logit_bias)
    return RowStatistics(*backend_of(logits).row_statistics(logits, labels, axis, transform))


# The defaults above: equal constants of one module are one object, so that an option left alone is told by identity,
# in a few nanoseconds and whatever it is. One that is given, if only as its default, goes the ordinary way.
_LAST_AXIS, _IGNORE_INDEX, _ZERO, _ONE = -1, -100, 0.0, 1.0
_MEAN, _SUM = "mean", "sum"


def _is_plain(axis: Any, weighting: tuple[Any, ...], formula: tuple[Any, ...]) -> bool:
    """Tell whether every option but the reduction was left at its default."""
    reduction, sample_weight, class_weight, ignore_index, label_smoothing = weighting
    temperature, softcap, logit_bias, z_loss, focal_gamma, poly_epsilon = formula
    return (
        sample_weight is None
        and class_weight is None
        and label_smoothing is _ZERO
        and temperature is _ONE
        and softcap is None
        and logit_bias is None
        and z_loss is _ZERO
        and focal_gamma is _ZERO
        and poly_epsilon is _ZERO
        and ignore_index is _IGNORE_INDEX
        and axis is _LAST_AXIS
        and (reduction is _MEAN or reduction is _SUM)
    )
