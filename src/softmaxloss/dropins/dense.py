"""PyTorch's cross-entropy: the function and its module."""

import torch
from torch import Tensor
from torch.nn import _reduction
from torch.overrides import handle_torch_function, has_torch_function_variadic

from softmaxloss.backends.torch import answers, quick
from softmaxloss.backends.torch.doors import is_under_autocast
from softmaxloss.backends.torch.problem import AS_THEY_ARE, Problem, problem_of
from softmaxloss.dropins.errors import as_pytorchs, check_class_weight, check_tensors, reduction_of
from softmaxloss.options import GivenOptions, integer


def cross_entropy(
    input: Tensor,  # noqa: A002  # PyTorch's name
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    sample_weight: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: Tensor | None = None,
    z_loss: float = 0.0,
    focal_gamma: float = 0.0,
    poly_epsilon: float = 0.0,
    inplace: bool = False,
) -> Tensor:
    r"""Compute the cross-entropy of logits and targets as ``torch.nn.functional.cross_entropy`` does.

    The formula is that of `softmaxloss.softmax_cross_entropy`; for what PyTorch defines the answer is PyTorch's. In
    plain eager mode on the CPU a native kernel computes loss and gradient in one pass, and `torch.compile` takes
    kernels into its graph. Elsewhere the formula is made of PyTorch's own operations: under `torch.func`, forward mode
    and `torch.export`, for derivatives of derivatives, and on other devices.

    Parameters
    ----------
    input : Tensor, (C,), (N, C) or (N, C, d1, ...)
        Logits: float16, bfloat16, float32 or float64, of any strides.
    target : Tensor
        Class indices in ``[0, C)`` or `ignore_index`, of the input's shape without C and any integer dtype; or
        probabilities of the input's shape, taken as they are, whatever they sum to and negative ones too.
    weight : Tensor, (C,), optional
        One weight a class, in the input's dtype. No gradient goes through it.
    size_average, reduce : bool, optional
        Deprecated, as in PyTorch: see `reduction`.
    ignore_index : int
        Rows with this index label have loss 0 and gradient 0, and count in no mean.
    reduction : {"mean", "sum", "none"}
        ``"mean"`` divides by the sum of the labels' weights; for probabilities by the number of rows.
    label_smoothing : float
        Share of each target, in [0, 1], that is spread evenly over all classes.
    sample_weight : Tensor of the rows' shape, optional
        One weight >= 0 a row.
    temperature, softcap, logit_bias, z_loss, focal_gamma, poly_epsilon
        As in `softmaxloss.softmax_cross_entropy`.
    inplace : bool
        Write the gradient over `input`, which must not be needed any more: no memory of its size is asked for. One
        plain backward pass can follow, nothing else; an operation before that needs its old values for its own
        gradient makes backward raise. Without gradients `input` stays as it is.

    Returns
    -------
    Tensor
        Of the rows' shape for ``reduction="none"``, else a scalar; in the input's dtype, float32 for 16-bit input under
        `torch.autocast`. Gradients go to `input`, and to probabilities, `sample_weight` and `logit_bias` that ask.

    Raises
    ------
    LabelError
        A label outside ``[0, C)``: an `IndexError`, as PyTorch's. On other devices, and where values cannot be looked
        at (`torch.func`, forward mode, `torch.export`), such a row is NaN instead, loss and gradient.
    ArgumentError
        Shapes that do not match, an option out of its range: a `ValueError`, `RuntimeError` and `IndexError`.
    DtypeError
        A dtype or kind of argument that is not taken: a `TypeError` and `NotImplementedError`.

    See Also
    --------
    softmaxloss.softmax_cross_entropy : The class axis anywhere; distributions are checked; the loss of 16-bit logits
        is float32.

    References
    ----------
    ``torch.nn.functional.cross_entropy``.

    Examples
    --------
    >>> import torch
    >>> from softmaxloss.torch import cross_entropy
    >>> logits = torch.tensor([[1.0, 2.0, 3.0], [3.0, 0.0, -1.0]], requires_grad=True)
    >>> loss = cross_entropy(logits, torch.tensor([1, 0]), label_smoothing=0.1)
    >>> loss.backward()
    >>> print(f"{loss:.4f}", logits.grad.sum(1).abs().max() < 1e-6)
    0.8534 tensor(True)
    """
    if has_torch_function_variadic(input, target, weight):
        answer: Tensor = handle_torch_function(
            cross_entropy,
            (input, target, weight),
            input,
            target,
            weight,
            size_average,
            ignore_index,
            reduce,
            reduction,
            label_smoothing,
            sample_weight=sample_weight,
            temperature=temperature,
            softcap=softcap,
            logit_bias=logit_bias,
            z_loss=z_loss,
            focal_gamma=focal_gamma,
            poly_epsilon=poly_epsilon,
            inplace=inplace,
        )
        return answer
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    if (
        weight is None
        and label_smoothing == 0.0
        and ignore_index == -100
        and (reduction == "mean" or reduction == "sum")
        and sample_weight is None
        and temperature == 1.0
        and softcap is None
        and logit_bias is None
        and z_loss == 0.0
        and focal_gamma == 0.0
        and poly_epsilon == 0.0
    ):
        loss = (quick.loss_in_place if inplace else quick.loss)(input, target, reduction)
        if loss is not None:
            return loss
    formula = (temperature, softcap, logit_bias, z_loss, focal_gamma, poly_epsilon)
    given = GivenOptions(reduction, sample_weight, weight, ignore_index, label_smoothing, *formula)
    return _loss(input, target, given, inplace)


def _loss(logits: Tensor, target: Tensor, given: GivenOptions, inplace: bool) -> Tensor:
    """Return the loss by any options, with errors that are PyTorch's too."""
    try:
        check_tensors({"input": logits, "target": target}, {"weight": given.class_weight})
        if not logits.is_floating_point():
            raise TypeError(f"input has dtype {logits.dtype}; expected floating-point logits: input.float()")
        if logits.ndim and logits.shape[_class_axis(logits)] == 0:
            # No classes: where there are no rows either, PyTorch has an answer; else an error.
            return torch.nn.functional.cross_entropy(logits, target, reduction=given.reduction)
        problem = _problem(logits, target, given)
        return answers.loss_in_place(problem, logits) if inplace else answers.loss(problem)
    except (TypeError, ValueError) as error:
        raise as_pytorchs(error) from None


def _class_axis(logits: Tensor) -> int:
    return 1 if logits.ndim > 1 else -1


def _problem(logits: Tensor, target: Tensor, given: GivenOptions) -> Problem:
    """Return the problem with PyTorch's rules where these are other than ours."""
    axis = _class_axis(logits)
    given = given._replace(reduction=reduction_of(given.reduction))
    if logits.ndim == 1 and target.shape == (1,) and logits.shape != (1,):
        target = target.reshape(())
    under_autocast = is_under_autocast(logits.device.type)
    probabilities = target.shape == logits.shape
    if probabilities and integer("ignore_index", given.ignore_index) >= 0:
        raise ValueError(
            f"ignore_index is {given.ignore_index}, and the target holds probabilities, as its shape says; it is "
            "for class indices alone: leave it at -100"
        )
    check_class_weight(given.class_weight, logits.dtype, probabilities=probabilities, under_autocast=under_autocast)
    problem = problem_of(logits, target, axis, given, AS_THEY_ARE)
    computed = under_autocast and logits.dtype.itemsize == 2
    return problem._replace(loss_dtype=torch.float32 if computed else logits.dtype)


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    r"""The module form of `cross_entropy`: ``torch.nn.CrossEntropyLoss`` in all but speed, and with our options.

    It is a subclass of PyTorch's, with its attributes and state. `logit_bias` becomes a buffer, or a parameter if it is
    one. The weights of rows go to the call: ``criterion(input, target, sample_weight=...)``.

    Parameters
    ----------
    weight, size_average, ignore_index, reduce, reduction, label_smoothing
        As in `cross_entropy`, and in PyTorch.
    temperature, softcap, logit_bias, z_loss, focal_gamma, poly_epsilon, inplace
        As in `cross_entropy`.

    Raises
    ------
    LabelError, ArgumentError, DtypeError
        As `cross_entropy`, when called.

    References
    ----------
    ``torch.nn.CrossEntropyLoss``.

    Examples
    --------
    >>> import torch
    >>> from softmaxloss.torch import CrossEntropyLoss
    >>> criterion = CrossEntropyLoss(label_smoothing=0.1)
    >>> logits = torch.tensor([[1.0, 2.0, 3.0], [3.0, 0.0, -1.0]])
    >>> print(f"{criterion(logits, torch.tensor([1, 0])):.4f}")
    0.8534
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        temperature: float = 1.0,
        softcap: float | None = None,
        logit_bias: Tensor | None = None,
        z_loss: float = 0.0,
        focal_gamma: float = 0.0,
        poly_epsilon: float = 0.0,
        inplace: bool = False,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.temperature = temperature
        self.softcap = softcap
        if isinstance(logit_bias, torch.nn.Parameter):
            self.logit_bias: Tensor | None = logit_bias
        else:
            self.register_buffer("logit_bias", logit_bias)
        self.z_loss = z_loss
        self.focal_gamma = focal_gamma
        self.poly_epsilon = poly_epsilon
        self.inplace = inplace

    def forward(self, input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:  # noqa: A002  # PyTorch's
        """Return the loss of `input`, logits, and `target`."""
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            sample_weight=sample_weight,
            temperature=self.temperature,
            softcap=self.softcap,
            logit_bias=self.logit_bias,
            z_loss=self.z_loss,
            focal_gamma=self.focal_gamma,
            poly_epsilon=self.poly_epsilon,
            inplace=self.inplace,
        )
