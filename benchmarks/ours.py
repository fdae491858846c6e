"""softmaxloss, and beside it the yardstick: memcpy between the very buffers that softmaxloss reads and writes."""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import Case
from benchmarks.operations import Operation, Operations
from benchmarks.rotation import copies, in_turn


def load(case: Case, threads: int, buffers: int) -> Operations:
    import softmaxloss as sl

    sl.set_num_threads(threads)
    data = case.data()
    # The targets of gradients are written, so that their pages are there.
    kinds = copies(data.logits, buffers), copies(data.labels, buffers), copies(np.ones_like(data.logits), buffers)
    over = deque(copies(data.logits.copy(), buffers))
    options = {"axis": case.axis, **data.options}
    # One rotation for all operations: with one each, the first call of a turn could meet what the turn before has used.
    next_buffers = in_turn(list(zip(*kinds, strict=True)))
    both = sl.softmax_cross_entropy_and_grad

    def loss() -> Any:
        logits, labels, _ = next_buffers()
        return sl.softmax_cross_entropy(logits, labels, **options)

    def grad() -> Any:
        logits, labels, out = next_buffers()
        return both(logits, labels, out=out, **options)

    def grad_new() -> Any:
        logits, labels, _ = next_buffers()
        return both(logits, labels, **options)

    def grad_in_place() -> Any:
        logits, (_, labels, _) = over[0], next_buffers()
        return both(logits, labels, out=logits, **options)

    def restore() -> None:
        # What was written over last goes to the end of the line, so that it has left the caches when it is used.
        np.copyto(over[0], data.logits)
        over.rotate(-1)

    operations = {
        "loss": Operation(loss),
        "grad": Operation(grad),
        "grad_in_place": Operation(grad_in_place, before=restore),
        "grad_new": Operation(grad_new),
    }
    if importlib.util.find_spec("torch"):
        operations["copy"] = _copy(next_buffers, threads)
    return operations


def _copy(next_buffers: Callable[[], tuple[NDArray[Any], ...]], threads: int) -> Operation:
    import torch

    def tensor(array: NDArray[Any]) -> Any:
        # torch takes no bfloat16 from NumPy; integers of the same size are copied in the same way.
        return torch.from_numpy(array.view(f"i{array.itemsize}"))

    torch.set_num_threads(threads)

    def copy() -> Any:
        logits, _, out = next_buffers()
        return tensor(out).copy_(tensor(logits))

    return Operation(copy)
