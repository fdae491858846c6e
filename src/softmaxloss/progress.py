"""What fit tells stderr while it runs."""

import contextlib
import sys
from typing import Self

from softmaxloss.solver import Iteration


class ProgressReport:
    """An `on_iteration` that tells stderr how far the solver is; use it as a context manager.

    On a terminal one line is rewritten in place; elsewhere every 10th iteration and the last have a line each.
    A process without a stderr (Python then has None there), or with a closed one, gets no report.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.pending = ""

    def __enter__(self) -> Self:
        """Start reporting."""
        return self

    def __call__(self, iteration: Iteration) -> None:
        """Report one iteration."""
        if not self.enabled or _stderr_is_closed():
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
        if self.pending and not _stderr_is_closed():
            _say("" if sys.stderr.isatty() else self.pending)


def _say(line: str, end: str = "\n") -> None:
    with contextlib.suppress(OSError):  # a full disk or a broken pipe is no reason to stop
        print(line, end=end, file=sys.stderr, flush=True)


def _stderr_is_closed() -> bool:
    """Tell whether nothing can be written to stderr."""
    return sys.stderr is None or sys.stderr.closed
