"""The memory of the last large gradient that is gone, kept for the next one.

The system hands out pages that it has cleared, one after another: for a new array as large as the logits that takes as
long as the loss and its gradient. A training loop asks for the same array in each step.
"""

import math
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

# From this size on NumPy asks the system for huge pages, and PyTorch does not: filling them takes a fraction of the
# page faults.
LARGE_BYTES = 1 << 22
_MOST_BYTES = 1 << 30  # that are kept

_spare: deque[NDArray[np.uint8]] = deque(maxlen=1)  # whose operations are atomic


def large_like(array: NDArray[Any]) -> NDArray[Any]:
    """Return a new array of the same shape, dtype and order of axes, of `LARGE_BYTES` or more, nothing written yet.

    Its memory is kept once it and all that shares its memory are gone; see `empty_cache`.
    """
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    size = math.prod(array.shape) * array.itemsize
    memory = _memory(size)
    dense = memory[:size].view(array.dtype).reshape([array.shape[axis] for axis in order])
    result = dense.transpose(np.argsort(order))
    weakref.finalize(result, _keep, memory).atexit = False
    return result


def empty_cache() -> None:
    """Give memory that is kept for the next large gradient, 1 GiB at most, back to the system.

    As `torch.cuda.empty_cache`. `cross_entropy` and `linear_cross_entropy` keep the memory of one gradient of 4 MiB
    or more when its tensor is gone, since new memory takes the system as long as the gradient itself.

    Examples
    --------
    >>> import softmaxloss.torch as slt
    >>> slt.empty_cache()
    """
    _spare.clear()


def _memory(size: int) -> NDArray[np.uint8]:
    """Return what is kept, if it suits, or new memory."""
    try:
        kept = _spare.pop()
    except IndexError:
        return np.empty(size, np.uint8)
    if size <= kept.nbytes <= 2 * size:
        return kept
    if kept.nbytes > size:
        _keep(kept)
    del kept  # before there is more
    return np.empty(size, np.uint8)


def _keep(memory: NDArray[np.uint8]) -> None:
    if memory.nbytes <= _MOST_BYTES:
        _spare.append(memory)
