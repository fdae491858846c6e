"""A short way for calls without options: of few rows, what they ask of Python is as much as the work itself."""

import numpy as np
import torch
from torch import Tensor

from softmaxloss import _native
from softmaxloss.backends.torch.answers import loss_and_gradient
from softmaxloss.backends.torch.doors import nothing_watches
from softmaxloss.backends.torch.functions import Answer, Loss, attach_in_place
from softmaxloss.backends.torch.problem import AS_THEY_ARE, Problem, problem_of
from softmaxloss.backends.torch.spare import LARGE_BYTES, large_like
from softmaxloss.options import GivenOptions

_TENSORS = (Tensor, torch.nn.Parameter)


def loss(logits: Tensor, labels: Tensor, reduction: str) -> Tensor | None:
    """Return the mean or the sum over rows, class axis last, or None: then the others have the answer or the error."""
    if not _is_plain(logits, labels):
        return None
    dtype = logits.dtype
    values, indices, mean = logits.detach().numpy(), labels.numpy(), reduction == "mean"
    if not (logits.requires_grad and torch.is_grad_enabled()):
        found = _native.quick_loss(values, indices, None, mean)
        return None if found is None else torch.scalar_tensor(found, dtype=dtype)
    gradient = np.empty_like(values) if values.nbytes < LARGE_BYTES else large_like(values)
    found = _native.quick_loss(values, indices, gradient, mean)
    if found is None:
        return None
    number, problem = torch.scalar_tensor(found, dtype=dtype), _mean_of if mean else _sum_of
    answer = Answer(number, torch.from_numpy(gradient), (logits, labels), problem)
    # (PyTorch has no types for `apply`.)
    attached: Tensor = Loss.apply(logits, answer)  # type: ignore[no-untyped-call]
    return attached


def loss_in_place(logits: Tensor, labels: Tensor, reduction: str) -> Tensor | None:
    """Return the same, its gradient in the place of the logits, which must be dense and no leaf's; or None."""
    if not (_is_plain(logits, labels) and logits.is_contiguous() and logits.requires_grad and torch.is_grad_enabled()):
        return None
    if logits.is_leaf or logits._is_view():
        return None
    mean = reduction == "mean"

    def write() -> Tensor:
        values = logits.detach().numpy()
        found = _native.quick_loss(values, labels.numpy(), values, mean)
        if found is None:
            problem = (_mean_of if mean else _sum_of)((logits.detach(), labels))
            return loss_and_gradient(problem, problem.logits)[0]
        torch.autograd.graph.increment_version(logits)
        return torch.scalar_tensor(found, dtype=logits.dtype)

    return attach_in_place(logits, write, by_row=False)


def _is_plain(logits: Tensor, labels: Tensor) -> bool:
    """Tell whether the kernel for calls without options can look at these."""
    if type(logits) not in _TENSORS or type(labels) is not Tensor or not nothing_watches():
        return False
    dtype = logits.dtype
    return (
        (dtype is torch.float32 or dtype is torch.float64)
        and labels.dtype is torch.int64
        and logits.is_cpu
        and labels.is_cpu
        and logits.layout is torch.strided
        and logits.ndim == 2
        and not logits.is_neg()
    )


def _mean_of(tensors: tuple[Tensor | None, ...]) -> Problem:
    logits, labels = tensors
    assert logits is not None
    return problem_of(logits, labels, -1, GivenOptions("mean"), AS_THEY_ARE)._replace(loss_dtype=logits.dtype)


def _sum_of(tensors: tuple[Tensor | None, ...]) -> Problem:
    problem = _mean_of(tensors)
    return problem._replace(options=problem.options._replace(reduction="sum"))
