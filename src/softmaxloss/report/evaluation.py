"""What a report tells of one evaluation: sentences, headline numbers, figures."""

# ruff: noqa: RUF001 (dashes, minus signs and Chinese are what they seem)

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softmaxloss.measures.evaluation import Evaluation
from softmaxloss.measures.reliability import Reliability
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
    percent,
)
from softmaxloss.report.words import FIGURE_WORDS

__all__ = ["confusion_pictured", "evaluation_figures", "lead", "reliability_figures", "tiles", "warnings"]

# As many bars as can be read; the table beside them has room for more.
MOST_BARS = 30
MOST_CLASSES_LISTED = 1000
MOST_CLASSES_IN_A_PICTURE = 20
CONFUSIONS_LISTED = 30
ROWS_LISTED = 100


def lead(found: Evaluation) -> list[Say]:
    """Say in words what the numbers come to."""
    if not found.n_scored:
        return [Say("lead_none")]
    told = {"rows": count(found.n_scored), "classes": count(len(found.class_names)), "loss": number(found.loss)}
    said = [Say("lead_loss", told)]
    if math.isfinite(found.pseudo_r2):
        if found.pseudo_r2 > 0:
            said.append(Say("lead_better", {"share": percent(found.pseudo_r2)}))
        else:
            said.append(Say("lead_worse", {"baseline": number(found.baseline_loss)}))
    if math.isfinite(found.accuracy):
        said.append(Say("lead_accuracy", {"accuracy": percent(found.accuracy)}))
        bins = found.reliability
        gap = 100 * float((bins.weight * bins.confidence).sum() - found.accuracy)
        if abs(gap) >= 0.05:
            said.append(Say("lead_too_sure" if gap > 0 else "lead_too_shy", {"gap": f"{abs(gap):.1f}"}))
    return said


def warnings(found: Evaluation) -> list[Say]:
    """Say what was left out, and what made the loss infinite."""
    said, rows = [], count(found.n_rows)
    if found.n_nonfinite:
        said.append(Say("warning_nonfinite", {"n": count(found.n_nonfinite), "rows": rows}))
    if found.n_infinite_loss:
        said.append(Say("warning_infinite", {"n": count(found.n_infinite_loss), "rows": rows}))
    return said


def tiles(found: Evaluation) -> list[Tile]:
    """Return the headline numbers with their intervals."""
    error = Say("standard_error", {"error": number(found.loss_standard_error, 3)})
    loss_notes = [*interval_note(found.loss_interval), error] if math.isfinite(found.loss_standard_error) else []
    shown = [Tile(Say("tile_loss"), number(found.loss), loss_notes, large=True)]
    if not found.totals.only_loss:
        notes = interval_note(found.accuracy_interval, percent)
        shown += [
            Tile(Say("tile_accuracy"), percent(found.accuracy), notes, large=True),
            Tile(Say("ece"), percent(found.calibration_error), [Say("note_ece")], large=True),
        ]
    shown += [
        Tile(Say("perplexity"), number(found.perplexity), [Say("note_perplexity")]),
        Tile(Say("bits"), number(found.bits), [Say("note_bits")]),
        Tile(Say("baseline"), number(found.baseline_loss), [Say("note_baseline")]),
        Tile(Say("pseudo_r2"), number(found.pseudo_r2), [Say("note_pseudo_r2")]),
    ]
    if not found.totals.only_loss:
        shown += [
            Tile(Say("brier"), number(found.brier), [Say("note_brier")]),
            Tile(Say("adaptive_ece"), percent(found.adaptive_calibration_error), [Say("note_adaptive_ece")]),
        ]
        # Top-1 is the accuracy, and a k of all classes says nothing.
        telling = {k: value for k, value in found.top_k.items() if 1 < k < len(found.class_names)}
        for k, value in telling.items():
            shown.append(Tile(Say("top_k", {"k": str(k)}), percent(value), [Say("note_top_k", {"k": str(k)})]))
    return [*shown, rows_tile(found.n_rows, found.n_scored, found.n_ignored, found.n_nonfinite)]


def interval_note(
    interval: tuple[float, float], written: Callable[[float], str] = number, level: float = 0.95
) -> list[Say]:
    """Say an interval, where there is one."""
    low, high = interval
    said = {"level": f"{100 * level:.4g}", "low": written(low), "high": written(high)}
    return [Say("interval", said)] if math.isfinite(low + high) else []


def rows_tile(n_rows: int, n_scored: int, n_ignored: int, n_nonfinite: int) -> Tile:
    """Return the counts of rows."""
    notes = [Say("note_scored", {"n": count(n_scored)})]
    for key, n in (("note_ignored", n_ignored), ("note_nonfinite", n_nonfinite)):
        if n:
            notes.append(Say(key, {"n": count(n)}))
    return Tile(Say("tile_rows"), count(n_rows), notes)


def evaluation_figures(found: Evaluation) -> list[Figure]:
    """Return the figures of one evaluation, those that have something to show."""
    series = [("equal_width", found.reliability), ("equal_weight", found.adaptive_reliability)]
    figures = reliability_figures(series, [("", found)])
    figures += [*_classes(found), *_confusion(found), *_worst(found)]
    return figures


def reliability_figures(
    series: Sequence[tuple[str, Reliability]], models: Sequence[tuple[str, Evaluation]]
) -> list[Figure]:
    """Return the reliability diagram of each series (name, bins), and the histogram of each model's confidence."""
    series = [(name, bins) for name, bins in series if len(bins.n_rows)]
    if not series:
        return []
    headings = [Say(key) for key in ("series", "low_high", "mean_confidence", "accuracy", "rows")]
    told = [row for name, bins in series for row in _bin_rows(name, bins)]
    of_models = [(name or series[0][0], found) for name, found in models if len(found.reliability.n_rows)]
    counted = [row for name, found in of_models for row in _bin_rows(name, found.reliability)]
    drawn = [
        {
            **_bin_data(name, found.reliability),
            "mean": numbers([(found.reliability.weight * found.reliability.confidence).sum(), found.accuracy]),
        }
        for name, found in of_models
    ]
    return [
        Figure(
            "reliability",
            Table(headings, told, frozenset({0})),
            "reliability",
            {"series": [_bin_data(name, bins) for name, bins in series]},
        ),
        Figure(
            "histogram",
            Table(headings, counted, frozenset({0})),
            "histogram",
            {"series": drawn},
            caption=Say("caption_histogram_two") if len(models) > 1 else None,
        ),
    ]


def _bin_data(name: str, bins: Reliability) -> dict[str, Any]:
    shares = {key: numbers(getattr(bins, key)) for key in ("low", "high", "weight", "confidence", "accuracy")}
    return {"name": name, **shares, "rows": integers(bins.n_rows)}


def _bin_rows(name: str, bins: Reliability) -> list[Sequence[Cell]]:
    called = Say(name) if name in FIGURE_WORDS else name
    columns = (bins.low, bins.high, bins.confidence, bins.accuracy, bins.n_rows)
    return [
        (called, f"{low:.4g} – {high:.4g}", percent(confidence), percent(accuracy), count(n))
        for low, high, confidence, accuracy, n in zip(*(column.tolist() for column in columns), strict=True)
    ]


def largest_classes(size: NDArray[np.float64], counts: NDArray[np.int64]) -> list[int]:
    """Return the classes that have rows, those of the largest size first, infinite ones above all."""
    seen = np.flatnonzero(counts)
    ranked = np.nan_to_num(size[seen], nan=math.inf)
    order: list[int] = seen[np.argsort(-ranked, kind="stable")].tolist()
    return order


def _classes(found: Evaluation) -> list[Figure]:
    order = largest_classes(found.class_loss, found.class_count)
    if not order:
        return []
    losses, accuracies, counts = found.class_loss, found.class_accuracy, found.class_count
    bars, listed = order[:MOST_BARS], order[:MOST_CLASSES_LISTED]
    if len(found.class_names) <= MOST_CLASSES_LISTED:
        listed = order + np.flatnonzero(counts == 0).tolist()
    table = Table(
        [Say(key) for key in ("class", "loss", "accuracy", "rows")],
        [(clean(found.class_names[c]), number(losses[c]), percent(accuracies[c]), count(counts[c])) for c in listed],
        frozenset({0}),
    )
    data = {
        "names": [clean(found.class_names[c]) for c in bars],
        "values": numbers(losses[bars]),
        "shown": [number(losses[c]) for c in bars],
        "accuracy": [percent(accuracies[c]) for c in bars],
        "rows": integers(counts[bars]),
        "mean": numbers([found.loss])[0],
    }
    told = {"shown": count(len(bars)), "classes": count(len(found.class_names))}
    caption = Say("caption_classes_some", told) if len(bars) < len(found.class_names) else None
    return [Figure("classes", table, "classes", data, wide=len(bars) > 12, caption=caption)]


def confusion_pictured(found: Evaluation) -> list[int]:
    """Return the classes whose confusion matrix is shown: all of a few, of many those most often confused."""
    n_classes = len(found.class_names)
    if n_classes <= MOST_CLASSES_IN_A_PICTURE:
        return list(range(n_classes))
    chosen: dict[int, None] = {}
    for label, other, _ in found.totals.confusion.top(10 * MOST_CLASSES_IN_A_PICTURE):
        if len(chosen.keys() | {label, other}) <= MOST_CLASSES_IN_A_PICTURE:
            chosen.update({label: None, other: None})
    return sorted(chosen)


def _confusion(found: Evaluation) -> list[Figure]:
    if found.totals.only_loss or not found.n_scored:
        return []
    figures = []
    shown, n_classes = confusion_pictured(found), len(found.class_names)
    if len(shown) > 1:
        codes, counts = found.totals.confusion.pairs()
        wanted = np.add.outer(np.array(shown) * n_classes, np.array(shown)).ravel()
        at = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
        matrix = np.where(codes[at] == wanted, counts[at], 0).reshape(len(shown), len(shown))
        names = [clean(found.class_names[c]) for c in shown]
        table = Table(
            [Say("label"), *(Say("plain", {"text": name}) for name in names)],
            [(name, *map(count, row)) for name, row in zip(names, matrix.tolist(), strict=True)],
            frozenset({0}),
        )
        rows_of = found.class_count[shown]
        share = matrix / np.maximum(rows_of, 1)[:, None]
        data = {"names": names, "counts": matrix.tolist(), "share": [numbers(row) for row in share]}
        told = {"shown": count(len(shown)), "classes": count(n_classes)}
        some = Say("caption_confusion_some", told) if len(shown) < n_classes else None
        figures.append(Figure("confusion", table, "confusion", data, wide=len(shown) > 12, caption=some))
    confused = found.top_confusions(CONFUSIONS_LISTED)
    if confused:
        headings = [Say(key) for key in ("class", "taken_for", "rows")]
        rows = [
            (clean(label), clean(other), count(n)) for label, other, n in confused[: 10 if n_classes < 30 else None]
        ]
        figures.append(Figure("confusions", Table(headings, rows, frozenset({0, 1}))))
    return figures


def _worst(found: Evaluation) -> list[Figure]:
    names = found.class_names
    rows = [
        (
            count(row.row),
            number(row.loss),
            clean(names[row.label]),
            clean(names[row.prediction]) if 0 <= row.prediction < len(names) else MISSING,
        )
        for row in found.worst_rows[:ROWS_LISTED]
    ]
    headings = [Say(key) for key in ("row", "loss", "label", "prediction")]
    return [Figure("worst", Table(headings, rows, frozenset({2, 3})))] if rows else []
