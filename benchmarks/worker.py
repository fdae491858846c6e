"""A contender in a process of its own, so that no two thread pools meet; the runner asks it over a pipe."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.agreement import as_numpy, relative_difference, smallest_share
from benchmarks.cases import Case
from benchmarks.contenders import EVERYONE, all_threads
from benchmarks.operations import Operations

# The threads of the contender before spin for up to some 10 ms after their last work; let them fall asleep.
SETTLE_SECONDS = 0.02

# Rows compared at a time are about this many bytes.
COMPARE_BYTES = 1 << 24


class WorkerError(RuntimeError):
    """A contender's process failed; the message holds its traceback."""


class Worker:
    """The runner's end: methods are requests to the process, which lives from construction to `close`."""

    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name), daemon=True)
        self._process.start()
        theirs.close()

    def load(self, case: Case, buffers: int) -> list[str]:
        """Make a case ready, with so many buffers to go through, and drop the one before; returns the operations."""
        return self._ask("load", case, buffers)

    def drop(self) -> None:
        """Let go of the case and its memory."""
        return self._ask("drop")

    def time(self, operation: str, seconds: float) -> tuple[float, int]:
        """Call an operation until the seconds are over: the shortest time, and the number of calls."""
        return self._ask("time", operation, seconds)

    def save(self, operation: str, folder: Path) -> None:
        """Write an operation's loss and gradient, for other contenders to compare with."""
        return self._ask("save", operation, folder)

    def compare(self, operation: str, folder: Path) -> float:
        """Give the largest relative difference from the saved loss and, if there is one, gradient."""
        return self._ask("compare", operation, folder)

    def memory(self, case: Case, operation: str) -> int:
        """Give the bytes by which an operation's first call raises the process's peak of resident memory."""
        return self._ask("memory", case, operation)

    def close(self) -> None:
        self._connection.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.kill()

    def _ask(self, request: str, *arguments: Any) -> Any:
        try:
            self._connection.send((request, *arguments))
            answer, failure = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(timeout=10)
            raise WorkerError(f"{self.name}: the process ended with status {self._process.exitcode}") from None
        if failure:
            raise WorkerError(f"{self.name}: {request} failed\n{failure}")
        return answer


def _serve(connection: Connection, name: str) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    # XLA tells how long it takes to compile, on standard error; what fails raises as well.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    bench = _Bench(name)
    while True:
        try:
            request, *arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send((getattr(bench, request)(*arguments), None))
        except Exception:
            connection.send((None, traceback.format_exc()))


class _Bench:
    """The process's end of `Worker`, method for method."""

    def __init__(self, name: str) -> None:
        self._contender = EVERYONE[name]
        self._operations: Operations = {}
        self._case = Case((1, 2))

    def load(self, case: Case, buffers: int) -> list[str]:
        self.drop()
        self._case = case
        self._operations = self._contender.load(case, all_threads(), buffers)
        return list(self._operations)

    def drop(self) -> None:
        self._operations = {}
        gc.collect()

    def time(self, operation: str, seconds: float) -> tuple[float, int]:
        one = self._operations[operation]
        best, calls = float("inf"), 0
        time.sleep(SETTLE_SECONDS)
        end = time.perf_counter() + seconds
        while not calls or time.perf_counter() < end:
            one.before()
            start = time.perf_counter()
            answer = one.run()
            best = min(best, time.perf_counter() - start)
            # Freed outside the clock: freeing a new gradient is the caller's time.
            del answer
            calls += 1
        return best, calls

    def save(self, operation: str, folder: Path) -> None:
        loss, gradient = self._answer(operation)
        # A file has no name for bfloat16: the loss, which PyTorch has in it, becomes float32, and the gradient bytes.
        np.save(folder / "loss.npy", loss.astype(np.float32) if loss.itemsize == 2 else loss)
        np.save(folder / "gradient.npy", gradient.view(f"V{gradient.itemsize}"))

    def compare(self, operation: str, folder: Path) -> float:
        loss, gradient = self._answer(operation)
        difference = relative_difference(loss, np.load(folder / "loss.npy"))
        if gradient is None:
            return difference
        expected = np.load(folder / "gradient.npy", mmap_mode="r").view(self._case.numpy_dtype)
        if gradient.shape != expected.shape or gradient.dtype != expected.dtype:
            return float("inf")
        floor = smallest_share(self._case)
        gradient, expected = (array.reshape(-1) for array in (gradient, expected))
        length = COMPARE_BYTES // expected.itemsize
        for start in range(0, len(expected), length):
            block = slice(start, start + length)
            difference = max(difference, relative_difference(gradient[block], expected[block], floor))
        return difference

    def memory(self, case: Case, operation: str) -> int:
        # A tiny case first: it imports, starts threads, and fills what is filled once.
        for one in self._contender.load(Case((64, 16), case.dtype), all_threads(), 1).values():
            one.before()
            one.run()
        self.load(case, 1)
        one = self._operations[operation]
        one.before()
        gc.collect()
        # Writing 5 sets the peak (VmHWM) back to what is resident now: proc(5), /proc/pid/clear_refs.
        Path("/proc/self/clear_refs").write_text("5")
        before = status_bytes("VmRSS")
        answer = one.run()
        peak = status_bytes("VmHWM")
        del answer
        return max(0, peak - before)

    def _answer(self, operation: str) -> tuple[Any, Any]:
        one = self._operations[operation]
        one.before()
        answer = one.run()
        loss, gradient = answer if isinstance(answer, tuple) else (answer, None)
        return as_numpy(loss), None if gradient is None else as_numpy(gradient)


def status_bytes(field: str, process: int | str = "self") -> int:
    """Return a field of a process's status, such as VmRSS: proc(5)."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{process}/status has no {field}: this measurement needs Linux")
