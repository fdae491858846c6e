"""Limited-memory BFGS: what the last steps tell of the Hessian, and the direction that they make of a gradient."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from softmaxloss import _native

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]

# The steps remembered: 40 need a third of the iterations of 10 where features are strongly correlated (measured on
# scikit-learn's breast cancer data, unscaled). Fewer are kept where they would take more than this much memory, but
# never fewer than will do.
MOST_STEPS = 40
_FEWEST_STEPS = 4
_FEWEST_RECENT = 6  # of those that may be misleading by now
_STEPS_BYTES = 1 << 28

# A step shows curvature if its cosine with the gradient's change is more than rounding makes of 0.
_LEAST_COSINE = 1e-14


class Pairs:
    r"""The last steps s_i in u, oldest first, and the changes y_i of the gradient that they made.

    The direction is that of the two loops of [1]_, in the compact form of [2]_: with R the upper triangle of the
    products s_i . y_j and D its diagonal, for the gradient g and a first approximation P of the inverse Hessian

        q = -g - Y a,  R a = -S.T g        direction = P q + S b,  R.T b = D a - Y.T P q

    so that each vector is read twice, once for all products and once for all sums.

    Parameters
    ----------
    steps, changes : sequences of float64 ndarrays (n,), optional
        Those to begin with; they are kept, not copied.
    values : sequence of float, optional
        Of the function, where each of these steps began.

    References
    ----------
    .. [1] J. Nocedal, "Updating quasi-Newton matrices with limited storage", Math. Comp. 35, 1980.
    .. [2] R. H. Byrd, J. Nocedal, R. B. Schnabel, "Representations of quasi-Newton matrices and their use in limited
       memory methods", Math. Program. 63, 1994.
    """

    def __init__(
        self, steps: Sequence[Vector] = (), changes: Sequence[Vector] = (), values: Sequence[float] = ()
    ) -> None:
        self.steps: list[Vector] = []
        self.changes: list[Vector] = []
        self.values: list[float] = []
        self._products: Matrix = np.zeros((0, 0))  # R
        for step, change, value in zip(steps, changes, values or [0.0] * len(steps), strict=True):
            self.add(step, change, value)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another pair."""
        room = _STEPS_BYTES // (2 * max(1, self.steps[0].nbytes)) if self.steps else 1
        return len(self.steps) >= min(max(room, _FEWEST_STEPS), MOST_STEPS)

    def add(self, step: Vector, change: Vector, value: float = 0.0) -> None:
        """Remember a pair that shows curvature, and forget the oldest where there are too many."""
        kept = slice(1 if self.is_full else 0, None)
        steps = [*self.steps[kept], step]
        products = np.zeros((len(steps), len(steps)), order="F")
        products[:-1, :-1] = self._products[kept, kept]
        products[:, -1] = _dots(steps, change)
        if not products[-1, -1] > _LEAST_COSINE * np.sqrt(step @ step) * np.sqrt(change @ change):
            return
        self.steps, self.changes, self._products = steps, [*self.changes[kept], change], products
        self.values = [*self.values[kept], value]

    def clear(self) -> None:
        """Forget them all."""
        self._keep(len(self.steps))

    def forget(self, above: float) -> None:
        """Forget the oldest as long as they began at a value above this, but for a few."""
        stale = 0
        while stale < len(self.values) - _FEWEST_RECENT and self.values[stale] > above:
            stale += 1
        if stale:
            self._keep(stale)

    def _keep(self, first: int) -> None:
        """Forget what is before the pair of this number."""
        self.steps, self.changes, self.values = self.steps[first:], self.changes[first:], self.values[first:]
        self._products = np.asfortranarray(self._products[first:, first:])

    def direction(self, gradient: Vector, precondition: Callable[[Vector], Vector]) -> Vector:
        """Return minus the approximate inverse Hessian times the gradient.

        The first approximation is `precondition`, times the factor that the last step calls for; without steps it is
        all there is.
        """
        downhill = -gradient
        if not self.steps:
            return precondition(downhill)
        diagonal = self._products.diagonal()
        first = _solved(self._products, _dots(self.steps, downhill))
        _native.add_multiples(self.changes, -first, downhill)
        direction = precondition(downhill)
        change = self.changes[-1]
        direction *= diagonal[-1] / (change @ precondition(change))
        second = _solved(self._products, diagonal * first - _dots(self.changes, direction), transposed=True)
        _native.add_multiples(self.steps, second, direction)
        return direction


def _dots(vectors: list[Vector], vector: Vector) -> Vector:
    """Return each one's product with the last."""
    products = np.empty(len(vectors))
    _native.dots(vectors, vector, products)
    return products


def _solved(upper: Matrix, right: Vector, *, transposed: bool = False) -> Vector:
    """Return the solution of the equations of an upper triangular matrix, whose diagonal is positive."""
    solution: Vector = lapack.dtrtrs(upper, right, trans=int(transposed))[0]
    return solution
