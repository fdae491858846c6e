"""The loss by the formula of the docs in plain PyTorch operations, which PyTorch itself differentiates every way.

What the tests of the PyTorch door compare with, in float64: of the kernels' digits tests/exact.py is the judge.
"""

import torch


def loss(
    logits,
    labels,
    class_weight=None,
    *,
    reduction="mean",
    ignore_index=-100,
    label_smoothing=0.0,
    sample_weight=None,
    temperature=1.0,
    softcap=None,
    logit_bias=None,
    z_loss=0.0,
    focal_gamma=0.0,
    poly_epsilon=0.0,
):
    """Return the reduced loss; the class axis is PyTorch's, the second or the only one."""
    axis = 1 if logits.ndim > 1 else 0
    classes = logits.shape[axis]
    v = _by_rows(logits, axis) / temperature
    if softcap is not None:
        v = softcap * torch.tanh(v / softcap)
    if logit_bias is not None:
        v = v + logit_bias
    lse = torch.logsumexp(v, -1)
    log_p = v - lse.unsqueeze(-1)
    indices = labels.ndim == logits.ndim - 1
    if indices:
        kept = labels != ignore_index
        y = torch.where(kept, labels, 0).long()
        q = (y.unsqueeze(-1) == torch.arange(classes, device=v.device)).to(v.dtype)
    else:
        kept = torch.ones(lse.shape, dtype=torch.bool, device=v.device)
        q = _by_rows(labels, axis).to(v.dtype)
    w = torch.ones(classes, dtype=v.dtype, device=v.device) if class_weight is None else class_weight.to(v.dtype)
    smoothed = (1 - label_smoothing) * q + label_smoothing / classes
    terms = -(w * smoothed * log_p).sum(-1)
    if focal_gamma or poly_epsilon:
        m = -torch.expm1(log_p.gather(-1, y.unsqueeze(-1)).squeeze(-1))
        terms = m**focal_gamma * terms + w[y] * poly_epsilon * m ** (focal_gamma + 1)
    s = torch.ones_like(lse) if sample_weight is None else sample_weight.to(v.dtype)
    # Not s * kept: what an ignored row's logits hold is nobody's business.
    terms, squares = (torch.where(kept, s * part, 0) for part in (terms, lse**2))
    if reduction == "none":
        return terms + z_loss * squares
    if reduction == "sum":
        return (terms + z_loss * squares).sum()
    counted = torch.where(kept, s, 0)
    divisor = (torch.where(kept, s * w[y], 0) if indices else counted).sum()
    total = terms.sum() / divisor
    return total + z_loss * squares.sum() / counted.sum() if z_loss else total


def _by_rows(array, axis):
    return array.movedim(axis, -1)
