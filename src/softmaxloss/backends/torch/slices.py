"""A slice of the classes: what a loss needs of the logits that are here, and their gradient once the rest is known.

Of each row there are three numbers, and all options are arithmetic on them (`parallel`): with lse over all classes, y
the label and t_j the masses of a distribution or of label smoothing, class weights included,

    lse        surprisal = lse - v_y        even = sum_j t_j (lse - v_j)

A slice knows them relative to its own logsumexp. Whatever a slice's logits are relative to is kept as a difference, so
that a label that is all but certain keeps the digits of its loss: the slice that holds it has them (`formula`, or the
kernel), and what the other slices add is small, and added last.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from softmaxloss import _native
from softmaxloss.backends.kernel import LossKernel
from softmaxloss.backends.layout import flat, readable_rows
from softmaxloss.backends.torch import formula, native
from softmaxloss.backends.torch.blocks import block_of, blocks_of
from softmaxloss.backends.torch.problem import Problem
from softmaxloss.backends.torch.views import view
from softmaxloss.labels import Labels
from softmaxloss.options import LossOptions

_NO_LABEL = -1  # for the kernels: a row that is ignored


class ClassSlice(NamedTuple):
    """Some of the classes of a loss.

    Parameters
    ----------
    problem : Problem
        Its logits (N, c), class weights and logit bias (c,) and distribution (N, c) are the slice's; index labels (N,)
        are of all classes.
    first : int
        The number, among all classes, of the slice's first.
    classes : int
        How many there are in all.
    """

    problem: Problem
    first: int
    classes: int

    def rows(self, block: Any) -> "ClassSlice":
        """Return the same for some of the rows."""
        return self._replace(problem=block_of(self.problem, block))

    def kept(self) -> Tensor | None:
        """Tell which rows are not ignored; None where no row can be."""
        indices = self.problem.indices
        return None if indices is None else indices != self.problem.options.ignore_index

    def labels(self) -> tuple[Tensor, Tensor]:
        """Tell which rows' labels are here, and return their places in the slice (0 for those that are not)."""
        indices, kept = self.problem.indices, self.kept()
        assert indices is not None
        assert kept is not None
        here = kept & (indices >= self.first) & (indices - self.first < self.problem.logits.shape[-1])
        return here, torch.where(here, indices - self.first, 0)

    def valid_labels(self) -> Tensor | bool:
        """Tell which labels are those of a class, or ignored."""
        indices, kept = self.problem.indices, self.kept()
        if indices is None or kept is None:
            return True
        return (indices >= 0) & (indices < self.classes) | ~kept

    def has_masses(self) -> bool:
        """Tell whether each class has a mass of its own, beside the label's."""
        return self.problem.distribution is not None or self.problem.options.label_smoothing > 0.0

    def masses(self) -> Tensor:
        """Return t_j: of a distribution (N, c), of label smoothing (1, c) before its share."""
        problem = self.problem
        smoothing, dtype = problem.options.label_smoothing, problem.dtype
        weight = None if problem.class_weight is None else formula.class_weights(problem, dtype)
        if problem.distribution is None:
            classes = problem.logits.shape[-1]
            ones = torch.ones(classes, dtype=dtype, device=problem.logits.device)
            return (ones if weight is None else weight).unsqueeze(0)
        q = problem.distribution.detach().to(dtype)
        target = q if not smoothing else (1.0 - smoothing) * q + smoothing / self.classes
        return target if weight is None else target * weight


class Statistics(NamedTuple):
    """What a slice says of each row, (N,) each, in float64 where there is one, relative to its own logsumexp."""

    lse: Tensor  # infinite in a row without an answer, -inf where all classes of the slice are masked
    here: Tensor | None = None  # whether the label is one of the slice's
    surprisal: Tensor | None = None  # where it is
    label_weight: Tensor | None = None  # and where there are class weights
    even: Tensor | None = None
    mass: Tensor | None = None  # sum_j t_j


class Upstream(NamedTuple):
    """Derivatives of what is wanted by the three numbers of each row, (N,)."""

    surprisal: Tensor
    even: Tensor
    lse: Tensor

    def rows(self, block: Any) -> "Upstream":
        """Return the same for some of the rows."""
        return Upstream(*(each[block] for each in self))


class AllClasses(NamedTuple):
    """What the gradient needs to know of the other slices, (N,) each."""

    lse: Tensor
    beyond: Tensor  # lse - the slice's own
    surprisal: Tensor
    mass: Tensor  # sum_j t_j over all classes, or 0

    def rows(self, block: Any) -> "AllClasses":
        """Return the same for some of the rows."""
        return AllClasses(*(each[block] for each in self))


@torch.no_grad()
def statistics(part: ClassSlice) -> Statistics:
    """Return the statistics of all rows."""
    if _kernel_serves(part):
        return _kernel_statistics(part)
    blocks = blocks_of(part.problem)
    if len(blocks) == 1:
        return _statistics(part)
    found = [_statistics(part.rows(block)) for block in blocks] or [_statistics(part)]
    return Statistics._make(None if each[0] is None else torch.cat(each) for each in zip(*found, strict=True))


def _kernel_serves(part: ClassSlice) -> bool:
    problem, weight = part.problem, part.problem.options.class_weight
    if not native.kernel_serves(problem) or problem.distribution is not None:
        return False
    # Label smoothing takes something off the kernel's gradient, which is neither to be rounded nor bent before.
    plain = problem.logits.itemsize > 2 and problem.options.transform.softcap is None
    return not part.has_masses() or (plain and (weight is None or bool((weight >= 0.0).all())))


def _with_label(part: ClassSlice, lse: Tensor, surprisal: Tensor) -> Statistics:
    problem = part.problem
    here, labels = part.labels()
    weight = None if problem.class_weight is None else formula.class_weights(problem, problem.wide)[labels]
    return Statistics(lse, here, surprisal, weight)


def _statistics(part: ClassSlice) -> Statistics:
    problem, wide = part.problem, part.problem.wide
    gaps, above, base = _gaps(part)
    lse = base.to(wide) + above.to(wide)
    lse = torch.where(lse.isnan(), math.inf, lse)
    if problem.indices is None:
        found = Statistics(lse)
    else:
        _, labels = part.labels()
        surprisal = gaps.gather(-1, labels.unsqueeze(-1)).squeeze(-1).to(wide) + above.to(wide)
        found = _with_label(part, lse, surprisal)
    if not part.has_masses():
        return found
    masses = part.masses()
    mass = masses.sum(-1, dtype=wide).expand(lse.shape)
    even = formula.weighted(masses, gaps).sum(-1, dtype=wide) + mass * above.to(wide)
    return found._replace(even=even, mass=mass)


def _gaps(part: ClassSlice) -> tuple[Tensor, Tensor, Tensor]:
    """Return `formula.gaps_of`; where all classes of the slice are masked the gaps are infinite."""
    problem = part.problem
    gaps, above, base = formula.gaps_of(formula.transformed(problem, problem.logits.to(problem.dtype)))
    masked = base == -math.inf
    return torch.where(masked.unsqueeze(-1), math.inf, gaps), torch.where(masked, 0.0, above), base


def _kernel_statistics(part: ClassSlice) -> Statistics:
    found = _with_label(part, *_kernel_lse_and_surprisal(part))
    if part.has_masses():
        mass = part.masses().sum(dtype=part.problem.wide).expand(found.lse.shape)
        found = found._replace(even=_kernel_even(part), mass=mass)
    odd = (~found.lse.isfinite()).nonzero().squeeze(-1)
    if odd.numel():  # for the kernel a row that is all masked has no answer; another slice may have one
        for values, again in zip(found, _statistics(part.rows(odd)), strict=True):
            if values is not None and again is not None and values is not found.mass:
                values[odd] = again
    return found


def _kernel_even(part: ClassSlice) -> Tensor:
    """Return the masses' part of each row by the kernel: the loss of labels that are nothing but smoothed."""
    problem, classes = part.problem, part.problem.logits.shape[-1]
    labels = torch.zeros_like(part.labels()[1])
    options = _kernel_options(problem)._replace(class_weight=problem.options.class_weight, label_smoothing=1.0)
    loss = LossKernel(view(problem.logits), Labels(view(labels), None, 0.0), options).loss(None)
    return classes * torch.from_numpy(np.asarray(loss)).to(problem.wide)


def _kernel_options(problem: Problem) -> LossOptions:
    """Return options that leave of the loss the logits' transform."""
    return LossOptions(
        reduction="none",
        sample_weight=None,
        class_weight=None,
        ignore_index=_NO_LABEL,
        label_smoothing=0.0,
        transform=problem.options.transform,
        z_loss=0.0,
        focal_gamma=0.0,
        poly_epsilon=0.0,
    )


def _kernel_lse_and_surprisal(part: ClassSlice) -> tuple[Tensor, Tensor]:
    problem, transform = part.problem, part.problem.options.transform
    labels = np.ascontiguousarray(view(part.labels()[1]))
    rows = labels.shape
    lse, surprisal = np.empty(rows), np.empty(rows)
    prediction, rank = np.empty(rows, np.int64), np.empty(rows, np.int64)
    for block, z, storage in readable_rows(view(problem.logits)):
        _native.row_statistics(
            z,
            storage,
            flat(labels, block),
            transform.temperature,
            transform.softcap or 0.0,
            transform.logit_bias,
            flat(surprisal, block),
            flat(lse, block),
            flat(prediction, block),
            flat(rank, block),
        )
    return torch.from_numpy(lse), torch.from_numpy(surprisal)


@torch.no_grad()
def gradient(
    part: ClassSlice,
    found: AllClasses,
    upstream: Upstream,
    *,
    logits: Tensor | None,
    logit_bias: Tensor | None = None,
    distribution: Tensor | None = None,
) -> None:
    """Fill `logits`, which may be the slice's own, and `distribution` with gradients; add to `logit_bias` its own."""
    if _kernel_serves(part) and logits is not None and logit_bias is None and distribution is None:
        _kernel_gradient(part, found, upstream, logits)
        return
    for block in blocks_of(part.problem):
        rows = part.rows(block)
        by_v, surprisal, chain = _gradient(rows, found.rows(block), upstream.rows(block))
        if logit_bias is not None:
            logit_bias += by_v.sum(0)
        if distribution is not None:
            distribution[block] = _distribution_gradient(rows, surprisal, upstream.rows(block))
        if logits is not None:
            logits[block] = by_v if chain is None else by_v.mul_(chain)


def _gradient(part: ClassSlice, found: AllClasses, upstream: Upstream) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradient by v, -log p, and the derivative of v by the logits."""
    problem, dtype = part.problem, part.problem.dtype
    gaps, above, _ = _gaps(part)
    surprisal = gaps + (above + found.beyond).to(dtype).unsqueeze(-1)
    total = _total(found, upstream)
    by_v = torch.exp(-surprisal).mul_(total.to(dtype).unsqueeze(-1))
    masses = part.masses() if part.has_masses() else None
    if masses is not None:
        by_v -= upstream.even.to(dtype).unsqueeze(-1) * masses
    place = gaps.argmin(-1) if problem.indices is None else part.labels()[1]
    log_p = -surprisal.gather(-1, place.unsqueeze(-1)).squeeze(-1).to(problem.wide)
    if problem.indices is None:
        # Where a class is likelier than all others together: what is left of the masses, and 1 - p, may be tiny.
        assert masses is not None
        mass = masses.gather(-1, place.unsqueeze(-1)).squeeze(-1).to(problem.wide)
        likely = upstream.even * (found.mass - mass) + upstream.lse + total * torch.expm1(log_p)
        exact = torch.where(log_p > formula.LOG_HALF, likely, total * torch.exp(log_p) - upstream.even * mass)
    else:
        exact = _at_label(part, found, upstream, log_p)
        if masses is not None:
            exact -= upstream.even * masses.squeeze(0)[place]
    by_v.scatter_(-1, place.unsqueeze(-1), exact.to(dtype).unsqueeze(-1))
    kept = part.kept()
    if kept is not None:
        by_v.masked_fill_(~kept.unsqueeze(-1), 0.0)
    return by_v, surprisal, _chain(problem, problem.logits)


def _total(found: AllClasses, upstream: Upstream) -> Tensor:
    """Return what p is multiplied by, a in the formula; NaN where it is not finite."""
    total = upstream.surprisal + upstream.even * found.mass + upstream.lse
    return torch.where(total.isfinite(), total, math.nan)


def _at_label(part: ClassSlice, found: AllClasses, upstream: Upstream, log_p: Tensor) -> Tensor:
    """Return the gradient by the labels' v, the masses aside; where a label is not here, of the class with `log_p`.

    A label that is all but certain has a gradient of p - 1, which its surprisal gives all digits of.
    """
    here, _ = part.labels()
    others = upstream.even * found.mass + upstream.lse
    at_label = others * torch.exp(-found.surprisal) + upstream.surprisal * torch.expm1(-found.surprisal)
    return torch.where(here, at_label, _total(found, upstream) * torch.exp(log_p))


def _chain(problem: Problem, logits: Tensor) -> Tensor | None:
    """Return the derivative of v by the logits; None where it is 1."""
    temperature, softcap, _ = problem.options.transform
    if softcap is None:
        return None if temperature == 1.0 else logits.new_full((), 1.0 / temperature, dtype=problem.dtype)
    u = logits.to(problem.dtype) / temperature
    # 1 - tanh^2; a mask stays a mask.
    return torch.where(u.isinf(), 1.0, torch.cosh(u / softcap).pow(-2)) / temperature


def _distribution_gradient(part: ClassSlice, surprisal: Tensor, upstream: Upstream) -> Tensor:
    """Return the gradient by the labels; 0 where a class is masked that has no mass, as in the loss."""
    problem, dtype = part.problem, part.problem.dtype
    factor = (upstream.even * (1.0 - problem.options.label_smoothing)).to(dtype).unsqueeze(-1)
    surprisal = torch.where((part.masses() == 0.0) & surprisal.isinf(), 0.0, surprisal)
    return factor * (surprisal if problem.class_weight is None else formula.class_weights(problem, dtype) * surprisal)


def _kernel_gradient(part: ClassSlice, found: AllClasses, upstream: Upstream, out: Tensor) -> None:
    """Fill `out` by the kernel: the gradient of the slice's own loss, by row as much of it as is the slice's share.

    At one class a row, the label's where it is here, that is something else, which is written over it.
    """
    problem = part.problem
    kept, (_, place), total = part.kept(), part.labels(), _total(found, upstream)
    assert kept is not None
    z = problem.logits.gather(-1, place.unsqueeze(-1)).squeeze(-1)
    bias = None if problem.logit_bias is None else problem.logit_bias.detach()[place]
    v = formula.transformed(problem._replace(logit_bias=bias), z.to(problem.wide))
    exact, chain = _at_label(part, found, upstream, v - found.lse), _chain(problem, z)
    masses = part.masses().squeeze(0) if part.has_masses() else None
    if masses is not None:
        exact -= upstream.even * masses[place]
    exact = torch.where(kept, exact if chain is None else exact * chain, 0.0)

    share = torch.nan_to_num(total * torch.exp(-found.beyond))
    options = _kernel_options(problem)._replace(sample_weight=np.ascontiguousarray(view(share)))
    labels = np.ascontiguousarray(view(torch.where(kept, place, _NO_LABEL)))
    LossKernel(view(problem.logits), Labels(labels, None, 0.0), options).loss(view(out))
    # For the kernel a row that is all masked has no answer.
    for rows, value in ((kept & (found.beyond == math.inf), 0.0), (kept & total.isnan(), math.nan)):
        if rows.any():
            out.index_fill_(0, rows.nonzero().squeeze(-1), value)
    if masses is not None:
        even = torch.where(kept, upstream.even, 0.0) / problem.options.transform.temperature
        out.addr_(even.to(out.dtype), masses.to(out.dtype), alpha=-1)
    out.scatter_(-1, place.unsqueeze(-1), exact.to(out.dtype).unsqueeze(-1))
