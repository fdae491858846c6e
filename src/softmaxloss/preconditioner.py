"""An approximate inverse of the Hessian of SoftmaxClassifier's objective, made of two small matrices."""

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.linalg

from softmaxloss.functional import softmax
from softmaxloss.objective import CentredAndScaled, Objective
from softmaxloss.rows import Rows

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]

# The two matrices take memory and time as the square and the cube of the features and the classes.
MOST_FEATURES = 2048
MOST_CLASSES = 2048
_ROWS_PER_FEATURE = 8
_MOST_SAMPLE_BYTES = 1 << 27

# What is added to the diagonals, relative to them, where features repeat each other or no row has any doubt left.
_LEAST_CURVATURE = 1e-6


def rows_wanted(n_features: int, itemsize: int) -> int:
    """Return how many rows tell enough of the features' second moments."""
    return max(1, min(_ROWS_PER_FEATURE * n_features, _MOST_SAMPLE_BYTES // max(1, n_features * itemsize)))


class KroneckerPreconditioner:
    r"""The inverse of a Kronecker product that is near to the Hessian, by features and classes.

    The Hessian of the mean loss by the coefficients is the mean over rows of ``S_i (x) f_i f_i.T`` for the features f
    as they are centred and scaled and ``S_i = diag(p_i) - p_i p_i.T`` of the probabilities. In its place stands the
    product of the means, ``S (x) F``, which is exact where all rows have the same probabilities, as they do at 0 [1]_;
    F's rows count by the trace of their S_i. To this the penalty is added, a diagonal R of the features, so that for
    each eigenvalue s of S a matrix ``s F + R`` is to be inverted. One generalised eigenproblem serves them all: of F
    with respect to ``A = m F + R`` for the mean m of the eigenvalues, which gives V with ``V.T A V = 1`` and
    ``V.T F V = diag(t)``, and so ``(s F + R)^-1 = V diag(1 / (1 + (s - m) t)) V.T``.

    References
    ----------
    .. [1] J. Martens, R. Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", 2015, for
       the product of the means.
    """

    def __init__(self, objective: Objective, rows: Rows, variables: CentredAndScaled, x: Vector) -> None:
        coef, intercept = objective.layer(x)
        X = rows.X.toarray() if rows.is_sparse else rows.X
        probabilities = softmax(X @ coef.T + intercept, axis=1)
        weights = (rows.weights / rows.weights.sum()).astype(X.dtype)
        by_class = np.diag(weights @ probabilities) - (probabilities.T * weights) @ probabilities
        doubt = weights * (1.0 - np.square(probabilities).sum(axis=1))
        features = (X - variables.mean.astype(X.dtype)) * variables.scale.astype(X.dtype)
        by_feature = (features.T * np.maximum(doubt / max(doubt.sum(), 1e-30), 0.0)) @ features

        curvatures, self._classes = np.linalg.eigh(by_class[objective.first :, objective.first :])
        curvatures = np.maximum(curvatures, 0.0) + _LEAST_CURVATURE * objective.shape[0] ** -1.0
        typical = curvatures.mean()
        penalties = objective.penalty * np.square(variables.scale).astype(X.dtype)
        full = typical * by_feature + np.diag(penalties)
        full += np.diag(_LEAST_CURVATURE * (np.diag(full).max() + 1e-30) * np.ones(len(full), X.dtype))
        shares, self._features = scipy.linalg.eigh(by_feature, full, driver="gvd", check_finite=False)
        of_both = 1.0 + np.outer(curvatures - typical, shares)
        self._by_coef = (1.0 / np.maximum(of_both, _LEAST_CURVATURE)).astype(X.dtype)
        self._by_intercept = 1.0 / (curvatures * variables.intercept_scale**2) if objective.fit_intercept else 0.0
        self._dtype = X.dtype
        self._shape = objective.shape

    def __call__(self, gradient: Vector) -> Vector:
        """Return the approximate inverse Hessian times a vector, both with respect to the scaled variables."""
        matrix = gradient.reshape(self._shape)
        rotated = self._classes.T @ matrix.astype(self._dtype)
        coef = ((rotated[:, :-1] @ self._features) * self._by_coef) @ self._features.T
        intercept = rotated[:, -1] * self._by_intercept
        direction: Vector = (self._classes @ np.column_stack([coef, intercept])).astype(np.float64).ravel()
        return direction
