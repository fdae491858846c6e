"""From what `fit` is given to rows to learn from: the classes, each row's index among them, and its weight."""

from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.utils import check_array
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from softmaxloss import sparse
from softmaxloss.backends import is_dask
from softmaxloss.rows import LocalRows, Rows, RowSource

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]


class Learnable(NamedTuple):
    """What a classifier learns from.

    Parameters
    ----------
    classes : ndarray of shape (classes,)
        The labels that occur, sorted; at least two.
    source : RowSource
        The rows, with weights whose mean is 1.
    weight : float
        What all rows weigh together before that: the sum of sample_weight * class_weight[y].
    """

    classes: Array
    source: RowSource
    weight: float


def rows_to_learn(estimator: Any, X: Any, y: Any, sample_weight: Any) -> Learnable:
    """Check what `fit` is given, by scikit-learn's conventions, and return it as rows to learn from.

    The estimator gets its `n_features_in_` and `feature_names_in_`, and says the `class_weight`.
    """
    if is_dask(X):
        from softmaxloss.dask_rows import rows_of_dask

        return rows_of_dask(estimator, X, y, sample_weight)
    if is_row_files(X):
        from softmaxloss.file_rows import rows_of_files

        return rows_of_files(estimator, X, y, sample_weight)
    X, y = validate_data(estimator, X, y, accept_sparse="csr", dtype=(np.float64, np.float32))
    X = sparse.checked(X)
    classes, codes = encode(y)
    weights = row_weights(sample_weight, estimator.class_weight, classes, codes)
    return Learnable(classes, LocalRows(Rows(X, codes, weights / weights.mean())), float(weights.sum()))


def is_row_files(X: Any) -> bool:
    """Tell whether X lies in files, without importing what reads them."""
    return type(X).__module__ == "softmaxloss.data.row_files"


def encode(y: Array) -> tuple[Array, npt.NDArray[np.intp]]:
    """Return the sorted classes of `y` and each row's index among them."""
    check_classification_targets(y)
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"y holds one class only, {classes.tolist()[0]!r}: SoftmaxClassifier needs rows of at least two classes"
        )
    return classes, codes


def row_weights(sample_weight: Any, class_weight: Any, classes: Array, codes: npt.NDArray[np.intp]) -> Vector:
    """Return s = sample_weight * class_weight[y] of the objective."""
    if sample_weight is None:
        of_rows = np.ones(len(codes))
    else:
        if isinstance(sample_weight, Real):
            sample_weight = np.full(codes.shape, sample_weight)
        of_rows = check_array(sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight")
    if of_rows.shape != codes.shape:
        raise ValueError(
            f"sample_weight has shape {of_rows.shape} and X {len(codes)} rows: give one weight for each row"
        )
    of_classes = _class_weights(class_weight, classes, codes, of_rows)
    lowest = min(of_rows.min(), of_classes.min())
    weights = of_rows * of_classes[codes]
    if lowest < 0 or not 0 < weights.sum() < np.inf:
        raise ValueError(
            "sample_weight and class_weight must not be below zero, nor the weight of every row zero: the lowest "
            f"is {lowest:g}, and sample_weight * class_weight[y] adds up to {weights.sum():g}"
        )
    return weights


def _class_weights(class_weight: Any, classes: Array, codes: npt.NDArray[np.intp], weights: Vector) -> Vector:
    """Return each class's weight; "balanced" counts a row as `weights` says."""
    if class_weight is None:
        return np.ones(len(classes))
    if isinstance(class_weight, str) and class_weight == "balanced":
        totals = np.bincount(codes, weights, minlength=len(classes))
        # A class whose rows weigh nothing may have any weight: it multiplies zeros.
        balanced: Vector = totals.sum() / (len(classes) * np.where(totals > 0, totals, 1.0))
        return balanced
    given: Vector = compute_class_weight(class_weight, classes=classes, y=classes)
    return given
