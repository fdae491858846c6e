"""Times the contenders: each in its own process, all in turn in every round, the shortest time kept.

Two thread pools in one process would hinder each other, hence a process for each contender. memcpy, the yardstick, is
the exception: it runs in softmaxloss's process, in turn with it, from the logits that softmaxloss reads to the buffer
that it writes, so that both have the same pages of memory. Between turns the threads of the one before fall asleep.

Every call of a case uses other buffers than the call before: as many as it takes for all of a kind (the logits, soft
labels, the gradients for out=, those written in place) to be eight times the last level of cache together, each used
again only when the rest have been. Otherwise the numbers tell how much of the buffers happens to be in the cache: where
it is 32 MB, copying 33 MB again and again takes 1.3 times less than when other work comes between, and copying 2.6 MB
4.7 times less, which flatters now memcpy, now a contender. New arrays, of softmaxloss without out= and of the peers
always, come from each library's allocator as they do for its users. Cases below 1 MB use one buffer: what they measure
is the call. `--in-cache` uses one buffer always.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.agreement import TOLERANCE
from benchmarks.cases import Case
from benchmarks.contenders import EVERYONE
from benchmarks.machine import busy
from benchmarks.rotation import buffers
from benchmarks.worker import Worker


class DisagreementError(RuntimeError):
    """A contender's answer is not ours, so its time says nothing."""


@dataclass(frozen=True)
class Effort:
    """How long to measure: rounds, the seconds of a turn in each, and the seconds after which a case ends."""

    rounds: int
    turn_seconds: float
    case_seconds: float

    # An operation that takes longer than this joins every fifth round only.
    slow_seconds: float = 0.3
    slow_rounds: int = 5


FULL = Effort(rounds=40, turn_seconds=0.05, case_seconds=30)
QUICK = Effort(rounds=3, turn_seconds=0.01, case_seconds=10)


def measure(names: list[str], cases: list[Case], effort: Effort, in_cache: bool = False) -> list[dict[str, Any]]:
    """Measure every case, ours first among the names; each result is a dictionary that JSON can hold."""
    workers: dict[str, Worker] = {}
    try:
        for name in names:
            workers[name] = Worker(name)
        return [_measure_case(workers, case, effort, 1 if in_cache else buffers(case)) for case in cases]
    finally:
        for worker in workers.values():
            worker.close()


def _measure_case(workers: dict[str, Worker], case: Case, effort: Effort, count: int) -> dict[str, Any]:
    print(f"{case} ...", end="", file=sys.stderr, flush=True)
    for worker in workers.values():
        worker.drop()
    workers = {name: worker for name, worker in workers.items() if EVERYONE[name].takes(case)}
    operations = {name: worker.load(case, count) for name, worker in workers.items()}
    differences = _check(workers, operations, case)
    busy_before = busy()
    seconds: dict[str, dict[str, float]] = {name: {} for name in workers}
    calls: dict[str, dict[str, int]] = {name: {} for name in workers}
    start = time.perf_counter()
    done = 0
    while done < effort.rounds and not (done and time.perf_counter() - start > effort.case_seconds):
        for name, worker in workers.items():
            for operation in operations[name]:
                best = seconds[name].get(operation, float("inf"))
                if effort.slow_seconds < best < float("inf") and done % effort.slow_rounds:
                    continue
                shortest, times = worker.time(operation, effort.turn_seconds)
                seconds[name][operation] = min(best, shortest)
                calls[name][operation] = calls[name].get(operation, 0) + times
        done += 1
    print(f" {done} rounds, {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return {
        "case": str(case),
        "title": case.title,
        "dtype": case.dtype,
        "logits_bytes": case.nbytes,
        "buffers": count,
        "busy": max(busy_before, busy()),
        "rounds": done,
        "seconds": seconds,
        "calls": calls,
        "differences": differences,
    }


def _check(workers: dict[str, Worker], operations: dict[str, list[str]], case: Case) -> dict[str, dict[str, float]]:
    """Compare every loss and gradient with ours, which is also every operation's first call: it warms up."""
    differences: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="softmaxloss-benchmarks-") as folder:
        next(iter(workers.values())).save("grad", Path(folder))
        for name, worker in workers.items():
            compared = [operation for operation in operations[name] if operation != "copy"]
            differences[name] = {operation: worker.compare(operation, Path(folder)) for operation in compared}
    wrong = {
        f"{name} {operation}": difference
        for name, found in differences.items()
        for operation, difference in found.items()
        if not difference <= TOLERANCE[case.dtype]
    }
    if wrong:
        raise DisagreementError(
            f"{case}: answers that differ from ours by more than {TOLERANCE[case.dtype]:g} of an entry: "
            + ", ".join(f"{what} by {difference:.2g}" for what, difference in wrong.items())
        )
    return differences
