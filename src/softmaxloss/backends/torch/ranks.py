"""The processes of a group, each of which holds a slice of the classes: what they tell each other."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from softmaxloss.backends.torch.doors import nothing_watches
from softmaxloss.options import integer


class Ranks(NamedTuple):
    """The processes of a group, and how many classes each of them holds."""

    group: Any
    rank: int
    sizes: tuple[int, ...]

    @property
    def first(self) -> int:
        """The number, among all classes, of this process's first."""
        return sum(self.sizes[: self.rank])

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return sum(self.sizes)

    def total(self, values: Tensor) -> Tensor:
        """Put into `values` the sum over all processes."""
        dist.all_reduce(values, dist.ReduceOp.SUM, group=self.group)
        return values


def class_slices(classes: int, group: Any = None, *, device: torch.device | str | None = None) -> tuple[int, ...]:
    """Return how many classes each process of the group holds, by one exchange; every process must call it.

    Parameters
    ----------
    classes : int
        How many this process holds.
    group : torch.distributed.ProcessGroup, optional
        The default group where it is None.
    device : torch.device, optional
        Where the exchange takes place: the device of the logits, and none need be named where that is the host.

    Returns
    -------
    tuple of int
        In the order of the group's ranks.

    Raises
    ------
    RuntimeError
        Where there is no such group, this process is not in it, or another process of it is gone.

    References
    ----------
    ``torch.distributed.all_gather``.

    Examples
    --------
    >>> from softmaxloss.torch import class_slices
    >>> sizes = class_slices(weight.shape[0])  # doctest: +SKIP
    """
    mine = torch.tensor([integer("classes", classes)], device=device)
    return tuple(int(size) for (size,) in _gathered(mine, group)[1])


def ranks_of(array: Tensor, rows: int, classes: int, group: Any, sizes: Sequence[int] | None) -> Ranks:
    """Return who holds which classes, by one exchange or as it is given; then it is not checked yet."""
    if sizes is not None:
        return Ranks(group, place_in(group)[0], tuple(sizes))
    rank, numbers = _gathered(torch.tensor([classes, rows], device=array.device), group)
    everyones_rows = [theirs for _, theirs in numbers]
    if len(set(everyones_rows)) > 1:
        raise ValueError(
            f"the processes of the group have {everyones_rows} rows, in the order of their ranks; each needs all rows, "
            "of its own classes"
        )
    return Ranks(group, rank, tuple(theirs for theirs, _ in numbers))


def agreed(group: Any, values: Tensor, fault: Exception | None = None) -> Tensor:
    """Return the largest values of all processes; where one of them has found a fault, all raise.

    On other devices, where that would have to be waited for, only the one that has it.
    """
    if not values.is_cpu:
        if fault is not None:
            raise fault
        dist.all_reduce(values, dist.ReduceOp.MAX, group=group)
        return values
    told = torch.cat([values, values.new_full((1,), fault is not None)])
    dist.all_reduce(told, dist.ReduceOp.MAX, group=group)
    if fault is not None:
        raise fault
    if told[-1]:
        raise ValueError(
            "another process of the group has refused its labels or options, and says there what is wrong with them; "
            "labels and options must be the same for all, of class weights and biases each has its own slice"
        )
    return told[:-1]


def _gathered(mine: Tensor, group: Any) -> tuple[int, list[list[int]]]:
    """Return this process's rank, and what each of the group's has."""
    rank, size = place_in(group)
    everyones = [torch.empty_like(mine) for _ in range(size)]
    dist.all_gather(everyones, mine, group=group)
    numbers: list[list[int]] = torch.stack(everyones).tolist()
    return rank, numbers


def place_in(group: Any) -> tuple[int, int]:
    """Return this process's rank in the group, and how many processes it has."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "the classes are spread over the processes of a group, and there is none in this process; call "
            "torch.distributed.init_process_group first"
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise RuntimeError("this process is not in the group that was given; only those that are may call")
    return rank, dist.get_world_size(group)


def check_nothing_watches() -> None:
    """Raise `RuntimeError` where operations have to be seen, which what other processes do cannot be."""
    if not nothing_watches():
        raise RuntimeError(
            "a loss whose classes are spread over processes talks to the others, in plain eager mode; it cannot be "
            "called under torch.func, forward mode, torch.export or a tracer, nor with batched gradients"
        )


def check_backward_is_plain() -> None:
    """Raise `RuntimeError` where a backward pass is to be differentiated."""
    check_nothing_watches()
    if torch.is_grad_enabled():
        raise RuntimeError(
            "a loss whose classes are spread over processes has first derivatives alone; create_graph=True asks for "
            "those of its gradient"
        )
