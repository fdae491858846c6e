"""The formula of the loss in PyTorch's own operations: on any device, differentiable to any order, for all transforms.

A row in which one class k, the pivot, has more than half of the probability is written relative to it, and its own
exponential kept out of the sum:

    rest = sum_{j != k} exp(v_j - v_k)        -log p_j = (v_k - v_j) + log1p(rest)

so that the loss of a class that is certain to nine digits has every digit, and PyTorch's derivatives of it as well.

Nothing here looks at a value: rows that are invalid become NaN, loss and gradient.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from softmaxloss.backends.torch.problem import AS_THEY_ARE, Problem

LOG_HALF = math.log(0.5)


class Rows(NamedTuple):
    """What is made of each row."""

    cross_entropy: Tensor  # with its focal and poly terms and class weights; 0 where the row is ignored
    square: Tensor | None  # lse^2, where there is a z_loss


def loss(problem: Problem) -> Tensor:
    """Return the reduced loss."""
    return reduced(problem, rows(problem))


def rows(problem: Problem) -> Rows:
    """Return what is made of each row before weights of rows and the reduction."""
    options, dtype = problem.options, problem.dtype
    z = problem.logits.to(dtype)
    kept = _kept(problem)
    if kept is not None:
        z = torch.where(kept.unsqueeze(-1), z, 0.0)  # whatever an ignored row holds, its derivatives are 0
    gaps, above, base = gaps_of(transformed(problem, z))
    if problem.distribution is not None:
        cross_entropy = _of_distribution(problem, problem.distribution, gaps, above)
    else:
        cross_entropy = _of_indices(problem, gaps, above)
    valid = _valid(problem, base)
    square = None
    if options.z_loss:
        square = (base + above).square() * valid
        square = square if kept is None else torch.where(kept, square, 0.0)
    cross_entropy = cross_entropy * valid
    return Rows(cross_entropy if kept is None else torch.where(kept, cross_entropy, 0.0), square)


def transformed(problem: Problem, z: Tensor) -> Tensor:
    """Return v of z: temperature, softcap, bias."""
    temperature, softcap, _ = problem.options.transform
    v = z if temperature == 1.0 else z / temperature
    if softcap is not None:
        v = torch.where(v.isinf(), v, softcap * torch.tanh(v / softcap))  # a mask stays a mask
    bias = problem.logit_bias
    if bias is None:
        return v
    bias = bias.to(problem.dtype)
    return v + (bias if problem.on_host else torch.where(bias < math.inf, bias, math.nan))


def gaps_of(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return base - v_j and lse - base, which make -log p_j, and base: the pivot's v_k, lse where there is none."""
    top, k = v.max(-1, keepdim=True)
    lse = torch.logsumexp(v, -1, keepdim=True)
    has_pivot = top - lse > LOG_HALF
    base = torch.where(has_pivot, top, lse)
    is_pivot = (torch.arange(v.shape[-1], device=v.device) == k) & has_pivot
    # No derivative goes from the pivot's gap to its two ends: 1 - 1 would round what else arrives there.
    gaps = torch.where(is_pivot, 0.0, base - v)
    rest = torch.where(is_pivot, 0.0, torch.exp(-gaps)).sum(-1)
    above = torch.where(has_pivot.squeeze(-1), torch.log1p(rest), 0.0)
    return gaps, above, base.squeeze(-1)


def _of_indices(problem: Problem, gaps: Tensor, above: Tensor) -> Tensor:
    options, dtype = problem.options, problem.dtype
    smoothing, classes = options.label_smoothing, gaps.shape[-1]
    y = class_indices(problem)
    surprisal = gaps.gather(-1, y.unsqueeze(-1)).squeeze(-1) + above
    weight = None if problem.class_weight is None else class_weights(problem, dtype)
    if options.focal_gamma or options.poly_epsilon:
        surprisal = modulated(surprisal, options.focal_gamma, options.poly_epsilon)
    spike = surprisal if weight is None else weighted(weight[y], surprisal)
    if not smoothing:
        return spike
    if weight is None:
        even = gaps.sum(-1) / classes + above
    else:
        even = (weighted(weight, gaps).sum(-1) + weight.sum() * above) / classes
    return smoothing * even if smoothing == 1.0 else (1.0 - smoothing) * spike + smoothing * even


def _of_distribution(problem: Problem, distribution: Tensor, gaps: Tensor, above: Tensor) -> Tensor:
    smoothing, dtype = problem.options.label_smoothing, problem.dtype
    q = distribution.to(dtype)
    target = q if not smoothing else (1.0 - smoothing) * q + smoothing / gaps.shape[-1]
    if problem.class_weight is not None:
        target = target * class_weights(problem, dtype)
    cross_entropy = weighted(target, gaps).sum(-1) + target.sum(-1) * above
    if problem.on_host or problem.tolerance == AS_THEY_ARE:
        return cross_entropy
    fits = is_distribution(distribution.detach(), problem.tolerance, problem.wide)
    return cross_entropy * torch.where(fits, 1.0, math.nan)


def is_distribution(rows: Tensor, tolerance: float, dtype: torch.dtype) -> Tensor:
    """Tell for each row whether it is one; False for NaN."""
    return ((rows.sum(-1, dtype=dtype) - 1.0).abs() <= tolerance) & (rows >= 0).all(-1)


def modulated(surprisal: Tensor, gamma: float, poly: float) -> Tensor:
    """Return m^gamma L + poly m^(gamma + 1) of L = -log p, with m = 1 - p, and the limits of it and its slope.

    At L = 0, which is certain, and beyond exp(-L)'s range, where m is 1.
    """
    beyond = 700.0 if surprisal.dtype == torch.float64 else 80.0
    between = (surprisal > 0.0) & (surprisal < beyond)
    L = torch.where(between, surprisal, 1.0)  # the formula's name for it
    m = -torch.expm1(-L)
    # At 0 the slope does not matter: no logit moves L there. NaN is neither.
    limit = torch.where(surprisal <= 0.0, surprisal, surprisal + poly)
    return torch.where(between, m**gamma * (L + poly * m), limit)


def _valid(problem: Problem, base: Tensor) -> Tensor:
    """Return 1, but NaN for a row without an answer: as a factor it makes the derivatives NaN too."""
    valid = base.detach().isfinite()
    if problem.indices is not None:
        y = problem.indices
        valid = valid & ((y >= 0) & (y < problem.logits.shape[-1]) | (y == problem.options.ignore_index))
    return torch.where(valid, 1.0, math.nan).to(base.dtype)


def _kept(problem: Problem) -> Tensor | None:
    return None if problem.indices is None else problem.indices != problem.options.ignore_index


def class_indices(problem: Problem) -> Tensor:
    """Return labels that may be used as indices, 0 for those that may not."""
    y = problem.indices
    assert y is not None
    ignored = y == problem.options.ignore_index
    return torch.where((y >= 0) & (y < problem.logits.shape[-1]) & ~ignored, y, 0)


def class_weights(problem: Problem, dtype: torch.dtype) -> Tensor:
    """Return the class weights, through which no gradients go; NaN in place of those that are none."""
    assert problem.class_weight is not None
    weight = problem.class_weight.detach().to(dtype)
    if problem.on_host or problem.tolerance == AS_THEY_ARE:
        return weight
    return torch.where((weight >= 0.0) & (weight < math.inf), weight, math.nan)


def weighted(weight: Tensor, value: Tensor) -> Tensor:
    """Multiply, but that 0 times infinity is 0; NaN stays."""
    return weight * torch.where((weight == 0.0) & value.isinf(), 0.0, value)


def reduced(problem: Problem, rows: Rows, label_weight: Tensor | None = None) -> Tensor:
    """Return what the reduction makes of the rows, in the loss's dtype.

    `label_weight` is each label's class weight, for who holds the weights of some classes only.
    """
    reduction, z_loss, wide = problem.options.reduction, problem.options.z_loss, problem.wide
    weight = _row_weights(problem, wide)
    terms = rows.cross_entropy.to(wide)
    squares = None if rows.square is None else rows.square.to(wide)
    if reduction != "mean" and squares is not None:
        terms = terms + z_loss * squares
    if weight is not None:
        terms = weighted(weight, terms)
    if reduction == "none":
        return terms.to(problem.loss_dtype)
    if reduction == "sum":
        return terms.sum().to(problem.loss_dtype)
    mean = terms.sum() / _divisor(problem, weight, by_class=True, label_weight=label_weight)
    if squares is not None:
        squares = squares if weight is None else weighted(weight, squares)
        mean = mean + z_loss * squares.sum() / _divisor(problem, weight, by_class=False)
    return mean.to(problem.loss_dtype)


def _row_weights(problem: Problem, dtype: torch.dtype) -> Tensor | None:
    weight = problem.sample_weight
    if weight is None:
        return None
    weight = weight.to(dtype)
    return weight if problem.on_host else torch.where((weight >= 0.0) & (weight < math.inf), weight, math.nan)


def _divisor(problem: Problem, weight: Tensor | None, *, by_class: bool, label_weight: Tensor | None = None) -> Tensor:
    """Return what the mean divides by: the weight of the rows that are not ignored."""
    kept, wide = _kept(problem), problem.wide
    if kept is None:
        shape, device = problem.logits.shape[:-1], problem.logits.device
        return torch.ones(shape, dtype=wide, device=device).sum() if weight is None else weight.sum()
    if by_class and problem.class_weight is not None:
        of_label = class_weights(problem, wide)[class_indices(problem)] if label_weight is None else label_weight
        weight = of_label if weight is None else weight * of_label
    return kept.sum(dtype=wide) if weight is None else torch.where(kept, weight, 0.0).sum()
