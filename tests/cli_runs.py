"""How the tests of the command run it, and data that several of them give it."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import pytest

from softmaxloss.cli import main

# The command of the environment that runs the tests; `resolve` would leave it for the base interpreter's.
COMMAND = str(Path(sys.executable).parent / "softmaxloss")


def run(folder, *arguments, **options):
    return subprocess.run(
        [COMMAND, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=120, **options
    )


def succeed(folder, *arguments, **options):
    done = run(folder, *arguments, **options)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def run_here(folder, *arguments):
    """Run a command in this process, which has paid for the imports already."""
    out, error = io.StringIO(), io.StringIO()
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(error)
    with contextlib.chdir(folder), streams[0], streams[1], pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    return subprocess.CompletedProcess(arguments, ended.value.code, out.getvalue(), error.getvalue())


def listing(folder):
    return sorted((path.relative_to(folder), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


def refuse(folder, *arguments, run=run_here):
    """Run a command that is to fail on its data: status 1, one line, nothing written. Give the line."""
    before = listing(folder)
    done = run(folder, *arguments)
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert listing(folder) == before
    return done.stderr.removeprefix("error: ").rstrip("\n")


GOOD = "a,b,y\n" + "".join(f"{row % 7},{row % 5},{'pq'[row % 2]}\n" for row in range(40))
