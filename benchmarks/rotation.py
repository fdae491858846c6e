"""How many buffers a case goes through in turn, so that none is still in the caches when its turn comes again."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from benchmarks.cases import Case

T = TypeVar("T")

# The buffers of one kind, such as the logits, take this many times the last level of cache together. (With four times a
# cache of 32 MB, reading again and again was still 1.2 times faster than with eight.)
CACHES = 8

# Smaller cases stay in the caches: what they measure is the call.
CALL_BYTES = 1 << 20

# At most this share of the memory goes to buffers of one kind: up to six processes hold up to three kinds.
MEMORY_SHARE = 1 / 32

# Where the system does not tell.
USUAL_CACHE_BYTES = 32 << 20


def buffers(case: Case) -> int:
    """Give the number of copies of the logits, and of each array like them, that a case needs."""
    if case.nbytes < CALL_BYTES:
        return 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    room = max(1, int(memory * MEMORY_SHARE) // case.nbytes)
    return min(room, math.ceil(CACHES * last_level_cache_bytes() / case.nbytes))


def copies(array: NDArray[Any], count: int) -> list[NDArray[Any]]:
    """Give as many equal arrays, the given one among them."""
    return [array, *(array.copy() for _ in range(count - 1))]


def in_turn(items: Sequence[T]) -> Callable[[], T]:
    """Give a function that returns the items one after another, for ever."""
    return cycle(items).__next__


def last_level_cache_bytes(cpus: Path = Path("/sys/devices/system/cpu")) -> int:
    """Give the bytes of the last level of cache, all of the system's together: processors may share it in groups."""
    groups: dict[str, tuple[int, int]] = {}
    for index in cpus.glob("cpu[0-9]*/cache/index[0-9]*"):
        level, size, shared = ((index / name).read_text().strip() for name in ("level", "size", "shared_cpu_list"))
        kilobytes = int(size.removesuffix("K"))
        groups[shared] = max(groups.get(shared, (0, 0)), (int(level), kilobytes << 10))
    last = max((level for level, _ in groups.values()), default=0)
    return sum(size for level, size in groups.values() if level == last) or USUAL_CACHE_BYTES
