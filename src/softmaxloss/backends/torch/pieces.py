"""The pieces of the loss by themselves, on tensors: softmax, its logarithm, one-hot labels, and cross-entropy."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softmaxloss.backends import numpy as numpy_backend
from softmaxloss.backends.torch import formula
from softmaxloss.backends.torch.answers import check_indices, check_labels
from softmaxloss.backends.torch.doors import is_plain
from softmaxloss.backends.torch.problem import Problem, as_indices, as_logits, as_tensor, index_of_row, problem_of
from softmaxloss.backends.torch.views import kernels_take, view
from softmaxloss.labels import not_a_distribution, tolerance_of
from softmaxloss.options import GivenOptions, GivenTransform, integer


def softmax(logits: Tensor, *, axis: int, temperature: float, logarithm: bool) -> Tensor:
    """Return softmax or its logarithm, of the logits' shape and dtype."""
    z = as_logits(logits, axis)
    if not _kernel_serves(z):
        result = _log_softmax(z, temperature) if logarithm else _softmax(z, temperature)
    elif torch.is_grad_enabled() and z.requires_grad:
        # (PyTorch has no types for `apply`.)
        result = (_LogSoftmax if logarithm else _Softmax).apply(z, temperature)  # type: ignore[no-untyped-call]
    else:
        result = _by_kernel(z, temperature, logarithm)
    return result.movedim(-1, axis)


def logsumexp(logits: Tensor, *, axis: int, keepdims: bool) -> Tensor:
    """Return the logsumexp of each row, in the logits' dtype."""
    z = as_logits(logits, axis)
    if not _kernel_serves(z):
        result = torch.logsumexp(z, -1)
    elif torch.is_grad_enabled() and z.requires_grad:
        # (PyTorch has no types for `apply`.)
        result = _LogSumExp.apply(z)  # type: ignore[no-untyped-call]
    else:
        result = _lse_by_kernel(z)
    return result.unsqueeze(axis) if keepdims else result


def _kernel_serves(z: Tensor) -> bool:
    return is_plain(z) and kernels_take(z.dtype)


def _tensor(array: Any, dtype: torch.dtype) -> Tensor:
    array = np.asarray(array)
    if dtype == torch.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _by_kernel(z: Tensor, temperature: float, logarithm: bool) -> Tensor:
    return _tensor(numpy_backend.softmax(view(z), axis=-1, temperature=temperature, logarithm=logarithm), z.dtype)


def _lse_by_kernel(z: Tensor) -> Tensor:
    return _tensor(numpy_backend.logsumexp(view(z), axis=-1, keepdims=False), z.dtype)


def _softmax(z: Tensor, temperature: float) -> Tensor:
    return torch.softmax(_computed(z) / temperature, -1).to(z.dtype)


def _log_softmax(z: Tensor, temperature: float) -> Tensor:
    gaps, above, base = formula.gaps_of(_computed(z) / temperature)
    valid = torch.where(base.detach().isfinite(), 1.0, math.nan).to(gaps.dtype)
    return ((-gaps - above.unsqueeze(-1)) * valid.unsqueeze(-1)).to(z.dtype)


def _computed(z: Tensor) -> Tensor:
    return z if z.dtype == torch.float64 else z.float()


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float) -> Tensor:
        p = _by_kernel(z, temperature, logarithm=False)
        ctx.temperature = temperature
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (p,) = ctx.saved_tensors
        p, up = _computed(p), _computed(upstream)
        return (p * (up - (p * up).sum(-1, keepdim=True)) / ctx.temperature).to(upstream.dtype), None


class _LogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float) -> Tensor:
        log_p = _by_kernel(z, temperature, logarithm=True)
        ctx.temperature = temperature
        ctx.save_for_backward(log_p)
        return log_p

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (log_p,) = ctx.saved_tensors
        up = _computed(upstream)
        gradient = up - torch.exp(_computed(log_p)) * up.sum(-1, keepdim=True)
        return (gradient / ctx.temperature).to(upstream.dtype), None


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        lse = _lse_by_kernel(z)
        ctx.save_for_backward(z)
        return lse

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return (torch.softmax(_computed(z), -1) * _computed(upstream).unsqueeze(-1)).to(z.dtype)


def row_statistics(
    logits: Tensor, labels: Any, axis: int, transform: GivenTransform
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor, Tensor | None]:
    """Return each row's loss, logsumexp, log-probability, prediction and rank; those of labels None without them."""
    z = as_logits(logits, axis)
    bias = as_tensor("logit_bias", transform.logit_bias, logits)
    asks = torch.is_grad_enabled() and (z.requires_grad or (bias is not None and bias.requires_grad))
    target = labels if labels is None or isinstance(labels, Tensor) else torch.as_tensor(np.asarray(labels))
    if is_plain(z, bias, target) and kernels_take(z.dtype) and not asks:
        given = transform._replace(logit_bias=view(bias))
        found = numpy_backend.row_statistics(view(z), None if target is None else view(target), -1, given)
        loss, lse, log_probability, prediction, rank = (
            None if x is None else torch.from_numpy(np.asarray(x)) for x in found
        )
        assert lse is not None
        assert prediction is not None
        return loss, lse, log_probability, prediction, rank
    return _row_statistics(z, target, transform)


def _row_statistics(
    z: Tensor, target: Tensor | None, transform: GivenTransform
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor, Tensor | None]:
    given = GivenOptions(
        reduction="none",
        ignore_index=_NO_LABEL,
        temperature=transform.temperature,
        softcap=transform.softcap,
        logit_bias=transform.logit_bias,
    )
    if target is not None and target.shape == z.shape:
        raise ValueError(
            "labels have the logits' shape, which makes them distributions; row_statistics takes class indices, "
            "one dimension less: of one-hot labels, labels.argmax along the class axis"
        )
    anything = torch.zeros(z.shape[:-1], dtype=torch.int64, device=z.device)
    problem = problem_of(z, anything if target is None else target, -1, given)
    if target is not None and problem.on_host:
        assert problem.indices is not None
        check_indices(problem.indices, z.shape[-1], None)
    v = formula.transformed(problem, z.to(problem.dtype))
    _, above, base = formula.gaps_of(v)
    valid = torch.where(base.detach().isfinite(), 1.0, math.nan).to(v.dtype)
    lse, prediction = (base + above) * valid, v.argmax(-1)
    if target is None:
        return None, lse, None, prediction, None
    loss = formula.rows(problem).cross_entropy
    of_label = v.gather(-1, formula.class_indices(problem).unsqueeze(-1))
    return loss, lse, 0.0 - loss, prediction, (v > of_label).sum(-1)


_NO_LABEL = -(1 << 63)


def one_hot(labels: Tensor, num_classes: int, *, axis: int, dtype: Any) -> Tensor:
    """Return one-hot vectors of class indices."""
    classes = integer("num_classes", num_classes)
    if classes < 1:
        raise ValueError(f"num_classes is {classes}; expected at least 1")
    indices = as_indices(labels)
    if is_plain(labels):
        check_indices(indices, classes, None)
    class_axis = integer("axis", axis) + (indices.ndim + 1 if axis < 0 else 0)
    if not 0 <= class_axis <= indices.ndim:
        raise ValueError(f"axis is {axis}; the result has {indices.ndim + 1} dimensions")
    shape = [classes if d == class_axis else 1 for d in range(indices.ndim + 1)]
    positions = torch.arange(classes, device=indices.device).reshape(shape)
    result = (indices.unsqueeze(class_axis) == positions).to(_torch_dtype(dtype))
    if is_plain(labels) or not result.is_floating_point():
        return result
    valid = (indices >= 0) & (indices < classes)
    return torch.where(valid.unsqueeze(class_axis), result, math.nan)


def _torch_dtype(dtype: Any) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    name = np.dtype(dtype).name
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise TypeError(f"dtype is {name}, which no tensor has; pass one of PyTorch's, such as torch.float32")
    return found


def cross_entropy(probabilities: Tensor, labels: Any, axis: int, given: GivenOptions) -> Tensor:
    """Return the cross-entropy of labels and probabilities."""
    if not probabilities.is_floating_point():
        probabilities = probabilities.to(torch.float64)
    problem = problem_of(probabilities, labels, axis, given)
    check_labels(problem)
    wide, y = problem.wide, problem.indices
    p = problem.logits.to(wide)
    weight = None if problem.class_weight is None else formula.class_weights(problem, wide)
    if y is None:
        assert problem.distribution is not None
        target = problem.distribution.to(wide)
        target = target if weight is None else target * weight
        row, kept = formula.weighted(target, -torch.log(p)).sum(-1), None
    else:
        kept = y != problem.options.ignore_index
        safe = formula.class_indices(problem)
        p = torch.where(kept.unsqueeze(-1), p, 1.0)
        row = -torch.log(p.gather(-1, safe.unsqueeze(-1)).squeeze(-1))
        row = row if weight is None else formula.weighted(weight[safe], row)
    row = row * _validity(problem, p, kept)
    return formula.reduced(problem, formula.Rows(row if kept is None else torch.where(kept, row, 0.0), None))


def _validity(problem: Problem, p: Tensor, kept: Tensor | None) -> Tensor:
    """Return 1, but NaN for a row that holds NaN or, where values cannot be looked at, is invalid; else raise."""
    bits = problem.logits.dtype.itemsize * 8
    tolerance = tolerance_of(np.dtype(np.float16)) if bits == 16 else 1e-3
    p, numbers = p.detach(), ~p.detach().isnan().any(-1)
    fits = formula.is_distribution(p, tolerance, p.dtype)
    if kept is not None:
        fits = fits | ~kept
    if problem.on_host:
        wrong = numbers & ~fits
        if wrong.any():
            first = int(wrong.reshape(-1).to(torch.uint8).argmax())
            row = p.reshape(-1, p.shape[-1])[first]
            raise not_a_distribution(
                index_of_row(first, wrong.shape),
                float(row.sum()),
                float(row.min()),
                "probabilities; for logits (raw scores) use softmax_cross_entropy",
            )
    elif problem.indices is not None:
        y = problem.indices
        fits = fits & ((y >= 0) & (y < p.shape[-1]) | (y == problem.options.ignore_index))
    return torch.where(fits & numbers, 1.0, math.nan).to(p.dtype)
