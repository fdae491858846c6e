"""How SoftmaxClassifier's objective is minimised: first on a sample of the rows, then on all, well preconditioned."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from softmaxloss.objective import CentredAndScaled, Objective
from softmaxloss.preconditioner import MOST_CLASSES, MOST_FEATURES, KroneckerPreconditioner, rows_wanted
from softmaxloss.solver import Iteration, Map, Solution, minimize

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
) -> Solution:
    """Minimise the objective from `start`, or from 0 by way of a sample of the rows."""
    variables = objective.centred_and_scaled()
    if start is None:
        start = _start(objective, variables, tol)
    return minimize(
        objective.value_and_gradient,
        start,
        tol=tol,
        max_iter=max_iter,
        variables=variables,
        preconditioner=_preconditioner(objective, variables),
        on_iteration=on_iteration,
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
    source = objective.source
    if not (0 < source.n_features <= MOST_FEATURES and objective.n_classes <= MOST_CLASSES):
        return None
    rows = source.sample(rows_wanted(source.n_features, source.dtype.itemsize))
    if not rows.weights.sum() > 0:
        return None
    return lambda x: KroneckerPreconditioner(objective, rows, variables, x)
