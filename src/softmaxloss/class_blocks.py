"""The Hessian of SoftmaxClassifier's objective by class: each has its own block, of the rows it is unsure of."""

from typing import Any

import numpy as np
import numpy.typing as npt

from softmaxloss import _native
from softmaxloss.functional import softmax
from softmaxloss.objective import CentredAndScaled, Objective
from softmaxloss.preconditioner import FeatureSpectrum, MetricPreconditioner, pass_products
from softmaxloss.rows import Rows, in_threads, threads_for

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]

# The blocks are worth the time of so many passes, and this much memory, as are the rows they come of with what is known
# of each for each class. To know that takes as long as so many products.
_MOST_PASSES = 2.5
_MOST_BYTES = 1 << 27
_NUMBERS_PER_CLASS, _PRODUCTS_PER_CLASS = 3, 20

# Where not all rows can be taken, these are the fewest and the most for each feature and class.
_FEWEST_ROWS, _MOST_ROWS = 2, 16

# A row counts by itself for a class where it has this share of the curvature that the mean row has for all classes.
_UNSURE = 0.3


def block_rows(n_rows: int, n_features: int, n_classes: int, *, itemsize: int, is_sparse: bool) -> int:
    """Return how many rows make the blocks, each unsure of about one class; 0 where that takes too much time."""
    of_factors = n_classes * n_features**3 // 3
    left = int(_MOST_PASSES * pass_products(n_rows, n_features, n_classes)) - of_factors
    affordable = min(
        left // (n_features**2 // 2 + _PRODUCTS_PER_CLASS * n_classes),
        _MOST_BYTES // ((n_features + _NUMBERS_PER_CLASS * n_classes) * itemsize),
    )
    count = min(n_rows, affordable, _MOST_ROWS * n_features * n_classes)
    is_small = n_classes * n_features**2 * itemsize <= _MOST_BYTES and not is_sparse
    return count if is_small and count >= min(n_rows, _FEWEST_ROWS * n_features * n_classes) else 0


def room_for_blocks(objective: Objective, dtype: npt.DTypeLike | None = None) -> Array:
    """Return memory for the factors of all blocks, in the features' dtype unless another is given.

    New pages would take longer than what is written to them.
    """
    n_classes, size = objective.shape
    size = -(-size // _native.block_unit) * _native.block_unit
    return np.empty((n_classes, size, size), dtype or objective.source.dtype)


class BlockPreconditioner(MetricPreconditioner):
    r"""The inverse of the Hessian's blocks on its diagonal, one for each class, as if classes did not matter to others.

    That of class k is the mean over rows of ``p_ik (1 - p_ik) f_i f_i.T`` for the probabilities p and the features f as
    they are centred and scaled, plus the penalty. Near the minimum a class has few rows that the model is unsure of,
    and these are not those of other classes: a Kronecker product knows nothing of that. The rows that have hardly any
    weight count together, by the second moments of all.

    The factors are put in `room`: what was there is lost, and a preconditioner that had it with it.
    """

    def __init__(
        self,
        objective: Objective,
        rows: Rows,
        variables: CentredAndScaled,
        x: Vector,
        spectrum: FeatureSpectrum,
        room: Array,
    ) -> None:
        coef, intercept = objective.layer(x)
        X, dtype = np.ascontiguousarray(rows.dense), objective.source.dtype
        n_features, size = X.shape[1], room.shape[1]
        of_all, penalties = np.zeros((size, size), dtype), np.ones(size, dtype)
        of_all[:n_features, :n_features] = spectrum.moments
        of_all[n_features, n_features] = variables.intercept_scale**2
        penalties[:n_features] = objective.penalty * np.square(variables.scale)
        penalties[n_features] = 0.0
        probabilities = softmax(_logits(X, coef, intercept), axis=0)[objective.first :]
        curvatures = 1.0 - probabilities
        curvatures *= probabilities
        weights = (rows.weights / (rows.weights.sum() or 1.0)).astype(dtype)
        least = _UNSURE * float(weights @ curvatures.sum(axis=0))
        self._shape = objective.shape
        self._factors = room
        mean, scale = variables.mean.astype(dtype), variables.scale.astype(dtype)
        _native.class_blocks(
            X,
            curvatures,
            weights,
            least,
            mean,
            scale,
            variables.intercept_scale,
            of_all,
            penalties,
            self._factors,
        )

    def __call__(self, gradient: Vector) -> Vector:
        """Return the approximate inverse Hessian times a vector, both with respect to the scaled variables."""
        vectors = self._padded(gradient)
        _native.solve_blocks(self._factors, vectors)
        return vectors[:, : self._shape[1]].astype(np.float64).ravel()

    def _squared_length(self, step: Vector) -> float:
        """Return the product of a step with its inverse image."""
        images = self._factors @ self._padded(step)[:, :, np.newaxis]
        return float(np.square(images).sum(dtype=np.float64))

    def _padded(self, vector: Vector) -> Array:
        vectors = np.zeros(self._factors.shape[:2], self._factors.dtype)
        vectors[:, : self._shape[1]] = vector.reshape(self._shape)
        return vectors


def _logits(X: Array, coef: Array, intercept: Array) -> Array:
    """Return those of every row, a row for each class."""
    logits = np.empty((len(coef), len(X)), coef.dtype)
    threads = threads_for(X.size)

    def fill(part: slice) -> None:
        np.matmul(coef, X[part].T, out=logits[:, part])
        logits[:, part] += intercept[:, np.newaxis]

    in_threads(fill, [slice(len(X) * k // threads, len(X) * (k + 1) // threads) for k in range(threads)], threads)
    return logits
