"""Rows to learn from that lie in files: read in blocks at each pass, by several threads."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from softmaxloss.data.files import DataError
from softmaxloss.data.parquet_files import RowGroup
from softmaxloss.data.row_files import RowFiles
from softmaxloss.data.spool import SpooledRows, as_kept, kept
from softmaxloss.rows import LoneThreads, Rows, Sums, Vector, add, blas, sampled
from softmaxloss.runtime import get_num_threads
from softmaxloss.sources import Learnable, encode, row_weights

# Of so many row groups, evenly spaced, the first block tells the rows from others.
_GROUPS_HASHED = 16


class FileRows:
    """A `RowSource` in files: each thread reads a row group, block by block, and computes with it.

    Beside the parameters and their sums, a block for each thread is in memory, and each row's label and weight.
    """

    is_sparse = False

    def __init__(self, files: RowFiles | SpooledRows, codes: npt.NDArray[np.integer[Any]], weights: Vector) -> None:
        self._files, self._codes, self._weights = files, codes, weights
        self.n_rows, self.n_features = files.shape
        self.dtype = files.dtype

    def total(self, function: Callable[..., Sums], *arguments: Any) -> Sums:
        """See `RowSource`."""

        def of_group(group: RowGroup) -> Sums:
            return add(function(self._rows(start, X), *arguments) for start, X in self._files.blocks(group))

        return add(_of_each(self._files.groups, of_group))

    def sample(self, count: int) -> Rows:
        """See `RowSource`."""
        chosen = sampled(self._weights, count)
        return Rows(self._files.read(chosen), self._codes[chosen], self._weights[chosen])

    def first_row(self) -> Vector:
        """See `RowSource`."""
        row = np.array([np.argmax(self._weights > 0)])
        features: Vector = self._files.read(row)[0].astype(np.float64)
        return features

    def identity(self) -> dict[str, Any]:
        """See `RowSource`: shape, dtype, total weight, and a hash of labels, weights, sizes and some blocks."""
        digest = hashlib.sha256()
        groups = self._files.groups
        for array in (self._codes.astype(np.int64), self._weights, np.array([group.rows for group in groups])):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update("\0".join(self._files.columns).encode())
        for k in sorted({len(groups) * part // _GROUPS_HASHED for part in range(_GROUPS_HASHED)}):
            _, X = next(self._files.blocks(groups[k]))
            digest.update(np.ascontiguousarray(X).tobytes())
        return {
            "shape of X": [self.n_rows, self.n_features],
            "dtype of X": str(self.dtype),
            "total weight": float(self._weights.sum()),
            "rows": digest.hexdigest(),
        }

    def _rows(self, start: int, X: npt.NDArray[Any]) -> Rows:
        rows = slice(start, start + len(X))
        return Rows(X, self._codes[rows], self._weights[rows])


def rows_of_files(estimator: Any, X: RowFiles, y: Any, sample_weight: Any) -> Learnable:
    """Check what `fit` is given, as `rows_to_learn` does for arrays, in one pass over the files.

    The features have no names afterwards: blocks of X are plain arrays, and these are what is predicted for.

    Raises
    ------
    ValueError
        As for arrays: of other lengths, with features that are missing or infinite, or y without two classes.
    """
    y = np.asarray(y)
    if y.ndim != 1 or len(y) != len(X):
        raise ValueError(f"y has shape {y.shape} and X {len(X)} rows: give one label for each row")
    classes, codes = encode(y)
    weights = row_weights(sample_weight, estimator.class_weight, classes, codes)
    source = FileRows(kept(X), codes, weights / weights.mean())
    (bad,) = source.total(_count_missing)
    if bad:
        raise _missing(X)
    estimator.n_features_in_ = X.shape[1]
    if hasattr(estimator, "feature_names_in_"):
        del estimator.feature_names_in_
    return Learnable(classes, source, float(weights.sum()))


def predicted_of_files(estimator: Any, method: str, X: RowFiles) -> npt.NDArray[Any]:
    """Return what a method of a fitted estimator makes of rows in files, of which a block is in memory at a time.

    A block's matrix product may round otherwise than that of all rows at once, in the last bits.

    Raises
    ------
    ValueError
        As for arrays, of no rows, of another number of features, or of features that are missing or infinite.
    """
    if not len(X):
        raise ValueError(f"X has no rows, in {X!r}: there is nothing to predict")
    found: npt.NDArray[Any] | None = None
    for start, block in as_kept(X).blocks():
        try:
            of_block = getattr(estimator, method)(block)
        except ValueError:
            if np.isfinite(block).all():
                raise
            raise _missing_in(X, start, block) from None
        if found is None:
            found = np.empty((len(X), *of_block.shape[1:]), of_block.dtype)
        found[start : start + len(block)] = of_block
    return np.asarray(found)


def _of_each(groups: list[RowGroup], function: Callable[[RowGroup], Any]) -> Iterator[Any]:
    """Yield what a function makes of each group, in order, as several threads compute it."""
    threads = min(get_num_threads(), len(groups))
    if threads == 1:
        yield from map(function, groups)
        return
    with blas.on_one_thread(), LoneThreads(threads) as pool, closing(pool.map(function, groups)) as results:  # type: ignore[type-var]
        yield from results


def _count_missing(rows: Rows) -> Sums:
    return (rows.X.size - int(np.count_nonzero(np.isfinite(rows.X))),)


def _missing(X: RowFiles) -> ValueError:
    """Say where the first number is that is missing or infinite."""
    for start, block in X.blocks():
        if not np.isfinite(block).all():
            return _missing_in(X, start, block)
    return DataError("X changed while it was read")


def _missing_in(X: RowFiles, start: int, block: npt.NDArray[Any]) -> ValueError:
    row, feature = np.argwhere(~np.isfinite(block))[0]
    path, within = X.place(start + int(row))
    return DataError(
        f"X holds {block[row, feature]} in row {start + row}, feature {feature}, which is row {within + 1} of {path}: "
        "fill in what is missing, and leave out what is infinite"
    )
