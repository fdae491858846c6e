"""The folds of a cross-validation, each fitted for many strengths of the regularisation and scored."""

import hashlib
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from softmaxloss.classifier import SoftmaxClassifier
from softmaxloss.objective import Objective
from softmaxloss.path import PathCheckpoint, solve_path
from softmaxloss.rows import LocalRows, LoneThreads, blas
from softmaxloss.solver import Iteration, Solution

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.intp]


class Fold(NamedTuple):
    """What one fold found: a solution and a score for each C, in the order of the Cs."""

    solutions: list[Solution]
    scores: list[float]


@dataclass(frozen=True)
class CrossValidation:
    """What all folds share.

    Parameters
    ----------
    classes : ndarray of shape (classes,)
        The labels, sorted.
    rows : LocalRows
        All rows, with weights whose mean is 1.
    weight : float
        What they weigh together before that.
    Cs : float64 ndarray
        The inverse strengths of the regularisation.
    options : mapping
        `fit_intercept` and `label_smoothing`.
    tol, max_iter
        As `softmaxloss.solver.minimize` takes them.
    scorer : callable
        ``scorer(estimator, X, y, **params)``, and params that have a value for each row.
    folder : Path, optional
        Where solutions are kept.
    verbose : bool
        Whether to tell stderr when a fold is done.
    """

    classes: Array
    rows: LocalRows
    weight: float
    Cs: Vector
    options: Mapping[str, Any]
    tol: float
    max_iter: int
    scorer: Any
    params: Mapping[str, Any]
    folder: Path | None
    verbose: bool
    _stopped: threading.Event = field(default_factory=threading.Event)

    def fit_folds(self, folds: Sequence[tuple[Numbers, Numbers]], jobs: int) -> list[Fold]:
        """Fit and score folds of (training rows, test rows), so many at once; an error in one ends all."""
        numbered = [(f"fold {number} of {len(folds)}", *fold) for number, fold in enumerate(folds, 1)]
        if jobs == 1:
            return [self._fit_fold(*fold) for fold in numbered]
        with blas.on_one_thread(), LoneThreads(jobs) as pool:
            futures = [pool.submit(self._fit_fold, *fold) for fold in numbered]
            try:
                return [future.result() for future in futures]
            except BaseException:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                raise

    def fit_all(self, C: float, start: Vector) -> Solution:
        """Fit all rows for one C, from a start."""
        (solution,) = self._solve(self.rows, self.weight, np.array([C]), start)
        return solution

    def _fit_fold(self, name: str, train: Numbers, test: Numbers) -> Fold:
        rows, share = self.rows.part(train)
        if not share > 0:
            raise ValueError(f"the training rows of {name} weigh nothing: give other folds, or weights above 0")
        ascending = np.argsort(self.Cs, kind="stable")
        found = self._solve(rows, share * self.weight / self.rows.n_rows, self.Cs[ascending], None)
        solutions = [found[place] for place in np.argsort(ascending)]
        if self.verbose and sys.stderr is not None:
            iterations = sum(solution.n_iter for solution in solutions)
            print(f"{name}: {len(self.Cs)} values of C, {iterations} iterations", file=sys.stderr, flush=True)
        return Fold(solutions, self._scores(solutions, test))

    def _solve(self, rows: LocalRows, weight: float, Cs: Vector, start: Vector | None) -> list[Solution]:
        objective = Objective.of(rows, weight, C=float(Cs[0]), n_classes=len(self.classes), **self.options)
        checkpoint = None
        if self.folder is not None:
            identity = {
                "classes": len(self.classes),
                **{name: float(value) for name, value in self.options.items()},
                "tol": self.tol,
                "max_iter": self.max_iter,
                "Cs": Cs.tolist(),
                "weight": weight,
                "start": None if start is None else hashlib.sha256(start.tobytes()).hexdigest(),
                **rows.identity(),
            }
            checkpoint = PathCheckpoint(self.folder, identity)
        return solve_path(
            objective,
            [1.0 / (float(C) * weight) for C in Cs],
            tol=self.tol,
            max_iter=self.max_iter,
            start=start,
            on_iteration=self._go_on,
            checkpoint=checkpoint,
        )

    def _scores(self, solutions: list[Solution], test: Numbers) -> list[float]:
        X, y = self.rows.rows.X[test], self.classes[self.rows.rows.codes[test]]
        params = {name: np.asarray(value)[test] for name, value in self.params.items()}
        scores = []
        for C, solution in zip(self.Cs, solutions, strict=True):
            fitted = SoftmaxClassifier(float(C), **self.options)
            fitted.n_features_in_ = self.rows.n_features
            fitted._learn(self.classes, solution.x)
            scores.append(float(self.scorer(fitted, X, y, **params)))
        return scores

    def _go_on(self, iteration: Iteration) -> None:
        """End the fit of a fold where another has failed."""
        if self._stopped.is_set():
            raise InterruptedError(f"another fold failed; this one was at iteration {iteration.number}")
