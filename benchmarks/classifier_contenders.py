"""Who takes part in the benchmark of classifiers, and where each lets itself be watched."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from benchmarks.classifier_cases import SEED, ClassifierCase
from benchmarks.classifier_watch import Watch

# Parameters that change by less are found to be a solution: none of those that the gaps ask for is as good.
TOL = 1e-10
MOST_ITERATIONS = 10**8

# A Hessian matrix of more than this is too much.
HESSIAN_BYTES = 2 * 10**9


@dataclass(frozen=True)
class ClassifierContender:
    """One of those measured: its title, packages, estimator (of C and the most iterations), and how it is watched.

    What cannot be watched has no `watched`: it is fitted with 1, 2, 4, ... passes over the rows.
    """

    title: str
    packages: tuple[str, ...]
    estimator: Callable[[float, int], Any]
    watched: Callable[[Watch, int], contextlib.AbstractContextManager[None]] | None
    takes: Callable[[ClassifierCase], bool] = lambda case: True

    @property
    def missing(self) -> list[str]:
        return [package for package in self.packages if importlib.util.find_spec(package) is None]


def our_estimator(C: float, most: int) -> Any:
    from softmaxloss import SoftmaxClassifier

    return SoftmaxClassifier(C=C, tol=TOL, max_iter=most)


@contextlib.contextmanager
def ours_watched(watch: Watch, n_rows: int) -> Iterator[None]:
    """Watch SoftmaxClassifier; values of fewer rows are not the objective, but they take their part of a pass."""
    from softmaxloss.objective import Objective
    from softmaxloss.row_space import RowSpace

    def value_and_gradient(self: Any, parameters: Any, *arguments: Any, **options: Any) -> Any:
        answer = of_objective(self, parameters, *arguments, **options)
        here = self.source.n_rows
        watch.passes += here / n_rows
        if here == n_rows:
            matrix = parameters.reshape(self.shape)
            watch.see(float(answer[0]), lambda: layer(matrix))
        return answer

    def point(self: Any, u: Any) -> Any:
        answer = of_row_space(self, u)
        watch.passes += 1
        watch.see(answer.value, lambda: layer(self.parameters(u).reshape(self.objective.shape)))
        return answer

    def layer(matrix: Any) -> tuple[Any, Any]:
        return matrix[:, :-1], matrix[:, -1]

    of_objective, of_row_space = Objective.value_and_gradient, RowSpace.point
    with (
        mock.patch.object(Objective, "value_and_gradient", value_and_gradient),
        mock.patch.object(RowSpace, "point", point),
    ):
        yield


def _logistic_regression(solver: str) -> Callable[[float, int], Any]:
    def estimator(C: float, most: int) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(C=C, solver=solver, tol=0.0, max_iter=most, random_state=SEED)

    return estimator


@contextlib.contextmanager
def sklearn_watched(watch: Watch, n_rows: int) -> Iterator[None]:
    """Watch LogisticRegression where it computes values, gradients, Hessian matrices and products with them."""
    from sklearn.linear_model._linear_loss import LinearModelLoss

    def loss(self: Any, coef: Any, X: Any, *arguments: Any, **options: Any) -> Any:
        value = theirs["loss"](self, coef, X, *arguments, **options)
        watch.passes += 1
        watch.see(float(value), lambda: self.weight_intercept(coef))
        return value

    def loss_gradient(self: Any, coef: Any, X: Any, *arguments: Any, **options: Any) -> Any:
        value, gradient = theirs["loss_gradient"](self, coef, X, *arguments, **options)
        watch.passes += 1
        watch.see(float(value), lambda: self.weight_intercept(coef))
        return value, gradient

    def gradient(self: Any, coef: Any, X: Any, *arguments: Any, **options: Any) -> Any:
        watch.passes += 1
        return theirs["gradient"](self, coef, X, *arguments, **options)

    def gradient_hessian(self: Any, coef: Any, X: Any, *arguments: Any, **options: Any) -> Any:
        watch.passes += 1
        return theirs["gradient_hessian"](self, coef, X, *arguments, **options)

    def gradient_hessian_product(self: Any, coef: Any, X: Any, *arguments: Any, **options: Any) -> Any:
        watch.passes += 1
        gradient, product = theirs["gradient_hessian_product"](self, coef, X, *arguments, **options)

        def counted(vector: Any) -> Any:
            watch.passes += 1
            return product(vector)

        return gradient, counted

    wrappers = (loss, loss_gradient, gradient, gradient_hessian, gradient_hessian_product)
    theirs = {wrapper.__name__: getattr(LinearModelLoss, wrapper.__name__) for wrapper in wrappers}
    with contextlib.ExitStack() as patches:
        for wrapper in wrappers:
            patches.enter_context(mock.patch.object(LinearModelLoss, wrapper.__name__, wrapper))
        yield


def has_room_for_hessian(case: ClassifierCase) -> bool:
    parameters = (case.features + 1) * (case.classes if case.classes > 2 else 1)
    return case.itemsize * parameters**2 <= HESSIAN_BYTES


def _of_sklearn(solver: str, **options: Any) -> ClassifierContender:
    return ClassifierContender(f"scikit-learn, {solver}", ("sklearn",), _logistic_regression(solver), **options)


OURS = "softmaxloss"
CLASSIFIERS = {
    OURS: ClassifierContender("softmaxloss", ("softmaxloss", "sklearn"), our_estimator, ours_watched),
    "lbfgs": _of_sklearn("lbfgs", watched=sklearn_watched),
    "newton-cg": _of_sklearn("newton-cg", watched=sklearn_watched),
    "newton-cholesky": _of_sklearn("newton-cholesky", watched=sklearn_watched, takes=has_room_for_hessian),
    "sag": _of_sklearn("sag", watched=None),
    "saga": _of_sklearn("saga", watched=None),
}
