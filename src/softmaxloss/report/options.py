"""What the commands that write reports share: their options, and what is to be checked and written."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from softmaxloss.comparison import Comparison
    from softmaxloss.evaluation import Evaluation

__all__ = ["Language", "LanguageOption", "ReportOption", "check_report_options", "save_report"]


class Language(StrEnum):
    """What --lang takes."""

    en = "en"
    zh = "zh"


ReportOption = Annotated[
    Path | None, typer.Option("--report", metavar="FILE.html", help="Where to write a report, a page with figures.")
]
LanguageOption = Annotated[
    Language | None, typer.Option("--lang", help="Language that the report opens in.", show_default="en")
]


def check_report_options(
    report: Path | None, lang: Language | None, *, inputs: Iterable[Path] = (), outputs: Iterable[Path] = ()
) -> None:
    """Refuse what would stop a report, before the work that it is to tell of.

    Parameters
    ----------
    report, lang
        What the options say.
    inputs, outputs : iterables of Path
        Files that are read and that are written: the report may be none of them.

    Raises
    ------
    typer.BadParameter
        A language without a report, or a report in the place of another output.
    DataError, ModuleNotFoundError
        As `softmaxloss.report.write.check_report`.
    """
    if report is None:
        if lang is not None:
            raise typer.BadParameter("there is no report; add --report FILE.html.", param_hint="'--lang'")
        return
    if report.resolve() in [path.resolve() for path in outputs]:
        raise typer.BadParameter(f"{report} is written already; choose another name.", param_hint="'--report'")
    from softmaxloss.report.write import check_report

    check_report(report, inputs)


def save_report(
    report: Path | None, lang: Language | None, found: Evaluation | Comparison, *, quiet: bool = False, **told: Any
) -> None:
    """Write the report that was asked for, if any, and say so but where the output is for a program."""
    if report is None:
        return
    from softmaxloss.report.write import write_report

    write_report(report, found, language="zh" if lang is Language.zh else "en", **told)
    if not quiet:
        typer.echo(f"saved {report}")
