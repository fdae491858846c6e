"""A short way for calls without options: of few rows, what they ask of Python is as much as the work itself."""

from collections.abc import Callable

import torch
from torch import Tensor

from softmaxloss import _native
from softmaxloss.backends.torch.answers import loss_and_gradient
from softmaxloss.backends.torch.doors import nothing_watches
from softmaxloss.backends.torch.functions import Answer, Loss, attach_in_place
from softmaxloss.backends.torch.problem import AS_THEY_ARE, Problem, problem_of
from softmaxloss.backends.torch.views import new_like
from softmaxloss.options import GivenOptions

_TENSORS = (Tensor, torch.nn.Parameter)
# `Loss.apply` without what it does in Python for torch.func, which sees no call that comes here.
_attach = super(torch.autograd.Function, Loss).apply
_is_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor


def loss(logits: Tensor, labels: Tensor, reduction: str) -> Tensor | None:
    """Return the mean or the sum over rows, class axis last, or None: then the others have the answer or the error."""
    if not _is_plain(logits, labels):
        return None
    number, mean = logits.new_empty(()), reduction == "mean"
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return number if _compute(logits, labels, None, number, mean) else None
    gradient = new_like(logits)
    if not _compute(logits, labels, gradient, number, mean):
        return None
    answer = Answer(number, gradient, (logits, labels), _mean_of if mean else _sum_of)
    # (PyTorch has no types for `apply`.)
    attached: Tensor = _attach(logits, answer)  # type: ignore[no-untyped-call]
    return attached


def loss_in_place(logits: Tensor, labels: Tensor, reduction: str) -> Tensor | None:
    """Return the same, its gradient in the place of the logits, which must be no leaf's; or None."""
    if not (_is_plain(logits, labels) and logits.requires_grad and torch.is_grad_enabled()):
        return None
    if logits.is_leaf or logits._is_view():
        return None
    mean = reduction == "mean"

    def write() -> Tensor:
        number = logits.new_empty(())
        if not _compute(logits, labels, logits, number, mean):
            problem = (_mean_of if mean else _sum_of)((logits.detach(), labels))
            return loss_and_gradient(problem, problem.logits)[0]
        torch.autograd.graph.increment_version(logits)
        return number

    return attach_in_place(logits, write, by_row=False)


def _is_plain(logits: Tensor, labels: Tensor) -> bool:
    """Tell whether the kernel for calls without options can look at these: dense matrices, and their labels."""
    if type(logits) not in _TENSORS or type(labels) is not Tensor or not nothing_watches():
        return False
    dtype = logits.dtype
    return (
        (dtype is torch.float32 or dtype is torch.float64)
        and labels.dtype is torch.int64
        and logits.is_cpu
        and labels.is_cpu
        and logits.layout is torch.strided
        and labels.layout is torch.strided
        and logits.ndim == 2
        and labels.shape == logits.shape[:1]
        and logits.numel() > 0
        and logits.is_contiguous()
        and labels.is_contiguous()
        and not (logits.is_neg() or labels.is_neg())
        and not (_is_wrapped(logits) or _is_wrapped(labels))  # kept from a transform that has ended
    )


def _compute(logits: Tensor, labels: Tensor, gradient: Tensor | None, number: Tensor, mean: bool) -> bool:
    """Fill `number` with the loss, and `gradient`; or tell that a label is no class.

    By addresses: to make arrays of small tensors takes longer than the kernel.
    """
    rows, classes = logits.shape
    return _native.quick_loss_at(
        logits.data_ptr(),
        labels.data_ptr(),
        0 if gradient is None else gradient.data_ptr(),
        number.data_ptr(),
        rows,
        classes,
        logits.dtype is torch.float64,
        mean,
    )


def _mean_of(tensors: tuple[Tensor | None, ...]) -> Problem:
    logits, labels = tensors
    assert logits is not None
    return problem_of(logits, labels, -1, GivenOptions("mean"), AS_THEY_ARE)._replace(loss_dtype=logits.dtype)


def _sum_of(tensors: tuple[Tensor | None, ...]) -> Problem:
    problem = _mean_of(tensors)
    return problem._replace(options=problem.options._replace(reduction="sum"))
