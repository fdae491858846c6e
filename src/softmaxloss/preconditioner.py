"""Approximate inverses of the Hessian of SoftmaxClassifier's objective, from some of the rows."""

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg
from scipy.special import expit

from softmaxloss.functional import softmax
from softmaxloss.objective import CentredAndScaled, Objective
from softmaxloss.rows import Rows, in_threads, slices, threads_for

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]

# The two matrices of the product take memory and time as the square and the cube of the features and the classes: so
# many products for each cube of the features, with the second moments, on one of two cores (measured). It is made at
# the start where that is few passes, else after half as many: so it never takes much longer than the fit without it.
_MOST_FEATURES, _MOST_SPARSE_FEATURES = 4096, 256
_MOST_CLASSES = 2048
_SPECTRUM_PRODUCTS = 29
_FEW_PASSES = 8

# Second moments of the features are taken from so many rows for each at least; of more, up to the second number, where
# that takes no longer than this share of a pass; but of no more numbers than this, which may have to travel. A pass
# takes as long as this many products for each feature, beside those of the classes: the features are read from memory
# twice.
_ROWS_PER_FEATURE, _MOST_ROWS_PER_FEATURE = 8, 32
_MOST_SAMPLED = 1 << 25
_SHARE_OF_PASS = 0.25
_PRODUCTS_OF_READING = 40

# Means over rows are the sum of so many parts of them, whatever the number of threads.
_PARTS = 4

# One spectrum serves penalties down to this share of its own: below it rounding would be left of what the penalty says.
_LEAST_PENALTY = 1e-4

# The Hessian by all the parameters is worth the time of some passes, and no more than this takes; where it takes no
# longer than a few calls of the objective, it is made of all rows, and often. Rows are taken so many numbers at a time.
_MOST_HESSIAN_PRODUCTS = 4 * 10**9
_MOST_ROWS_PER_PARAMETER = 256
_FEW_HESSIAN_PRODUCTS = 2 * 10**7
_CHUNK = 1 << 20

# Of the Hessian in variables where it is about one: directions that the loss does not see have none.
_LEAST_EIGENVALUE = 1e-8

# What is added to the diagonals, relative to them, where features repeat each other or no row has any doubt left.
_LEAST_CURVATURE = 1e-6


def pass_products(n_rows: int, n_features: int, n_classes: int) -> int:
    """Return how many products and sums take as long as a value of the objective with its gradient."""
    return n_rows * n_features * (2 * n_classes + _PRODUCTS_OF_READING)


def kronecker_rows(n_rows: int, n_features: int, n_classes: int, *, is_sparse: bool) -> int:
    """Return how many rows tell enough of the features' second moments; 0 where the matrices take too much time."""
    most = _MOST_SPARSE_FEATURES if is_sparse else _MOST_FEATURES
    if n_features > most or n_classes > _MOST_CLASSES:
        return 0
    affordable = int(_SHARE_OF_PASS * pass_products(n_rows, n_features, n_classes)) // (n_features**2 // 2 + 1)
    rows = min(max(affordable, _ROWS_PER_FEATURE * n_features), _MOST_ROWS_PER_FEATURE * n_features)
    return min(rows, _MOST_SAMPLED // n_features)


def kronecker_after(n_rows: int, n_features: int, n_classes: int) -> int:
    """Return after how many iterations the product is first made."""
    passes = _SPECTRUM_PRODUCTS * n_features**3 // pass_products(n_rows, n_features, n_classes)
    return passes // 2 if passes > _FEW_PASSES else 0


def hessian_rows(n_rows: int, n_features: int, n_classes: int, n_parameters: int, *, passes: int) -> int:
    """Return how many rows make a Hessian by all the parameters in the time of so many passes; 0 where none do."""
    if is_quick(n_rows, n_parameters):
        return n_rows
    products = min(passes * pass_products(n_rows, n_features, n_classes), _MOST_HESSIAN_PRODUCTS)
    affordable = products // n_parameters**2
    rows = min(n_rows, affordable, _MOST_ROWS_PER_PARAMETER * n_parameters)
    return rows if rows >= min(n_rows, _ROWS_PER_FEATURE * n_parameters) else 0


def is_quick(n_rows: int, n_parameters: int) -> bool:
    """Tell whether the Hessian of all rows by all parameters, and its factor, take no longer than a few values."""
    return n_rows * n_parameters**2 + n_parameters**3 // 3 <= _FEW_HESSIAN_PRODUCTS


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
        return np.append(_ratio(variables.scale, self.variables.scale), 1.0)

    def _scaled(self, rows: Rows) -> tuple[Vector, Vector]:
        features = np.empty((len(rows.codes), self._size))
        np.subtract(rows.dense, self.variables.mean, out=features[:, :-1])
        features[:, :-1] *= self.variables.scale
        features[:, -1] = self.variables.intercept_scale
        return features, rows.weights / self._total


class MetricPreconditioner(ABC):
    """A preconditioner that has to show its worth by the metric that it makes."""

    is_newton = False

    @abstractmethod
    def __call__(self, gradient: Vector) -> Vector:
        """Return the approximate inverse Hessian times a vector, both with respect to the scaled variables."""

    @abstractmethod
    def _squared_length(self, step: Vector) -> float:
        """Return the product of a step with its inverse image."""

    def gain(self, steps: list[Vector], changes: list[Vector]) -> float:
        """Return how much nearer steps are to the gradient's changes in this metric than in that of the variables.

        The cosine between a step s and a change y is ``s.y / sqrt(s.P^-1 s * y.P y)`` in the metric of this map P, 1
        where it is the inverse Hessian; the identity's is ``s.y / sqrt(s.s * y.y)``. Returned is the mean logarithm of
        their ratio: 0 for no steps, minus infinity where it is no number.
        """
        with np.errstate(all="ignore"):
            gains = [
                0.5 * np.log((step @ step) * (change @ change) / (self._squared_length(step) * (change @ self(change))))
                for step, change in zip(steps, changes, strict=True)
            ]
        gain = float(np.mean(gains)) if gains else 0.0
        return gain if np.isfinite(gain) else -np.inf


class ScalePreconditioner(MetricPreconditioner):
    r"""Takes back some of what makes features alike: variables in which their scales are raised to a power below 1.

    Where each feature is scaled to a curvature of about one, the rare and the small, of which there may be very many,
    are as steep as those that tell most; in the units that they come in, the penalty hides them. Texts need a half to a
    fifth of the steps with a fourth of the scaling, and data in units of their own choice all of it (measured): hence
    the steps decide. It takes no time beside a pass, whatever the size.

    Parameters
    ----------
    variables : CentredAndScaled
        What is scaled wholly.
    power : float
        How much of that is left, less than 1.
    """

    def __init__(self, variables: CentredAndScaled, power: float) -> None:
        scale = variables.scale
        smallest = scale.min(initial=np.inf, where=scale > 0)
        ratio = np.divide(smallest, scale, out=np.ones_like(scale), where=scale > 0)
        self._shares = np.append(ratio ** (2.0 * (1.0 - power)), 1.0)

    def __call__(self, gradient: Vector) -> Vector:
        """Return a vector's step, both with respect to the scaled variables."""
        step: Vector = (gradient.reshape(-1, len(self._shares)) * self._shares).ravel()
        return step

    def _squared_length(self, step: Vector) -> float:
        """Return the product of a step with its inverse image."""
        return float((np.square(step.reshape(-1, len(self._shares))) / self._shares).sum())


class KroneckerPreconditioner(MetricPreconditioner):
    r"""The inverse of a Kronecker product that is near to the Hessian, by features and classes.

    The Hessian of the mean loss by the coefficients is the mean over rows of ``S_i (x) f_i f_i.T`` for the features f
    as they are centred and scaled and ``S_i = diag(p_i) - p_i p_i.T`` of the probabilities. In its place stands the
    product of the means, ``S (x) F``, which is exact where all rows have the same probabilities, as they do at 0 [1]_.
    To this the penalty is added, a diagonal R of the features, so that for each eigenvalue s of S a matrix ``s F + R``
    is to be inverted. One generalised eigenproblem serves them all, at every x: see `FeatureSpectrum`.

    Where the model is sure of nearly all rows, few of them make the Hessian, and it is no product of means: without
    strongly correlated features the steps so far then show that it does not help.

    References
    ----------
    .. [1] J. Martens, R. Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", 2015, for
       the product of the means.
    """

    def __init__(
        self,
        objective: Objective,
        rows: Rows,
        variables: CentredAndScaled,
        x: Vector,
        spectrum: "FeatureSpectrum",
    ) -> None:
        by_class = _class_covariance(rows, *objective.layer(x))
        curvatures, self._classes = np.linalg.eigh(by_class[objective.first :, objective.first :])
        curvatures = np.maximum(curvatures, 0.0) + _LEAST_CURVATURE / objective.shape[0]
        self._spectrum = spectrum
        self._by_coef = self._spectrum.inverse(curvatures)
        self._by_intercept = 1.0 / (curvatures * variables.intercept_scale**2) if objective.fit_intercept else 0.0
        self._dtype = objective.source.dtype
        self._shape = objective.shape

    def __call__(self, gradient: Vector) -> Vector:
        """Return the approximate inverse Hessian times a vector, both with respect to the scaled variables."""
        matrix = gradient.reshape(self._shape)
        rotated = self._classes.T @ matrix.astype(self._dtype)
        vectors = self._spectrum.vectors
        coef = ((rotated[:, :-1] @ vectors) * self._by_coef) @ vectors.T
        intercept = rotated[:, -1] * self._by_intercept
        direction: Vector = (self._classes @ np.column_stack([coef, intercept])).astype(np.float64).ravel()
        return direction

    def _squared_length(self, step: Vector) -> float:
        """Return the product of a step with its inverse image."""
        rotated = self._classes.T @ step.reshape(self._shape).astype(self._dtype)
        of_coef = np.square(rotated[:, :-1] @ self._spectrum.dual) / self._by_coef
        of_intercept = np.square(rotated[:, -1]) / self._by_intercept if np.any(self._by_intercept) else 0.0
        return float(of_coef.sum(dtype=np.float64) + np.sum(of_intercept, dtype=np.float64))


class FeatureSpectrum:
    """The second moments F of the features, centred and scaled, and the penalty R on them, made diagonal together.

    The generalised eigenproblem of F with respect to ``A = m F + R``, for a typical curvature m of the classes, gives
    V with ``V.T A V = 1`` and ``V.T F V = diag(t)``. So ``V.T R V = 1 - m diag(t)``, and for every s and multiple r of
    the penalty ``(s F + r R)^-1 = V diag(1 / (s t + r (1 - m t))) V.T``.

    Attributes
    ----------
    moments : ndarray of shape (features, features)
        F.
    vectors, dual : ndarray of shape (features, features)
        V, and the transpose of its inverse.
    """

    def __init__(self, objective: Objective, rows: Rows, variables: CentredAndScaled) -> None:
        dtype = objective.source.dtype
        self.moments = _moments(rows, variables)
        self._penalty, self._scale = objective.penalty, variables.scale
        penalties = (objective.penalty * np.square(variables.scale)).astype(dtype)
        typical = (1.0 - 1.0 / objective.n_classes) / objective.n_classes  # that at 0
        full = dtype.type(typical) * self.moments + np.diag(penalties)
        self._shares, self.vectors, self.dual = _eigen(self.moments, full)
        self._of_penalty = 1.0 - typical * self._shares

    def of(self, objective: Objective, variables: CentredAndScaled) -> "FeatureSpectrum":
        """Return that of the same rows with another penalty, and the variables that go with it."""
        other = copy.copy(self)
        dtype = self.vectors.dtype
        ratio, inverse = (
            _ratio(variables.scale, self._scale).astype(dtype),
            _ratio(self._scale, variables.scale).astype(dtype),
        )
        other.moments = self.moments * np.outer(ratio, ratio)
        other.vectors, other.dual = self.vectors * inverse[:, np.newaxis], self.dual * ratio[:, np.newaxis]
        if self._penalty > 0:
            other._of_penalty = self._of_penalty * (objective.penalty / self._penalty)
        other._penalty, other._scale = objective.penalty, variables.scale
        return other

    def inverse(self, curvatures: Array) -> Array:
        """Return the diagonals, a row for each curvature s, between V and V.T in the inverse of s F + R."""
        of_both = np.outer(curvatures, self._shares) + self._of_penalty
        return (1.0 / np.maximum(of_both, _LEAST_CURVATURE)).astype(self.vectors.dtype)


def _ratio(scale: Vector, to: Vector) -> Vector:
    """Return one scale of the features relative to another; 0 for those that have none."""
    ratio: Vector = np.divide(scale, to, out=np.zeros_like(to), where=to > 0)
    return ratio


def _moments(rows: Rows, variables: CentredAndScaled) -> Array:
    """Return the weighted second moments of the features, centred and scaled, in their dtype."""
    dtype, size = rows.X.dtype, rows.X.shape[1]
    roots = np.sqrt(rows.weights / rows.weights.sum()).astype(dtype)[:, np.newaxis]
    mean, scale = variables.mean.astype(dtype), variables.scale.astype(dtype)

    def of_part(part: slice) -> Array:
        features = rows.part(part).dense - mean
        features *= scale
        features *= roots[part]
        moments: Array = features.T @ features
        return moments

    return _in_parts(of_part, rows, size * size)


def _class_covariance(rows: Rows, coef: Array, intercept: Array) -> Array:
    """Return the weighted mean of ``diag(p) - p p.T`` over the rows' probabilities, in their dtype."""
    weights = (rows.weights / rows.weights.sum()).astype(rows.X.dtype)

    def of_part(part: slice) -> Array:
        probabilities = softmax(rows.part(part).dense @ coef.T + intercept, axis=1)
        weighted = probabilities.T * weights[part]
        covariance: Array = np.diag(weighted.sum(axis=1)) - weighted @ probabilities
        return covariance

    return _in_parts(of_part, rows, len(coef) * (len(coef) + rows.X.shape[1]))


def _in_parts(of_part: Callable[[slice], Array], rows: Rows, products_per_row: int) -> Array:
    """Return the sum of matrices that several threads make of the rows: the same whatever their number."""
    threads = threads_for(len(rows.codes) * products_per_row)
    first, *others = in_threads(of_part, slices(len(rows.codes), _PARTS), threads)
    for other in others:
        first += other
    return first


def reference_penalties(penalties: Sequence[float]) -> dict[float, float]:
    """Return, for each penalty, the one whose spectrum serves it: one spectrum for as many as rounding allows."""
    references: dict[float, float] = {}
    reference = np.inf
    for penalty in sorted(penalties, reverse=True):
        if not _LEAST_PENALTY * reference <= penalty:
            reference = penalty
        references[penalty] = reference
    return references


def _eigen(by_feature: Array, full: Array) -> tuple[Array, Array, Array]:
    """Solve the generalised eigenproblem of two matrices, with as much added to the second's diagonal as that needs.

    Returns the eigenvalues, the vectors V, and the transpose of V's inverse.
    """
    largest = np.diag(full).max() + np.finfo(full.dtype).tiny
    for share in (_LEAST_CURVATURE, 1e-4, 1e-2):
        raised = full + np.diag(np.full(len(full), share * largest, full.dtype))
        with contextlib.suppress(scipy.linalg.LinAlgError):  # float32 rounds what repeats to less than nothing
            shares, vectors = scipy.linalg.eigh(by_feature, raised, driver="gvd", check_finite=False)
            return shares, vectors, raised @ vectors
    scale = np.sqrt(np.diag(full) + largest)
    return np.diag(by_feature) / np.square(scale), np.diag(1.0 / scale), np.diag(scale)
