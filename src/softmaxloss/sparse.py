"""Products of a sparse matrix with one that has few columns, a number for each class, by our own kernels.

SciPy's take several times as long: they go through the classes of a row one by one, on one thread.
"""

from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, issparse

from softmaxloss import _native

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]


def checked(X: Any) -> Any:
    """Return a CSR matrix as the functions here take it, or raise `ValueError` if its parts do not go together.

    Its numbers are copied only if there are several for one place, or if they do not lie one after another. What is
    not sparse is returned as it is.
    """
    if not issparse(X):
        return X
    found = csr_array(cast(Any, X))
    try:
        found.check_format()
    except ValueError as error:
        raise ValueError(f"X is no valid sparse matrix: {error}") from None
    if not found.has_canonical_format:
        found = found.copy()
        found.sum_duplicates()
    for name in ("data", "indices", "indptr"):
        setattr(found, name, np.ascontiguousarray(getattr(found, name)))
    return found


def product(
    matrix: csr_array, dense: Array, *, less: tuple[Array, Array] | None = None, out: Array | None = None
) -> Array:
    """Return ``matrix @ dense``, or that less an outer product, in the dtype of all of them.

    Parameters
    ----------
    matrix : (n, m) CSR array or matrix
        Of float32 or float64; `checked`, as for all functions here.
    dense : (m, k) ndarray
        Copied if it is not in C order.
    less : (n,) and (k,) ndarrays, optional
        The column and the row whose product is taken from the result.
    out : (n, k) ndarray, optional
        Where to put the result, in C order.
    """
    dense = np.ascontiguousarray(dense)
    _require(len(dense) == matrix.shape[1])
    out = np.empty((matrix.shape[0], dense.shape[1]), matrix.dtype) if out is None else out
    _native.sparse_product(matrix.indptr, matrix.indices, matrix.data, dense, out, *(less or ()))
    return out


def transposed_product(matrix: csr_array, dense: Array, out: Array) -> Array:
    """Return ``matrix.T @ dense`` in `out`, computed on the calling thread; arrays are in C order, of one dtype."""
    _require(len(out) == matrix.shape[1])
    out.fill(0.0)
    _native.add_transposed_product(matrix.indptr, matrix.indices, matrix.data, dense, out)
    return out


def sum_of_distances(matrix: csr_array, weights: Vector, origin: Vector, power: Literal[1, 2]) -> Vector:
    """Return the weighted sum over rows of ``(row - origin) ** power``, element by element; on the calling thread.

    Over what is stored, and what is not: so many zeros, all at the same distance.
    """
    _require(len(origin) == matrix.shape[1])
    sums = np.zeros((len(origin), 3))
    _native.add_distances(matrix.indptr, matrix.indices, matrix.data, weights, origin, power, sums)
    stored, weight, count = sums.T
    # No zero is missing from a full column, whatever its weights' sum is rounded to.
    missing = np.where(count == np.count_nonzero(weights), 0.0, weights.sum() - weight)
    total: Vector = stored + missing * (-origin) ** power
    return total


def some_rows(matrix: csr_array, start: int, stop: int) -> csr_array:
    """Return adjacent rows, as a view of what is stored."""
    starts = matrix.indptr[start : stop + 1]
    inside = slice(starts[0], starts[-1])
    shape = len(starts) - 1, matrix.shape[1]
    return _of_parts(shape, matrix.data[inside], matrix.indices[inside], starts - starts[0])


def divided(matrix: csr_array, divisor: float) -> csr_array:
    """Return the matrix divided by a number, in its dtype; where its numbers are is shared."""
    values = np.divide(matrix.data, divisor, dtype=np.float64).astype(matrix.dtype)
    return _of_parts(matrix.shape, values, matrix.indices, matrix.indptr)


def _of_parts(shape: tuple[int, int], values: Array, columns: Array, starts: Array) -> csr_array:
    """Return a matrix of these very arrays; the constructor copies what is a small part of others."""
    matrix = csr_array(shape, dtype=values.dtype)
    matrix.data, matrix.indices, matrix.indptr = values, columns, starts
    return matrix


def _require(fits: bool) -> None:
    if not fits:
        raise ValueError("matrices of shapes that do not go together")
