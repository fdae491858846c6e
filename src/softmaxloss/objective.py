"""The objective of SoftmaxClassifier, its gradient, and the variables in which it is well scaled."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
from sklearn.utils.sparsefuncs import mean_variance_axis

from softmaxloss.loss import softmax_cross_entropy_and_grad

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]

# Rows are taken in blocks, so that the loss finds the logits in a level-two cache and the second product finds the
# features in a level-three cache, where the first product left them. Fewer rows than 256 make poor matrix products
# (measured), so wide features give up their place in the cache first.
_LOGITS_BYTES = 1 << 20
_FEATURES_BYTES = 1 << 22
_ENOUGH_ROWS = 256


class Objective:
    r"""The regularised mean loss of a linear classifier as a function of its parameters.

    With s the row weights, it is ``sum(s * loss) / sum(s) + ||coef||^2 / (2 * C * sum(s))`` for logits
    ``X @ coef.T + intercept`` (for two classes: 0 and ``X @ coef[0] + intercept[0]``). The parameters are the
    matrix [coef | intercept], flattened, float64 whatever X is; without an intercept its column is held at 0.

    Parameters
    ----------
    X : ndarray or scipy.sparse CSR of shape (rows, features)
        float32 or float64; the products with it are computed in its dtype.
    codes : integer ndarray of shape (rows,)
        Class indices.
    weights : float64 ndarray of shape (rows,)
        The row weights s, >= 0 and not all 0.
    n_classes : int
        Number of classes, at least 2.
    C : float
        Inverse of the strength of the regularisation.
    fit_intercept : bool
        Whether there is an intercept.
    label_smoothing : float
        As in `softmaxloss.softmax_cross_entropy`.
    """

    def __init__(
        self,
        X: Any,
        codes: npt.NDArray[np.integer[Any]],
        weights: Vector,
        *,
        n_classes: int,
        C: float,
        fit_intercept: bool,
        label_smoothing: float,
    ) -> None:
        n_rows, n_features = X.shape
        self.X = X
        self.is_sparse = scipy.sparse.issparse(X)
        self.codes = codes
        # Scaled to a mean of 1, so that the loss's float32 sees neither tiny nor huge ones.
        self.weights = weights / weights.mean()
        self.penalty = 1.0 / (C * float(weights.sum()))
        self.n_classes = n_classes
        self.fit_intercept = fit_intercept
        self.label_smoothing = label_smoothing
        # Of two classes the first has the logit 0 and no parameters.
        self.first = 1 if n_classes == 2 else 0
        self.shape: tuple[int, int] = (n_classes - self.first, n_features + 1)
        self.block_rows = min(n_rows, self._block_rows())
        self.logits = np.empty((self.block_rows, n_classes), X.dtype)

    def value_and_gradient(self, parameters: Vector) -> tuple[float, Vector]:
        """Return the objective and its gradient at `parameters`, in one pass over the rows."""
        matrix = parameters.reshape(self.shape)
        coef = np.zeros((self.n_classes, matrix.shape[1] - 1), self.X.dtype)
        coef[self.first :] = matrix[:, :-1]
        intercept = np.zeros(self.n_classes, self.X.dtype)
        intercept[self.first :] = matrix[:, -1]

        total = 0.0
        gradient = np.zeros(self.shape)
        for rows in self._blocks():
            block = self.X[rows]
            logits = self._logits(block, coef, intercept)
            loss, by_logits = softmax_cross_entropy_and_grad(
                logits,
                self.codes[rows],
                reduction="sum",
                sample_weight=self.weights[rows],
                label_smoothing=self.label_smoothing,
                out=logits,
            )
            total += float(loss)
            gradient[:, :-1] += (by_logits.T @ block)[self.first :]
            gradient[:, -1] += by_logits.sum(axis=0, dtype=np.float64)[self.first :]

        n_rows = len(self.codes)
        value = total / n_rows + 0.5 * self.penalty * float(np.square(matrix[:, :-1]).sum())
        gradient /= n_rows
        gradient[:, :-1] += self.penalty * matrix[:, :-1]
        if not self.fit_intercept:
            gradient[:, -1] = 0.0
        return value, gradient.ravel()

    def centred_and_scaled(self) -> "CentredAndScaled":
        r"""Return variables in which the objective's curvature is about one in every direction of an axis.

        By Boehning [1]_, each row's Hessian with respect to its logits is at most k = (1 - 1 / classes) / 2 on
        its diagonal; so the objective's, for centred features, is at most ``k * variance + penalty``.

        References
        ----------
        .. [1] D. Boehning, "Multinomial logistic regression algorithm", Ann. Inst. Statist. Math. 44, 1992.
        """
        bound = 0.5 * (1.0 - 1.0 / self.n_classes)
        mean, variance = self._moments()
        if not self.fit_intercept:
            variance += mean**2
            mean[:] = 0.0
        # A feature without variance says nothing: its scale 0 holds its coefficient at 0, which is the optimum.
        curvature = bound * variance + self.penalty
        scale = np.divide(1.0, np.sqrt(curvature), out=np.zeros_like(curvature), where=variance > 0)
        return CentredAndScaled(mean, scale, bound**-0.5 if self.fit_intercept else 0.0)

    def _block_rows(self) -> int:
        """Return how many rows of X and of their logits are worked on at a time."""
        itemsize = int(self.X.dtype.itemsize)
        by_logits = max(1, _LOGITS_BYTES // (self.n_classes * itemsize))
        if self.is_sparse:
            return by_logits
        n_features = self.shape[1] - 1
        return min(by_logits, max(_ENOUGH_ROWS, _FEATURES_BYTES // (n_features * itemsize)))

    def _blocks(self) -> Iterator[slice]:
        for start in range(0, len(self.codes), self.block_rows):
            yield slice(start, min(start + self.block_rows, len(self.codes)))

    def _logits(self, block: Any, coef: Array, intercept: Array) -> Array:
        """Return the block's logits, in the buffer that all blocks share."""
        logits = self.logits[: block.shape[0]]
        if self.is_sparse:
            logits[:] = block @ coef.T
        else:
            np.matmul(block, coef.T, out=logits)
        logits += intercept
        return logits

    def _moments(self) -> tuple[Vector, Vector]:
        """Return each feature's weighted mean and variance; the variance of a constant one is exactly 0."""
        if self.is_sparse:
            mean, variance = mean_variance_axis(self.X, axis=0, weights=self.weights.astype(self.X.dtype))
            mean, variance = mean.astype(np.float64), variance.astype(np.float64)
        else:
            # Distances from a row that counts: zeros for a constant feature, no cancellation for a large mean.
            origin = self.X[np.argmax(self.weights > 0)].astype(np.float64)
            shift = self._weighted_mean(lambda block: block - origin)
            mean = origin + shift
            variance = self._weighted_mean(lambda block: np.square(block - origin - shift))
        if not np.isfinite(variance).all():
            feature = int(np.argmin(np.isfinite(variance)))
            raise ValueError(f"feature {feature} of X holds values too large to be squared: divide it by a constant")
        return mean, variance

    def _weighted_mean(self, of_block: Callable[[Matrix], Matrix]) -> Vector:
        """Return the weighted mean, over all rows, of a function of the rows of X in float64."""
        total = np.zeros(self.X.shape[1])
        with np.errstate(over="ignore", invalid="ignore"):  # `_moments` looks for what overflowed
            for rows in self._blocks():
                total += self.weights[rows] @ of_block(self.X[rows].astype(np.float64))
        return total / len(self.codes)


@dataclass(frozen=True)
class CentredAndScaled:
    """The variables u = [U | c] with coef = U * scale and intercept = c * intercept_scale - coef @ mean.

    The logits are those of centred features, ``X @ coef.T + intercept = (X - mean) @ coef.T + c * intercept_scale``,
    but X is left alone. A scale of 0 holds its parameter at 0.
    """

    mean: Vector
    scale: Vector
    intercept_scale: float

    def to_original(self, u: Vector) -> Vector:
        """Return the parameters [coef | intercept] of u."""
        matrix = self._matrix(u)
        coef = matrix[:, :-1] * self.scale
        return np.column_stack([coef, matrix[:, -1] * self.intercept_scale - coef @ self.mean]).ravel()

    def from_original(self, x: Vector) -> Vector:
        """Return the u of the parameters [coef | intercept]."""
        matrix = self._matrix(x)
        coef = matrix[:, :-1]
        scaled = np.column_stack([coef, matrix[:, -1] + coef @ self.mean])
        scales = np.append(self.scale, self.intercept_scale)
        u: Matrix = np.divide(scaled, scales, out=np.zeros_like(scaled), where=scales > 0)
        return u.ravel()

    def gradient(self, gradient: Vector) -> Vector:
        """Return the gradient with respect to u."""
        matrix = self._matrix(gradient)
        centred = matrix[:, :-1] - np.outer(matrix[:, -1], self.mean)
        return np.column_stack([centred * self.scale, matrix[:, -1] * self.intercept_scale]).ravel()

    def _matrix(self, flat: Vector) -> Matrix:
        return flat.reshape(-1, len(self.mean) + 1)
