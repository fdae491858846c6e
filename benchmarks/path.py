"""A path of ten values of C beside single fits: what SoftmaxClassifierCV spends on each fold.

Of all rows, at the classifier's usual tolerance, for C from 1e-4 to 1e4 as by default. A pass is a value with its
gradient, of all rows. The passes of the path, which is solved from the smallest C on, each solution sought where the
last ones point, stand beside those of ten fits that begin at 0, and of the one of these that needs the most.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.classifier_cases import CASES, ClassifierCase
from benchmarks.machine import busy
from benchmarks.tables import framed, markdown_table, warnings_and_conditions

NAMES = ("iris", "wine", "breast_cancer", "digits", "embeddings", "sentences", "weak", "pixels", "text")
QUICK_NAMES = ("iris", "wine")
TOL, MOST_ITERATIONS = 1e-4, 1000  # SoftmaxClassifier's


@dataclass(frozen=True)
class Effort:
    """The cases, and how often each is measured: the shortest times are kept."""

    cases: tuple[ClassifierCase, ...] = tuple(CASES[name] for name in NAMES)
    repeats: int = 3


QUICK = Effort(tuple(CASES[name] for name in QUICK_NAMES), repeats=1)


@dataclass
class Cost:
    """What something took."""

    passes: int = 0
    seconds: float = 0.0


def measure(effort: Effort) -> list[dict[str, Any]]:
    """Measure every case; each result is a dictionary that JSON can hold."""
    return [_measure_case(case, effort.repeats) for case in effort.cases]


def _measure_case(case: ClassifierCase, repeats: int) -> dict[str, Any]:
    from softmaxloss.objective import Objective
    from softmaxloss.path import solve_path
    from softmaxloss.rows import LocalRows, Rows
    from softmaxloss.training import solve

    X, labels = case.data()
    rows = LocalRows(Rows(X, labels, np.ones(len(labels))))
    penalties = [1.0 / (C * len(labels)) for C in np.logspace(-4, 4, 10)]
    options = {"n_classes": int(labels.max()) + 1, "fit_intercept": True, "label_smoothing": 0.0}

    def objective(penalty: float) -> Any:
        return Objective(rows, float(len(labels)), penalty=penalty, **options)

    def path() -> list[Any]:
        return solve_path(objective(penalties[0]), penalties, tol=TOL, max_iter=MOST_ITERATIONS)

    def fit(penalty: float) -> Callable[[], list[Any]]:
        return lambda: [solve(objective(penalty), None, tol=TOL, max_iter=MOST_ITERATIONS)]

    share_busy = busy()
    of_path, alone = _cost(path, repeats), [_cost(fit(penalty), repeats) for penalty in penalties]
    return {
        "title": f"{case.name}, {case.rows} x {case.features}, {case.classes} classes",
        "busy": max(share_busy, busy()),
        "path": vars(of_path),
        "fits": [vars(cost) for cost in alone],
    }


def _cost(solve: Callable[[], list[Any]], repeats: int) -> Cost:
    """Solve again and again; raise where a solution has not converged."""
    best = Cost(seconds=float("inf"))
    for _ in range(repeats):
        with _counted() as cost, warnings.catch_warnings():
            warnings.simplefilter("error")
            start = time.perf_counter()
            solutions = solve()
            cost.seconds = time.perf_counter() - start
        if not all(solution.converged for solution in solutions):
            raise RuntimeError("a fit has not converged, and its time means nothing")
        best = min(best, cost, key=lambda cost: cost.seconds)
    return best


@contextlib.contextmanager
def _counted() -> Iterator[Cost]:
    """Count values of the objective, of coefficients and in the space of the rows."""
    from softmaxloss.objective import Objective
    from softmaxloss.row_space import RowSpace

    cost = Cost()

    def counting(function: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            cost.passes += 1
            return function(*arguments, **options)

        return counted

    with (
        mock.patch.object(Objective, "value_and_gradient", counting(Objective.value_and_gradient)),
        mock.patch.object(RowSpace, "point", counting(RowSpace.point)),
    ):
        yield cost


def table(results: dict[str, Any]) -> str:
    """Return the table in Markdown."""
    cases = results["path"]
    rows = []
    for case in cases:
        path, fits = case["path"], case["fits"]
        costliest = max(fits, key=lambda fit: fit["seconds"])
        rows.append(
            [
                case["title"],
                _tell(path),
                _tell(costliest),
                f"{path['seconds'] / costliest['seconds']:.1f} / {path['passes'] / costliest['passes']:.1f}",
                f"{path['seconds'] / sum(fit['seconds'] for fit in fits):.2f}",
            ]
        )
    lead = "Seconds / passes over the rows of ten fits on a path, and of the costliest of ten fits that begin at 0."
    header = ["rows x features", "the path", "costliest fit", "path / costliest fit", "path / all ten fits (seconds)"]
    return framed("path", [*warnings_and_conditions(results, cases), lead, markdown_table(header, rows)])


def _tell(cost: dict[str, Any]) -> str:
    return f"{cost['seconds']:.3g} / {cost['passes']}"
