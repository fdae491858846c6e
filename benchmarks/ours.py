"""softmaxloss, and beside it the yardstick: memcpy between the very buffers that softmaxloss reads and writes."""

from __future__ import annotations

import importlib.util
from collections import deque
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
    inputs = list(zip(copies(data.logits, buffers), copies(data.labels, buffers), strict=True))
    # Written, so that their pages are there.
    outs = copies(np.ones_like(data.logits), buffers)
    over = deque(copies(data.logits.copy(), buffers))
    options = {"axis": case.axis, **data.options}
    next_input, next_pair = in_turn(inputs), in_turn([(*one, out) for one, out in zip(inputs, outs, strict=True)])
    both = sl.softmax_cross_entropy_and_grad

    def loss() -> Any:
        logits, labels = next_input()
        return sl.softmax_cross_entropy(logits, labels, **options)

    def grad() -> Any:
        logits, labels, out = next_pair()
        return both(logits, labels, out=out, **options)

    def grad_new() -> Any:
        logits, labels = next_input()
        return both(logits, labels, **options)

    def grad_in_place() -> Any:
        logits, (_, labels) = over[0], next_input()
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
        operations["copy"] = _copy([logits for logits, _ in inputs], outs, threads)
    return operations


def _copy(sources: list[NDArray[Any]], targets: list[NDArray[Any]], threads: int) -> Operation:
    import torch

    def tensor(array: NDArray[Any]) -> Any:
        # torch takes no bfloat16 from NumPy; integers of the same size are copied in the same way.
        return torch.from_numpy(array.view(f"i{array.itemsize}"))

    torch.set_num_threads(threads)
    next_pair = in_turn([(tensor(target), tensor(source)) for source, target in zip(sources, targets, strict=True)])

    def copy() -> Any:
        target, source = next_pair()
        return target.copy_(source)

    return Operation(copy)
