"""The loss of a linear layer's output: times beside the matrix products it cannot avoid, and the memory it takes.

The loss alone needs one product, the logits; with its gradients by hidden states and weight it needs three. The
contenders' times are multiples of these products as their own library computes them, the logits and the arrays that
they are made of in memory already, the gradients in new arrays. Each contender has a process of its own; all take turns
in every round, and the shortest time of each operation is kept. For the memory each operation has a fresh process.

torch.compile of the plain way is what the ``torch_compile`` form of the package cut_cross_entropy is; its other forms
are for GPUs.

Peaked logits, for the gradient filter, are such as a trained model's: the frequencies of the labels fall with their
rank, the first feature carries the logarithm of these, and hidden states lie near their label's weight.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dense import DisagreementError
from benchmarks.linear_contenders import FILTER, LINEAR, TINY, Call, LinearCase
from benchmarks.machine import busy
from benchmarks.tables import framed, markdown_table, warnings_and_conditions
from benchmarks.worker import SETTLE_SECONDS, WorkerError, status_bytes

# Losses and gradients are sums in another order: what they may differ by, relative to the largest.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Effort:
    """Rounds, and the seconds after which a case has no further one."""

    rounds: int
    case_seconds: float


FULL = Effort(rounds=12, case_seconds=240)
QUICK = Effort(rounds=1, case_seconds=1)


def measure(names: list[str], cases: list[LinearCase], effort: Effort) -> list[dict[str, Any]]:
    """Time every case; each result is a dictionary that JSON can hold."""
    return [_measure_case(names, case, effort) for case in cases]


def measure_memory(names: list[str], cases: list[LinearCase]) -> list[dict[str, Any]]:
    """Measure the memory of every case beside its arguments and gradients, likewise."""
    return [_measure_memory(names, case) for case in cases]


def _measure_case(names: list[str], case: LinearCase, effort: Effort) -> dict[str, Any]:
    print(f"{case.title}{', peaked' * case.peaked} ...", file=sys.stderr)
    names = [name for name in names if LINEAR[name].takes(case)]
    pools = {name: _process() for name in names}
    busy_before = busy()
    try:
        wanted = ("grad", "filtered") if case.peaked else ("product", "loss", "products", "grad")
        present = {name: [x for x in wanted if x in _ask(name, pools, _start, name, case)] for name in names}
        difference = _check(names, pools)
        seconds: dict[str, dict[str, float]] = {name: {} for name in names}
        start, rounds = time.perf_counter(), 0
        while rounds < effort.rounds and not (rounds and time.perf_counter() - start > effort.case_seconds):
            for name in names:
                for operation in present[name]:
                    took = _ask(name, pools, _time, operation)
                    seconds[name][operation] = min(took, seconds[name].get(operation, took))
            rounds += 1
    finally:
        for pool in pools.values():
            pool.shutdown(cancel_futures=True)
    return {
        "title": case.title,
        "peaked": case.peaked,
        "busy": max(busy_before, busy()),
        "rounds": rounds,
        "seconds": seconds,
        "difference": difference,
    }


def _measure_memory(names: list[str], case: LinearCase) -> dict[str, Any]:
    print(f"memory of {case.title} ...", file=sys.stderr)
    growth: dict[str, dict[str, int]] = {}
    for name in names:
        if LINEAR[name].takes(case):
            growth[name] = {}
            for operation in ("loss", "grad"):
                with _process() as pool:
                    found = _ask(name, {name: pool}, _memory, name, case, operation)
                growth[name][operation] = max(0, found - (case.gradient_bytes if operation == "grad" else 0))
    return {"title": case.title, "logits_bytes": case.logits_bytes, "growth_bytes": growth}


def _check(names: list[str], pools: dict[str, ProcessPoolExecutor]) -> float:
    """Return how far the answers are apart, relative to ours, or raise where it is more than rounding."""
    answers = {name: _ask(name, pools, _answer) for name in names}
    apart = {name: max(map(_apart, answer, answers[names[0]])) for name, answer in answers.items()}
    wrong = {name: value for name, value in apart.items() if not value <= TOLERANCE}
    if wrong:
        raise DisagreementError(f"answers that differ from those of {names[0]} by more than {TOLERANCE:g}: {wrong}")
    return max(apart.values())


def _apart(theirs: Any, ours: Any) -> float:
    return float(np.abs(theirs - ours).max() / np.abs(ours).max())


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet)


def _ask(name: str, pools: dict[str, ProcessPoolExecutor], function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return pools[name].submit(function, *arguments).result()
    except BrokenProcessPool:
        raise WorkerError(f"{name}: the process ended") from None


# In a contender's own process: what it can do.
_own: dict[str, Call] = {}


def _quiet() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def _start(name: str, case: LinearCase) -> list[str]:
    _own.clear()
    _own.update(LINEAR[name].load(case))
    for call in _own.values():
        call()  # compiles what is to be compiled
    return list(_own)


def _time(operation: str) -> float:
    gc.collect()
    time.sleep(SETTLE_SECONDS)
    start = time.perf_counter()
    answer = _own[operation]()
    seconds = time.perf_counter() - start
    del answer  # freed outside the clock: that is the caller's time
    return seconds


def _answer() -> list[Any]:
    """Return the loss, a column of the hidden states' gradient, and one of the weight's."""
    loss, by_hidden, by_weight = _own["grad"]()
    return [np.asarray(loss, np.float64), np.asarray(by_hidden[:, 0]), np.asarray(by_weight[:, 0])]


def _memory(name: str, case: LinearCase, operation: str) -> int:
    # A tiny case first: it imports, starts threads, and fills what is filled once.
    for call in LINEAR[name].load(TINY).values():
        call()
    call = LINEAR[name].load(case)[operation]
    gc.collect()
    # Writing 5 sets the peak (VmHWM) back to what is resident now: proc(5), /proc/pid/clear_refs.
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    answer = call()
    peak = status_bytes("VmHWM")
    del answer
    return peak - before


def table(results: dict[str, Any]) -> str:
    """Write times as multiples of the products, how much faster the filter is, and the memory."""
    names = results["contenders"]
    timed = [case for case in results["cases"] if not case["peaked"]]
    titles = [LINEAR[name].title for name in names]
    parts = warnings_and_conditions(results, results["cases"])
    if timed:
        lead = (
            "Times of the loss alone as multiples of one matrix product / of the loss and its gradients as multiples "
            "of three, as the same library computes these. products: seconds of one / of three in the first library."
        )
        rows = [
            [case["title"], _products(case, names[0]), *(_multiples(case, name) for name in names)] for case in timed
        ]
        parts += [lead, markdown_table(["hidden x features x classes", "products", *titles], rows)]
    peaked = [case for case in results["cases"] if case["peaked"]]
    if peaked:
        filtered = [name for name in names if any("filtered" in case["seconds"].get(name, {}) for case in peaked)]
        power = math.log2(FILTER)
        lead = f"Of peaked logits: how many times faster loss and gradients are with gradient_filter = 2^{power:.0f}."
        rows = [[case["title"], *(_speedup(case, name) for name in filtered)] for case in peaked]
        header = ["hidden x features x classes", *(LINEAR[name].title for name in filtered)]
        parts += [lead, markdown_table(header, rows)]
    if results["memory"]:
        lead = "Memory in MiB that a call takes beside its arguments and gradients: the loss / the loss and gradients."
        rows = [
            [case["title"], _mebibytes(case["logits_bytes"]), *(_growth(case, name) for name in names)]
            for case in results["memory"]
        ]
        parts += [lead, markdown_table(["hidden x features x classes", "the logits", *titles], rows)]
    if results["cases"]:
        largest = max(case["difference"] for case in results["cases"])
        parts.append(f"Answers agree: by order of rounding they differ by at most {largest:.1e} of the largest entry.")
    return framed("linear", parts)


def _products(case: dict[str, Any], name: str) -> str:
    seconds = case["seconds"][name]
    return f"{seconds['product']:.3g} / {seconds['products']:.3g}"


def _multiples(case: dict[str, Any], name: str) -> str:
    seconds = case["seconds"].get(name)
    if seconds is None:
        return "-"
    return f"{seconds['loss'] / seconds['product']:.2f} / {seconds['grad'] / seconds['products']:.2f}"


def _speedup(case: dict[str, Any], name: str) -> str:
    seconds = case["seconds"][name]
    return f"{seconds['grad'] / seconds['filtered']:.2f}" if "filtered" in seconds else "-"


def _growth(case: dict[str, Any], name: str) -> str:
    growth = case["growth_bytes"].get(name)
    return "-" if growth is None else f"{_mebibytes(growth['loss'])} / {_mebibytes(growth['grad'])}"


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.0f}"
