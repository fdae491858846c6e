"""PyTorch's linear cross-entropy, a last layer with its loss: the function and its module."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from softmaxloss.backends.torch import linear, linear_parallel
from softmaxloss.backends.torch.doors import is_under_autocast
from softmaxloss.backends.torch.linear_problem import LinearProblem, linear_problem_of
from softmaxloss.backends.torch.problem import AS_THEY_ARE, as_indices
from softmaxloss.dropins.errors import as_pytorchs, check_class_weight, check_tensors, reduction_of
from softmaxloss.options import GivenOptions, integer

if TYPE_CHECKING:
    from torch.nn import LinearCrossEntropyOptions

_IGNORED = -100  # PyTorch's


def linear_cross_entropy(
    input: Tensor,  # noqa: A002  # PyTorch's name
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: "LinearCrossEntropyOptions | None" = None,
    sample_weight: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: Tensor | None = None,
    z_loss: float = 0.0,
    focal_gamma: float = 0.0,
    poly_epsilon: float = 0.0,
    gradient_filter: float = 0.0,
    max_block_bytes: int | None = None,
    shift: int = 0,
    group: Any = None,
    sizes: Sequence[int] | None = None,
) -> Tensor:
    r"""Compute a linear layer and the cross-entropy of its logits, which are never there all at once.

    The signature is that of ``torch.nn.functional.linear_cross_entropy``, and so is the answer, to the rounding of the
    products: that of ``cross_entropy(torch.nn.functional.linear(input, linear_weight, linear_bias), target, ...)``.

    In plain eager mode, and compiled by `torch.compile`, blocks of logits are computed one after another in one buffer.
    A loss alone takes one matrix product; with gradients for ``"mean"`` and ``"sum"`` three, two where weight or input
    ask for none; for ``"none"``, whose rows' factors come with backward, four. Rows that are ignored take none, and
    what they hold reaches nothing. Under `torch.func`, forward mode and `torch.export`, for derivatives of
    derivatives, and where `sample_weight`, `logit_bias` or probabilities ask for gradients, all logits are there.

    Parameters
    ----------
    input : Tensor, (D,) or (N, D)
        Hidden states: float16, bfloat16, float32 or float64. With `shift`, (..., T, D).
    linear_weight : Tensor, (C, D) or (C, d1, ..., D)
        One row a class, in the input's dtype; of more dimensions, one row a class for each of the losses (d1, ...) that
        each row of the input then has.
    target : Tensor
        Class indices in ``[0, C)`` or `ignore_index`, of shape (), (N,) or (N, d1, ...) and any integer dtype; or
        probabilities (C,), (N, C) or (N, C, d1, ...), taken as they are. With `shift`, indices (..., T).
    linear_bias : Tensor, (C,) or (C, d1, ...), optional
        Added to the logits.
    weight : Tensor, (C,), optional
        One weight a class, in the input's dtype. No gradient goes through it.
    reduction : {"mean", "sum", "none"}
        As in `cross_entropy`.
    ignore_index : int, optional
        Rows with this index label have loss 0 and gradient 0, and count in no mean; -100 unless given. Not for
        probabilities.
    label_smoothing : float
        Share of each target, in [0, 1], that is spread evenly over all classes.
    options : torch.nn.LinearCrossEntropyOptions, optional
        Checked, and changes nothing: PyTorch's blocks are of no use here, and no option costs precision.
    sample_weight : Tensor of the losses' shape, optional
        One weight >= 0 a loss. With `shift`, of the target's shape.
    temperature, softcap, logit_bias, z_loss, focal_gamma, poly_epsilon
        As in `softmaxloss.softmax_cross_entropy`.
    gradient_filter, max_block_bytes
        As in `softmaxloss.linear_cross_entropy`.
    shift : int
        For causal language models: each position is to predict the token that is so many positions later. Pairs
        ``input[..., :-shift, :]`` with ``target[..., shift:]``, without a copy of either's slices.
    group : torch.distributed.ProcessGroup, optional
        The classes are spread over its processes, ``torch.distributed.group.WORLD`` for all that there are: as in
        `vocab_parallel_cross_entropy`, `linear_weight`, `linear_bias`, `weight` and `logit_bias` are of this process's
        classes (c), and all else is the same in every process, which gradients are wanted included. The gradient by
        `input` is that of all classes; there are first derivatives alone, and no `gradient_filter`.
    sizes : sequence of int, optional
        How many classes each process of the group holds, as `class_slices` finds it.

    Returns
    -------
    Tensor
        Of shape (), (N,) or (N, d1, ...) for ``reduction="none"`` (with `shift`, of ``target[..., shift:]``), else a
        scalar; in the input's dtype, float32 under `torch.autocast`, where the products are in its dtype. Gradients of
        16-bit numbers are added up in float32.

    Raises
    ------
    LabelError
        A label outside ``[0, C)``: an `IndexError`, as PyTorch's. On other devices, and where values cannot be looked
        at, such a row is NaN instead, loss and gradient.
    ArgumentError
        Shapes that do not match, an option out of its range: a `ValueError`, `RuntimeError` and `IndexError`.
    DtypeError
        A dtype or kind of argument that is not taken: a `TypeError` and `NotImplementedError`.

    See Also
    --------
    softmaxloss.linear_cross_entropy : Any leading dimensions; distributions are checked.

    References
    ----------
    ``torch.nn.functional.linear_cross_entropy``. Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models",
    2025.

    Examples
    --------
    >>> import torch
    >>> from softmaxloss.torch import linear_cross_entropy
    >>> _ = torch.manual_seed(0)
    >>> hidden = torch.randn(2, 6, 3, requires_grad=True)  # two sequences of six tokens
    >>> weight = torch.randn(5, 3, requires_grad=True)
    >>> tokens = torch.randint(5, (2, 6))
    >>> loss = linear_cross_entropy(hidden, weight, tokens, shift=1)
    >>> loss.backward()
    >>> hidden.grad.shape, weight.grad.shape
    (torch.Size([2, 6, 3]), torch.Size([5, 3]))
    """
    if has_torch_function_variadic(input, linear_weight, target, linear_bias, weight):
        answer: Tensor = handle_torch_function(
            linear_cross_entropy,
            (input, linear_weight, target, linear_bias, weight),
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            options=options,
            sample_weight=sample_weight,
            temperature=temperature,
            softcap=softcap,
            logit_bias=logit_bias,
            z_loss=z_loss,
            focal_gamma=focal_gamma,
            poly_epsilon=poly_epsilon,
            gradient_filter=gradient_filter,
            max_block_bytes=max_block_bytes,
            shift=shift,
            group=group,
            sizes=sizes,
        )
        return answer
    index = _IGNORED if ignore_index is None else ignore_index
    formula = (temperature, softcap, logit_bias, z_loss, focal_gamma, poly_epsilon)
    given = GivenOptions(reduction, sample_weight, weight, index, label_smoothing, *formula)
    arguments = _Arguments(
        input, linear_weight, target, linear_bias, given, ignore_index, options, shift, gradient_filter, max_block_bytes
    )
    try:
        if group is not None:
            loss: Tensor = linear_parallel.loss(
                input, linear_weight, lambda: _problem(arguments.checked()), group, sizes
            )
        else:
            arguments = arguments.checked()
            if not linear_weight.shape[0]:
                # No classes: where there are no rows either, PyTorch has an answer; else an error.
                logits = input.new_empty(*input.shape[:-1], *linear_weight.shape[:-1])
                return torch.nn.functional.cross_entropy(logits, arguments.target, reduction=arguments.given.reduction)
            loss = linear.loss(_problem(arguments))
        return loss[..., :-shift] if shift and loss.ndim else loss
    except (TypeError, ValueError) as error:
        raise as_pytorchs(error) from None


class _Arguments(NamedTuple):
    """What `linear_cross_entropy` is called with."""

    input: Tensor
    linear_weight: Tensor
    target: Tensor
    linear_bias: Tensor | None
    given: GivenOptions
    ignore_index: int | None
    options: Any
    shift: int
    gradient_filter: float
    max_block_bytes: int | None

    def checked(self) -> "_Arguments":
        """Return them checked, the target where it is to be predicted; raise `TypeError` or `ValueError`."""
        hidden, weight, target, given = self.input, self.linear_weight, self.target, self.given
        check_tensors(
            {"input": hidden, "linear_weight": weight, "target": target},
            {"linear_bias": self.linear_bias, "weight": given.class_weight},
        )
        _check_options(self.options, hidden, weight)
        given = given._replace(reduction=reduction_of(given.reduction))
        places = integer("shift", self.shift)
        if places:
            _check_shift(hidden, weight, target, places)
            target, sample_weight = _moved_up(as_indices(target), places, given.ignore_index), given.sample_weight
            if isinstance(sample_weight, Tensor) and sample_weight.shape == target.shape:
                given = given._replace(sample_weight=_moved_up(sample_weight, places, 0))
        else:
            _check_shapes(hidden, weight, self.linear_bias)
        return self._replace(target=target, given=given)


def _problem(arguments: _Arguments) -> LinearProblem:
    """Return the problem with PyTorch's rules where these are other than ours."""
    hidden, weight, target, bias, given, ignore_index = arguments[:6]
    if not hidden.is_floating_point():
        raise TypeError(f"input has dtype {hidden.dtype}; expected floating-point hidden states: input.float()")
    if hidden.ndim == 1 and target.shape == (1,) and weight.shape[:1] != (1,):
        target = target.reshape(())
    axis = 1 if weight.ndim > 2 else -1
    problem = linear_problem_of(hidden, weight, target, bias, given, *arguments[8:], axis=axis, tolerance=AS_THEY_ARE)
    under_autocast = is_under_autocast(hidden.device.type)
    probabilities = problem.losses.distribution is not None
    if probabilities and ignore_index is not None:
        raise ValueError(
            f"ignore_index is {ignore_index}, and the target holds probabilities, as its shape says; it is for class "
            "indices alone: leave it out"
        )
    check_class_weight(given.class_weight, hidden.dtype, probabilities=probabilities, under_autocast=under_autocast)
    computed = under_autocast and problem.dtype.itemsize == 2
    loss_dtype = torch.float32 if computed else problem.dtype
    return problem._replace(losses=problem.losses._replace(loss_dtype=loss_dtype))


def _check_shapes(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise `ValueError` for shapes that PyTorch does not take."""
    if hidden.ndim not in (1, 2):
        raise ValueError(
            f"input has {hidden.ndim} dimensions; expected 1 or 2: flatten the others, input.flatten(0, -2), and those "
            "of the target; for tokens that predict those after them pass shift=1; softmaxloss.linear_cross_entropy "
            "takes any number"
        )
    if weight.ndim > 2 and hidden.ndim == 1:
        raise ValueError(
            f"linear_weight has shape {tuple(weight.shape)}, which gives each row of a batch several losses, and input "
            f"has shape {tuple(hidden.shape)}; expected (N, {weight.shape[-1]}): input[None]"
        )
    if bias is not None and bias.shape != weight.shape[:-1]:
        raise ValueError(f"linear_bias has shape {tuple(bias.shape)}; expected {tuple(weight.shape[:-1])}")


def _check_shift(hidden: Tensor, weight: Tensor, target: Tensor, places: int) -> None:
    if places < 0:
        raise ValueError(f"shift is {places}; expected 0, or how many positions later the token to predict is")
    if hidden.ndim < 2 or weight.ndim != 2 or target.shape != hidden.shape[:-1]:
        raise ValueError(
            f"with shift={places}, input has shape {tuple(hidden.shape)}, linear_weight {tuple(weight.shape)} and "
            f"target {tuple(target.shape)}; expected (..., T, D), (C, D) and class indices (..., T)"
        )


def _moved_up(values: Tensor, places: int, filling: int) -> Tensor:
    """Return values of tokens where these are to be predicted, so many places before them."""
    length = values.shape[-1]
    kept = values[..., min(places, length) :]
    return torch.nn.functional.pad(kept, (0, length - kept.shape[-1]), value=filling)


def _check_options(options: Any, hidden: Tensor, weight: Tensor) -> None:
    """Raise for options that PyTorch would not take; its own checks are asked."""
    if options is None:
        return
    expected = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if expected is None or not isinstance(options, expected):
        raise TypeError(f"options is a {type(options).__name__}; expected torch.nn.LinearCrossEntropyOptions, or None")
    if hidden.ndim and weight.ndim:
        rows, features = hidden.shape[:-1].numel(), hidden.shape[-1]
        options._adjust(rows, max(1, features), weight.shape[0], hidden.dtype, hidden.device)
