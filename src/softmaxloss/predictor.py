"""What a softmax classifier that has learned its coefficients says of rows."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from softmaxloss import sparse
from softmaxloss.backends import is_dask
from softmaxloss.functional import log_softmax, softmax
from softmaxloss.sources import is_row_files

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]


class SoftmaxPredictor(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What the classifiers of this library share: predictions from `classes_`, `coef_` and `intercept_`."""

    fit_intercept: bool
    classes_: Array
    coef_: Vector
    intercept_: Vector

    def decision_function(self, X: Any) -> Array:
        """Return the logits: of the second class, shape (rows,), if there are two; else (rows, classes).

        They have the dtype of X, float32 or float64.
        """
        if _is_in_parts(X):
            return self._by_chunk("decision_function", X)
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=(np.float64, np.float32), reset=False)
        weight = self.coef_.T.astype(X.dtype)
        logits: Array = sparse.product(sparse.checked(X), weight) if issparse(X) else X @ weight
        logits += self.intercept_.astype(X.dtype)
        if logits.shape[1] == 1:
            logits = logits[:, 0]
        return logits

    def predict(self, X: Any) -> Array:
        """Return the label of the most probable class of each row, shape (rows,)."""
        if _is_in_parts(X):
            return self._by_chunk("predict", X)
        logits = self.decision_function(X)
        codes = (logits > 0).astype(np.intp) if logits.ndim == 1 else logits.argmax(axis=1)
        labels: Array = self.classes_[codes]
        return labels

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class, in the order of `classes_`, shape (rows, classes)."""
        if _is_in_parts(X):
            return self._by_chunk("predict_proba", X)
        probabilities: Array = softmax(self._logits(X), axis=1)
        return probabilities

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithm of `predict_proba`; finite where a probability is too small for its dtype.

        In float32 it is 0 where the probability is 1, which numbers a little less are rounded to.
        """
        if _is_in_parts(X):
            return self._by_chunk("predict_log_proba", X)
        logits = self._logits(X)
        log_probabilities: Array = log_softmax(logits, axis=1)
        if logits.dtype == np.float32:
            log_probabilities[softmax(logits, axis=1) == 1.0] = 0.0
        return log_probabilities

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn that X may be sparse."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _by_chunk(self, method: str, X: Any) -> Array:
        """Return what a method makes of rows in parts: lazily of Dask's arrays and tables, block by block of files."""
        if is_row_files(X):
            from softmaxloss.file_rows import predicted_of_files

            return predicted_of_files(self, method, X)
        from softmaxloss.dask_predict import predicted

        lazy: Array = predicted(self, method, X)
        return lazy

    def _logits(self, X: Any) -> Array:
        """Return one logit for each class."""
        logits = self.decision_function(X)
        return np.column_stack([np.zeros_like(logits), logits]) if logits.ndim == 1 else logits

    def _learn(self, classes: Array, parameters: Vector) -> None:
        """Set what predictions are made from: the classes, and [coef | intercept], flattened."""
        matrix = parameters.reshape(-1, self.n_features_in_ + 1)
        intercept = matrix[:, -1].copy()
        if self.fit_intercept and len(classes) > 2:
            intercept -= intercept.mean()  # softmax does not see a constant added to every logit
        self.classes_ = classes
        self.coef_ = matrix[:, :-1].copy()
        self.intercept_ = intercept


def _is_in_parts(X: Any) -> bool:
    """Tell whether the rows are not all in memory, but in chunks of Dask's or in files."""
    return is_dask(X) or is_row_files(X)
