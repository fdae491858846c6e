"""A pass over Dask's chunks on 1, 2 and 3 workers of this machine, beside the model that docs/scaling.md plans with.

The workers are processes of one thread each. What the model is made of is measured on its own: the products of one
chunk on one worker, the scheduler's time for a task that does nothing, and the time of tasks that only receive
coefficients and return sums as large as theirs. What it then says of whole passes is compared with their times.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.contenders import all_threads

WORKERS = (1, 2, 3)
FAN_IN = 8  # of the tree in softmaxloss.dask_rows


@dataclass(frozen=True)
class Effort:
    """The size of the problem, its chunks and how often a pass is timed."""

    rows: int
    features: int
    classes: int
    chunks: int
    rounds: int


FULL = Effort(rows=120_000, features=512, classes=500, chunks=24, rounds=7)
QUICK = Effort(rows=12_000, features=128, classes=100, chunks=12, rounds=3)


@dataclass(frozen=True)
class Machine:
    """The constants of the model.

    Parameters
    ----------
    flops : float
        Products and sums per second of one worker, in a pass.
    task_seconds : float
        The scheduler's time for one task, which it does one after the other.
    bytes_per_second : float
        Of one worker's connection.
    """

    flops: float
    task_seconds: float
    bytes_per_second: float


@dataclass(frozen=True)
class Problem:
    """Rows, features and classes, in so many chunks."""

    rows: int
    features: int
    classes: int
    chunks: int

    @property
    def coefficient_bytes(self) -> int:
        """Coefficients and intercepts in float32, as they are sent."""
        return 4 * self.classes * (self.features + 1)

    @property
    def sum_bytes(self) -> int:
        """Their derivatives in float64, as they are added."""
        return 8 * self.classes * (self.features + 1)

    @property
    def tasks(self) -> int:
        """One for each chunk, and one for each sum of `FAN_IN`."""
        tasks = level = self.chunks
        while level > 1:
            level = math.ceil(level / FAN_IN)
            tasks += level
        return tasks


def predicted(problem: Problem, machine: Machine, workers: int, processors: int | None = None) -> dict[str, float]:
    """Return the seconds of each term of one pass; workers on one machine share its processors.

    Coefficients are passed on from worker to worker, so that each doubling of those who have them takes one time of
    sending. Every sum but those at the top of the tree is taken by many workers at once; of the FAN_IN sums that one
    adds, all but its own share come from others.
    """
    at_once = min(workers, processors or workers)
    busiest = math.ceil(problem.chunks / workers) * workers / at_once / problem.chunks
    of_chunks = 4 * problem.rows * problem.features * problem.classes / machine.flops
    sends = 1 + math.ceil(math.log2(workers))  # the first from the client, by way of the scheduler
    elsewhere = 1 - 1 / workers
    received, level = 0.0, problem.chunks
    while level > 1:
        sums = math.ceil(level / FAN_IN)
        received += math.ceil(sums / workers) * min(FAN_IN, level) * elsewhere
        level = sums
    return {
        "products": of_chunks * busiest,
        "scheduler": problem.tasks * machine.task_seconds,
        "coefficients": sends * problem.coefficient_bytes / machine.bytes_per_second,
        "sums": (received + 1) * problem.sum_bytes / machine.bytes_per_second,  # and the last one to the client
    }


def measure(effort: Effort) -> dict[str, Any]:
    """Return the constants measured on one worker, and the measured and predicted passes on each number of them."""
    problem = Problem(effort.rows, effort.features, effort.classes, effort.chunks)
    machine, runs = None, []
    for workers in WORKERS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # sockets of the workers' processes
            machine, seconds = _on(workers, problem, effort.rounds, machine)
        terms = predicted(problem, machine, workers, all_threads())
        runs.append({"workers": workers, "seconds": seconds, "predicted": terms})
    assert machine is not None
    return {"problem": vars(problem), "constants": vars(machine), "runs": runs}


def table(results: dict[str, Any]) -> str:
    """Return the Markdown table of a measurement."""
    found = results["scaling"]
    constants, problem = found["constants"], found["problem"]
    lines = [
        "{rows} rows x {features} features x {classes} classes, float32, {chunks} chunks; ".format(**problem)
        + f"{constants['flops'] / 1e9:.1f} GFLOP/s a worker, {constants['task_seconds'] * 1e3:.2f} ms a task, "
        f"{constants['bytes_per_second'] / 1e6:.0f} MB/s; {all_threads()} processors",
        "",
        "| workers | measured, s | model, s | products | scheduler | coefficients | sums |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in found["runs"]:
        terms = run["predicted"]
        cells = [run["seconds"], sum(terms.values()), *terms.values()]
        lines.append(f"| {run['workers']} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    return "\n".join(lines)


def nothing(rows: Any) -> tuple[float]:
    """Return a sum that costs nothing."""
    return (0.0,)


def as_large(rows: Any, coef: Any, intercept: Any) -> tuple[Any, Any]:
    """Return sums as large as those of a pass, without its products."""
    return np.zeros(coef.shape), np.zeros(intercept.shape)


def product_seconds(rows: Any, coef: Any, intercept: Any) -> tuple[float]:
    """Return how long one chunk takes, in the worker."""
    from softmaxloss.objective import loss_and_gradient

    start = time.perf_counter()
    loss_and_gradient(rows, coef, intercept, 0.0)
    return (time.perf_counter() - start,)


def _on(workers: int, problem: Problem, rounds: int, machine: Machine | None) -> tuple[Machine, float]:
    """Return the constants, measured if there are none yet, and the seconds of a pass on so many workers."""
    import dask.array as da
    from distributed import Client, LocalCluster

    from softmaxloss.dask_rows import learn_from
    from softmaxloss.objective import loss_and_gradient

    local = LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
    )
    with local as cluster, Client(cluster):
        size = math.ceil(problem.rows / problem.chunks)
        random = da.random.default_rng(0)
        X = random.standard_normal((problem.rows, problem.features), dtype=np.float32, chunks=(size, -1))
        y = random.integers(0, problem.classes, problem.rows, chunks=size)
        source = learn_from(X, y, None, None)[1]
        coef = np.zeros((problem.classes, problem.features), np.float32)
        layer = coef, np.zeros(problem.classes, np.float32)
        if machine is None:
            machine = _constants(source, problem, layer, rounds)
        return machine, _seconds(lambda: source.total(loss_and_gradient, *layer, 0.0), rounds)


def _constants(source: Any, problem: Problem, layer: tuple[Any, Any], rounds: int) -> Machine:
    """Return the constants, on one worker."""
    of_chunks = statistics.median(source.total(product_seconds, *layer)[0] for _ in range(rounds))
    idle = _seconds(lambda: source.total(nothing), rounds)
    sending = _seconds(lambda: source.total(as_large, *layer), rounds)
    sent = problem.coefficient_bytes + problem.sum_bytes
    return Machine(
        flops=4 * problem.rows * problem.features * problem.classes / of_chunks,
        task_seconds=idle / problem.tasks,
        bytes_per_second=sent / max(sending - idle, 1e-3),
    )


def _seconds(call: Callable[[], object], rounds: int) -> float:
    """Return the median time of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
