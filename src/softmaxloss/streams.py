"""Standard output and error as they may be: full, closed, or of an encoding that lacks characters."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from pathlib import Path
from typing import TextIO

__all__ = ["is_unicode", "prepare", "say", "stdout_problem"]

# What the system says when a stream takes no more. (A pipe that nobody reads is for typer to end quietly.)
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def prepare() -> None:
    """Make standard output take any character, and standard error any line even if it is closed."""
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (open until the process ends)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(line: str) -> None:
    """Write a line to standard error; if it is full or closed there is nobody to tell."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)


def is_unicode() -> bool:
    """Tell whether standard output takes every character as it is."""
    encoding = getattr(sys.stdout, "encoding", None)
    return encoding is not None and codecs.lookup(encoding).name.startswith("utf")


def stdout_problem(error: OSError) -> str | None:
    """Give the reason if an error is that standard output takes no more, and forget what it did not take.

    What goes wrong with a file is a `DataError`, so an error of writing that still is an OSError is of a stream.
    """
    if error.filename is not None or error.errno not in WRITE_ERRORS:
        return None
    if sys.stdout is not None:
        _silence(sys.stdout)
    return error.strerror


def _silence(stream: TextIO) -> None:
    """Let what is left in a stream's buffer go nowhere, or Python complains of it when it ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
