"""Approximate inverses of the Hessian of SoftmaxClassifier's objective that a fit with many parameters can afford."""

import contextlib
import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from softmaxloss.functional import softmax
from softmaxloss.objective import CentredAndScaled, Objective
from softmaxloss.rows import Rows, in_threads, product, slices, threads_for

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]

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
ROWS_PER_FEATURE, _MOST_ROWS_PER_FEATURE = 8, 32
_MOST_SAMPLED = 1 << 25
_SHARE_OF_PASS = 0.25
_PRODUCTS_OF_READING = 40

# The covariance of the classes is that of so many rows for each, and of no fewer than this in all.
_ROWS_PER_CLASS, _FEWEST_CLASS_ROWS = 4, 4096

# Means over rows are the sum of so many parts of them, whatever the number of threads.
_PARTS = 4

# One spectrum serves penalties down to this share of its own: below it rounding would be left of what the penalty says.
_LEAST_PENALTY = 1e-4

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
    rows = min(max(affordable, ROWS_PER_FEATURE * n_features), _MOST_ROWS_PER_FEATURE * n_features)
    return min(rows, _MOST_SAMPLED // n_features)


def kronecker_after(n_rows: int, n_features: int, n_classes: int) -> int:
    """Return after how many iterations the product is first made."""
    passes = _SPECTRUM_PRODUCTS * n_features**3 // pass_products(n_rows, n_features, n_classes)
    return passes // 2 if passes > _FEW_PASSES else 0


def class_rows(n_classes: int) -> int:
    """Return how many rows tell enough of the classes' covariance."""
    return max(_ROWS_PER_CLASS * n_classes, _FEWEST_CLASS_ROWS)


def relative_scale(scale: Vector, to: Vector) -> Vector:
    """Return one scale of the features relative to another; 0 for those that have none."""
    ratio: Vector = np.divide(scale, to, out=np.zeros_like(to), where=to > 0)
    return ratio


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
        by_class = by_class[objective.first :, objective.first :]
        curvatures, self._classes = scipy.linalg.eigh(by_class, driver="evd", check_finite=False)
        curvatures = np.maximum(curvatures, 0.0) + _LEAST_CURVATURE / objective.shape[0]
        self._spectrum = spectrum
        self._by_coef = self._spectrum.inverse(curvatures)
        self._by_intercept = 1.0 / (curvatures * variables.intercept_scale**2) if objective.fit_intercept else 0.0
        self._dtype = objective.source.dtype
        self._shape = objective.shape

    def __call__(self, gradient: Vector) -> Vector:
        """Return the approximate inverse Hessian times a vector, both with respect to the scaled variables."""
        matrix = gradient.reshape(self._shape)
        rotated = product(self._classes.T, matrix.astype(self._dtype))
        vectors = self._spectrum.vectors
        by_eigen = product(rotated[:, :-1], vectors)
        by_eigen *= self._by_coef
        rotated[:, :-1] = product(by_eigen, vectors.T)
        rotated[:, -1] *= self._by_intercept
        direction: Vector = product(self._classes, rotated).astype(np.float64).ravel()
        return direction

    def _squared_length(self, step: Vector) -> float:
        """Return the product of a step with its inverse image."""
        rotated = product(self._classes.T, step.reshape(self._shape).astype(self._dtype))
        of_coef = np.square(product(rotated[:, :-1], self._spectrum.dual)) / self._by_coef
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
            relative_scale(variables.scale, self._scale).astype(dtype),
            relative_scale(self._scale, variables.scale).astype(dtype),
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
    roots = np.sqrt(rows.weights / rows.weights.sum()).astype(rows.X.dtype)[:, np.newaxis]

    def of_part(part: slice) -> Array:
        weighted = softmax(rows.part(part).dense @ coef.T + intercept, axis=1)
        total = np.square(roots[part, 0]) @ weighted
        weighted *= roots[part]
        covariance: Array = np.diag(total) - weighted.T @ weighted
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
