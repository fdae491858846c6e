"""The objective of SoftmaxClassifier, its gradient, and the variables in which it is well scaled."""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from softmaxloss import _native, sparse
from softmaxloss.loss import softmax_cross_entropy_and_grad
from softmaxloss.rows import Rows, RowSource, Sums, weighted_sum

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]


class Objective:
    r"""The regularised mean loss of a linear classifier as a function of its parameters.

    With s the row weights, it is ``sum(s * loss) / sum(s) + penalty * ||coef||^2 / 2`` for logits
    ``X @ coef.T + intercept`` (for two classes: 0 and ``X @ coef[0] + intercept[0]``). The parameters are the
    matrix [coef | intercept], flattened, float64 whatever X is; without an intercept its column is held at 0.

    Parameters
    ----------
    source : RowSource
        The rows; their weights are >= 0 with a mean of about 1, so that the loss's float32 sees neither tiny nor huge
        ones. Features are float32 or float64; the products with them are computed in their dtype.
    total_weight : float
        The sum of the weights.
    n_classes : int
        Number of classes, at least 2.
    penalty : float
        The strength of the regularisation: 1 / (C * sum(s)) for the estimator's C and the row weights that it is given.
    fit_intercept : bool
        Whether there is an intercept.
    label_smoothing : float
        As in `softmaxloss.softmax_cross_entropy`.
    """

    def __init__(
        self,
        source: RowSource,
        total_weight: float,
        *,
        n_classes: int,
        penalty: float,
        fit_intercept: bool,
        label_smoothing: float,
    ) -> None:
        self.source = source
        self.total_weight = total_weight
        self.penalty = penalty
        self.n_classes = n_classes
        self.fit_intercept = fit_intercept
        self.label_smoothing = label_smoothing
        # Of two classes the first has the logit 0 and no parameters.
        self.first = 1 if n_classes == 2 else 0
        self.shape: tuple[int, int] = (n_classes - self.first, source.n_features + 1)

    @classmethod
    def of(cls, source: RowSource, weight: float, *, C: float, **options: Any) -> "Objective":
        """Return the objective of rows whose weights have mean 1, and that weighed so much together before that."""
        return cls(source, float(source.n_rows), penalty=1.0 / (C * weight), **options)

    def value_and_gradient(self, parameters: Vector) -> tuple[float, Vector]:
        """Return the objective and its gradient at `parameters`, in one pass over the rows."""
        coef, intercept = self.layer(parameters)
        loss, by_coef, by_intercept = self.source.total(loss_and_gradient, coef, intercept, self.label_smoothing)
        matrix = parameters.reshape(self.shape)
        # In place, as far as it goes: new memory takes as long as what is done with it.
        gradient = matrix * (self.penalty * self.total_weight)
        gradient[:, :-1] += by_coef[self.first :]
        gradient[:, -1] = by_intercept[self.first :] if self.fit_intercept else 0.0
        gradient /= self.total_weight
        squares = float(np.einsum("kj,kj->", matrix[:, :-1], matrix[:, :-1]))
        value = float(loss) / self.total_weight + 0.5 * self.penalty * squares
        return value, gradient.ravel()

    def layer(self, parameters: Vector) -> tuple[Array, Array]:
        """Return the coefficients (classes, features) and intercepts of every class in the features' dtype."""
        matrix = parameters.reshape(self.shape)
        coef = np.zeros((self.n_classes, matrix.shape[1] - 1), self.source.dtype, _order(self.source.is_sparse))
        coef[self.first :] = matrix[:, :-1]
        intercept = np.zeros(self.n_classes, self.source.dtype)
        intercept[self.first :] = matrix[:, -1]
        return coef, intercept

    def with_penalty(self, penalty: float) -> "Objective":
        """Return the objective of the same rows, of which it knows as much, with another penalty."""
        other = copy.copy(self)
        other.penalty = penalty
        return other

    @property
    def steepest(self) -> float:
        """The largest curvature that a row's loss has by one of its logits: see `centred_and_scaled`."""
        return 0.5 * (1.0 - 1.0 / self.n_classes)

    def centred_and_scaled(self) -> "CentredAndScaled":
        r"""Return variables in which the objective's curvature is about one in every direction of an axis.

        By Boehning [1]_, each row's Hessian with respect to its logits is at most k = (1 - 1 / classes) / 2 on
        its diagonal; so the objective's, for centred features, is at most ``k * variance + penalty``.

        References
        ----------
        .. [1] D. Boehning, "Multinomial logistic regression algorithm", Ann. Inst. Statist. Math. 44, 1992.
        """
        bound = self.steepest
        centre, squares = self.centre_and_squares
        # A feature without variance says nothing: its scale 0 holds its coefficient at 0, which is the optimum.
        curvature = bound * squares + self.penalty
        scale = np.divide(1.0, np.sqrt(curvature), out=np.zeros_like(curvature), where=squares > 0)
        return CentredAndScaled(centre, scale, bound**-0.5 if self.fit_intercept else 0.0)

    @property
    def centre_and_squares(self) -> tuple[Vector, Vector]:
        """Where features are centred, and their mean squares about that: at 0 where no intercept makes up for it."""
        mean, variance = self.moments
        return (mean, variance) if self.fit_intercept else (np.zeros_like(mean), variance + mean**2)

    @cached_property
    def moments(self) -> tuple[Vector, Vector]:
        """Each feature's weighted mean and variance; the variance of a constant one is exactly 0."""
        # Distances from a row that counts: zeros for a constant feature, no cancellation for a large mean.
        origin = self.source.first_row()
        (shift,) = self.source.total(weighted_sum, origin, 1)
        mean = origin + shift / self.total_weight
        (scatter,) = self.source.total(weighted_sum, mean, 2)
        variance = scatter / self.total_weight
        if not np.isfinite(variance).all():
            feature = int(np.argmin(np.isfinite(variance)))
            raise ValueError(f"feature {feature} of X holds values too large to be squared: divide it by a constant")
        return mean, variance


def loss_and_gradient(rows: Rows, coef: Array, intercept: Array, label_smoothing: float) -> Sums:
    """Return the sum of the rows' weighted losses, and its gradients by coefficients and intercepts."""
    smoothing: dict[str, Any] = {"label_smoothing": label_smoothing} if label_smoothing else {}
    is_sparse = rows.is_sparse
    order = _order(is_sparse)
    loss, by_intercept = 0.0, np.zeros(intercept.shape)
    by_coef, of_block = np.zeros(coef.shape, order=order), np.empty(coef.shape, coef.dtype, order)
    for block in rows.blocks(len(coef)):
        (X, codes, of_rows), logits = block, logits_of(block, coef, intercept)
        # Calls without options take a third of the time where rows are few.
        weights: dict[str, Any] = {} if (of_rows == 1.0).all() else {"sample_weight": of_rows}
        block_loss, by_logits = softmax_cross_entropy_and_grad(
            logits, codes, reduction="sum", out=logits, **weights, **smoothing
        )
        loss += float(block_loss)
        if is_sparse:
            sparse.transposed_product(X, by_logits, of_block.T)
        else:
            np.matmul(by_logits.T, X, out=of_block)
        by_coef += of_block
        _native.add_columns(by_logits, by_intercept)
    return loss, by_coef, by_intercept


def logits_of(rows: Rows, coef: Array, intercept: Array) -> Array:
    """Return the logits ``X @ coef.T + intercept``."""
    if coef[-1, 0] == 0.0 and not coef.any():  # one of them tells nearly always
        return np.tile(intercept, (len(rows.codes), 1))
    logits: Array = sparse.product(rows.X, coef.T) if rows.is_sparse else rows.X @ coef.T
    logits += intercept
    return logits


def _order(is_sparse: bool) -> Literal["C", "F"]:
    """Return how coefficients lie: a number of a sparse row is multiplied with those of all classes at once."""
    return "F" if is_sparse else "C"


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
        parameters = np.empty_like(matrix)
        coef = np.multiply(matrix[:, :-1], self.scale, out=parameters[:, :-1])
        parameters[:, -1] = matrix[:, -1] * self.intercept_scale - coef @ self.mean
        return parameters.ravel()

    def from_original(self, x: Vector) -> Vector:
        """Return the u of the parameters [coef | intercept]."""
        matrix = self._matrix(x)
        u, coef = np.zeros_like(matrix), matrix[:, :-1]
        np.divide(coef, self.scale, out=u[:, :-1], where=self.scale > 0)
        if self.intercept_scale:
            u[:, -1] = (matrix[:, -1] + coef @ self.mean) / self.intercept_scale
        return u.ravel()

    def gradient(self, gradient: Vector) -> Vector:
        """Return the gradient with respect to u."""
        matrix = self._matrix(gradient)
        scaled = np.empty_like(matrix)
        np.multiply(matrix[:, -1:], self.mean, out=scaled[:, :-1])
        np.subtract(matrix[:, :-1], scaled[:, :-1], out=scaled[:, :-1])
        scaled[:, :-1] *= self.scale
        scaled[:, -1] = matrix[:, -1] * self.intercept_scale
        return scaled.ravel()

    def _matrix(self, flat: Vector) -> Matrix:
        return flat.reshape(-1, len(self.mean) + 1)
