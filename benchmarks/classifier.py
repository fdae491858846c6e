"""Training a classifier: the time until its objective is near the best there is, passes over the rows, and memory.

SoftmaxClassifier and the solvers of scikit-learn's LogisticRegression minimise the same objective. What counts is when
it is first within a gap of the best known, relative to it, at a point that the solver evaluates: each fit has a
tolerance that is never reached and ends at the smallest gap, or when its time is over. The best known is the lowest of
all that were looked at in float64, among them that of a long fit of ours before the others. The clock runs from the
call of fit, validation and preparation included. A pass is a value, a gradient, a Hessian matrix or a product with it,
of all rows; of fewer rows, that part of one.

sag and saga run without Python, where nothing can be watched: they are fitted anew with 1, 2, 4, ... passes, and then
with numbers between the last that is too few and the first that is enough, until the two are near.

Each contender has a fresh process, which fits a tiny case first. BLAS, OpenMP and our kernels use all processors there,
or as many threads as `--threads` says: where other programs run as well, threads that wait for each other can take many
times longer than one alone. Fits that take less than two seconds are repeated, and the shortest times kept; passes and
memory are those of the first.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from benchmarks import classifier_table
from benchmarks.classifier_cases import ClassifierCase
from benchmarks.classifier_contenders import CLASSIFIERS, MOST_ITERATIONS, OURS
from benchmarks.classifier_watch import GAPS, Problem, Watch
from benchmarks.contenders import all_threads
from benchmarks.machine import busy
from benchmarks.worker import SETTLE_SECONDS, WorkerError

# The long fit, which finds the best value, has so many times the seconds of the others.
LONG = 10

# Numbers of passes are near when they are within this ratio.
NEAR_PASSES = 1.2

# A fit that nothing can stop but the end of its process may take a little longer than was foreseen.
LATE = 1.25


@dataclass(frozen=True)
class Effort:
    """The seconds of a fit, how often a short one is done, how short it is then, and the threads of each process."""

    seconds: float
    repeats: int
    short_seconds: float = 2.0
    threads: int = dataclasses.field(default_factory=all_threads)


FULL = Effort(seconds=60, repeats=3)
QUICK = Effort(seconds=5, repeats=1)


def measure(names: list[str], cases: list[ClassifierCase], effort: Effort) -> list[dict[str, Any]]:
    """Measure every case; each result is a dictionary that JSON can hold."""
    return [_measure_case(names, case, effort) for case in cases]


def _measure_case(names: list[str], case: ClassifierCase, effort: Effort) -> dict[str, Any]:
    print(f"{case.title} ...", file=sys.stderr)
    share_busy = [busy()]
    with Process(OURS, case, effort.threads) as process:
        long = process.ask(_fit, None, dataclasses.replace(effort, seconds=LONG * effort.seconds, repeats=1))
    if long["lowest"] is None:
        raise WorkerError(f"{OURS}: no value of the objective in {long['seconds']:.0f} s; raise --seconds")
    fits: dict[str, dict[str, Any]] = {}
    for name in names:
        if CLASSIFIERS[name].takes(case):
            share_busy.append(busy())
            measured = _measure_watched if CLASSIFIERS[name].watched else _measure_by_passes
            with Process(name, case, effort.threads) as process:
                fits[name] = measured(process, long["lowest"], effort)
            print(f"  {name}: {classifier_table.seconds(fits[name])} s", file=sys.stderr)
    lowest = {name: fit["lowest"] for name, fit in fits.items() if fit["lowest"] is not None}
    return {
        "title": case.title,
        "busy": max(share_busy),
        "best": long["lowest"],
        "best_ended": long["ended"],
        "best_seconds": long["seconds"],
        "lower_by": max(0.0, 1 - min(lowest.values(), default=long["lowest"]) / long["lowest"]),
        "fits": fits,
    }


class Process:
    """A contender's own process, which has the case ready; another takes its place when it ends."""

    def __init__(self, name: str, case: ClassifierCase, threads: int) -> None:
        self._name, self._case, self._threads = name, case, threads
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function of this module returns there."""
        try:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
                self._pool.submit(_load, self._name, self._case, self._threads).result()
            return self._pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            self._pool.shutdown()
            self._pool = None
            raise WorkerError(f"{self._name}: the process ended") from None


def _measure_watched(process: Process, best: float, effort: Effort) -> dict[str, Any]:
    return process.ask(_fit, best, effort)


def _measure_by_passes(process: Process, best: float, effort: Effort) -> dict[str, Any]:
    """Fit with more and more passes until they are enough for all gaps, then with numbers between."""
    fits: dict[int, dict[str, Any] | None] = {}
    passes = 1
    while passes:
        fits[passes] = _fit_in_time(process, best, effort, passes)
        passes = more_passes(fits, effort.seconds)
    for gap in GAPS:
        while passes := passes_between(fits, gap):
            fits[passes] = _fit_in_time(process, best, effort, passes)
    return of_all_passes(fits, effort.seconds)


def _fit_in_time(process: Process, best: float, effort: Effort, passes: int) -> dict[str, Any] | None:
    """Return what `_fit` does, or nothing if it had to be ended for its time, and its process with it."""
    start = time.perf_counter()
    try:
        return process.ask(_fit, best, effort, passes)
    except WorkerError:
        if time.perf_counter() - start < effort.seconds:
            raise
        return None


def more_passes(fits: dict[int, dict[str, Any] | None], seconds: float) -> int:
    """Return twice as many passes as the most so far, or those that there is time for; 0 for no more."""
    most = max(fits)
    last = fits[most]
    if last is None or str(GAPS[-1]) in last["reached"]:
        return 0
    more = min(2 * most, int(most * seconds / last["seconds"]))
    return more if more > NEAR_PASSES * most else 0


def passes_between(fits: dict[int, dict[str, Any] | None], gap: float) -> int:
    """Return the middle between the fewest passes that reach the gap and the next fewer; 0 where these are near."""
    enough = [passes for passes, fit in fits.items() if fit is not None and str(gap) in fit["reached"]]
    if not enough:
        return 0
    fewer = max((passes for passes in fits if passes < min(enough)), default=0)
    middle = (fewer + min(enough)) // 2
    return middle if fewer < middle and min(enough) > NEAR_PASSES * fewer else 0


def of_all_passes(fits: dict[int, dict[str, Any] | None], seconds: float) -> dict[str, Any]:
    """Put fits of several numbers of passes together, as if they were one that had been watched."""
    done = [fits[passes] for passes in sorted(fits) if fits[passes] is not None]
    longest = max((fit["seconds"] for fit in done), default=seconds)
    return {
        "reached": {
            str(gap): min(
                (fit["reached"][str(gap)] for fit in done if str(gap) in fit["reached"]), key=lambda at: at["passes"]
            )
            for gap in GAPS
            if any(str(gap) in fit["reached"] for fit in done)
        },
        "seconds": seconds if None in fits.values() else longest,
        "ended": False,
        "lowest": min((fit["lowest"] for fit in done), default=None),
        "growth_bytes": max((fit["growth_bytes"] for fit in done), default=None),
        "trajectory": [point for fit in done for point in fit["trajectory"]],
    }


# In a contender's own process: its name and its case's data.
_own: dict[str, Any] = {}


def _load(name: str, case: ClassifierCase, threads: int) -> None:
    import threadpoolctl

    import softmaxloss as sl

    sl.set_num_threads(threads)
    _own.update(name=name, problem=Problem(*case.tiny.data(), case.C))
    _watched_fit(1.0, 60.0, 3)
    # NumPy's, SciPy's and scikit-learn's threads, now that all are there.
    threadpoolctl.threadpool_limits(threads)
    _own.update(problem=Problem(*case.data(), case.C))


def _fit(best: float | None, effort: Effort, passes: int = 0) -> dict[str, Any]:
    """Fit until a gap is reached or for so many passes, again where that was short, and return what was seen."""
    watches = [_watched_fit(best, effort.seconds, passes)]
    while watches[0].total < effort.short_seconds and len(watches) < effort.repeats:
        watches.append(_watched_fit(best, effort.seconds, passes))
    first = watches[0]
    for gap, at in first.reached.items():
        at["seconds"] = min(watch.reached[gap]["seconds"] for watch in watches if gap in watch.reached)
    return {
        "reached": first.reached,
        "seconds": min(watch.total for watch in watches),
        "ended": first.ended,
        "lowest": min(watch.lowest for watch in watches) if math.isfinite(first.lowest) else None,
        "growth_bytes": first.growth_bytes,
        "trajectory": first.trajectory,
    }


def _watched_fit(best: float | None, seconds: float, passes: int) -> Watch:
    contender, problem = CLASSIFIERS[_own["name"]], _own["problem"]
    estimator = contender.estimator(problem.C, passes or MOST_ITERATIONS)
    gc.collect()
    time.sleep(SETTLE_SECONDS)
    with warnings.catch_warnings():
        # That a solver has not converged, or where it met an infinity on its way, is what the numbers tell.
        warnings.simplefilter("ignore")
        if contender.watched is None:
            watch = Watch(problem, best, LATE * seconds, passes=passes)
            watch.fit(estimator)
        else:
            watch = Watch(problem, best, seconds)
            with contender.watched(watch, problem.rows):
                watch.fit(estimator)
    return watch
