"""SoftmaxClassifierCV: softmax regression that finds the strength of its regularisation by cross-validation."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import sklearn
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import check_cv
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing

from softmaxloss.cross_validation import CrossValidation, Fold
from softmaxloss.parameters import check_parameters, untouched_on_error
from softmaxloss.predictor import SoftmaxPredictor
from softmaxloss.rows import LocalRows
from softmaxloss.runtime import get_num_threads
from softmaxloss.scoring import scorer_of
from softmaxloss.sources import rows_to_learn

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]

# A number of Cs stands for so many powers of ten from the one to the other, as in scikit-learn.
_POWERS = (-4, 4)


class SoftmaxClassifierCV(SoftmaxPredictor):
    r"""Softmax regression with the C of the best cross-validated score.

    For each fold of the rows and each of the Cs it minimises the objective of `SoftmaxClassifier` on the fold's
    training rows and scores the solution on its test rows. The C with the best mean score over the folds then serves
    for all rows. Attributes have the shapes of scikit-learn's ``LogisticRegressionCV(use_legacy_attributes=False)``
    [1]_, without its axis of ratios.

    The Cs of a fold are a path: each solution is sought where the two before it point, and the moments of the features
    are computed once, so that ten of them cost about as much as one to three fits with the costliest C alone.

    Parameters
    ----------
    Cs : int or sequence of float, default=10
        Inverse strengths of the regularisation, > 0, ``inf`` for none; a number stands for so many, evenly spaced by
        their logarithms from 1e-4 to 1e4.
    cv : int, splitter or iterable of (train, test), default=None
        The folds, as scikit-learn's ``check_cv`` takes them: stratified, 5 if None. A class that is missing from the
        training rows of a fold is a class there all the same, of small probability.
    scoring : str, callable or None, default="neg_log_loss"
        What is best: "neg_log_loss" is minus the mean softmax cross-entropy of the test rows; any other of
        scikit-learn's names; or ``scorer(estimator, X, y)``. None is accuracy.
    fit_intercept, class_weight, label_smoothing, tol, max_iter
        As in `SoftmaxClassifier`. A "balanced" `class_weight` is that of all rows.
    refit : bool, default=True
        Whether to fit all rows with the best C, beginning at the mean of the folds' solutions for it. Without, the
        coefficients are the mean of those with the best C of each fold, and `C_` is the mean of these Cs.
    checkpoint : str or path, default=None
        A folder for the solutions found and the state of the fits under way. A fit that was killed and is started
        again with the same arguments goes on from there and, on the same machine with as many threads, ends at the
        same bits. Files are named by a fingerprint of rows and parameters, so that fits may share a folder; they stay
        when it is done.
    n_jobs : int, default=None
        How many folds are fitted at once, in threads, each with a copy of its rows. None chooses: as many as
        `set_num_threads` allows where rows are so few that a fit by itself would not use these; else one, whose
        sums over rows use them. -1 is as many as `set_num_threads` allows.
    verbose : int or bool, default=0
        If positive, tell stderr when a fold is done.

    Attributes
    ----------
    classes_ : ndarray of shape (classes,)
        The class labels, sorted.
    C_ : float
        The best C.
    Cs_ : float64 ndarray of shape (Cs,)
        All of them, as given.
    scores_ : float64 ndarray of shape (folds, Cs)
        The score of each.
    coefs_paths_ : float64 ndarray of shape (folds, Cs, 1 or classes, features + 1)
        The solutions, the intercept last; without `fit_intercept` there is no intercept.
    n_iter_ : ndarray of shape (folds, Cs)
        Iterations done.
    converged_ : bool
        Whether `tol` was reached by all fits, that of all rows included.
    coef_, intercept_, n_features_in_, feature_names_in_
        As in `SoftmaxClassifier`.
    loss_curve_ : list of float
        The objective after each iteration of the fit of all rows; only with `refit`.

    See Also
    --------
    softmaxloss.SoftmaxClassifier : With a C that is given; also for Dask arrays and for rows in files.

    References
    ----------
    .. [1] https://scikit-learn.org/stable/modules/generated/sklearn.linear_model.LogisticRegressionCV.html

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> import softmaxloss as sl
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = sl.SoftmaxClassifierCV(Cs=[0.01, 1.0, 100.0], cv=3).fit(X, y)
    >>> classifier.C_
    100.0
    >>> classifier.scores_.mean(axis=0).round(3)  # minus the loss
    array([-0.668, -0.15 , -0.056])
    """

    C_: float
    Cs_: Vector
    scores_: Vector
    coefs_paths_: Vector
    n_iter_: npt.NDArray[np.intp]
    converged_: bool
    loss_curve_: list[float]

    def __init__(
        self,
        Cs: int | Sequence[float] = 10,
        *,
        cv: Any = None,
        scoring: str | Callable[..., float] | None = "neg_log_loss",
        fit_intercept: bool = True,
        class_weight: dict[Any, float] | Literal["balanced"] | None = None,
        label_smoothing: float = 0.0,
        tol: float = 1e-4,
        max_iter: int = 1000,
        refit: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.scoring = scoring
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.tol = tol
        self.max_iter = max_iter
        self.refit = refit
        self.checkpoint = checkpoint
        self.n_jobs = n_jobs
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> Self:
        """Fit all folds for all Cs, and all rows for the best; if it fails, the estimator stays as it was.

        Parameters
        ----------
        X : array or CSR matrix of shape (rows, features)
            float32 and float64 are taken as they are, anything else becomes float64.
        y : array of shape (rows,)
            Class labels: integers, strings or booleans, of two classes at least.
        sample_weight : array of shape (rows,) or number, optional
            Non-negative weight of each row, or of every row, in the fits and in the scores.
        **params
            For the splitter and the scorer, where scikit-learn's metadata routing is enabled.

        Returns
        -------
        SoftmaxClassifierCV
            The estimator itself.

        Raises
        ------
        ValueError
            For a parameter out of its range, y with one class only, weights that are negative, or all zero in the
            training rows of a fold.
        TypeError
            For Dask arrays and rows in files: `SoftmaxClassifier` takes these.

        Warns
        -----
        sklearn.exceptions.ConvergenceWarning
            If `tol` was not reached by all fits.
        """
        with untouched_on_error(self):
            check_parameters(self)
            Cs, folder = self._strengths(), self._folder()
            of_split, of_score = self._routed(sample_weight, params)
            classes, rows, weight = rows_to_learn(self, X, y, sample_weight)
            if not isinstance(rows, LocalRows):
                raise TypeError(
                    f"X is a {type(X).__name__}; SoftmaxClassifierCV takes rows in memory: "
                    "give others to SoftmaxClassifier"
                )
            labels = classes[rows.rows.codes]
            folds = check_cv(self.cv, labels, classifier=True).split(rows.rows.X, labels, **of_split)
            validation = CrossValidation(
                classes,
                rows,
                weight,
                Cs,
                {"fit_intercept": bool(self.fit_intercept), "label_smoothing": float(self.label_smoothing)},
                tol=float(self.tol),
                max_iter=int(self.max_iter),
                scorer=scorer_of(self.scoring, classes),
                params=of_score,
                folder=folder,
                verbose=self.verbose > 0,
            )
            found = validation.fit_folds(list(folds), self._jobs(rows))
            self._choose(validation, found)
        return self

    def score(self, X: Any, y: Any, sample_weight: Any = None, **params: Any) -> float:
        """Return the score that `scoring` gives to the predictions for X, given its labels."""
        if sample_weight is not None:
            params = {**params, "sample_weight": sample_weight}
        if _is_routing():
            params = process_routing(self, "score", **params).scorer.score
        return float(scorer_of(self.scoring, self.classes_)(self, X, y, **params))

    def get_metadata_routing(self) -> MetadataRouter:
        """Return who is to get what `fit` and `score` are given, where scikit-learn's metadata routing is enabled."""
        scoring = MethodMapping().add(caller="score", callee="score").add(caller="fit", callee="score")
        splitting = MethodMapping().add(caller="fit", callee="split")
        router = MetadataRouter(owner=self).add_self_request(self)
        router.add(splitter=check_cv(self.cv, classifier=True), method_mapping=splitting)
        router.add(scorer=scorer_of(self.scoring), method_mapping=scoring)
        return router

    def _strengths(self) -> Vector:
        """Return the Cs as numbers."""
        if isinstance(self.Cs, Integral) and not isinstance(self.Cs, bool):
            if self.Cs < 1:
                raise ValueError(f"Cs={self.Cs!r} was given: set Cs to a number of at least 1, or to a list")
            return np.logspace(*_POWERS, int(self.Cs))
        Cs = np.asarray(self.Cs)
        if Cs.ndim != 1 or not len(Cs) or Cs.dtype.kind not in "iuf" or not (Cs > 0).all():
            raise ValueError(f"Cs={self.Cs!r} was given: set Cs to how many there are to be, or to numbers above 0")
        return Cs.astype(np.float64)

    def _folder(self) -> Path | None:
        """Return where checkpoints are to be."""
        if self.checkpoint is None:
            return None
        folder = Path(self.checkpoint)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"checkpoint={self.checkpoint!r} is a file: set checkpoint to a folder")
        return folder

    def _jobs(self, rows: LocalRows) -> int:
        """Return how many folds are to be fitted at once."""
        if self.n_jobs is None:
            return 1 if rows.use_threads else get_num_threads()
        is_number = isinstance(self.n_jobs, Integral) and not isinstance(self.n_jobs, bool)
        if not is_number or (self.n_jobs < 1 and self.n_jobs != -1):
            raise ValueError(f"n_jobs={self.n_jobs!r} was given: set n_jobs to a number of at least 1, -1 or None")
        return get_num_threads() if self.n_jobs == -1 else int(self.n_jobs)

    def _routed(self, sample_weight: Any, params: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return what of the params is for the splitter and what for the scorer, which gets the weights of rows."""
        if _is_routing():
            routed = process_routing(self, "fit", sample_weight=sample_weight, **params)
            return routed.splitter.split, routed.scorer.score
        if params:
            raise TypeError(
                f"fit was given {', '.join(sorted(params))}: enable scikit-learn's metadata routing to pass these on"
            )
        one_for_all = sample_weight is None or isinstance(sample_weight, Real)
        return {}, {} if one_for_all else {"sample_weight": sample_weight}

    def _choose(self, validation: CrossValidation, folds: list[Fold]) -> None:
        """Set the attributes that `fit` learns: the best C, and the coefficients for it."""
        Cs, n_features = validation.Cs, validation.rows.n_features
        points = np.array([[solution.x for solution in fold.solutions] for fold in folds])
        scores = np.array([fold.scores for fold in folds])
        if np.isnan(scores).any():
            warnings.warn("some scores are NaN, and their values of C are not chosen", UserWarning, stacklevel=3)
        known = np.where(np.isnan(scores), -np.inf, scores)
        solutions = [solution for fold in folds for solution in fold.solutions]
        self.__dict__.pop("loss_curve_", None)
        if self.refit:
            best = int(known.mean(axis=0).argmax())
            refitted = validation.fit_all(float(Cs[best]), points[:, best].mean(axis=0))
            solutions.append(refitted)
            self._learn(validation.classes, refitted.x)
            self.C_, self.loss_curve_ = float(Cs[best]), refitted.values
        else:
            of_folds = known.argmax(axis=1)
            self._learn(validation.classes, points[np.arange(len(folds)), of_folds].mean(axis=0))
            self.C_ = float(Cs[of_folds].mean())
        paths = points.reshape(*scores.shape, -1, n_features + 1)
        if paths.shape[2] > 1:
            paths[..., -1] -= paths[..., -1].mean(axis=-1, keepdims=True)
        self.Cs_, self.scores_ = Cs, scores
        self.coefs_paths_ = paths if self.fit_intercept else paths[..., :-1]
        self.n_iter_ = np.array([[solution.n_iter for solution in fold.solutions] for fold in folds])
        self.converged_ = all(solution.converged for solution in solutions)
        if not self.converged_:
            short = [solution for solution in solutions if not solution.converged]
            warnings.warn(
                f"SoftmaxClassifierCV stopped short of tol={float(self.tol):g} in {len(short)} of {len(solutions)} "
                f"fits, with max |gradient| = {max(solution.gradient_norm for solution in short):.2e} at worst: raise "
                f"max_iter={self.max_iter} or tol, leave out the largest Cs, or scale the features",
                ConvergenceWarning,
                stacklevel=3,
            )


def _is_routing() -> bool:
    return bool(sklearn.get_config()["enable_metadata_routing"])
