"""Evaluations and comparisons as lines of text and as rich tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

    from softmaxloss.comparison import Comparison
    from softmaxloss.measures.evaluation import Evaluation

__all__ = ["comparison_tables", "comparison_text", "evaluation_tables", "evaluation_text"]

# More classes than this do not fit a screen: the table then shows the worst ones only.
MOST_CLASSES_SHOWN = 30
WORST_CLASSES_SHOWN = 15
CONFUSIONS_SHOWN = 5
ROWS_SHOWN = 5


def evaluation_text(found: Evaluation) -> str:
    """Write the headline numbers and warnings as lines of text."""
    return _lines(_headline(found), _warnings(found))


def evaluation_tables(found: Evaluation) -> Group:
    """Lay out as rich tables: the headline numbers, warnings, calibration, mistakes, and the classes."""
    from rich.console import Group
    from rich.text import Text

    name, value = _headline(found)[0]
    # What a line of text has no room for comes after the line that it belongs to.
    rows = [(name, value), *_more_of_loss(found), *_headline(found)[1:-1], *_calibration(found), _headline(found)[-1]]
    warnings = [Text(f"warning: {warning}", style="bold yellow") for warning in _warnings(found)]
    n_classes, shown = len(found.class_names), _classes_shown(found.class_loss, found.class_count)
    heading = "Classes:"
    if len(shown) < n_classes:
        heading = f"The {len(shown)} classes of the highest loss, out of {n_classes:,}:"
    classes = [
        (found.class_names[c], f"{loss:.4g}", _percent(accuracy), f"{count:,}")
        for c, loss, accuracy, count in zip(
            shown,
            found.class_loss[shown].tolist(),
            found.class_accuracy[shown].tolist(),
            found.class_count[shown].tolist(),
            strict=True,
        )
    ]
    class_table = _table(("class", "loss", "accuracy", "rows"), classes)
    return Group(_pairs(rows), *warnings, Text(heading), class_table, *_reliability(found), *_mistakes(found))


def comparison_text(found: Comparison) -> str:
    """Write the headline numbers and warnings as lines of text."""
    return _lines(_comparison_headline(found), _comparison_warnings(found))


def comparison_tables(found: Comparison) -> Group:
    """Lay out as rich tables: the headline numbers, warnings, and where the two differ most."""
    from rich.console import Group
    from rich.text import Text

    warnings = [Text(f"warning: {warning}", style="bold yellow") for warning in _comparison_warnings(found)]
    sizes = np.abs(found.class_difference)
    seen = np.flatnonzero(found.class_count)
    shown = seen[np.argsort(-sizes[seen], kind="stable")][:WORST_CLASSES_SHOWN].tolist()
    classes = [(found.class_names[c], f"{found.class_difference[c]:+.4g}", f"{found.class_count[c]:,}") for c in shown]
    rows = [
        (f"{row.row:,}", found.class_names[row.label], f"{row.loss_a:.4g}", f"{row.loss_b:.4g}")
        for row in found.rows[:ROWS_SHOWN]
    ]
    parts: list[RenderableType] = [
        Text("Classes that differ most, by the loss of A less that of B:"),
        _table(("class", "difference", "rows"), classes),
    ]
    if rows:
        parts += [Text("Rows that differ most:"), _table(("row", "label", "loss A", "loss B"), rows)]
    return Group(_pairs(_comparison_headline(found)), *warnings, *parts)


def _headline(found: Evaluation) -> list[tuple[str, str]]:
    rows = [
        ("loss", f"{found.loss:.6g} (standard error {found.loss_standard_error:.6g})"),
        ("perplexity", f"{found.perplexity:.6g}"),
        ("accuracy", _percent(found.accuracy)),
    ]
    # Top-1 is the accuracy, and a k of all classes says nothing.
    telling = {k: value for k, value in found.top_k.items() if 1 < k < len(found.class_names)}
    rows += [(f"top-{k} accuracy", _percent(value)) for k, value in telling.items()]
    if found.totals.only_loss:
        rows = rows[:2]
    return [*rows, ("rows", _count(found.n_rows, found.n_ignored, found.n_nonfinite))]


def _more_of_loss(found: Evaluation) -> list[tuple[str, str]]:
    rows = [("bits", f"{found.bits:.6g}")]
    if not found.totals.only_loss:
        low, high = found.loss_interval
        rows.insert(0, ("95 % interval", f"{low:.6g} to {high:.6g}"))
    baseline = f"{found.baseline_loss:.6g} (pseudo-R² {found.pseudo_r2:.4g})"
    return [*rows, ("loss of class frequencies", baseline)]


def _calibration(found: Evaluation) -> list[tuple[str, str]]:
    if found.totals.only_loss:
        return []
    low, high = found.accuracy_interval
    error = f"{_percent(found.calibration_error)} (adaptive {_percent(found.adaptive_calibration_error)})"
    return [
        ("accuracy, 95 % interval", f"{_percent(low)} to {_percent(high)}"),
        ("Brier score", f"{found.brier:.6g}"),
        ("calibration error", error),
    ]


def _warnings(found: Evaluation) -> list[str]:
    warnings = []
    if found.n_nonfinite:
        warnings.append(
            f"left out: {found.n_nonfinite:,} of {found.n_rows:,} rows, "
            "whose scores hold NaN or +inf, or nothing but -inf"
        )
    if found.n_infinite_loss:
        warnings.append(
            f"infinite mean loss: {found.n_infinite_loss:,} of {found.n_rows:,} rows give their label probability 0"
        )
    return warnings


def _reliability(found: Evaluation) -> list[Table]:
    bins = found.reliability
    rows = [
        (f"{low:.3g}-{high:.3g}", _percent(confidence), _percent(accuracy), f"{count:,}")
        for low, high, count, _, confidence, accuracy in zip(*(column.tolist() for column in bins), strict=True)
    ]
    return [_table(("confidence", "mean", "accuracy", "rows"), rows)] if rows else []


def _mistakes(found: Evaluation) -> list[Table]:
    names = found.class_names
    confused = [(label, other, f"{count:,}") for label, other, count in found.top_confusions(CONFUSIONS_SHOWN)]
    worst = [
        (f"{row.row:,}", f"{row.loss:.4g}", names[row.label], names[row.prediction])
        for row in found.worst_rows[:ROWS_SHOWN]
    ]
    tables = []
    if confused:
        tables.append(_table(("class", "taken for", "rows"), confused))
    if worst:
        tables.append(_table(("worst row", "loss", "label", "taken for"), worst))
    return tables


def _classes_shown(losses: NDArray[np.float64], counts: NDArray[np.int64]) -> list[int]:
    if len(losses) <= MOST_CLASSES_SHOWN:
        return list(range(len(losses)))
    seen = np.flatnonzero(counts)
    worst_first: list[int] = seen[np.argsort(-losses[seen], kind="stable")].tolist()
    return worst_first[:WORST_CLASSES_SHOWN]


def _comparison_headline(found: Comparison) -> list[tuple[str, str]]:
    low, high = found.interval
    more = (
        ("loss of A, of B", f"{found.loss_a:.6g}, {found.loss_b:.6g}"),
        ("difference A - B", f"{found.difference:+.6g} ({100 * found.level:.4g} % interval {low:+.6g} to {high:+.6g})"),
        ("p-value", f"{found.p_value:.4g} (bootstrap)"),
        ("t statistic", f"{found.t_statistic:.4g} (p-value {found.t_p_value:.4g})"),
        ("accuracy of A, of B", f"{_percent(found.accuracy_a)}, {_percent(found.accuracy_b)}"),
        ("only A right, only B", f"{found.only_a_right:,}, {found.only_b_right:,} (McNemar p {found.mcnemar_p:.4g})"),
    )
    return [*more, ("rows", _count(found.n_rows, found.n_ignored, found.n_nonfinite))]


def _comparison_warnings(found: Comparison) -> list[str]:
    warnings = []
    if found.n_nonfinite:
        warnings.append(
            f"left out: {found.n_nonfinite:,} of {found.n_rows:,} rows, "
            "whose scores in A or B hold NaN or +inf, or nothing but -inf"
        )
    if found.n_infinite_loss:
        warnings.append(
            f"infinite loss: {found.n_infinite_loss:,} of {found.n_rows:,} rows give their label probability 0 "
            "in A or B"
        )
    return warnings


def _lines(headline: Sequence[tuple[str, str]], warnings: Iterable[str]) -> str:
    width = max(len(name) for name, _ in headline)
    lines = [f"{name:{width}}  {value}" for name, value in headline]
    return "\n".join(lines + [f"warning: {warning}" for warning in warnings])


def _count(n_rows: int, n_ignored: int, n_nonfinite: int) -> str:
    left_out = [f"{count:,} {what}" for count, what in ((n_ignored, "ignored"), (n_nonfinite, "not finite")) if count]
    return f"{n_rows:,}" + (f" ({', '.join(left_out)})" if left_out else "")


def _pairs(rows: Iterable[tuple[str, str]]) -> Table:
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(name, value)
    return table


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Lay out rows under headings: names to the left, numbers to the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for heading in headings:
        name = heading in ("class", "taken for", "label")
        table.add_column(heading, justify="left" if name else "right", overflow="fold")
    for row in rows:
        # A name is text: its brackets are no markup.
        table.add_row(*map(Text, row))
    return table


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"
