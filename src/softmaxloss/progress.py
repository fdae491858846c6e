"""What fit, and whoever else works through many rows, tells stderr while it runs."""

import contextlib
import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Self, TypeVar

from softmaxloss.solver import Iteration

Item = TypeVar("Item")

# Before this share of the way the time that is left is anybody's guess.
_ENOUGH_SHARE = 0.1


class ProgressReport:
    """An `on_iteration` that tells stderr how far the solver is; use it as a context manager.

    On a terminal a bar says how much of the way the largest derivative has come towards `tol`, by their logarithms,
    beside the loss, the rows a second and the time that is left at that pace; without rich one line is rewritten in
    place. Elsewhere every 10th iteration and the last have a line each. A process without a stderr (Python then has
    None there), or with a closed one, gets no report.

    Parameters
    ----------
    enabled : bool
        Whether to report at all.
    tol : float
        Where the largest derivative is small enough.
    rows : int
        How many rows an iteration works through, counted once whatever the number of its passes; 0 if not known.
    """

    def __init__(self, *, enabled: bool = True, tol: float = 0.0, rows: int = 0) -> None:
        self.enabled = enabled
        self.pending = ""
        self._tol, self._rows = tol, rows
        self._way = _Way(tol)
        self._bar: Any = None

    def __enter__(self) -> Self:
        """Start reporting."""
        self._start = time.perf_counter()
        if self.enabled and not _stderr_is_closed() and sys.stderr.isatty():
            self._bar = _bar("[bold]iteration {task.fields[n]}[/bold]", "{task.fields[facts]}")
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=1.0, n=0, facts="the first passes", left="")
        return self

    def __call__(self, iteration: Iteration) -> None:
        """Report one iteration."""
        if not self.enabled or _stderr_is_closed():
            return
        if self._bar is not None:
            self._advance(iteration)
            return
        line = f"iteration {iteration.number}: loss {iteration.value:.8g}, max |gradient| {iteration.gradient_norm:.2e}"
        if sys.stderr.isatty():
            _say("\r" + line.ljust(len(self.pending)), end="")
            self.pending = line
        elif iteration.number % 10 == 0:
            _say(line)
            self.pending = ""
        else:
            self.pending = line

    def __exit__(self, *_: object) -> None:
        """Finish the line: of the last iteration, or after the last on a terminal."""
        if self._bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self._bar.stop()
        elif self.pending and not _stderr_is_closed():
            _say("" if sys.stderr.isatty() else self.pending)

    def _advance(self, iteration: Iteration) -> None:
        share = self._way.share(iteration.gradient_norm)
        seconds = time.perf_counter() - self._start
        facts = f"loss {iteration.value:.6g}, max |gradient| {iteration.gradient_norm:.1e}"
        if self._rows and seconds > 0:
            facts += f", {_short(iteration.number * self._rows / seconds)} rows/s"
        with contextlib.suppress(OSError, ValueError):
            self._bar.update(self._task, completed=share, n=iteration.number, facts=facts, left=_left(share, seconds))


class _Way:
    """How far the largest derivative has come from where it began to `tol`, by logarithms: never back."""

    def __init__(self, tol: float) -> None:
        self._tol = tol
        self._first = self._lowest = math.nan

    def share(self, norm: float) -> float:
        """Return the share of the way, 0 to 1, with the derivative of one more iteration."""
        if not (norm > 0 and math.isfinite(norm)):
            return 1.0 if norm == 0 else 0.0
        if math.isnan(self._first):
            self._first = self._lowest = norm
        self._lowest = min(self._lowest, norm)
        if self._lowest <= self._tol:
            return 1.0
        if not self._tol > 0:
            return 0.0
        return math.log(self._first / self._lowest) / math.log(self._first / self._tol)


def counted(blocks: Iterable[Item], rows: int, what: str = "rows") -> Iterator[Item]:
    """Yield blocks of rows and, on a terminal and with rich, show how many are done, at what pace and for how long yet.

    Parameters
    ----------
    blocks : iterable of (start, features) or of arrays
        What is worked through.
    rows : int
        How many rows they have together.
    what : str
        What is done to them.
    """
    bar = None
    if not _stderr_is_closed() and sys.stderr.isatty():
        bar = _bar(f"[bold]{what}[/bold]", "{task.fields[facts]}")
    if bar is None:
        yield from blocks
        return
    done, start = 0, time.perf_counter()
    with bar:
        task = bar.add_task("", total=max(rows, 1), facts="", left="")
        for block in blocks:
            yield block
            done += len(block[1] if isinstance(block, tuple) else block)  # type: ignore[arg-type]
            seconds = time.perf_counter() - start
            facts = f"{done} of {rows} rows, {_short(done / seconds)} rows/s" if seconds > 0 else ""
            bar.update(task, completed=done, facts=facts, left=_left(done / max(rows, 1), seconds))


def _bar(before: str, after: str) -> Any:
    """Return a bar of rich's on stderr; None without rich."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ModuleNotFoundError:
        return None
    columns = (
        *(TextColumn(before), BarColumn(bar_width=20), TextColumn(after)),
        *(TimeElapsedColumn(), TextColumn("{task.fields[left]}")),
    )
    return Progress(*columns, console=Console(file=sys.stderr), refresh_per_second=4, redirect_stdout=False)


def _left(share: float, seconds: float) -> str:
    """Say how long the rest takes at the pace so far, where that can be told."""
    if share < _ENOUGH_SHARE or share >= 1:
        return ""
    left = round(seconds * (1 - share) / share)
    hours, minutes = left // 3600, left // 60 % 60
    return f"about {hours}:{minutes:02}:{left % 60:02} left"


def _short(number: float) -> str:
    """Write a number to three digits, with its thousands as k, M or G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _say(line: str, end: str = "\n") -> None:
    with contextlib.suppress(OSError):  # a full disk or a broken pipe is no reason to stop
        print(line, end=end, file=sys.stderr, flush=True)


def _stderr_is_closed() -> bool:
    """Tell whether nothing can be written to stderr."""
    return sys.stderr is None or sys.stderr.closed
