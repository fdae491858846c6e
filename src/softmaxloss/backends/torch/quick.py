"""A short way for calls without options: of few rows, what they ask of Python is as much as the work itself."""

import numpy as np
import torch
from torch import Tensor

from softmaxloss import _native
from softmaxloss.backends.torch.doors import nothing_watches
from softmaxloss.backends.torch.functions import Answer, Loss
from softmaxloss.backends.torch.problem import AS_THEY_ARE, Problem, problem_of
from softmaxloss.options import GivenOptions

_MOST_ROWS = 4096  # that the kernel for such calls takes
_TENSORS = (Tensor, torch.nn.Parameter)


def loss(logits: Tensor, labels: Tensor, reduction: str) -> Tensor | None:
    """Return the mean or the sum over rows, class axis last, or None: then the others have the answer or the error."""
    if type(logits) not in _TENSORS or type(labels) is not Tensor or not nothing_watches():
        return None
    dtype = logits.dtype
    if (
        (dtype is not torch.float32 and dtype is not torch.float64)
        or labels.dtype is not torch.int64
        or not (logits.is_cpu and labels.is_cpu)
        or logits.layout is not torch.strided
        or logits.ndim != 2
        or len(logits) > _MOST_ROWS
        or logits.is_neg()
    ):
        return None
    values, indices, mean = logits.detach().numpy(), labels.numpy(), reduction == "mean"
    if not (logits.requires_grad and torch.is_grad_enabled()):
        found = _native.quick_loss(values, indices, None, mean)
        return None if found is None else torch.scalar_tensor(found, dtype=dtype)
    gradient = np.empty_like(values)
    found = _native.quick_loss(values, indices, gradient, mean)
    if found is None:
        return None
    number, problem = torch.scalar_tensor(found, dtype=dtype), _mean_of if mean else _sum_of
    answer = Answer(number, torch.from_numpy(gradient), (logits, labels), problem)
    # (PyTorch has no types for `apply`.)
    attached: Tensor = Loss.apply(logits, answer)  # type: ignore[no-untyped-call]
    return attached


def _mean_of(tensors: tuple[Tensor | None, ...]) -> Problem:
    logits, labels = tensors
    assert logits is not None
    return problem_of(logits, labels, -1, GivenOptions("mean"), AS_THEY_ARE)._replace(loss_dtype=logits.dtype)


def _sum_of(tensors: tuple[Tensor | None, ...]) -> Problem:
    problem = _mean_of(tensors)
    return problem._replace(options=problem.options._replace(reduction="sum"))
