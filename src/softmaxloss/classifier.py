"""SoftmaxClassifier: softmax (multinomial logistic) regression as a scikit-learn estimator."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from softmaxloss.backends import is_dask
from softmaxloss.checkpoint import Checkpoint
from softmaxloss.functional import log_softmax, softmax
from softmaxloss.objective import Objective
from softmaxloss.progress import ProgressReport
from softmaxloss.solver import Solution
from softmaxloss.sources import rows_to_learn
from softmaxloss.training import solve

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]

_FLAGS = (bool, np.bool_)

# The parameters that are numbers or flags: name, types, range, and both in words. NaN is in no range, and True is a
# number for `verbose` only.
_RANGES: tuple[tuple[str, tuple[type, ...], Callable[[Any], bool], str], ...] = (
    ("C", (Real,), lambda value: value > 0, "a number above 0"),
    ("fit_intercept", _FLAGS, lambda value: True, "True or False"),
    ("label_smoothing", (Real,), lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    ("tol", (Real,), lambda value: value > 0, "a number above 0"),
    ("max_iter", (Integral,), lambda value: value >= 1, "an integer of at least 1"),
    ("warm_start", _FLAGS, lambda value: True, "True or False"),
    ("verbose", (Integral, *_FLAGS), lambda value: value >= 0, "an integer of at least 0, or True or False"),
)


class SoftmaxClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    r"""Softmax regression: a linear classifier that minimises the softmax cross-entropy.

    With logits ``z = X @ coef_.T + intercept_`` (for two classes: 0 and ``X @ coef_[0] + intercept_[0]``), the
    loss of each row by `softmax_cross_entropy` and s = sample_weight * class_weight[y], it minimises::

        sum(s * loss) / sum(s) + ||coef_||^2 / (2 * C * sum(s))

    which is the objective of scikit-learn's ``LogisticRegression(C=C)`` [1]_, and agrees with it at its optimum.
    The features need no scaling first: the solver centres and scales them implicitly, without a copy of X.

    Parameters
    ----------
    C : float, default=1.0
        Inverse of the strength of the regularisation, > 0; ``inf`` for none.
    fit_intercept : bool, default=True
        Whether there is an intercept. It is not regularised.
    class_weight : dict or "balanced", default=None
        Weight of each class, {label: weight}; a class left out has weight 1. "balanced" gives each class the
        same total weight.
    label_smoothing : float, default=0.0
        The share of each row's target distribution that is spread evenly over all classes, from 0 to 1.
    tol : float, default=1e-4
        The solver has converged when no derivative of the objective exceeds this in magnitude, neither with
        respect to `coef_` and `intercept_` nor to the parameters of the features as the solver centres and scales
        them. (The first alone are tiny everywhere where features are tiny or mostly 0.)
    max_iter : int, default=1000
        The most iterations of the solver.
    warm_start : bool, default=False
        Whether `fit` continues from the last solution, where the classes and the features are the same.
    checkpoint : str or path, default=None
        A file where `fit` writes the solver's state every few iterations. A fit that was killed and is started again
        with the same arguments goes on from there, and on the same machine with as many threads ends at the same bits
        as one never killed; the file stays when it is done. What is there of other data (told apart by shape, dtype,
        total weight and a hash of some of the rows) or other parameters is refused. `max_iter` and `verbose` may
        differ.
    verbose : int or bool, default=0
        If positive, report iteration, objective and the largest derivative, by which `tol` is judged, to stderr:
        one line rewritten in place on a terminal, every 10th iteration elsewhere.

    Attributes
    ----------
    classes_ : ndarray of shape (classes,)
        The class labels, sorted.
    coef_ : float64 ndarray of shape (1, features) for two classes, (classes, features) for more
        The weights.
    intercept_ : float64 ndarray of shape (1,) or (classes,)
        The intercepts; for more than two classes they sum to 0. All are 0 without `fit_intercept`.
    n_iter_ : int
        Iterations done.
    loss_curve_ : list of float
        The objective after each iteration.
    converged_ : bool
        Whether `tol` was reached.
    n_features_in_ : int
        Number of features seen by `fit`.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Their names, if X had names that are all strings.

    See Also
    --------
    softmaxloss.softmax_cross_entropy_and_grad : The loss and gradient of each block of rows.

    Notes
    -----
    The logits exist for one block of rows at a time (about 1 MB), never for all rows. float32 features are
    multiplied in float32; the parameters and all sums over blocks are float64.

    References
    ----------
    .. [1] https://scikit-learn.org/stable/modules/linear_model.html#logistic-regression

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> import softmaxloss as sl
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = sl.SoftmaxClassifier().fit(X, y)
    >>> classifier.predict(X[[0, 60, 120]])
    array([0, 1, 2])
    >>> classifier.predict_proba(X[[0, 70]]).round(2)
    array([[0.98, 0.02, 0.  ],
           [0.  , 0.44, 0.56]])
    """

    classes_: Array
    coef_: Vector
    intercept_: Vector
    n_iter_: int
    loss_curve_: list[float]
    converged_: bool

    def __init__(
        self,
        C: float = 1.0,
        *,
        fit_intercept: bool = True,
        class_weight: dict[Any, float] | Literal["balanced"] | None = None,
        label_smoothing: float = 0.0,
        tol: float = 1e-4,
        max_iter: int = 1000,
        warm_start: bool = False,
        checkpoint: str | os.PathLike[str] | None = None,
        verbose: int = 0,
    ) -> None:
        self.C = C
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.checkpoint = checkpoint
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the model; if it is interrupted or fails, the estimator stays as it was.

        Parameters
        ----------
        X : array or CSR matrix of shape (rows, features)
            float32 and float64 are taken as they are, anything else becomes float64.
        y : array of shape (rows,)
            Class labels: integers, strings or booleans, of two classes at least.
        sample_weight : array of shape (rows,) or number, optional
            Non-negative weight of each row, or of every row; a row of weight 2 counts as two rows.

        Returns
        -------
        SoftmaxClassifier
            The estimator itself.

        Raises
        ------
        ValueError
            For a parameter out of its range, y with one class only, weights that are negative or all zero, or a
            checkpoint that is not of this fit.

        Warns
        -----
        sklearn.exceptions.ConvergenceWarning
            If `tol` was not reached.
        """
        with _untouched_on_error(self):
            self._check_parameters()
            names_before = getattr(self, "feature_names_in_", None)
            classes, source, weight = rows_to_learn(self, X, y, sample_weight)
            objective = Objective.of(
                source,
                weight,
                n_classes=len(classes),
                C=float(self.C),
                fit_intercept=self.fit_intercept,
                label_smoothing=self.label_smoothing,
            )
            start = None
            if self.warm_start and self._can_continue(classes, names_before):
                start = np.column_stack([self.coef_, self.intercept_]).ravel()
            checkpoint = (
                None if self.checkpoint is None else Checkpoint(self.checkpoint, self._identity(objective, start))
            )
            with ProgressReport(enabled=self.verbose > 0, tol=float(self.tol), rows=source.n_rows) as report:
                solution = solve(
                    objective,
                    start,
                    tol=self.tol,
                    max_iter=self.max_iter,
                    on_iteration=report,
                    checkpoint=checkpoint,
                )
            if not solution.converged:
                warnings.warn(self._shortfall(solution), ConvergenceWarning, stacklevel=2)
            self._store(classes, solution)
        return self

    def decision_function(self, X: Any) -> Array:
        """Return the logits: of the second class, shape (rows,), if there are two; else (rows, classes).

        They have the dtype of X, float32 or float64.
        """
        if is_dask(X):
            return self._by_chunk("decision_function", X)
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32), reset=False)
        logits: Array = X @ self.coef_.T.astype(X.dtype) + self.intercept_.astype(X.dtype)
        if logits.shape[1] == 1:
            logits = logits[:, 0]
        return logits

    def predict(self, X: Any) -> Array:
        """Return the label of the most probable class of each row, shape (rows,)."""
        if is_dask(X):
            return self._by_chunk("predict", X)
        logits = self.decision_function(X)
        codes = (logits > 0).astype(np.intp) if logits.ndim == 1 else logits.argmax(axis=1)
        labels: Array = self.classes_[codes]
        return labels

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class, in the order of `classes_`, shape (rows, classes)."""
        if is_dask(X):
            return self._by_chunk("predict_proba", X)
        probabilities: Array = softmax(self._logits(X), axis=1)
        return probabilities

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithm of `predict_proba`; finite where a probability is too small for its dtype."""
        if is_dask(X):
            return self._by_chunk("predict_log_proba", X)
        log_probabilities: Array = log_softmax(self._logits(X), axis=1)
        return log_probabilities

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn that X may be sparse."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _by_chunk(self, method: str, X: Any) -> Array:
        """Return what a method makes of the rows of Dask's arrays and tables, lazily."""
        from softmaxloss.dask_predict import predicted

        lazy: Array = predicted(self, method, X)
        return lazy

    def _logits(self, X: Any) -> Array:
        """Return one logit for each class."""
        logits = self.decision_function(X)
        return np.column_stack([np.zeros_like(logits), logits]) if logits.ndim == 1 else logits

    def _check_parameters(self) -> None:
        """Refuse a parameter out of its range, before anything is computed."""
        for name, kinds, is_in_range, expected in _RANGES:
            value = getattr(self, name)
            is_of_kind = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
            if not (is_of_kind and is_in_range(value)):
                raise ValueError(f"{name}={value!r} was given: set {name} to {expected}")
        if not isinstance(self.checkpoint, str | os.PathLike | None):
            raise ValueError(f"checkpoint={self.checkpoint!r} was given: set checkpoint to a path, or None for none")

    def _identity(self, objective: Objective, start: Vector | None) -> dict[str, Any]:
        """Return what tells this fit from others, for its checkpoint."""
        names = ("C", "fit_intercept", "label_smoothing", "tol")
        parameters = {name: float(getattr(self, name)) for name in names}
        begun = None if start is None else hashlib.sha256(start.tobytes()).hexdigest()
        rows = objective.source.identity()  # their weights as shares: the penalty tells how much they weigh together
        return {"classes": objective.n_classes, **parameters, "start": begun, **rows, "penalty": objective.penalty}

    def _can_continue(self, classes: Array, names_before: Any) -> bool:
        """Tell whether the last solution, if there is one, is of these classes and features."""
        names: Any = getattr(self, "feature_names_in_", None)
        return (
            hasattr(self, "coef_")
            and np.array_equal(self.classes_, classes)
            and self.coef_.shape[1] == self.n_features_in_
            and np.array_equal(names_before, names)
        )

    def _store(self, classes: Array, solution: Solution) -> None:
        """Set the attributes that `fit` learns."""
        parameters = solution.x.reshape(-1, self.n_features_in_ + 1)
        intercept = parameters[:, -1].copy()
        if self.fit_intercept and len(classes) > 2:
            intercept -= intercept.mean()  # softmax does not see a constant added to every logit
        self.classes_ = classes
        self.coef_ = parameters[:, :-1].copy()
        self.intercept_ = intercept
        self.n_iter_ = solution.n_iter
        self.loss_curve_ = solution.values
        self.converged_ = solution.converged

    def _shortfall(self, solution: Solution) -> str:
        """Say why the solver stopped short of `tol`, how far it came, and what may help."""
        reached = f"with max |gradient| = {solution.gradient_norm:.2e}, above tol={float(self.tol):g}"
        if solution.n_iter >= self.max_iter:
            return f"SoftmaxClassifier stopped at max_iter={self.max_iter} {reached}: raise max_iter or tol"
        return (
            f"SoftmaxClassifier stopped after {solution.n_iter} iterations, where rounding hides any further "
            f"improvement, {reached}: give X as float64, scale its features, or raise tol"
        )


@contextmanager
def _untouched_on_error(estimator: BaseEstimator) -> Iterator[None]:
    """Give the estimator its attributes back if the body raises, Ctrl-C included."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        estimator.__dict__ = before
        raise
