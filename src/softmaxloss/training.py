"""How SoftmaxClassifier's objective is minimised: in which variables, and how it is preconditioned."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from softmaxloss import row_space
from softmaxloss.checkpoint import Checkpoint
from softmaxloss.class_blocks import BlockPreconditioner, block_rows, room_for_blocks
from softmaxloss.first_step import FirstStep, first_step_rows
from softmaxloss.newton import HessianPreconditioner, ScaledRows, TwoClassHessian, fits_one_call, hessian_rows, is_quick
from softmaxloss.objective import CentredAndScaled, Objective
from softmaxloss.preconditioner import (
    FeatureSpectrum,
    KroneckerPreconditioner,
    ScalePreconditioner,
    class_rows,
    kronecker_after,
    kronecker_rows,
    reference_penalties,
)
from softmaxloss.row_space import Gram, RowSpace
from softmaxloss.rows import Rows, blas
from softmaxloss.solver import RENEWALS, Candidate, Iteration, Preconditioner, Solution, descend, minimize

Vector = npt.NDArray[np.float64]

# The blocks of the classes, and the Hessian itself, are worth their time to fits of so many iterations; the latter may
# take as long as so many passes.
_BLOCKS_AFTER, _HESSIAN_AFTER = 8, 100
_HESSIAN_PASSES = 400

# What takes no longer than a few values is made anew more often; what takes no time, once more. Near a solution of
# another penalty the curvature changes less, and many fits end before the first of these.
_NEWTON_RENEWALS, _NEWTON_RENEWALS_NEARBY = (1, 4, 8, 13), (2, 6, 11)
_SCALE_RENEWALS = (2, *RENEWALS)
_RENEWALS_NEARBY = (8, 16, 28)

# Where a plane can separate the rows, the curvature of their loss falls with it: what steps told of it at so many times
# the loss is no more of use (measured: a third fewer passes where that is so, no more elsewhere).
_STALE = 2.0

# Where neither product nor Hessian is, how much may be left of the scaling of the features: see `ScalePreconditioner`.
_POWERS = (0.25, 0.5)


class Preconditioning:
    """What preconditioners of an objective need, for all the penalties that it is to be minimised with.

    Rows are sampled once for each kind, when it is first made, and the features' spectrum is computed for few of the
    penalties: see `FeatureSpectrum`. Blocks have the memory of those before: only the last made are of use. Where the
    space of the rows is taken, all share its Gram matrix.

    Parameters
    ----------
    objective : Objective
        Its own penalty does not matter.
    penalties : sequence of float
        All of them: what is computed for one depends on the others, to rounding.
    """

    def __init__(self, objective: Objective, penalties: Sequence[float]) -> None:
        self._objective = objective
        self._references = reference_penalties(penalties)
        self._spectra: dict[float, FeatureSpectrum] = {}
        source, n_classes = objective.source, objective.n_classes
        size = source.n_rows, source.n_features, n_classes
        self._n_parameters = objective.shape[0] * objective.shape[1]
        self._is_quick = is_quick(source.n_rows, self._n_parameters)
        self._of_hessian = hessian_rows(*size, self._n_parameters, passes=1)
        self._of_late_hessian = hessian_rows(*size, self._n_parameters, passes=_HESSIAN_PASSES)
        self._of_product = kronecker_rows(*size, is_sparse=source.is_sparse)
        self._product_after = kronecker_after(*size)
        self._tries_scales = not self._of_product or self._product_after > 0
        self._of_first_step = first_step_rows(*size)
        self._of_blocks = block_rows(*size, itemsize=source.dtype.itemsize, is_sparse=source.is_sparse)

    def candidates(self, objective: Objective, variables: CentredAndScaled) -> list[Candidate]:
        """Return what makes preconditioners at a point, with one of the penalties."""

        @cache
        def spectrum() -> FeatureSpectrum:
            return self._spectrum(objective).of(objective, variables)

        def product(x: Vector) -> Preconditioner:
            if not self._class_rows.weights.any():
                return ScalePreconditioner(variables, 1.0)
            return KroneckerPreconditioner(objective, self._class_rows, variables, x, spectrum())

        def blocks(x: Vector) -> Preconditioner:
            if not self._rows.weights.any():
                return ScalePreconditioner(variables, 1.0)
            return BlockPreconditioner(objective, self._block_rows, variables, x, spectrum(), self._room)

        def hessian(x: Vector) -> Preconditioner:
            return self._hessian(objective, variables, x)

        if self._of_hessian:
            return [Candidate(hessian)]
        found = scalings(variables) if self._tries_scales else []
        if self._of_product:
            found.append(Candidate(product, self._product_after))
        if self._of_product and self._of_blocks:
            found.append(Candidate(blocks, max(_BLOCKS_AFTER, self._product_after)))
        if self._of_late_hessian:
            found.append(Candidate(hessian, _HESSIAN_AFTER))
        return found

    def renewals(self, *, nearby: bool) -> Sequence[int]:
        """Return after which of the first iterations they are made anew, from 0 or from a solution nearby."""
        if self._is_quick:
            return _NEWTON_RENEWALS_NEARBY if nearby else _NEWTON_RENEWALS
        if self._tries_scales:
            return _SCALE_RENEWALS
        return _RENEWALS_NEARBY if nearby else RENEWALS

    def first_step(self, objective: Objective, variables: CentredAndScaled) -> FirstStep | None:
        """Return what tells how long the first step is, where that is worth its time."""
        if self._of_hessian or not self._of_first_step:
            return None
        return FirstStep(objective, lambda: self._first_rows, variables)

    @cached_property
    def gram(self) -> Gram:
        """That of the rows, if they span the space in which the objective is minimised."""
        return Gram(self._objective)

    @cached_property
    def _rows(self) -> Rows:
        """Those of the product."""
        return self._objective.source.sample(self._of_product)

    @cached_property
    def _first_rows(self) -> Rows:
        """Those that tell how long the first step is."""
        return self._objective.source.sample(self._of_first_step)

    @cached_property
    def _class_rows(self) -> Rows:
        """Those of the product's classes."""
        return self._rows.sample(class_rows(self._objective.n_classes))

    @cached_property
    def _block_rows(self) -> Rows:
        return self._objective.source.sample(self._of_blocks)

    @cached_property
    def _hessian(self) -> Callable[[Objective, CentredAndScaled, Vector], Preconditioner]:
        reference = self._objective.with_penalty(min(self._references))
        rows = reference.source.sample(self._of_hessian or self._of_late_hessian)
        if reference.n_classes == 2 and fits_one_call(reference.source.n_rows, self._n_parameters):
            return TwoClassHessian(reference, rows).preconditioner
        scaled = ScaledRows(rows, reference.centred_and_scaled())
        return lambda objective, variables, x: HessianPreconditioner(objective, scaled, variables, x)

    @cached_property
    def _room(self) -> npt.NDArray[Any]:
        return room_for_blocks(self._objective)

    def _spectrum(self, objective: Objective) -> FeatureSpectrum:
        """Return the one that serves the objective's penalty."""
        penalty = self._references[objective.penalty]
        if penalty not in self._spectra:
            reference = objective.with_penalty(penalty)
            self._spectra[penalty] = FeatureSpectrum(reference, self._rows, reference.centred_and_scaled())
        return self._spectra[penalty]


def scalings(variables: CentredAndScaled) -> list[Candidate]:
    """Return what leaves some of the scaling of the features; see `_POWERS`."""

    def candidate(preconditioner: Preconditioner) -> Candidate:
        return Candidate(lambda _: preconditioner, until=_SCALE_RENEWALS[-1])

    return [candidate(ScalePreconditioner(variables, power)) for power in _POWERS]


def solve(
    objective: Objective,
    start: Vector | None,
    *,
    tol: float,
    max_iter: int,
    on_iteration: Callable[[Iteration], None] | None = None,
    checkpoint: Checkpoint | None = None,
    preconditioning: Preconditioning | None = None,
    nearby: int | None = None,
    combination: Vector | None = None,
) -> Solution:
    """Minimise the objective from `start`, from 0 without one, or from a checkpoint.

    `nearby` is the number of the preconditioner that helped last to find a solution near `start`: it is used first.
    Without `start` and where `row_space.suits`, it is minimised in the space of the rows, from `combination` or from 0.
    """
    with blas.on_one_thread():  # rows have threads of their own; a BLAS's crawl where others use the processors
        state = None if checkpoint is None else checkpoint.load()
        variables = objective.centred_and_scaled()
        preconditioning = preconditioning or Preconditioning(objective, [objective.penalty])
        options: dict[str, Any] = {"tol": tol, "max_iter": max_iter, "stale": _STALE, "on_iteration": on_iteration}
        kept: dict[str, Any] = {"state": state, "on_state": None if checkpoint is None else checkpoint.save}
        if start is None and row_space.suits(objective):
            space = RowSpace(objective, variables, preconditioning.gram)
            return _in_row_space(space, variables, combination, kept, **options)
        return minimize(
            objective.value_and_gradient,
            np.zeros(objective.shape).ravel() if start is None else start,
            variables=variables,
            preconditioners=preconditioning.candidates(objective, variables),
            renewals=preconditioning.renewals(nearby=nearby is not None),
            first=nearby or 0,
            # Near a solution steps are short, and their lengths those of the quadratic model.
            first_step=None if nearby is not None else preconditioning.first_step(objective, variables),
            **kept,
            **options,
        )


def _in_row_space(
    space: RowSpace,
    variables: CentredAndScaled,
    combination: Vector | None,
    kept: dict[str, Any],
    *,
    max_iter: int,
    on_iteration: Callable[[Iteration], None] | None,
    **options: Any,
) -> Solution:
    """Minimise in the space of the rows, then by the coefficients what may be left."""
    solution = descend(
        space.point,
        space.start if combination is None else combination,
        max_iter=max_iter,
        preconditioners=[Candidate(lambda _: space.preconditioner, is_needed=True)],
        on_iteration=on_iteration,
        **kept,
        **options,
    )
    # Rounding may have ended it early, or parted what was minimised from the coefficients: these tell.
    more = minimize(
        space.objective.value_and_gradient,
        space.parameters(solution.x),
        max_iter=max_iter - solution.n_iter,
        variables=variables,
        preconditioners=scalings(variables),
        renewals=_SCALE_RENEWALS,
        on_iteration=None if on_iteration is None else _after(on_iteration, solution.n_iter),
        **options,
    )
    values = solution.values + more.values
    if solution.n_iter:
        values[-1] = more.value
    return replace(more, n_iter=solution.n_iter + more.n_iter, values=values, combination=solution.x)


def _after(on_iteration: Callable[[Iteration], None], count: int) -> Callable[[Iteration], None]:
    """Return the same for iterations that come after so many others."""
    return lambda iteration: on_iteration(replace(iteration, number=count + iteration.number))
