"""The loss of logits whose classes are spread over the processes of a group, each of which holds a slice of them.

A row takes two exchanges among the processes: of a maximum, the largest of the slices' logsumexps, and then of sums
relative to it (`slices` says of what). The largest itself is no part of its sum: what the other classes add to a
certain row is far below the rounding of 1, and is added to 0.

    above = log1p(sum of exp(lse_r - largest) over the slices below it + how many are at it - 1)
    lse = largest + above           surprisal = (lse_r - v_y) + (largest - lse_r) + above,  r with the label's class

Gradients take none: each process forms that of its own slice.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softmaxloss.backends.torch import formula, slices
from softmaxloss.backends.torch.answers import check_indices
from softmaxloss.backends.torch.problem import AS_THEY_ARE, Problem, problem_of
from softmaxloss.backends.torch.ranks import (
    Ranks,
    agreed,
    check_backward_is_plain,
    check_nothing_watches,
    place_in,
    ranks_of,
)
from softmaxloss.backends.torch.slices import AllClasses, ClassSlice, Statistics, Upstream
from softmaxloss.backends.torch.views import new_like
from softmaxloss.options import GivenOptions, Reduction, integer


@torch.compiler.disable  # type: ignore[untyped-decorator]  # PyTorch has no types for it
def vocab_parallel_cross_entropy(
    logits_shard: Tensor,
    labels: Tensor,
    group: Any = None,
    *,
    sizes: Sequence[int] | None = None,
    reduction: Reduction = "mean",
    sample_weight: Tensor | None = None,
    class_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: Tensor | None = None,
    z_loss: float = 0.0,
    focal_gamma: float = 0.0,
    poly_epsilon: float = 0.0,
) -> Tensor:
    r"""Compute the softmax loss of logits whose classes are spread over the processes of a group (tensor parallelism).

    Each process holds all rows of its own slice of the classes, slices in the order of the group's ranks and of any
    sizes. The loss is that of `softmaxloss.softmax_cross_entropy` for all classes together, the same number in every
    process, and its gradient by `logits_shard` is the slice of the whole one's. The processes exchange a maximum and
    two to five sums a row, in two all-reduces; backward exchanges nothing. What made the logits (a linear layer whose
    classes are spread likewise) has to add up its input's gradient over the group.

    Parameters
    ----------
    logits_shard : Tensor, (..., c)
        This process's classes: float16, bfloat16, float32 or float64.
    labels : Tensor
        The same in every process: class indices (...), numbered over all classes, of any integer dtype, in ``[0, C)``
        or `ignore_index`. Or this process's classes (..., c) of distributions, taken as they are.
    group : torch.distributed.ProcessGroup, optional
        The default group where it is None. gloo on the CPU; NCCL, or what the device has.
    sizes : sequence of int, optional
        How many classes each process holds, as `class_slices` finds it. Where it is not given that takes one more
        exchange, which on a device has to be waited for.
    reduction, sample_weight, ignore_index, label_smoothing, temperature, softcap, z_loss, focal_gamma, poly_epsilon
        As in `softmaxloss.softmax_cross_entropy`, and the same in every process.
    class_weight, logit_bias : Tensor, (c,), optional
        As there, of this process's classes; given in every process or in none.

    Returns
    -------
    Tensor
        A scalar, or (...) for ``reduction="none"``: float64 for float64 logits, else float32. Gradients go to
        `logits_shard`, and to distributions, `sample_weight` and `logit_bias` that ask, once: they have no derivatives
        themselves.

    Raises
    ------
    LabelError, ValueError, TypeError
        As `softmaxloss.softmax_cross_entropy`. On the CPU then all processes raise, the others a `ValueError`; on other
        devices the row of a label that is no class is NaN.
    RuntimeError
        Where there is no such group; where another process of it is gone or does not come, once the group's timeout is
        over; under `torch.func` and the like. `torch.compile` leaves the call out of its graph.

    See Also
    --------
    class_slices : The sizes, found once for many calls.

    References
    ----------
    Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism", 2019.

    Examples
    --------
    One process that holds all classes; ``torchrun`` starts many, and sets up what `init_process_group` asks for.

    >>> import torch
    >>> import torch.distributed as dist
    >>> from softmaxloss.torch import vocab_parallel_cross_entropy
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> shard = torch.tensor([[1.0, 2.0, 3.0], [3.0, 0.0, -1.0]], requires_grad=True)
    >>> loss = vocab_parallel_cross_entropy(shard, torch.tensor([1, 0]))
    >>> loss.backward()
    >>> print(f"{loss:.6f}", shard.grad.sum(1).abs().max() < 1e-6)
    0.736745 tensor(True)
    >>> dist.destroy_process_group()
    """
    weighting = (reduction, sample_weight, class_weight, ignore_index, label_smoothing)
    formula = (temperature, softcap, logit_bias, z_loss, focal_gamma, poly_epsilon)
    return _loss(logits_shard, labels, group, sizes, GivenOptions(*(weighting + formula)))


def _loss(logits_shard: Tensor, labels: Any, group: Any, sizes: Sequence[int] | None, options: GivenOptions) -> Tensor:
    check_nothing_watches()
    if not isinstance(logits_shard, Tensor):
        raise TypeError(f"logits_shard is a {type(logits_shard).__name__}; expected a PyTorch tensor")
    classes = logits_shard.shape[-1] if logits_shard.ndim else 1
    rows = logits_shard.numel() // max(1, classes)
    ranks = ranks_of(logits_shard, rows, classes, group, sizes)
    try:
        part = slice_of(problem_of(logits_shard, labels, -1, options, AS_THEY_ARE), ranks)
    except (TypeError, ValueError) as error:
        agreed(group, torch.zeros(rows, dtype=torch.float64, device=logits_shard.device), error)
        raise
    problem = part.problem
    # (PyTorch has no types for `apply`.)
    numbers = SliceLoss.apply(problem.logits, problem.distribution, problem.logit_bias, part, ranks)  # type: ignore[no-untyped-call]
    return reduced(part, KnownRows(*numbers)).reshape(_loss_shape(options, logits_shard))


def slice_of(problem: Problem, ranks: Ranks) -> ClassSlice:
    """Return this process's part of a loss, with one axis of rows; `ValueError` for sizes or labels that are wrong."""
    classes = problem.logits.shape[-1]
    processes = place_in(ranks.group)[1]
    sizes = tuple(integer("sizes", size) for size in ranks.sizes)
    if len(sizes) != processes or sizes[ranks.rank] != classes:
        raise ValueError(
            f"sizes are {sizes}; expected a number of classes for each of the group's {processes} processes, and for "
            f"this one, of rank {ranks.rank}, the {classes} that it holds"
        )
    indices, distribution, weight = problem.indices, problem.distribution, problem.sample_weight
    if problem.on_host and indices is not None:
        check_indices(indices, ranks.classes, problem.options.ignore_index)
    flat = problem._replace(
        logits=problem.logits.reshape(-1, classes),
        indices=None if indices is None else indices.reshape(-1),
        distribution=None if distribution is None else distribution.reshape(-1, classes),
        sample_weight=None if weight is None else weight.reshape(-1),
    )
    return ClassSlice(flat, ranks.first, ranks.classes)


class KnownRows(NamedTuple):
    """What is known of each row once the processes have told each other, (N,) each: see `slices`."""

    surprisal: Tensor
    even: Tensor
    lse: Tensor
    valid: Tensor  # 1, or NaN for a row without an answer
    label_weight: Tensor | None


def exchange(part: ClassSlice, own: Statistics, ranks: Ranks) -> tuple[KnownRows, AllClasses]:
    """Return what all processes know, of what each does: two exchanges."""
    largest = agreed(ranks.group, own.lse)
    behind = largest - own.lse
    at_largest = own.lse == largest
    told = [torch.where(at_largest, 0.0, torch.exp(-behind)), at_largest.to(largest.dtype)]
    if own.here is not None and own.surprisal is not None:
        told.append(torch.where(own.here, own.surprisal + behind, 0.0))
        if own.label_weight is not None:
            told.append(torch.where(own.here, own.label_weight, 0.0))
    if own.even is not None and own.mass is not None:
        told += [own.even + formula.weighted(own.mass, behind), own.mass]
    below, count, *rest = ranks.total(torch.stack(told))
    above = torch.log1p(below + (count - 1.0))
    lse, none = largest + above, torch.zeros_like(above)
    surprisal = none if own.here is None else rest.pop(0) + above
    label_weight = None if own.label_weight is None else rest.pop(0)
    even, mass = (none, none) if own.even is None else rest
    even = even + mass * above
    valid = torch.where(largest.isfinite() & part.valid_labels(), 1.0, math.nan)
    numbers = KnownRows(surprisal, even, lse, valid, label_weight)
    return numbers, AllClasses(lse, behind + above, surprisal, mass)


class SliceLoss(torch.autograd.Function):
    """The numbers of each row, differentiable by this process's logits, distribution and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        distribution: Tensor | None,
        logit_bias: Tensor | None,
        part: ClassSlice,
        ranks: Ranks,
    ) -> tuple[Tensor | None, ...]:
        """Return `KnownRows`."""
        numbers, all_classes = exchange(part, slices.statistics(part), ranks)
        tensors = part.problem.tensors()
        ctx.save_for_backward(*tensors, *all_classes)
        ctx.part = part._replace(problem=part.problem.with_tensors((None,) * len(tensors)))
        ctx.mark_non_differentiable(*[each for each in numbers[3:] if each is not None])
        return tuple(numbers)

    @staticmethod
    def backward(ctx: Any, *by_number: Tensor) -> Any:
        """Return the gradients, which needs no other process."""
        check_backward_is_plain()
        tensors, all_classes = ctx.saved_tensors[:_TENSORS], AllClasses(*ctx.saved_tensors[_TENSORS:])
        part = ctx.part._replace(problem=ctx.part.problem.with_tensors(tensors))
        problem = part.problem
        for_logits, for_distribution, for_bias = ctx.needs_input_grad[:3]
        logits = new_like(problem.logits) if for_logits else None
        distribution = torch.empty_like(problem.distribution) if for_distribution else None
        bias = torch.zeros_like(problem.logit_bias, dtype=problem.dtype) if for_bias else None
        slices.gradient(
            part, all_classes, Upstream(*by_number[:3]), logits=logits, distribution=distribution, logit_bias=bias
        )
        return logits, distribution, None if bias is None else bias.to(problem.logit_bias.dtype), None, None


_TENSORS = 6  # of a problem


def terms(part: ClassSlice, numbers: KnownRows) -> formula.Rows:
    """Return what is made of each row before weights of rows and the reduction."""
    options, kept = part.problem.options, part.kept()
    smoothing, even = options.label_smoothing, numbers.even
    if kept is None:
        cross_entropy = even
    else:
        surprisal = numbers.surprisal
        if options.focal_gamma or options.poly_epsilon:
            surprisal = formula.modulated(surprisal, options.focal_gamma, options.poly_epsilon)
        weight = numbers.label_weight
        cross_entropy = surprisal if weight is None else formula.weighted(weight, surprisal)
        if smoothing:
            even = smoothing / part.classes * even
            cross_entropy = even if smoothing == 1.0 else (1.0 - smoothing) * cross_entropy + even
    cross_entropy = cross_entropy * numbers.valid
    square = numbers.lse.square() * numbers.valid if options.z_loss else None
    if kept is None:
        return formula.Rows(cross_entropy, square)
    return formula.Rows(
        torch.where(kept, cross_entropy, 0.0), None if square is None else torch.where(kept, square, 0.0)
    )


def reduced(part: ClassSlice, numbers: KnownRows) -> Tensor:
    """Return what the reduction makes of the rows."""
    return formula.reduced(part.problem, terms(part, numbers), numbers.label_weight)


def _loss_shape(options: GivenOptions, logits: Tensor) -> Sequence[int]:
    return logits.shape[:-1] if options.reduction == "none" else ()
