"""How SoftmaxClassifier's objective is minimised: first on a sample of the rows, then on all, well preconditioned."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from softmaxloss import row_space
from softmaxloss.checkpoint import Checkpoint
from softmaxloss.objective import CentredAndScaled, Objective
from softmaxloss.preconditioner import (
    HessianPreconditioner,
    KroneckerPreconditioner,
    hessian_rows,
    kronecker_rows,
)
from softmaxloss.row_space import RowSpace
from softmaxloss.rows import Rows, blas
from softmaxloss.solver import Iteration, Map, Solution, descend, minimize

Vector = npt.NDArray[np.float64]

# Where the data are large, a few iterations on one row in eight spare about as many on all of them.
_SAMPLED_SHARE = 8
_SAMPLED_ITERATIONS = 20
_WORTH_SAMPLING = 1 << 26  # products of a feature and a parameter
_MOST_SAMPLE_BYTES = 1 << 28


def solve(
    objective: Objective,
    start: Vector | None,
    *,
    tol: float,
    max_iter: int,
    on_iteration: Callable[[Iteration], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Solution:
    """Minimise the objective from `start`, or from 0 by way of a sample of the rows, or from a checkpoint."""
    with blas.on_one_thread():  # rows have threads of their own; a BLAS's crawl where others use the processors
        state = None if checkpoint is None else checkpoint.load()
        variables = objective.centred_and_scaled()
        if start is None and row_space.suits(objective, variables):
            space = RowSpace(objective, variables)
            solution = descend(
                space.point,
                space.start,
                tol=tol,
                max_iter=max_iter,
                preconditioner=lambda _: space.step,
                on_iteration=on_iteration,
                state=state,
                on_state=None if checkpoint is None else checkpoint.save,
            )
            return replace(solution, x=space.parameters(solution.x))
        if state is not None:
            start = state.current.x
        elif start is None:
            start = _start(objective, variables, tol)
        return minimize(
            objective.value_and_gradient,
            start,
            tol=tol,
            max_iter=max_iter,
            variables=variables,
            preconditioner=_preconditioner(objective, variables),
            on_iteration=on_iteration,
            state=state,
            on_state=None if checkpoint is None else checkpoint.save,
        )


def _start(objective: Objective, variables: CentredAndScaled, tol: float) -> Vector:
    """Return the minimum for a sample of the rows, or nearly, where there are many; else 0."""
    start = np.zeros(objective.shape).ravel()
    source = objective.source
    count = source.n_rows // _SAMPLED_SHARE
    if source.is_sparse or source.n_rows * start.size < _WORTH_SAMPLING:
        return start
    count = min(count, _MOST_SAMPLE_BYTES // (source.n_features * source.dtype.itemsize))
    sampled = objective.on(source.sample(max(count, 1)))
    if not sampled.total_weight > 0:
        return start
    return minimize(
        sampled.value_and_gradient,
        start,
        tol=tol,
        max_iter=_SAMPLED_ITERATIONS,
        variables=variables,
        preconditioner=_preconditioner(sampled, variables),
    ).x


def _preconditioner(objective: Objective, variables: CentredAndScaled) -> Callable[[Vector], Map] | None:
    """Return what makes the preconditioner at a point; none where its matrices would be too large."""
    source, n_parameters = objective.source, objective.shape[0] * objective.shape[1]
    count = hessian_rows(source.n_rows, n_parameters)
    make: Callable[[Objective, Rows, CentredAndScaled, Vector], Map] = HessianPreconditioner
    if not count:
        make = KroneckerPreconditioner
        count = kronecker_rows(source.n_features, objective.n_classes, is_sparse=source.is_sparse)
    rows = source.sample(count) if count else None
    if rows is None or not rows.weights.sum() > 0:
        return None
    return lambda x: make(objective, rows, variables, x)
