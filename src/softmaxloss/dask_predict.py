"""Predictions of a fitted classifier on Dask arrays and dataframes: lazily, chunk by chunk."""

import copy
from functools import partial
from typing import Any

import dask.array as da
import numpy as np

from softmaxloss.backends.dask.chunks import work_alone_in_pools

__all__ = ["predicted"]


def predicted(estimator: Any, method: str, X: Any) -> Any:
    """Return what a method of an estimator makes of the rows of X, as a Dask array in the chunks of its rows.

    What X cannot be is told at once: a row of zeros, or a table of one with its columns, goes through the method. The
    estimator is kept as it is now, whatever it learns before the answer is computed.

    Parameters
    ----------
    estimator : SoftmaxClassifier
        Fitted.
    method : str
        The name of one of its methods.
    X : dask.array.Array or Dask dataframe
        Rows of features. A dataframe's answer has chunks of unknown length.

    Raises
    ------
    ValueError, TypeError, sklearn.exceptions.NotFittedError
        As the method.
    """
    given = X
    if hasattr(X, "to_dask_array"):
        X = X.to_dask_array()
    if not isinstance(X, da.Array):
        raise TypeError(f"X is a {type(given).__name__} of Dask's; expected a Dask array or dataframe")
    if X.ndim != 2:
        raise ValueError(f"X has {X.ndim} dimensions; expected 2: rows and features (X.reshape(-1, 1) for one feature)")
    if np.isnan(X.shape[1]):
        raise ValueError("the number of features of X is unknown; call X.compute_chunk_sizes() first")
    zeros: Any = np.zeros((1, X.shape[1]), X.dtype if X.dtype.kind in "iufb" else np.float64)
    if X is not given and given.ndim == 2:
        import pandas as pd

        zeros = pd.DataFrame(zeros, columns=given.columns)
    sample = getattr(estimator, method)(zeros)
    fitted = copy.copy(estimator)
    vars(fitted).pop("feature_names_in_", None)  # they have been compared, and chunks have none
    if X.numblocks[1] > 1:
        X = X.rechunk({1: -1})
    trailing = sample.shape[1:]
    return da.blockwise(
        partial(_of_chunk, fitted, method, sample[:0]),
        (0, 2) if trailing else (0,),
        X,
        (0, 1),
        new_axes={2: trailing[0]} if trailing else {},
        concatenate=None,
        dtype=sample.dtype,
        meta=sample[:0],
        token=method,
    )


def _of_chunk(fitted: Any, method: str, empty: Any, rows: Any) -> Any:
    while isinstance(rows, list):  # all features are in one chunk
        (rows,) = rows
    if rows.shape[0] == 0:
        return empty  # scikit-learn's checks refuse no rows
    work_alone_in_pools()
    return getattr(fitted, method)(rows)
