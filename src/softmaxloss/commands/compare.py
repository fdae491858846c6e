"""The command that compares two models' scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softmaxloss.commands.app import Kind, check_kind, check_target, label, naming, print_found
from softmaxloss.report.options import LanguageOption, ReportOption, check_report_options, save_report

if TYPE_CHECKING:
    from softmaxloss.comparison import Comparison
    from softmaxloss.data.scores import Scores
    from softmaxloss.evaluation import Evaluation


def compare(
    scores_a: Annotated[Path, typer.Argument(metavar="SCORES_A", help="Scores of one model, as evaluate takes them.")],
    scores_b: Annotated[Path, typer.Argument(metavar="SCORES_B", help="Scores of another for the same rows.")],
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Their labels, as evaluate takes them.")],
    kind: Annotated[Kind, typer.Option(help="What the scores are.")] = Kind.logits,
    kind_b: Annotated[
        Kind | None, typer.Option(help="What SCORES_B are.", show_default="as --kind", metavar="KIND")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of LABELS with the labels, or array of a .npz file."),
    ] = None,
    ignore_index: Annotated[int, typer.Option(callback=label, help="Label of the rows to leave out.")] = -100,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    report: ReportOption = None,
    lang: LanguageOption = None,
) -> None:
    """Compare two models' scores on the same rows: by how much their losses differ, and whether by chance."""
    check_target(labels, target)
    check_report_options(report, lang, inputs=[scores_a, scores_b, labels])
    kinds, each_too = (kind, kind_b or kind), report is not None
    found, evaluations = _compared(scores_a, scores_b, labels, kinds, target, ignore_index, each_too=each_too)
    print_found(found, json)
    names = (str(scores_a), str(scores_b))
    save_report(report, lang, found, quiet=json, evaluations=evaluations, names=names)


def _compared(
    scores_a: Path,
    scores_b: Path,
    labels: Path,
    kinds: tuple[Kind, Kind],
    target: str | None,
    ignore_index: int,
    *,
    each_too: bool,
) -> tuple[Comparison, tuple[Evaluation, Evaluation] | None]:
    """Compare, and evaluate each too where that is asked for."""
    from softmaxloss.comparison import compare
    from softmaxloss.data.files import DataError
    from softmaxloss.data.scores import read_labels, read_scores
    from softmaxloss.evaluation import evaluate
    from softmaxloss.labels import LabelError

    a, b = (_in_place(read_scores(path)) for path in (scores_a, scores_b))
    if a.values.shape != b.values.shape:
        raise DataError(f"{scores_b}: has shape {b.values.shape}; expected {a.values.shape}, that of {scores_a}")
    if a.classes is not None and b.classes is not None and a.classes != b.classes:
        raise DataError(f"{scores_b}: its classes are not those of {scores_a}, in the same order")
    named = b if a.classes is None else a
    indices = read_labels(labels, named, target=target, ignore_index=ignore_index)
    for read, kind in zip((a, b), kinds, strict=True):
        check_kind(read, kind)
    with naming(f"{scores_a} and {scores_b}"), naming(labels, LabelError):
        found = compare(
            a.values,
            b.values,
            indices,
            kind=(kinds[0].value, kinds[1].value),
            ignore_index=ignore_index,
            class_names=named.classes,
        )
        if not each_too:
            return found, None
        of_a, of_b = (
            evaluate(read.values, indices, kind=kind.value, ignore_index=ignore_index, class_names=named.classes)
            for read, kind in zip((a, b), kinds, strict=True)
        )
        return found, (of_a, of_b)


def _in_place(scores: Scores) -> Scores:
    """Return scores of which any rows can be read: those of Parquet files from a temporary file."""
    from dataclasses import replace

    if not hasattr(scores.values, "blocks"):
        return scores
    from softmaxloss.data.score_files import mapped_scores

    return replace(scores, values=mapped_scores(scores.values))
