"""Watches a fit: the clock, the objective wherever the solver evaluates it, the passes over the rows, and the memory.

What the solver computes of the objective, mostly in float32, tells when a gap may be reached; whether it is, the same
formula in float64 tells, while the clock stands still.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dense import DisagreementError
from benchmarks.worker import status_bytes

# How far above the best known value, relative to it, the objective may be: the times to these are measured.
GAPS = (1e-4, 1e-6)

# What a solver computes of the objective differs from it by rounding; a value of another formula is further off.
TOLERANCE = 1e-3

# A value this many times a gap above the best may be within it but for rounding, and is looked at in float64.
NEAR = 2.0

# Rows of float64 logits and features that are worked on at a time are about this many bytes.
BLOCK_BYTES = 1 << 23

# The alarm that ends a fit rings again where Python could not hear it.
ALARM_SECONDS = 0.25

# Coefficients (classes, features) and intercepts; for two classes of the second alone.
Parameters = tuple[Any, Any]


class Stop(BaseException):
    """The fit has come as far as it is watched; it is no error, and nothing in a solver may catch it."""


@dataclass(frozen=True)
class Problem:
    """What is minimised: the mean loss of the rows plus ||coef||^2 / (2 * C * rows)."""

    X: Any
    labels: Any
    C: float

    @property
    def rows(self) -> int:
        return len(self.labels)

    def objective(self, coef: Any, intercept: Any) -> float:
        """Return the objective, in float64."""
        from scipy.special import logsumexp

        coef, intercept = np.asarray(coef, np.float64), np.asarray(intercept, np.float64)
        penalty = float(np.square(coef).sum()) / (2 * self.C * self.rows)
        if coef.ndim == 1 or len(coef) == 1:
            coef = np.stack([np.zeros(coef.size), coef.ravel()])
            intercept = np.append(0.0, intercept)
        by_feature = np.ascontiguousarray(coef.T)
        length = max(1, BLOCK_BYTES // (8 * (len(coef) + (0 if hasattr(self.X, "indptr") else len(by_feature)))))
        total = 0.0
        for start in range(0, self.rows, length):
            rows = slice(start, start + length)
            logits = self.X[rows].astype(np.float64) @ by_feature + intercept
            of_label = logits[np.arange(len(logits)), self.labels[rows]]
            total += float((logsumexp(logits, axis=1) - of_label).sum())
        return total / self.rows + penalty


class Watch:
    """The clock of one fit and what it has seen.

    With the best known value of the objective the fit ends where it is within the smallest gap of it; without, nothing
    is looked at in float64 but the lowest of all points, at the end. What cannot be watched is given its passes: it is
    looked at when it has ended, and the whole process ends with its time.
    """

    def __init__(self, problem: Problem, best: float | None, seconds: float, passes: int = 0) -> None:
        self.passes = float(passes)
        self.lowest = math.inf
        self.reached: dict[str, dict[str, float]] = {}
        self.trajectory: list[tuple[float, float, float]] = []
        self.growth_bytes = 0
        self.total = 0.0
        # Whether the solver ended by itself, not by its time or because it was there.
        self.ended = False
        self._problem, self._best, self._limit = problem, best, seconds
        self._heard = signal.SIG_DFL if passes else self._check_time
        self._pending = list(GAPS)
        self._seen = 0
        self._lowest_seen: tuple[float, Parameters] | None = None
        self._running = False

    @property
    def seconds(self) -> float:
        """The clock."""
        return self.total + (time.perf_counter() - self._start if self._running else 0.0)

    def fit(self, estimator: Any) -> None:
        """Fit the estimator from scratch, until it ends, is within the smallest gap, or has had its time."""
        self._resident = status_bytes("VmRSS")
        with contextlib.suppress(Stop), _alarm(self._limit, self._heard):
            self._run()
            estimator.fit(self._problem.X, self._problem.labels)
            self.ended = True
        self._halt()
        if self.ended:
            with contextlib.suppress(Stop):
                self._look(None, (estimator.coef_, estimator.intercept_))
        if self._lowest_seen is not None:
            self.lowest = min(self.lowest, self._problem.objective(*self._lowest_seen[1]))

    def see(self, value: float, parameters: Callable[[], Parameters]) -> None:
        """Note that the solver found this value of the objective at the parameters."""
        self._seen += 1
        if math.isfinite(value):
            self.trajectory.append((self.seconds, value, self.passes))
        if self._best is None:
            if self._lowest_seen is None or value < self._lowest_seen[0]:
                self._lowest_seen = value, tuple(np.array(part) for part in parameters())
        # The second is looked at whatever it is, for what the solver minimises; the first says log(classes).
        elif self._seen == 2 or value <= self._best * (1 + NEAR * self._pending[0]):
            self._halt()
            self._look(value, parameters())
            self._run()

    def _look(self, value: float | None, parameters: Parameters) -> None:
        """Compute the objective at the parameters, and end the fit where it is within all gaps."""
        exact = self._problem.objective(*parameters)
        if value is None:
            self.trajectory.append((self.total, exact, self.passes))
        elif abs(value - exact) > TOLERANCE * abs(exact):
            raise DisagreementError(f"the solver's objective is {value!r} where it is {exact!r} in float64")
        self.lowest = min(self.lowest, exact)
        while self._best is not None and self._pending and exact <= self._best * (1 + self._pending[0]):
            self.reached[str(self._pending.pop(0))] = {"seconds": self.total, "passes": self.passes}
        if self._best is not None and not self._pending:
            raise Stop

    def _run(self) -> None:
        # Writing 5 sets the peak (VmHWM) back to what is resident now: proc(5), /proc/pid/clear_refs.
        Path("/proc/self/clear_refs").write_text("5")
        self._start = time.perf_counter()
        self._running = True

    def _halt(self) -> None:
        """Stop the clock, and note the peak of memory: what comes next is not the solver's."""
        if self._running:
            self.total, self._running = self.seconds, False
            self.growth_bytes = max(self.growth_bytes, status_bytes("VmHWM") - self._resident)

    def _check_time(self, _number: int, _frame: types.FrameType | None) -> None:
        if self._running and self.seconds >= self._limit:
            raise Stop


@contextlib.contextmanager
def _alarm(seconds: float, heard: Any) -> Iterator[None]:
    """Call `heard` when so many seconds are over, between two of Python's instructions, and again and again then."""
    before = signal.signal(signal.SIGALRM, heard)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, ALARM_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)
