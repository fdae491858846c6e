"""The Hessian of SoftmaxClassifier's objective itself, where there are few parameters."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.linalg
from scipy.special import expit

from softmaxloss import _native
from softmaxloss.class_blocks import room_for_blocks
from softmaxloss.functional import softmax
from softmaxloss.objective import CentredAndScaled, Objective
from softmaxloss.preconditioner import ROWS_PER_FEATURE, pass_products, relative_scale
from softmaxloss.rows import Rows

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]

# The Hessian by all the parameters is worth the time of some passes, and no more than this takes; where it takes no
# longer than a few calls of the objective, it is made of all rows, and often. Rows are taken so many numbers at a time.
_MOST_HESSIAN_PRODUCTS = 4 * 10**9
_MOST_ROWS_PER_PARAMETER = 256
_FEW_HESSIAN_PRODUCTS = 2 * 10**7
_CHUNK = 1 << 20

# Of the Hessian in variables where it is about one: directions that the loss does not see have none.
_LEAST_EIGENVALUE = 1e-8


def hessian_rows(n_rows: int, n_features: int, n_classes: int, n_parameters: int, *, passes: int) -> int:
    """Return how many rows make a Hessian by all the parameters in the time of so many passes; 0 where none do."""
    if is_quick(n_rows, n_parameters):
        return n_rows
    products = min(passes * pass_products(n_rows, n_features, n_classes), _MOST_HESSIAN_PRODUCTS)
    affordable = products // n_parameters**2
    rows = min(n_rows, affordable, _MOST_ROWS_PER_PARAMETER * n_parameters)
    return rows if rows >= min(n_rows, ROWS_PER_FEATURE * n_parameters) else 0


def is_quick(n_rows: int, n_parameters: int) -> bool:
    """Tell whether the Hessian of all rows by all parameters, and its factor, take no longer than a few values."""
    return n_rows * n_parameters**2 + n_parameters**3 // 3 <= _FEW_HESSIAN_PRODUCTS


def fits_one_call(n_rows: int, n_parameters: int) -> bool:
    """Tell whether rows of two classes are few enough for `TwoClassHessian`."""
    return is_quick(n_rows, n_parameters) and n_rows * n_parameters <= _CHUNK


class HessianPreconditioner:
    r"""The inverse of the Hessian itself, where there are few parameters.

    It is the mean over rows of ``(diag(p_i) - p_i p_i.T) (x) f_i f_i.T`` for the probabilities p and the features f as
    they are centred and scaled, with one for the intercept, plus the penalty.
    """

    def __init__(self, objective: Objective, rows: "ScaledRows", variables: CentredAndScaled, x: Vector) -> None:
        (n_classes, size), u = objective.shape, rows.variables.from_original(x)
        matrix = np.zeros((n_classes * size, n_classes * size))
        for features, weights in rows.blocks(n_classes):
            if objective.n_classes == 2:
                matrix += _of_two_classes(features, weights, u)
            else:
                _add_curvature(features, weights, u.reshape(objective.shape), matrix)
        self.is_newton = is_quick(objective.source.n_rows, len(matrix))
        ratio = rows.ratio(variables)
        blocks = matrix.reshape(n_classes, size, n_classes, size)
        blocks *= ratio[:, np.newaxis, np.newaxis]
        blocks *= ratio
        diagonal = matrix.reshape(-1)[:: len(matrix) + 1].reshape(n_classes, size)
        diagonal += _LEAST_EIGENVALUE
        diagonal[:, :-1] += objective.penalty * np.square(variables.scale)
        # Not by cho_factor and cho_solve, whose checks take longer than this for a small matrix.
        self._factor, failed = scipy.linalg.lapack.dpotrf(matrix, lower=1, overwrite_a=1)
        if failed:
            raise scipy.linalg.LinAlgError("the Hessian is not positive definite")

    def __call__(self, gradient: Vector) -> Vector:
        """Return the inverse Hessian times a vector, both with respect to the scaled variables."""
        direction: Vector = scipy.linalg.lapack.dpotrs(self._factor, gradient, lower=1)[0]
        return direction

    def gain(self, steps: list[Vector], changes: list[Vector]) -> float:
        """Return infinity: it is the Hessian's."""
        return np.inf


class TwoClassHessian:
    """The Hessian itself of few rows of two classes: that is the block of one class, made and factored in one call.

    It takes half the time of `HessianPreconditioner`, most of which is in calls where rows are few.

    Parameters
    ----------
    objective : Objective
        Its own penalty does not matter.
    rows : Rows
        All of its rows; they are copied to float64.
    """

    def __init__(self, objective: Objective, rows: Rows) -> None:
        self._X = np.ascontiguousarray(rows.dense, np.float64)
        self._weights = rows.weights / (rows.weights.sum() or 1.0)
        self._size = objective.shape[1]
        self._factor = room_for_blocks(objective, np.float64)
        self._of_rest, self._diagonal = np.zeros(self._factor.shape[1:]), np.ones(self._factor.shape[1])

    def preconditioner(self, objective: Objective, variables: CentredAndScaled, x: Vector) -> "_Factored":
        """Return the inverse Hessian at x with one of the penalties, until the next is asked for."""
        logits = self._X @ x[:-1]
        logits += x[-1]
        p = expit(logits)
        curvature = 1.0 - p
        curvature *= p
        self._diagonal[: self._size] = _LEAST_EIGENVALUE
        self._diagonal[: self._size - 1] += objective.penalty * np.square(variables.scale)
        _native.class_blocks(
            self._X,
            curvature[np.newaxis],
            self._weights,
            0.0,
            variables.mean,
            variables.scale,
            variables.intercept_scale,
            self._of_rest,
            self._diagonal,
            self._factor,
        )
        return _Factored(self._factor, self._size)


@dataclass(frozen=True)
class _Factored:
    """The inverse of a matrix whose Cholesky factor, padded, is the only one of these."""

    factor: Vector
    size: int
    is_newton: bool = True

    def __call__(self, gradient: Vector) -> Vector:
        """Return the inverse Hessian times a vector, both with respect to the scaled variables."""
        padded = np.zeros(self.factor.shape[:2])
        padded[0, : self.size] = gradient
        _native.solve_blocks(self.factor, padded)
        return padded[0, : self.size]

    def gain(self, steps: list[Vector], changes: list[Vector]) -> float:
        """Return infinity: it is the Hessian's."""
        return np.inf


def _of_two_classes(features: Vector, weights: Vector, u: Vector) -> Matrix:
    """Return the sum of the rows' Hessians by the parameters u of the second class."""
    p = expit(features @ u)
    curvature = weights * p
    curvature *= 1.0 - p
    hessian: Matrix = (features * curvature[:, np.newaxis]).T @ features
    return hessian


def _add_curvature(features: Vector, weights: Vector, u: Matrix, to: Matrix) -> None:
    """Add the rows' Hessians by the parameters u of all classes."""
    (n_classes, size), probabilities = u.shape, softmax(features @ u.T, axis=1)
    roots = np.sqrt(weights)[:, np.newaxis]
    both = ((probabilities * roots)[:, :, np.newaxis] * features[:, np.newaxis, :]).reshape(len(features), -1)
    to -= both.T @ both
    for k in range(n_classes):
        block = slice(k * size, (k + 1) * size)
        to[block, block] += (features * (weights * probabilities[:, k])[:, np.newaxis]).T @ features


class ScaledRows:
    """Rows of features in float64, centred and scaled, with one for the intercept, and of weights whose sum is 1.

    They are kept where they are few: small data take as long to be scaled as all else that is done with them.

    Attributes
    ----------
    variables : CentredAndScaled
        Those that the features are of.
    """

    def __init__(self, rows: Rows, variables: CentredAndScaled) -> None:
        self._rows, self.variables = rows, variables
        self._total = rows.weights.sum() or 1.0
        self._size = len(variables.mean) + 1
        self._kept = self._scaled(rows) if len(rows.codes) * self._size <= _CHUNK else None

    def blocks(self, n_classes: int) -> Iterator[tuple[Vector, Vector]]:
        """Yield features and weights, of so many rows that their products with each class take not much memory."""
        step = max(1, _CHUNK // (n_classes * self._size))
        for start in range(0, len(self._rows.codes), step):
            part = slice(start, start + step)
            if self._kept is None:
                yield self._scaled(self._rows.part(part))
            else:
                yield self._kept[0][part], self._kept[1][part]

    def ratio(self, variables: CentredAndScaled) -> Vector:
        """Return how much larger the features are by other variables of the same rows, and 1 for the intercept."""
        return np.append(relative_scale(variables.scale, self.variables.scale), 1.0)

    def _scaled(self, rows: Rows) -> tuple[Vector, Vector]:
        features = np.empty((len(rows.codes), self._size))
        np.subtract(rows.dense, self.variables.mean, out=features[:, :-1])
        features[:, :-1] *= self.variables.scale
        features[:, -1] = self.variables.intercept_scale
        return features, rows.weights / self._total
