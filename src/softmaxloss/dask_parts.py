"""What is done with one chunk of a Dask collection where it lies, on its way to sums over all of them."""

import hashlib
import multiprocessing
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse
from sklearn.utils import assert_all_finite, check_array, column_or_1d

from softmaxloss import _native, sparse
from softmaxloss.rows import LocalRows, Rows, Sums, add, blas

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]


class Call(NamedTuple):
    """A function of rows and its other arguments: one object of the graph, which every chunk's task takes."""

    function: Callable[..., Sums]
    arguments: tuple[Any, ...]


class Labels(NamedTuple):
    """The labels of one chunk as they are, and the weight of each row."""

    y: Array
    weights: Vector


class Survey(NamedTuple):
    """What has to be known of all chunks before a fit: lengths, labels, the weight of each label, the least weight."""

    lengths: tuple[int, ...]
    labels: Array
    totals: Vector
    lowest: float


def features(X: Any, dtype: np.dtype[Any], *, check: bool) -> Any:
    """Return the features of one chunk, of an array or a table, as scikit-learn checks them."""
    found = check_array(
        X,
        accept_sparse="csr",
        dtype=dtype,
        ensure_all_finite=check,
        ensure_min_samples=0,
        ensure_min_features=0,
        estimator="SoftmaxClassifier",
        input_name="X",
    )
    return sparse.checked(found)


def labels(y: Any, weights: Any) -> Labels:
    """Return the labels and weights of one chunk; a weight may be one number for all."""
    given = np.asarray(y)
    column = column_or_1d(given[:, 0] if given.ndim == 2 and given.shape[1] == 1 else given)
    assert_all_finite(column, input_name="y")
    if np.ndim(weights) == 0:
        return Labels(column, np.full(len(column), weights, np.float64))
    of_rows = check_array(weights, ensure_2d=False, dtype=np.float64, ensure_min_samples=0, input_name="sample_weight")
    if of_rows.shape != column.shape:
        raise ValueError(
            f"a chunk of sample_weight has shape {of_rows.shape} and that of y {len(column)} rows: give sample_weight "
            "the rows and chunks of y"
        )
    return Labels(column, of_rows)


def survey(X: Any, labels: Labels) -> Survey:
    """Return the survey of one chunk."""
    if X.shape[0] != len(labels.y):
        raise ValueError(
            f"a chunk of X has {X.shape[0]} rows and the same chunk of y {len(labels.y)}: give y the rows and chunks "
            "of X (of dataframes, the same partitions)"
        )
    known, codes = np.unique(labels.y, return_inverse=True)
    totals = np.bincount(codes, labels.weights, minlength=len(known)).astype(np.float64)
    return Survey((len(codes),), known, totals, float(labels.weights.min(initial=np.inf)))


def merged(surveys: Sequence[Survey]) -> Survey:
    """Return the survey of several chunks."""
    some = [one.labels for one in surveys if len(one.labels)] or [surveys[0].labels]
    known, codes = np.unique(np.concatenate(some), return_inverse=True)
    of_all = np.concatenate([one.totals for one in surveys])
    totals = np.bincount(codes, of_all, minlength=len(known)).astype(np.float64)
    lengths = tuple(length for one in surveys for length in one.lengths)
    return Survey(lengths, known, totals, min(one.lowest for one in surveys))


def encoded(labels: Labels, scale: tuple[Array, Vector]) -> tuple[npt.NDArray[np.intp], Vector]:
    """Return the class indices of one chunk and its weights times those of the classes, for classes and weights."""
    classes, of_classes = scale
    codes = np.searchsorted(classes, labels.y) if len(labels.y) else np.zeros(0, np.intp)
    return codes, labels.weights * of_classes[codes]


def assembled(X: Any, codes_and_weights: tuple[npt.NDArray[np.intp], Vector]) -> Rows:
    """Return the rows of one chunk."""
    return Rows(X, *codes_and_weights)


def sums(call: Call, rows: Rows) -> Sums:
    """Return what the function makes of one chunk.

    A thread of a pool has one processor's worth of work: its kernels and matrix products start no others.
    """
    function, arguments = call
    if _is_all_there_is():
        return LocalRows(rows).total(function, *arguments)
    _native.work_alone()
    with blas.on_one_thread():
        return function(rows, *arguments)


def added(parts: Sequence[Sums]) -> Sums:
    """Return the sums of several chunks."""
    return add(parts)


def total_weight(rows: Rows) -> Sums:
    """Return the sum of the weights."""
    return (float(rows.weights.sum()),)


def weighty(rows: Rows) -> int:
    """Return how many rows weigh something."""
    return int(np.count_nonzero(rows.weights > 0))


def chosen(rows: Rows, numbers: npt.NDArray[np.intp]) -> Rows:
    """Return some of the rows of one chunk that weigh something, by their numbers among these."""
    return rows.at(np.flatnonzero(rows.weights > 0)[numbers])


def joined(parts: Sequence[Rows]) -> Rows:
    """Return the rows of several chunks as one."""
    features = [part.X for part in parts]
    X = scipy.sparse.vstack(features, format="csr") if parts[0].is_sparse else np.concatenate(features)
    return Rows(X, np.concatenate([part.codes for part in parts]), np.concatenate([part.weights for part in parts]))


def first_weighted(rows: Rows) -> Vector | None:
    """Return the features of the first row of one chunk that weighs something, if there is one."""
    if not (rows.weights > 0).any():
        return None
    return np.asarray(LocalRows(rows).first_row())


def digest(rows: Rows) -> str:
    """Return a hash of some rows of one chunk, their labels and weights."""
    return str(LocalRows(rows).identity()["rows"]) if len(rows.codes) else hashlib.sha256().hexdigest()


def _is_all_there_is() -> bool:
    """Tell whether no other task runs beside this one, as with the synchronous scheduler."""
    return threading.current_thread() is threading.main_thread() and multiprocessing.parent_process() is None
