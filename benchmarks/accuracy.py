"""Measures how far from the exact values the contenders' losses and gradients are, over rows of several kinds.

The error of a number is relative: |found - exact| / |exact|, where exact comes from mpmath for the very logits, rounded
to their dtype, that the contenders are given. It is told in the dtype's rounding unit, 2^-24 for float32 and 2^-53 for
float64, which is the error of the exact value rounded once, at most. A loss of 0 where the truth is 4e-9 has a
relative error of 1: no digit of it is right, and 1.7e7 units of float32 say so.

Entries of the gradient count if their exact value is a normal number of the dtype. Those that are exactly 0, at masked
classes, count only if they come out as anything else, and then as infinity or NaN.

Everything runs in this one process: nothing here is timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.answers import ANSWERS
from benchmarks.cases import SEED
from benchmarks.reference import softmax_loss

UNIT = {"float32": 2.0**-24, "float64": 2.0**-53}

# Rows of each number of classes: few of the largest, because mpmath takes a second for 100,000 classes.
ROWS = {2: 256, 10: 256, 1000: 32, 32000: 4, 131072: 2}
CLASSES = list(ROWS)

# The fewest that another number of classes gets.
LEAST_ROWS = 2

Rows = tuple[NDArray[np.float64], NDArray[np.int64]]


def ordinary(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    """Draw normal logits, times 3."""
    return 3 * rng.standard_normal((rows, classes)), rng.integers(0, classes, rows)


def confident(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    """Draw normal logits, the label's so far above the others that the loss is e^-22 to e^-40: 3e-10 to 4e-18."""
    logits = rng.standard_normal((rows, classes))
    labels = rng.integers(0, classes, rows)
    others = np.exp(logits).sum(axis=1) - np.exp(logits[np.arange(rows), labels])
    logits[np.arange(rows), labels] = np.log(others) + rng.uniform(22, 40, rows)
    return logits, labels


def nearly_uniform(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    """Draw normal logits, times 0.001."""
    return 1e-3 * rng.standard_normal((rows, classes)), rng.integers(0, classes, rows)


def huge_offset(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    """Draw normal logits, plus 10000."""
    return 1e4 + rng.standard_normal((rows, classes)), rng.integers(0, classes, rows)


def masked(rng: np.random.Generator, rows: int, classes: int) -> Rows:
    """Draw ordinary rows with -inf in a third of the classes, rounded down, and never the label's."""
    logits, labels = ordinary(rng, rows, classes)
    for row, label in zip(logits, labels, strict=True):
        others = np.delete(np.arange(classes), label)
        row[rng.choice(others, classes // 3, replace=False)] = -np.inf
    return logits, labels


KINDS: dict[str, Callable[[np.random.Generator, int, int], Rows]] = {
    "ordinary": ordinary,
    "confident": confident,
    "nearly uniform": nearly_uniform,
    "huge offset": huge_offset,
    "masked": masked,
}


# Errors in rounding units, by contender and by what they are errors of: "loss" or "gradient".
Errors = dict[str, dict[str, NDArray[np.float64]]]


def measure(names: list[str], dtype: str, numbers_of_classes: list[int]) -> list[dict[str, Any]]:
    """Measure every kind of row; each result is a dictionary that JSON can hold."""
    return [_measure_kind(kind, names, dtype, numbers_of_classes) for kind in KINDS]


def _measure_kind(kind: str, names: list[str], dtype: str, numbers_of_classes: list[int]) -> dict[str, Any]:
    print(f"{kind} ...", file=sys.stderr)
    found = {classes: _errors(kind, names, dtype, classes) for classes in numbers_of_classes}
    together = {
        name: {of: np.concatenate([errors[name][of] for errors in found.values()]) for of in ("loss", "gradient")}
        for name in names
    }
    by_classes = [
        {"classes": classes, "rows": _rows(classes), "errors": _summary(errors)} for classes, errors in found.items()
    ]
    return {"kind": kind, "errors": _summary(together), "by_classes": by_classes}


def _errors(kind: str, names: list[str], dtype: str, classes: int) -> Errors:
    logits, labels = KINDS[kind](np.random.default_rng([SEED, classes]), _rows(classes), classes)
    logits = logits.astype(dtype)
    answers = {name: ANSWERS[name](logits.copy(), labels) for name in names}
    found: dict[str, dict[str, list[Any]]] = {name: {"loss": [], "gradient": []} for name in names}
    for row, (z, label) in enumerate(zip(logits, labels, strict=True)):
        loss, gradient = softmax_loss(z, int(label))
        normal = np.abs(gradient.high) >= np.finfo(dtype).tiny
        for name, (losses, gradients) in answers.items():
            found[name]["loss"].append(loss.relative_errors(losses[row : row + 1]))
            errors = gradient.relative_errors(gradients[row])
            found[name]["gradient"].append(errors[normal | ((gradient.high == 0) & (errors != 0))])
    return {
        name: {of: np.concatenate(rows) / UNIT[dtype] for of, rows in parts.items()} for name, parts in found.items()
    }


def _rows(classes: int) -> int:
    return ROWS.get(classes, LEAST_ROWS)


def _summary(errors: Errors) -> dict[str, dict[str, dict[str, float | str]]]:
    return {name: {of: _worst_and_median(values) for of, values in parts.items()} for name, parts in errors.items()}


def _worst_and_median(errors: NDArray[np.float64]) -> dict[str, float | str]:
    in_order = np.sort(errors)  # NaN last
    found = {"worst": in_order[-1], "median": in_order[(len(in_order) - 1) // 2]}
    # JSON has no infinity and no NaN.
    return {what: float(value) if np.isfinite(value) else str(value) for what, value in found.items()}
