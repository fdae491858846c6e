"""Products of a sparse matrix with one that has few columns, a number for each class, by our own kernels.

SciPy's take several times as long: they go through the classes of a row one by one, on one thread.
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from softmaxloss import _native

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]


def checked(matrix: Any) -> csr_array:
    """Return a CSR matrix as the kernels take it, or raise `ValueError` if its parts do not go together.

    Its numbers are not copied if they lie one after another.
    """
    found = csr_array(matrix)
    try:
        found.check_format()
    except ValueError as error:
        raise ValueError(f"X is no valid sparse matrix: {error}") from None
    for name in ("data", "indices", "indptr"):
        setattr(found, name, np.ascontiguousarray(getattr(found, name)))
    return found


def product(
    matrix: csr_array, dense: Array, *, times: Array | None = None, less: Array | None = None, out: Array | None = None
) -> Array:
    """Return ``matrix @ dense - times[:, None] * less``, in the dtype of all of them.

    Parameters
    ----------
    matrix : (n, m) CSR array or matrix
        Of float32 or float64; `checked`, as for all functions here.
    dense : (m, k) ndarray
        Copied if it is not in C order.
    times : (n,) ndarray, optional
        With `less`, what is taken from each row.
    less : (k,) ndarray, optional
    out : (n, k) ndarray, optional
        Where to put the result, in C order.
    """
    dense = np.ascontiguousarray(dense)
    out = np.empty((matrix.shape[0], dense.shape[1]), matrix.dtype) if out is None else out
    _native.sparse_product(matrix.indptr, matrix.indices, matrix.data, dense, out, times, less)
    return out


def transposed_product(matrix: csr_array, dense: Array, out: Array) -> Array:
    """Return ``matrix.T @ dense`` in `out`, computed on the calling thread; arrays are in C order, of one dtype."""
    out.fill(0.0)
    _native.add_transposed_product(matrix.indptr, matrix.indices, matrix.data, dense, out)
    return out


def sum_of_distances(matrix: csr_array, weights: Vector, origin: Vector, power: Literal[1, 2]) -> Vector:
    """Return the weighted sum over rows of ``(row - origin) ** power``, element by element; on the calling thread.

    Over what is stored, and what is not: so many zeros, all at the same distance.
    """
    sums = np.zeros((len(origin), 3))
    _native.add_distances(matrix.indptr, matrix.indices, matrix.data, weights, origin, power, sums)
    stored, weight, count = sums.T
    # No zero is missing from a full column, whatever its weights' sum is rounded to.
    missing = np.where(count >= len(weights), 0.0, weights.sum() - weight)
    total: Vector = stored + missing * (-origin) ** power
    return total


def some_rows(matrix: csr_array, part: slice) -> csr_array:
    """Return adjacent rows, as a view of what is stored."""
    start, stop, _ = part.indices(matrix.shape[0])
    starts = matrix.indptr[start : max(start, stop) + 1]
    inside = slice(starts[0], starts[-1])
    rows = csr_array((len(starts) - 1, matrix.shape[1]), dtype=matrix.dtype)
    # Its constructor would copy them.
    rows.data, rows.indices, rows.indptr = matrix.data[inside], matrix.indices[inside], starts - starts[0]
    return rows
