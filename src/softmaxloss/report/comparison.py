"""What a report tells of a comparison: which model is the better, whether by chance, and where."""

# ruff: noqa: RUF001 (dashes, minus signs and Chinese are what they seem)

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from softmaxloss.comparison import Comparison
from softmaxloss.measures.evaluation import Evaluation
from softmaxloss.report.evaluation import (
    MOST_BARS,
    MOST_CLASSES_LISTED,
    ROWS_LISTED,
    interval_note,
    largest_classes,
    reliability_figures,
    rows_tile,
)
from softmaxloss.report.pieces import (
    MISSING,
    Cell,
    Figure,
    Say,
    Table,
    Tile,
    clean,
    count,
    integers,
    number,
    numbers,
    p_value,
    percent,
    signed,
)

__all__ = ["comparison_figures", "lead", "tiles", "warnings"]

# The level at which the sentence on top speaks of more than chance.
SURPRISING = 0.05


def lead(found: Comparison, names: Sequence[str]) -> list[Say]:
    """Say which is the better, and how sure that is."""
    said = [Say("lead_names", {"a": names[0], "b": names[1]})] if tuple(names) != ("A", "B") else []
    if not found.n_scored:
        return [*said, Say("lead_none")]
    if not math.isfinite(found.difference) or math.isnan(found.p_value):
        return [*said, Say("lead_untold", {"rows": count(found.n_scored)})]
    key = "lead_chance" if found.p_value >= SURPRISING else "lead_b" if found.difference > 0 else "lead_a"
    p = p_value(found.p_value)
    told = {
        "difference": number(abs(found.difference)),
        "rows": count(found.n_scored),
        "p": p if p.startswith("<") else f"=\u00a0{p}",
    }
    return [*said, Say(key, told)]


def warnings(found: Comparison) -> list[Say]:
    """Say what was left out, and which losses are infinite."""
    said, rows = [], count(found.n_rows)
    if found.n_nonfinite:
        said.append(Say("warning_nonfinite", {"n": count(found.n_nonfinite), "rows": rows}))
    if found.n_infinite_loss:
        said.append(Say("warning_infinite_pair", {"n": count(found.n_infinite_loss), "rows": rows}))
    return said


def tiles(found: Comparison) -> list[Tile]:
    """Return the headline numbers."""
    interval = interval_note(found.interval, signed, found.level)
    p = p_value(found.t_p_value)
    note_t = Say("note_t", {"p": p if p.startswith("<") else f"=\u00a0{p}"})
    return [
        Tile(Say("paired_difference"), signed(found.difference), interval, large=True),
        Tile(Say("loss_of", {"model": "A"}), number(found.loss_a), large=True),
        Tile(Say("loss_of", {"model": "B"}), number(found.loss_b), large=True),
        Tile(Say("p_value"), p_value(found.p_value), [Say("note_bootstrap")]),
        Tile(Say("t_statistic"), number(found.t_statistic), [note_t]),
        Tile(Say("accuracy_of", {"model": "A"}), percent(found.accuracy_a)),
        Tile(Say("accuracy_of", {"model": "B"}), percent(found.accuracy_b)),
        Tile(Say("only_right", {"model": "A"}), count(found.only_a_right), [Say("rows")]),
        Tile(Say("only_right", {"model": "B"}), count(found.only_b_right), [Say("rows")]),
        Tile(Say("mcnemar"), p_value(found.mcnemar_p), [Say("note_mcnemar")]),
        rows_tile(found.n_rows, found.n_scored, found.n_ignored, found.n_nonfinite),
    ]


def comparison_figures(found: Comparison, evaluations: tuple[Evaluation, Evaluation] | None) -> list[Figure]:
    """Return the figures of a comparison; with the two evaluations also these, side by side."""
    figures = [*_interval(found)]
    if evaluations is not None:
        models = list(zip("AB", evaluations, strict=True))
        figures.append(_side_by_side(*evaluations))
        figures += reliability_figures([(name, each.reliability) for name, each in models], models)
    return [*figures, *_by_class(found, evaluations), *_by_row(found)]


def _interval(found: Comparison) -> list[Figure]:
    if not math.isfinite(found.difference + sum(found.interval)):
        return []
    low, high = found.interval
    row = (signed(found.difference), signed(low), signed(high))
    table = Table([Say("difference"), Say("lower_end"), Say("upper_end")], [row])
    data = {"value": numbers([found.difference])[0], "interval": numbers(found.interval), "shown": list(row)}
    return [Figure("interval", table, "interval", data, wide=True)]


def _side_by_side(a: Evaluation, b: Evaluation) -> Figure:
    measures: list[tuple[Say, Callable[[Evaluation], float], Callable[[float], str]]] = [
        (Say("tile_loss"), lambda found: found.loss, number),
        (Say("perplexity"), lambda found: found.perplexity, number),
        (Say("pseudo_r2"), lambda found: found.pseudo_r2, number),
        (Say("tile_accuracy"), lambda found: found.accuracy, percent),
        (Say("brier"), lambda found: found.brier, number),
        (Say("ece"), lambda found: found.calibration_error, percent),
        (Say("adaptive_ece"), lambda found: found.adaptive_calibration_error, percent),
    ]
    rows = [(name, written(of(a)), written(of(b))) for name, of, written in measures]
    rows.insert(1, (Say("loss_interval"), _span(a.loss_interval, number), _span(b.loss_interval, number)))
    rows.insert(5, (Say("accuracy_interval"), _span(a.accuracy_interval, percent), _span(b.accuracy_interval, percent)))
    headings = [Say("measure"), Say("plain", {"text": "A"}), Say("plain", {"text": "B"})]
    return Figure("side", Table(headings, rows, frozenset({0})), wide=True)


def _span(interval: tuple[float, float], written: Callable[[float], str]) -> str:
    low, high = interval
    return f"{written(low)} – {written(high)}" if math.isfinite(low + high) else MISSING


def _by_class(found: Comparison, evaluations: tuple[Evaluation, Evaluation] | None) -> list[Figure]:
    order = largest_classes(np.abs(found.class_difference), found.class_count)
    if not order:
        return []
    bars, names, difference = order[:MOST_BARS], found.class_names, found.class_difference
    headings = [Say("class"), Say("difference_column"), Say("rows")]
    rows: list[Sequence[Cell]] = [
        (clean(names[c]), signed(difference[c]), count(found.class_count[c])) for c in order[:MOST_CLASSES_LISTED]
    ]
    if evaluations is not None:
        headings += [Say(key) for key in ("loss_a", "loss_b", "accuracy_a", "accuracy_b")]
        rows = [
            (
                *row,
                *(number(each.class_loss[c]) for each in evaluations),
                *(percent(each.class_accuracy[c]) for each in evaluations),
            )
            for row, c in zip(rows, order, strict=False)
        ]
    data = {
        "names": [clean(names[c]) for c in bars],
        "values": numbers(difference[bars]),
        "shown": [signed(difference[c]) for c in bars],
        "rows": integers(found.class_count[bars]),
    }
    told = {"shown": count(len(bars)), "classes": count(len(names))}
    caption = Say("caption_differences_some", told) if len(bars) < len(names) else None
    return [Figure("differences", Table(headings, rows, frozenset({0})), "differences", data, True, caption)]


def _by_row(found: Comparison) -> list[Figure]:
    if not found.rows:
        return []
    headings = [Say(key) for key in ("row", "label", "loss_a", "loss_b", "difference_column")]
    rows = [
        (
            count(row.row),
            clean(found.class_names[row.label]),
            number(row.loss_a),
            number(row.loss_b),
            signed(row.loss_a - row.loss_b),
        )
        for row in found.rows[:ROWS_LISTED]
    ]
    shown = found.rows[:MOST_BARS]
    data = {
        "rows": [row.row for row in shown],
        "labels": [clean(found.class_names[row.label]) for row in shown],
        "a": numbers(row.loss_a for row in shown),
        "b": numbers(row.loss_b for row in shown),
        "shown_a": [number(row.loss_a) for row in shown],
        "shown_b": [number(row.loss_b) for row in shown],
    }
    return [Figure("rows", Table(headings, rows, frozenset({1})), "rows", data, wide=True)]
