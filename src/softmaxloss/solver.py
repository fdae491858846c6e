"""Minimise a smooth convex function of a vector, given its value and gradient: the optimiser of SoftmaxClassifier."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import scipy.optimize

# L-BFGS remembers the last steps: 40 need a third of the iterations of 10 where features are strongly correlated
# (measured on scikit-learn's breast cancer data, unscaled). Fewer are kept where they would take more than this
# much memory, but never fewer than will do.
_MOST_STEPS = 40
_FEWEST_STEPS = 4
_STEPS_BYTES = 1 << 28

# After so many iterations by the gradient alone without a new lowest gradient, rounding has the last word.
# Ill-conditioned functions need some dozens between two lows.
_PATIENCE = 100

Vector = npt.NDArray[np.float64]
ValueAndGradient = Callable[[Vector], tuple[float, Vector]]


class Variables(Protocol):
    """A linear change of variables x = L u, chosen so that the function is well scaled in u."""

    def to_original(self, u: Vector) -> Vector:
        """Return x = L u."""

    def from_original(self, x: Vector) -> Vector:
        """Return a u with L u = x (or as near as L allows)."""

    def gradient(self, gradient: Vector) -> Vector:
        """Return the gradient with respect to u, L^T times the one with respect to x."""


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
    """

    x: Vector
    value: float
    gradient_norm: float
    n_iter: int
    converged: bool
    values: list[float]


def minimize(
    value_and_gradient: ValueAndGradient,
    x0: npt.ArrayLike,
    *,
    tol: float,
    max_iter: int,
    variables: Variables | None = None,
    on_iteration: Callable[[Iteration], None] | None = None,
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
    on_iteration : callable, optional
        Called with an `Iteration` after each one. An exception that it raises ends the minimisation.

    Returns
    -------
    Solution

    Raises
    ------
    ValueError
        If the value or the gradient at `x0` is not finite.

    Notes
    -----
    The iterations are those of L-BFGS-B [1]_ as SciPy has it. Near the minimum the value falls by less than
    its own rounding error while the gradient is still far from its own: a gradient of 1e-8 is a decrease of
    1e-16. There the decrease is taken from the gradient by the trapezoid rule, which is exact for a quadratic,
    the idea behind the approximate Wolfe condition of [2]_.

    References
    ----------
    .. [1] C. Zhu, R. H. Byrd, P. Lu, J. Nocedal, "Algorithm 778: L-BFGS-B", ACM Trans. Math. Softw. 23, 1997.
    .. [2] W. W. Hager, H. Zhang, "A new conjugate gradient method with guaranteed descent and an efficient
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
    descent = _Descent(value_and_gradient, variables or OriginalVariables(), tol, max_iter, on_iteration)
    descent.start_at(np.array(x0, dtype=np.float64))
    descent.by_value()
    descent.by_gradient()
    return descent.solution()


@dataclass(frozen=True)
class _Point:
    """A point in both sets of variables, with what is known there.

    `gradient` is with respect to u, `gradient_norm` the largest entry of it and of the one with respect to x.
    """

    u: Vector
    x: Vector
    value: float
    gradient: Vector
    gradient_norm: float


def _fall_of_value(old: _Point, new: _Point) -> float:
    """Return how much lower the function is at `new`, by its values."""
    return old.value - new.value


def _fall_by_trapezoid_rule(old: _Point, new: _Point) -> float:
    """Return how much lower the function is at `new`, by the slopes at both ends."""
    return float(0.5 * (old.gradient + new.gradient) @ (old.u - new.u))


class _Descent:
    """The iterations so far: the current point, and the values on the way to it."""

    def __init__(
        self,
        value_and_gradient: ValueAndGradient,
        variables: Variables,
        tol: float,
        max_iter: int,
        on_iteration: Callable[[Iteration], None] | None,
    ) -> None:
        self.value_and_gradient = value_and_gradient
        self.variables = variables
        self.tol = tol
        self.max_iter = max_iter
        self.on_iteration = on_iteration
        self.values: list[float] = []

    def start_at(self, x0: Vector) -> None:
        """Make `x0` the current point."""
        self.current = self.evaluate(self.variables.from_original(x0))
        if not np.isfinite(self.current.value + self.current.gradient_norm):
            raise ValueError(
                f"the function must be finite where the minimisation starts: its value there is "
                f"{self.current.value}, its largest derivative {self.current.gradient_norm}; rescale the problem"
            )

    def evaluate(self, u: Vector) -> _Point:
        """Return the point at `u`."""
        x = self.variables.to_original(u)
        value, by_x = self.value_and_gradient(x)
        by_u = self.variables.gradient(by_x)
        norm = np.maximum(np.abs(by_x).max(initial=0.0), np.abs(by_u).max(initial=0.0))  # NaN if either is
        return _Point(u, x, value, by_u, float(norm))

    @property
    def finished(self) -> bool:
        """Whether the current point is a solution or the last one allowed."""
        return self.current.gradient_norm <= self.tol or len(self.values) >= self.max_iter

    def by_value(self) -> None:
        """Iterate until finished or until the value falls no further."""
        self._iterate(_fall_of_value, lambda: self.finished)

    def by_gradient(self) -> None:
        """Iterate until finished or until the gradient finds no new low, then go back to its lowest."""
        lowest, found_at = self.current, len(self.values)

        def done() -> bool:
            nonlocal lowest, found_at
            if self.current.gradient_norm < lowest.gradient_norm:
                lowest, found_at = self.current, len(self.values)
            return self.finished or len(self.values) - found_at >= _PATIENCE

        self._iterate(_fall_by_trapezoid_rule, done)
        self.current = lowest

    def _iterate(self, fall: Callable[[_Point, _Point], float], done: Callable[[], bool]) -> None:
        """Iterate from the current point until `done`, or until no step has a positive `fall`."""
        start = self.current
        # Steps are counted from the start in units of its gradient: scipy's first step has length one, and
        # the gradient is a good guess of a first step where the curvature is about one.
        unit = float(np.linalg.norm(start.gradient))
        if self.finished or unit == 0.0:
            return
        trial = start
        fallen = 0.0  # from the start to the current point

        def minus_fall(step: Vector) -> tuple[float, Vector]:
            nonlocal trial
            trial = self.evaluate(start.u + unit * step)
            return -(fallen + fall(self.current, trial)) / unit**2, trial.gradient / unit

        def accept(xk: Vector) -> None:  # scipy accepts the point that it tried last
            nonlocal fallen
            fallen += fall(self.current, trial)
            self.move_to(trial)
            if done():
                raise StopIteration

        remembered = _STEPS_BYTES // (2 * start.u.nbytes)
        scipy.optimize.minimize(
            minus_fall,
            np.zeros_like(start.u),
            method="L-BFGS-B",
            jac=True,
            callback=accept,
            options={
                "maxcor": min(max(remembered, _FEWEST_STEPS), _MOST_STEPS),
                # Its own tests are off but for "no fall at all": ours are in `accept`.
                "ftol": 0.0,
                "gtol": 0.0,
                "maxiter": self.max_iter,
                "maxfun": np.iinfo(np.int32).max,
            },
        )

    def move_to(self, point: _Point) -> None:
        """Make `point` the current one: an iteration is done."""
        self.current = point
        self.values.append(point.value)
        if self.on_iteration is not None:
            self.on_iteration(Iteration(len(self.values), point.x, point.value, point.gradient_norm))

    def solution(self) -> Solution:
        """Return the current point as the answer."""
        return Solution(
            x=self.current.x,
            value=self.current.value,
            gradient_norm=self.current.gradient_norm,
            n_iter=len(self.values),
            converged=self.current.gradient_norm <= self.tol,
            values=self.values,
        )


class ProgressReport:
    """An `on_iteration` that tells stderr how far the solver is; use it as a context manager.

    On a terminal one line is rewritten in place; elsewhere every 10th iteration and the last have a line each.
    A process without a stderr (Python then has None there), or with a closed one, gets no report.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.pending = ""

    def __enter__(self) -> Self:
        """Start reporting."""
        return self

    def __call__(self, iteration: Iteration) -> None:
        """Report one iteration."""
        if not self.enabled or _stderr_is_closed():
            return
        line = f"iteration {iteration.number}: loss {iteration.value:.8g}, max |gradient| {iteration.gradient_norm:.2e}"
        if sys.stderr.isatty():
            _say("\r" + line.ljust(len(self.pending)), end="")
            self.pending = line
        elif iteration.number % 10 == 0:
            _say(line)
            self.pending = ""
        else:
            self.pending = line

    def __exit__(self, *_: object) -> None:
        """Finish the line: of the last iteration, or after the last on a terminal."""
        if self.pending and not _stderr_is_closed():
            _say("" if sys.stderr.isatty() else self.pending)


def _say(line: str, end: str = "\n") -> None:
    with contextlib.suppress(OSError):  # a full disk or a broken pipe is no reason to stop
        print(line, end=end, file=sys.stderr, flush=True)


def _stderr_is_closed() -> bool:
    """Tell whether nothing can be written to stderr."""
    return sys.stderr is None or sys.stderr.closed
