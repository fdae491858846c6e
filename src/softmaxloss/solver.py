"""Minimise a smooth convex function of a vector by preconditioned L-BFGS: the optimiser of SoftmaxClassifier."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from softmaxloss.lbfgs import MOST_STEPS, Pairs
from softmaxloss.line_search import Point, step_along

Vector = npt.NDArray[np.float64]
ValueAndGradient = Callable[[Vector], tuple[float, Vector]]
Map = Callable[[Vector], Vector]
FirstStep = Callable[[Vector, Vector, float], float]

# The curvature changes with the point, most at first: preconditioners are made anew after these iterations, unless
# others are asked for, and then after every so many.
RENEWALS = (4, 8, 16, 28)
_RENEWED_EVERY = 40

# A preconditioner is worth it if its metric makes the cosines between steps and the gradient's changes larger by this
# factor; so many of the last steps are looked at, which tell of the curvature as it is now.
_NEARER, _STEPS_SEEN = 1.2, 3

# After so many iterations without a new lowest gradient, or a value lower by this share of the first, rounding has the
# last word. Ill-conditioned functions need some dozens between two lows.
_PATIENCE = 100
_PROGRESS = 1e-10


class Variables(Protocol):
    """A linear change of variables x = L u, chosen so that the function is well scaled in u."""

    def to_original(self, u: Vector) -> Vector:
        """Return x = L u."""

    def from_original(self, x: Vector) -> Vector:
        """Return a u with L u = x (or as near as L allows)."""

    def gradient(self, gradient: Vector) -> Vector:
        """Return the gradient with respect to u, L^T times the one with respect to x."""


class Preconditioner(Protocol):
    """A symmetric positive definite linear map of vectors in u, near to the inverse of the Hessian up to a factor."""

    @property
    def is_newton(self) -> bool:
        """Whether it is that of the Hessian itself, beside which earlier steps tell nothing more."""

    def __call__(self, gradient: Vector) -> Vector:
        """Return the map of a gradient: a step."""

    def gain(self, steps: list[Vector], changes: list[Vector]) -> float:
        """Return how much it helps, where these steps changed the gradient so.

        That is the logarithm of how much larger the cosines between them are in its metric than in that of u: see
        `softmaxloss.preconditioner.MetricPreconditioner`.
        """


class Candidate(NamedTuple):
    """What makes a `Preconditioner` at x.

    It is worth its time to minimisations of at least `after` iterations. After `until` of them it is used only if it
    has been before: late steps lie where curvature is sharpest, and say little of what a metric does elsewhere.
    `is_needed` says that gradients are no steps without it.
    """

    make: Callable[[Vector], Preconditioner]
    after: int = 0
    until: float = math.inf
    is_needed: bool = False


class OriginalVariables:
    """No change of variables: u is x."""

    def to_original(self, u: Vector) -> Vector:
        """Return u."""
        return u

    def from_original(self, x: Vector) -> Vector:
        """Return x."""
        return x

    def gradient(self, gradient: Vector) -> Vector:
        """Return the gradient as it is."""
        return gradient


@dataclass(frozen=True)
class Iteration:
    """What `on_iteration` is told: the iteration's number from 1, its point, value and `Solution`'s gradient_norm."""

    number: int
    x: Vector
    value: float
    gradient_norm: float


@dataclass(frozen=True)
class Solution:
    """The point where `minimize` stopped; `values` holds the function's value after each iteration.

    `gradient_norm` is the larger of two: the largest derivative there, in magnitude, with respect to the original
    variables x, and the one with respect to the scaled variables u. `converged` says whether it is within `tol`.
    `preconditioner` is the number of the one that helped last, or was used at the start. `combination` is the point
    of `softmaxloss.row_space` that x comes of, if it was found there.
    """

    x: Vector
    value: float
    gradient_norm: float
    n_iter: int
    converged: bool
    values: list[float]
    preconditioner: int
    combination: Vector | None = None


@dataclass
class State:
    """All that the next iteration depends on: with it the iterations go on as if they had never stopped.

    `pairs` are the last steps in u and what they did to the gradient, `lowest` is the point of the lowest gradient so
    far, `lowest_value` the lowest value, by `progress` at least below others, and `found_at` the iteration of the later
    of the two. `renewed_at` is where the preconditioner was made, `preconditioner` which of them it is, or was last,
    and `preconditioned` says whether it helps. `length` is the last step's, in multiples of its direction.
    """

    current: Point
    lowest: Point
    lowest_value: float
    progress: float
    renewed_at: Vector
    found_at: int = 0
    preconditioner: int = 0
    preconditioned: bool = True
    length: float = 1.0
    pairs: Pairs = field(default_factory=Pairs)
    values: list[float] = field(default_factory=list)


def minimize(
    value_and_gradient: ValueAndGradient,
    x0: npt.ArrayLike,
    *,
    tol: float,
    max_iter: int,
    variables: Variables | None = None,
    preconditioners: Sequence[Candidate] = (),
    renewals: Sequence[int] = RENEWALS,
    first: int = 0,
    stale: float = math.inf,
    first_step: FirstStep | None = None,
    on_iteration: Callable[[Iteration], None] | None = None,
    state: State | None = None,
    on_state: Callable[[State], None] | None = None,
) -> Solution:
    """Minimise a smooth convex function by limited-memory BFGS.

    It has converged when no entry of the gradient exceeds `tol` in magnitude, neither with respect to the original
    variables x nor with respect to the scaled ones u of `variables`: a derivative in x alone may be tiny far from
    the minimum, where x is measured in large units, and one in u alone where u is. It stops before that after
    `max_iter` iterations, or where rounding hides all further improvement; then `Solution.converged` is false and
    `Solution.gradient_norm`, the larger of the two, tells how far it came.

    Parameters
    ----------
    value_and_gradient : callable
        x, a float64 vector of shape (n,), to the value (a float) and the gradient (a new float64 vector (n,)).
    x0 : array of shape (n,)
        Where to start.
    tol : float
        The largest entry of both gradients, in magnitude, at a solution.
    max_iter : int
        The most iterations; an iteration calls `value_and_gradient` once, now and then more often.
    variables : Variables, optional
        A linear change of variables in which the function is better scaled; without it u is x.
    preconditioners : sequence of Candidate, optional
        The first of them after 0 iterations. Now and then all that are considered yet are made anew, and the one that
        helps most is used from there on. Where none helps, or none is given, it is the identity.
    renewals : sequence of int, optional
        After which of the first iterations that is.
    first : int, optional
        Which of them is used at the start.
    stale : float, optional
        Of a positive function whose curvature falls with its value: steps that began at a value more than so many
        times the current one are forgotten.
    first_step : callable, optional
        u, a direction and the slope along it there, to the multiple of the direction that is tried first, where no
        steps are known; without it 1.
    on_iteration : callable, optional
        Called with an `Iteration` after each one. An exception that it raises ends the minimisation.
    state : State, optional
        Where to go on instead of at `x0`.
    on_state : callable, optional
        Called with the `State` after each iteration, to be read and not kept.

    Returns
    -------
    Solution

    Raises
    ------
    ValueError
        If the value or the gradient at `x0` is not finite.

    Notes
    -----
    The direction is that of L-BFGS with the preconditioner, times the factor that the last step calls for, as the first
    approximation: see `softmaxloss.lbfgs.Pairs`. Near the minimum the value falls by less than its own rounding error
    while the gradient is still far from its own: a gradient of 1e-8 is a decrease of 1e-16. There the decrease is taken
    from the slopes at both ends of a step by the trapezoid rule, which is exact for a quadratic, the idea behind the
    approximate Wolfe condition of [1]_.

    References
    ----------
    .. [1] W. W. Hager, H. Zhang, "A new conjugate gradient method with guaranteed descent and an efficient
       line search", SIAM J. Optim. 16, 2005.

    Examples
    --------
    >>> import numpy as np
    >>> from softmaxloss.solver import minimize
    >>> target = np.array([1.0, -2.0])
    >>> solution = minimize(
    ...     lambda x: (0.5 * float((x - target) @ (x - target)), x - target), np.zeros(2), tol=1e-8, max_iter=100
    ... )
    >>> solution.x, solution.converged
    (array([ 1., -2.]), True)
    """
    change = variables or OriginalVariables()

    def point(u: Vector) -> Point:
        x = change.to_original(u)
        value, by_x = value_and_gradient(x)
        by_u = change.gradient(by_x)
        norm = np.max([_largest(by_x), _largest(by_u)])  # NaN if either is
        return Point(u, x, value, by_u, float(norm))

    return descend(
        point,
        change.from_original(np.array(x0, dtype=np.float64)),
        tol=tol,
        max_iter=max_iter,
        preconditioners=preconditioners,
        renewals=renewals,
        first=first,
        stale=stale,
        first_step=first_step,
        on_iteration=on_iteration,
        state=state,
        on_state=on_state,
    )


def descend(
    point: Callable[[Vector], Point],
    u0: Vector,
    *,
    tol: float,
    max_iter: int,
    preconditioners: Sequence[Candidate] = (),
    renewals: Sequence[int] = RENEWALS,
    first: int = 0,
    stale: float = math.inf,
    first_step: FirstStep | None = None,
    on_iteration: Callable[[Iteration], None] | None = None,
    state: State | None = None,
    on_state: Callable[[State], None] | None = None,
) -> Solution:
    """Minimise as `minimize` does a function that makes its own `Point` of u, with its own measure of the gradient.

    All that is asked of u and the gradient is that ``gradient @ step`` is the function's derivative along the step.
    """
    descent = _Descent(point, preconditioners, renewals, stale, first_step)
    state = state or descent.start_at(u0, first)
    if not _is_finished(state, tol, max_iter):
        descent.precondition_as(state)
    while not _is_finished(state, tol, max_iter) and descent.iterate(state):
        number, current = len(state.values), state.current
        if descent.is_due(number):
            descent.renew_preconditioner(state)
        if on_iteration is not None:
            on_iteration(Iteration(number, current.x, current.value, current.gradient_norm))
        if on_state is not None:
            on_state(state)
    best = state.current if state.current.gradient_norm <= tol else state.lowest
    if len(state.values) >= max_iter and len(state.values) - state.found_at < _PATIENCE:
        best = state.current
    return Solution(
        x=best.x,
        value=best.value,
        gradient_norm=best.gradient_norm,
        n_iter=len(state.values),
        converged=best.gradient_norm <= tol,
        values=state.values,
        preconditioner=state.preconditioner,
    )


def _is_finished(state: State, tol: float, max_iter: int) -> bool:
    """Tell whether the current point is a solution, the last one allowed, or one of many that rounding plays with."""
    done = len(state.values)
    return state.current.gradient_norm <= tol or done >= max_iter or done - state.found_at >= _PATIENCE


def _largest(vector: Vector) -> float:
    """Return the largest entry in magnitude, without room for the magnitudes of all; NaN if one is."""
    return max(float(vector[vector.argmax()]), -float(vector[vector.argmin()]))


class _Descent:
    """The function, and how a step is made."""

    def __init__(
        self,
        evaluate: Callable[[Vector], Point],
        preconditioners: Sequence[Candidate],
        renewals: Sequence[int],
        stale: float,
        first_step: FirstStep | None,
    ) -> None:
        self.evaluate = evaluate
        self.preconditioners = preconditioners
        self.renewals = renewals
        self.stale = stale
        self.first_step = first_step
        self.precondition: Map = np.copy

    def start_at(self, u0: Vector, first: int) -> State:
        """Return the state before the first iteration."""
        point = self.evaluate(u0)
        if not np.isfinite(point.value + point.gradient_norm):
            raise ValueError(
                f"the function must be finite where the minimisation starts: its value there is "
                f"{point.value}, its largest derivative {point.gradient_norm}; rescale the problem"
            )
        return State(point, point, point.value, _PROGRESS * abs(point.value), point.x, preconditioner=first)

    def precondition_as(self, state: State) -> None:
        """Make the preconditioner that the state was left with."""
        if self.preconditioners and state.preconditioned:
            self.precondition = self.preconditioners[state.preconditioner].make(state.renewed_at)

    def is_due(self, number: int) -> bool:
        """Tell whether preconditioners are to be made anew after so many iterations, as where one is first worth it."""
        if not self.preconditioners:
            return False
        is_new = any(number == candidate.after for candidate in self.preconditioners)
        return is_new or number in self.renewals or number % _RENEWED_EVERY == 0

    def renew_preconditioner(self, state: State) -> None:
        """Make them anew at the current point, and use the one that the last steps tell to help most, if any does."""
        state.renewed_at = state.current.x
        numbers = [number for number in range(len(self.preconditioners)) if self._is_considered(number, state)]
        most, state.preconditioned, self.precondition = math.log(_NEARER), False, np.copy
        for number in reversed(numbers):
            made = self.preconditioners[number].make(state.renewed_at)
            gain = self._gain(state, made)
            if gain > most:
                most, state.preconditioner, state.preconditioned, self.precondition = gain, number, True, made
            if made.is_newton:
                state.pairs.clear()
            if gain == np.inf:  # no other can help more
                break

    def _is_considered(self, number: int, state: State) -> bool:
        candidate, done, is_last = self.preconditioners[number], len(state.values), number == state.preconditioner
        is_worth_it = is_last or (bool(state.pairs.steps) and candidate.after <= done)
        return (is_last and state.preconditioned) or (is_worth_it and done <= candidate.until)

    @staticmethod
    def _gain(state: State, preconditioner: Preconditioner) -> float:
        """Return what the last steps tell of it: that it may help, where there are none."""
        steps, changes = state.pairs.steps[-_STEPS_SEEN:], state.pairs.changes[-_STEPS_SEEN:]
        return float(preconditioner.gain(steps, changes)) if steps else np.inf

    def _can_do_without(self, state: State) -> bool:
        """Tell whether there is a preconditioner that another step may be sought without."""
        return state.preconditioned and any(not candidate.is_needed for candidate in self.preconditioners)

    def iterate(self, state: State) -> bool:
        """Move to the next point; False, and nothing is changed, where no step leads further down."""
        old = state.current
        # While few steps are known, a direction's length is a guess.
        after = state.length if len(state.values) < MOST_STEPS else 1.0
        direction = state.pairs.direction(old.gradient, self.precondition)
        if self.first_step is not None and not state.pairs.steps:
            direction *= self.first_step(old.u, direction, float(old.gradient @ direction))
        found = step_along(self.evaluate, old, direction, after=after)
        if found is None and state.pairs.steps:  # what is remembered may be misleading by now
            found = step_along(self.evaluate, old, -self.precondition(old.gradient))
            state.pairs.clear()
        if found is None and not state.values and self._can_do_without(state):  # it may be made from misleading rows
            state.preconditioned, self.precondition = False, np.copy
            found = step_along(self.evaluate, old, -old.gradient)
        if found is None:
            return False
        new, state.length = found
        state.pairs.add(new.u - old.u, new.gradient - old.gradient, old.value)
        if new.value > 0.0:
            state.pairs.forget(self.stale * new.value)
        state.current = new
        state.values.append(new.value)
        if new.gradient_norm < state.lowest.gradient_norm:
            state.lowest, state.found_at = new, len(state.values)
        if new.value < state.lowest_value - state.progress:
            state.lowest_value, state.found_at = new.value, len(state.values)
        return True
