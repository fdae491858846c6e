"""The softmaxloss command: train a classifier, predict with it, evaluate and compare scores."""

from __future__ import annotations

from collections.abc import Sequence

from softmaxloss.commands import EXIT_INTERRUPTED, EXIT_PROBLEM
from softmaxloss.streams import prepare, say, stdout_problem

try:
    from softmaxloss.commands.app import app
    from softmaxloss.commands.compare import compare
    from softmaxloss.commands.evaluate import evaluate
    from softmaxloss.commands.predict import predict
    from softmaxloss.commands.train import train
except KeyboardInterrupt:
    say("interrupted")
    raise SystemExit(EXIT_INTERRUPTED) from None
except ModuleNotFoundError as error:
    raise SystemExit(f"softmaxloss: {error}; install the command with: pip install 'softmaxloss[cli]'") from None

__all__ = ["app", "main"]

for command in (train, predict, evaluate, compare):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; the exit status is 0 done, 1 a problem with the data, 2 usage, 130 interrupted."""
    try:
        prepare()
        app(arguments, prog_name="softmaxloss")
    except KeyboardInterrupt:
        say("interrupted")
        raise SystemExit(EXIT_INTERRUPTED) from None
    except OSError as error:
        problem = stdout_problem(error)
        if problem is None:
            raise
        say(f"error: cannot write to standard output ({problem})")
        raise SystemExit(EXIT_PROBLEM) from None
