"""The command that evaluates scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softmaxloss.commands.app import Kind, check_kind, check_target, label, naming, print_found
from softmaxloss.report.options import LanguageOption, ReportOption, check_report_options, save_report

if TYPE_CHECKING:
    from softmaxloss.evaluation import Evaluation

# How much is evaluated between two looks at how far it is.
_PART_BYTES = 1 << 26


def evaluate(
    scores: Annotated[
        Path,
        typer.Argument(
            metavar="SCORES",
            help="A row of scores for each label: a .npy, .npz, .csv or .parquet file, or a folder or quoted "
            "pattern of .parquet files.",
        ),
    ],
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS", help="A .npy, .npz, .csv, .parquet, .txt or .svmlight file, or [b]digits[/b]."
        ),
    ],
    kind: Annotated[Kind, typer.Option(help="What the scores are.")] = Kind.logits,
    target: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of LABELS with the labels, or array of a .npz file."),
    ] = None,
    top_k: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Count labels among the k largest scores; can be repeated.", show_default="1, 5"),
    ] = None,
    bins: Annotated[int, typer.Option(min=1, max=1000, help="Bins of confidence.")] = 15,
    ignore_index: Annotated[int, typer.Option(callback=label, help="Label of the rows to leave out.")] = -100,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    report: ReportOption = None,
    lang: LanguageOption = None,
) -> None:
    """Evaluate scores against labels: loss, accuracy, calibration, mistakes. Files may exceed memory."""
    check_target(labels, target)
    check_report_options(report, lang, inputs=[scores, labels])
    found = _evaluated(scores, labels, kind, target, tuple(top_k or (1, 5)), bins, ignore_index)
    print_found(found, json)
    save_report(report, lang, found, quiet=json, title=scores.name)


def _evaluated(
    scores: Path, labels: Path, kind: Kind, target: str | None, top_k: tuple[int, ...], bins: int, ignore_index: int
) -> Evaluation:
    from softmaxloss.data.scores import read_labels, read_scores
    from softmaxloss.evaluation import Evaluation, Totals
    from softmaxloss.labels import LabelError
    from softmaxloss.progress import counted

    read = read_scores(scores)
    indices = read_labels(labels, read, target=target, ignore_index=ignore_index)
    check_kind(read, kind)
    rows, classes = read.values.shape
    totals = Totals(classes, kind=kind.value, top_k=top_k, bins=bins, ignore_index=ignore_index)
    with naming(scores), naming(labels, LabelError):
        for start, block in counted(read.blocks(_PART_BYTES), rows, "evaluating"):
            totals.add(block, indices[start : start + len(block)])
    return Evaluation.of(totals, read.classes)
