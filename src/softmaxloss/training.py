"""How SoftmaxClassifier's objective is minimised: in which variables, and how it is preconditioned."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from softmaxloss import row_space
from softmaxloss.checkpoint import Checkpoint
from softmaxloss.objective import CentredAndScaled, Objective
from softmaxloss.preconditioner import (
    FeatureSpectrum,
    HessianPreconditioner,
    KroneckerPreconditioner,
    hessian_rows,
    kronecker_rows,
)
from softmaxloss.row_space import RowSpace
from softmaxloss.rows import blas
from softmaxloss.solver import Iteration, Preconditioner, Solution, State, descend, minimize

Vector = npt.NDArray[np.float64]


def solve(
    objective: Objective,
    start: Vector | None,
    *,
    tol: float,
    max_iter: int,
    on_iteration: Callable[[Iteration], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Solution:
    """Minimise the objective from `start`, from 0 without one, or from a checkpoint."""
    with blas.on_one_thread():  # rows have threads of their own; a BLAS's crawl where others use the processors
        state = None if checkpoint is None else checkpoint.load()
        variables = objective.centred_and_scaled()
        if start is None and row_space.suits(objective, variables):
            solution = _in_row_space(objective, variables, tol, max_iter, on_iteration, state, checkpoint)
            if not solution.converged and solution.n_iter >= max_iter:
                return solution
            # Rounding may have ended it early, or parted what was minimised from the coefficients: these tell.
            more = minimize(
                objective.value_and_gradient,
                solution.x,
                tol=tol,
                max_iter=max_iter - solution.n_iter,
                variables=variables,
                on_iteration=None if on_iteration is None else _after(on_iteration, solution.n_iter),
            )
            return replace(more, n_iter=solution.n_iter + more.n_iter, values=solution.values + more.values)
        return minimize(
            objective.value_and_gradient,
            np.zeros(objective.shape).ravel() if start is None else start,
            tol=tol,
            max_iter=max_iter,
            variables=variables,
            preconditioner=_preconditioner(objective, variables),
            on_iteration=on_iteration,
            state=state,
            on_state=None if checkpoint is None else checkpoint.save,
        )


def _in_row_space(
    objective: Objective,
    variables: CentredAndScaled,
    tol: float,
    max_iter: int,
    on_iteration: Callable[[Iteration], None] | None,
    state: State | None,
    checkpoint: Checkpoint | None,
) -> Solution:
    space = RowSpace(objective, variables)
    solution = descend(
        space.point,
        space.start,
        tol=tol,
        max_iter=max_iter,
        preconditioner=lambda _: space.preconditioner,
        on_iteration=on_iteration,
        state=state,
        on_state=None if checkpoint is None else checkpoint.save,
    )
    return replace(solution, x=space.parameters(solution.x))


def _after(on_iteration: Callable[[Iteration], None], count: int) -> Callable[[Iteration], None]:
    """Return the same for iterations that come after so many others."""
    return lambda iteration: on_iteration(replace(iteration, number=count + iteration.number))


def _preconditioner(objective: Objective, variables: CentredAndScaled) -> Callable[[Vector], Preconditioner] | None:
    """Return what makes the preconditioner at a point; none where its matrices would be too large."""
    source, n_parameters = objective.source, objective.shape[0] * objective.shape[1]
    of_hessian = hessian_rows(source.n_rows, n_parameters)
    count = of_hessian or kronecker_rows(source.n_features, objective.n_classes, is_sparse=source.is_sparse)
    rows = source.sample(count) if count else None
    if rows is None or not rows.weights.sum() > 0:
        return None
    if of_hessian:
        return lambda x: HessianPreconditioner(objective, rows, variables, x)
    spectrum = FeatureSpectrum(objective, rows, variables)
    return lambda x: KroneckerPreconditioner(objective, rows, variables, x, spectrum)
