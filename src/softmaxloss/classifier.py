"""SoftmaxClassifier: softmax (multinomial logistic) regression as a scikit-learn estimator."""

import hashlib
import os
import warnings
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning

from softmaxloss.checkpoint import Checkpoint
from softmaxloss.objective import Objective
from softmaxloss.parameters import check_parameters, untouched_on_error
from softmaxloss.predictor import SoftmaxPredictor
from softmaxloss.progress import ProgressReport
from softmaxloss.solver import Solution
from softmaxloss.sources import rows_to_learn
from softmaxloss.training import solve

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]


class SoftmaxClassifier(SoftmaxPredictor):
    r"""Softmax regression: a linear classifier that minimises the softmax cross-entropy.

    With logits ``z = X @ coef_.T + intercept_`` (for two classes: 0 and ``X @ coef_[0] + intercept_[0]``), the
    loss of each row by `softmax_cross_entropy` and s = sample_weight * class_weight[y], it minimises::

        sum(s * loss) / sum(s) + ||coef_||^2 / (2 * C * sum(s))

    which is the objective of scikit-learn's ``LogisticRegression(C=C)`` [1]_, and agrees with it at its optimum.
    The features need no scaling first: the solver centres and scales them implicitly, without a dense copy of X.

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
    The logits exist for one block of rows at a time (about 1 MB), never for all rows, unless sparse features are far
    more than these. float32 features are
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
        with untouched_on_error(self):
            check_parameters(self)
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
            self._learn(classes, solution.x)
            self.n_iter_ = solution.n_iter
            self.loss_curve_ = solution.values
            self.converged_ = solution.converged
        return self

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

    def _shortfall(self, solution: Solution) -> str:
        """Say why the solver stopped short of `tol`, how far it came, and what may help."""
        reached = f"with max |gradient| = {solution.gradient_norm:.2e}, above tol={float(self.tol):g}"
        if solution.n_iter >= self.max_iter:
            return f"SoftmaxClassifier stopped at max_iter={self.max_iter} {reached}: raise max_iter or tol"
        return (
            f"SoftmaxClassifier stopped after {solution.n_iter} iterations, where rounding hides any further "
            f"improvement, {reached}: give X as float64, scale its features, or raise tol"
        )
