"""The softmax loss of a linear layer's output, and its gradients, without the logits: block after block of them."""

from typing import Any, NamedTuple

from numpy.typing import ArrayLike

from softmaxloss.backends import backend_of
from softmaxloss.options import GivenOptions, Reduction


class LinearGrad(NamedTuple):
    """The gradients that `linear_cross_entropy_and_grad` returns, each of the shape and dtype of what it is by.

    Parameters
    ----------
    hidden : array of shape (..., D), or None
        By the hidden states; None where these are sparse: they are data.
    weight : array of shape (C, D)
        By the weight.
    bias : array of shape (C,), or None
        By the bias; None where there is none.

    Examples
    --------
    >>> import softmaxloss as sl
    >>> _, grad = sl.linear_cross_entropy_and_grad([[1.0, 2.0]], [[0.0, 1.0], [1.0, 0.0]], [1])
    >>> print(grad.weight.round(6), grad.bias)
    [[ 0.731059  1.462117]
     [-0.731059 -1.462117]] None
    """

    hidden: Any
    weight: Any
    bias: Any


def linear_cross_entropy(
    hidden: Any,
    weight: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
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
    gradient_filter: float = 0.0,
    max_block_bytes: int | None = None,
) -> Any:
    r"""Compute the softmax loss of the logits ``hidden @ weight.T + bias``, which are never all held at once.

    With :math:`h_i` a row of `hidden`, :math:`W` the weight and :math:`c` the bias, it is the loss of
    `softmax_cross_entropy`, with all of its options, for

    .. math::

        z_{ij} = \sum_k h_{ik} W_{jk} + c_j .

    The logits are computed, by the array library's own matrix product, in blocks that are used and forgotten: of rows
    where enough of these fit `max_block_bytes` with all their classes, else of rows and classes, whose sums of
    exponentials are merged.

    Parameters
    ----------
    hidden : array_like, (..., D)
        One vector of features a row: float16, bfloat16, float32 or float64; integers and bool become float64. Or a
        ``scipy.sparse`` array or matrix of shape (N, D).
    weight : array_like, (C, D)
        One vector of features a class, as PyTorch's linear layers keep it. Logits are computed in float64 where
        `hidden` or `weight` are float64 or integers, else in float32, 16-bit ones too.
    labels : array_like
        Class indices, of the rows' shape, or distributions, of the rows' shape and an axis of C classes: as in
        `softmax_cross_entropy`. Of rows with the label `ignore_index` no product is made.
    bias : array_like, (C,), optional
        Added to the logits before anything else is done with them. It is a parameter, with a gradient of its own;
        `logit_bias` is a constant that is added last.
    reduction, sample_weight, class_weight, ignore_index, label_smoothing
        As in `softmax_cross_entropy`.
    temperature, softcap, logit_bias, z_loss, focal_gamma, poly_epsilon
        As in `softmax_cross_entropy`.
    gradient_filter : float
        >= 0: see `linear_cross_entropy_and_grad`. The loss does not depend on it.
    max_block_bytes : int, optional
        Most bytes of the block of logits; at least one logit's. 48 MiB unless given, so that the whole call takes less
        than 64 MiB beside its arguments and answers. Products are slower with few rows at a time.

    Returns
    -------
    loss : scalar, or array of the rows' shape for ``reduction="none"``
        float64 where the logits are float64, else float32.

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
    linear_cross_entropy_and_grad : The same with its gradients.
    softmax_cross_entropy : The loss of logits that are there.

    References
    ----------
    Blocks of classes and their merged sums: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
    A loss that computes its logits in blocks: Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models",
    2024; Hsu et al., "Liger Kernel", 2024; ``torch.nn.functional.linear_cross_entropy``.

    Examples
    --------
    >>> import numpy as np
    >>> import softmaxloss as sl
    >>> hidden = np.array([[1.0, 2.0], [0.0, -1.0]])  # two rows, two features
    >>> weight = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])  # three classes
    >>> print(sl.linear_cross_entropy(hidden, weight, [2, 1]).round(8))
    0.47952534
    >>> print(sl.softmax_cross_entropy(hidden @ weight.T, [2, 1]).round(8))
    0.47952534
    """
    weighting = (reduction, sample_weight, class_weight, ignore_index, label_smoothing)
    formula = (temperature, softcap, logit_bias, z_loss, focal_gamma, poly_epsilon)
    options = GivenOptions(*(weighting + formula))
    return backend_of(hidden).linear_cross_entropy(
        hidden, weight, labels, bias, options, gradient_filter, max_block_bytes
    )


def linear_cross_entropy_and_grad(
    hidden: Any,
    weight: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
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
    gradient_filter: float = 0.0,
    max_block_bytes: int | None = None,
) -> tuple[Any, LinearGrad]:
    r"""Compute the loss of `linear_cross_entropy` and its gradients by hidden states, weight and bias.

    With :math:`g_{ij}` the gradient by the logits, that of `softmax_cross_entropy_and_grad`:

    .. math::

        \frac{\partial\,\mathrm{loss}}{\partial h_{ik}} = \sum_j g_{ij} W_{jk}, \qquad
        \frac{\partial\,\mathrm{loss}}{\partial W_{jk}} = \sum_i g_{ij} h_{ik}, \qquad
        \frac{\partial\,\mathrm{loss}}{\partial c_j} = \sum_i g_{ij} .

    That is three matrix products, one for the logits and two for the gradients, in one sweep over blocks of rows. Where
    so few rows fit `max_block_bytes` that blocks of classes are made as well, it is four: the gradient needs sums over
    all classes, and by then the logits have to be computed again.

    Parameters
    ----------
    hidden, weight, labels, bias
        As in `linear_cross_entropy`.
    reduction, sample_weight, class_weight, ignore_index, label_smoothing
        As in `softmax_cross_entropy`; for ``"none"`` the gradients are those of the sum of the rows' losses.
    temperature, softcap, logit_bias, z_loss, focal_gamma, poly_epsilon
        As in `softmax_cross_entropy`.
    gradient_filter : float
        With t > 0, the gradients leave out, block by block, the classes of which no row of the block has a
        :math:`|g_{ij}|` of t or more, before :math:`g` is multiplied by the row's share :math:`s_i` in the reduction
        and its `sample_weight`. Few classes of a trained model's are left, and products of these alone are quick:
        2^-12 is below what bfloat16 could add to 1. With M_i the classes left out for row i, and N_j the rows for
        which class j is, the gradients by :math:`h_{ik}`, :math:`W_{jk}` and :math:`c_j` are less than
        :math:`t\,|s_i| \sum_{j \in M_i} |W_{jk}|`, :math:`t \sum_{i \in N_j} |s_i h_{ik}|` and
        :math:`t \sum_{i \in N_j} |s_i|` away. 0, the default, leaves out nothing.
    max_block_bytes : int, optional
        As in `linear_cross_entropy`.

    Returns
    -------
    loss : scalar, or array of the rows' shape
        As `linear_cross_entropy` returns it.
    grad : LinearGrad
        ``grad.hidden``, ``grad.weight`` and ``grad.bias``, of the shapes and dtypes of what they are by (float64 for
        integers). 0 in ignored rows. Sums over rows are made in the dtype of the logits.

    Raises
    ------
    LabelError, ValueError, TypeError
        As `linear_cross_entropy`.

    References
    ----------
    Those of `linear_cross_entropy`; the filter is that of "Cut Your Losses in Large-Vocabulary Language Models".

    Examples
    --------
    >>> import numpy as np
    >>> import softmaxloss as sl
    >>> hidden = np.array([[1.0, 2.0], [0.0, -1.0]])
    >>> weight = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    >>> loss, grad = sl.linear_cross_entropy_and_grad(hidden, weight, [2, 1], bias=np.zeros(3))
    >>> print(grad.hidden.round(6))
    [[-0.122364 -0.045015]
     [-0.105971  0.211942]]
    >>> print(grad.weight.round(6))
    [[ 0.122364  0.138758]
     [ 0.045015  0.301972]
     [-0.16738  -0.44073 ]]
    >>> print(grad.bias.round(6))
    [ 0.228335 -0.166926 -0.061409]
    """
    weighting = (reduction, sample_weight, class_weight, ignore_index, label_smoothing)
    formula = (temperature, softcap, logit_bias, z_loss, focal_gamma, poly_epsilon)
    options = GivenOptions(*(weighting + formula))
    loss, gradients = backend_of(hidden).linear_cross_entropy_and_grad(
        hidden, weight, labels, bias, options, gradient_filter, max_block_bytes
    )
    return loss, LinearGrad(*gradients)
