"""The application that the commands belong to, and what they share."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softmaxloss import __version__
from softmaxloss.commands import EXIT_INTERRUPTED, EXIT_PROBLEM
from softmaxloss.streams import is_unicode, say

if TYPE_CHECKING:
    from softmaxloss.comparison import Comparison
    from softmaxloss.data.scores import Scores
    from softmaxloss.evaluation import Evaluation


class Kind(StrEnum):
    """What --kind takes."""

    logits = "logits"
    log_probabilities = "log_probabilities"
    probabilities = "probabilities"


class Commands(typer.core.TyperGroup):
    """The commands, and what they share: warnings and errors as one line each, and the exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            # What overflows is refused where it matters, in words that name the file.
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                say("interrupted")
                raise typer.Exit(EXIT_INTERRUPTED) from None
            except MemoryError:
                say("error: there is not enough memory for this data")
            except ModuleNotFoundError as error:
                say(f"error: {error}; install the command with: pip install 'softmaxloss[cli]'")
            except ValueError as error:
                from softmaxloss.data.files import DataError, one_line

                if not isinstance(error, DataError):
                    raise
                say(f"error: {one_line(error)}")
            raise typer.Exit(EXIT_PROBLEM)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    from softmaxloss.data.files import one_line

    say(f"note: {one_line(message)}")


app = typer.Typer(
    cls=Commands,
    help="Train a softmax classifier, predict with it, and evaluate scores by the softmax cross-entropy.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"softmaxloss {__version__}")
        raise typer.Exit


def positive(value: float) -> float:
    """Check an option that is a number above 0."""
    if not value > 0:
        raise typer.BadParameter(f"{value:g} is not a number above 0.")
    return value


def label(value: int) -> int:
    """Check an option that is a label."""
    if not -(2**63) <= value < 2**63:
        raise typer.BadParameter(f"{value} is not a label, which has 64 bits.")
    return value


def fraction(value: float | None) -> float | None:
    """Check an option that is a share of the rows."""
    if value is not None and not 0 <= value < 1:
        raise typer.BadParameter(f"{value:g} is not a fraction of at least 0 and less than 1.")
    return value


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@contextlib.contextmanager
def naming(source: object, kind: type[ValueError] = ValueError) -> Iterator[None]:
    """Put the name of the file before what a library says is wrong with its values."""
    from softmaxloss.data.files import DataError

    try:
        yield
    except DataError:
        raise
    except kind as error:
        raise DataError(f"{source}: {error}") from None


def check_kind(scores: Scores, kind: Kind) -> None:
    """Refuse probabilities that are taken for logits."""
    from softmaxloss.data.files import DataError
    from softmaxloss.data.scores import look_like_probabilities

    if kind is Kind.logits and look_like_probabilities(scores):
        raise DataError(
            f"{scores.path}: every row is non-negative and sums to 1, but for rounding, so it holds probabilities, not "
            "logits; evaluate it with --kind probabilities"
        )


def check_target(labels: Path, target: str | None) -> None:
    """Refuse to choose among the labels of a file that has one array of them."""
    from softmaxloss.data.scores import has_one_array_of_labels

    if target is not None and has_one_array_of_labels(labels):
        raise typer.BadParameter(f"{labels} has no other labels to choose; leave it out.", param_hint="'--target'")


def print_found(found: Evaluation | Comparison, json: bool) -> None:
    """Print what was found, as tables or as JSON."""
    if json:
        from json import dumps

        typer.echo(dumps(found.to_dict(), ensure_ascii=not is_unicode()))
    else:
        from rich.console import Console

        Console().print(found)
