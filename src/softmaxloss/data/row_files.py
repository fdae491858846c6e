"""Rows in files that may be larger than memory: they are read in blocks, when they are used."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from softmaxloss.data.files import DataError, listed
from softmaxloss.data.parquet_files import (
    ParquetRows,
    Paths,
    RowGroup,
    labels_of_files,
    parquet_paths,
    row_groups,
    subject_of,
)

__all__ = ["RowFiles", "Stored", "open_parquet"]

# What makes features of a batch: of so many rows, from this file, whose first has this number in it.
Convert = Callable[[Any, Path, int], NDArray[Any]]

# A block of rows: large against what reading each column costs anew, small against memory.
_BLOCK_BYTES = 1 << 24
_FEWEST_ROWS = 256

# Columns are put side by side so many of so many rows at a time: what is read of them then stays in a cache, and what
# is written are whole lines of it. Between them are some bytes more, as their length may be a power of two: a cache
# keeps few lines at such distances.
_COLUMNS_AT_ONCE, _ROWS_AT_ONCE, _BYTES_APART = 128, 512, 64


class Stored(Protocol):
    """Rows as they lie in files: in groups, of which each is read in batches of any type that has a length."""

    groups: list[RowGroup]
    columns: list[str]

    def batches(self, group: RowGroup, rows: int) -> Iterator[Any]:
        """Yield the rows of a group, so many at a time."""


class RowFiles:
    """A matrix of features whose rows lie in files: lazily read, in blocks, and freed again.

    `SoftmaxClassifier.fit` takes it as X and keeps no more than a few blocks of it in memory.

    Parameters
    ----------
    stored : Stored
        The rows as they lie there.
    convert : callable
        ``convert(batch, path, first)`` makes of a batch of them an array of shape (rows, n_features); its first row has
        the number ``first`` in the file ``path``.
    n_features : int
        Number of features.
    dtype : dtype
        float32 or float64, of what `convert` returns.
    chosen : array of integers in ascending order, optional
        The rows that count; all of them unless said.
    spool : bool, default=True
        Whether fits may keep the converted rows in a temporary file, where the disk has room: see `open_parquet`.

    Attributes
    ----------
    shape : tuple of int
        (rows, features).
    dtype : dtype
        float32 or float64.
    """

    ndim = 2

    def __init__(
        self,
        stored: Stored,
        convert: Convert,
        n_features: int,
        dtype: Any,
        chosen: NDArray[np.intp] | None = None,
        *,
        spool: bool = True,
    ) -> None:
        self.stored = stored
        self.columns = list(stored.columns)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.spool = spool
        self._convert = convert
        self._chosen = chosen
        counts = [self._count(group) for group in stored.groups]
        self.groups = [group for group, count in zip(stored.groups, counts, strict=True) if count]
        self.shape = (sum(counts), n_features)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Read a range of rows into memory."""
        if not isinstance(rows, slice):
            raise TypeError(f"the rows of files are read by ranges, such as X[100:200]; {rows!r} was given")
        return self.read(np.arange(len(self))[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Read all rows into memory."""
        return self[:].astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        """Say what is there, and read nothing."""
        files = len({group.path for group in self.groups})
        return f"<RowFiles: {self.shape[0]} x {self.shape[1]} {self.dtype} in {files} file{'s' if files != 1 else ''}>"

    def only(self, rows: NDArray[np.intp]) -> RowFiles:
        """Return some of the rows, in ascending order, as another `RowFiles`; nothing is read."""
        chosen = np.asarray(rows) if self._chosen is None else self._chosen[rows]
        return RowFiles(self.stored, self._convert, self.shape[1], self.dtype, chosen, spool=self.spool)

    def through(self, stored: Stored, convert: Convert, n_features: int, dtype: Any = np.float64) -> RowFiles:
        """Return the same rows as something else makes features of what is stored of them."""
        return RowFiles(stored, convert, n_features, dtype, self._chosen, spool=self.spool)

    def read(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        """Read some rows into memory, whatever their order."""
        order = np.argsort(rows, kind="stable")
        features = np.empty((len(rows), self.shape[1]), self.dtype)
        for start, block in self.only(np.asarray(rows)[order]).blocks():
            features[order[start : start + len(block)]] = block
        return features

    def parts(self, rows: NDArray[np.intp]) -> Iterator[tuple[Any, NDArray[np.intp]]]:
        """Yield batches as they are stored, each with the numbers in it of some rows, which are in ascending order."""
        rows = rows if self._chosen is None else self._chosen[rows]
        for group in self.groups:
            for start, batch in self._batches(group):
                first, last = np.searchsorted(rows, [start, start + len(batch)])
                if first < last:
                    yield batch, rows[first:last] - start

    def blocks(self, group: RowGroup | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield blocks of rows, of all groups or of one, each after the number of its first row."""
        for one in self.groups if group is None else [group]:
            for start, batch in self._batches(one):
                if self._chosen is None:
                    yield start, self._converted(batch, one, start)
                    continue
                first, last = np.searchsorted(self._chosen, [start, start + len(batch)])
                if first < last:
                    yield int(first), self._converted(batch, one, start)[self._chosen[first:last] - start]

    def place(self, row: int) -> tuple[Path, int]:
        """Return the file that a row is in, and its number there, counted from 0 as `row` is."""
        if self._chosen is not None:
            row = int(self._chosen[row])
        group = self.stored.groups[bisect_right([group.start for group in self.stored.groups], row) - 1]
        return group.path, group.first + row - group.start

    def _batches(self, group: RowGroup) -> Iterator[tuple[int, Any]]:
        rows = max(_FEWEST_ROWS, _BLOCK_BYTES // max(1, self.shape[1] * self.dtype.itemsize))
        start = group.start
        for batch in self.stored.batches(group, rows):
            yield start, batch
            start += len(batch)

    def _converted(self, batch: Any, group: RowGroup, start: int) -> NDArray[Any]:
        features = self._convert(batch, group.path, group.first + start - group.start)
        if features.shape != (len(batch), self.shape[1]):
            raise DataError(
                f"{group.path}: {len(batch)} rows have {features.shape[1]} features, expected {self.shape[1]}"
            )
        return features.astype(self.dtype, "C", copy=False)

    def _count(self, group: RowGroup) -> int:
        """Return how many rows of a group count."""
        if self._chosen is None:
            return group.rows
        first, last = np.searchsorted(self._chosen, [group.start, group.start + group.rows])
        return int(last - first)


def open_parquet(
    paths: Paths, *, target: str, columns: Sequence[str] | None = None, spool: bool = True
) -> tuple[RowFiles, NDArray[Any]]:
    r"""Open Parquet files to learn from: features that stay where they are, and labels in memory.

    Files that change after that are refused when they are read.

    Parameters
    ----------
    paths : path, or sequence of paths
        A file, a folder, a pattern such as "data/\*.parquet", or several of them; of a folder, the .parquet files
        in it and below. Files follow each other in the order of their names.
    target : str
        The column with the class labels.
    columns : sequence of str, optional
        The columns with the features, numbers or lists of equally many numbers; all others unless said.
    spool : bool, default=True
        Whether a fit keeps what it decodes in a temporary file of ``rows * features * itemsize`` bytes that later
        passes map, those of other fits and predictions of this X too, rather than decode the files in every pass. It
        lies in `tempfile.gettempdir`, which the environment variable TMPDIR says, has no name and is gone with X,
        however the process ends, or with the next use of X after ``X.spool = False``. Where that folder is in memory
        or has not the room, each pass decodes. The fit is the same to the bit.

    Returns
    -------
    X : RowFiles
        float32 if every column is float32 or float16, else float64.
    y : array of shape (rows,)
        Integers, booleans or text.

    Raises
    ------
    DataError
        There is no such file, it is no Parquet file, its columns are not those of the first, they do not hold
        numbers, or a label is missing.

    Examples
    --------
    >>> import tempfile
    >>> import pandas as pd
    >>> from softmaxloss import SoftmaxClassifier
    >>> from softmaxloss.data.row_files import open_parquet
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for part in range(2):
    ...         rows = pd.DataFrame({"a": [0.0, 1.0, 2.0, 3.0], "y": ["no", "no", "yes", "yes"]})
    ...         rows.to_parquet(f"{folder}/part-{part}.parquet")
    ...     X, y = open_parquet(f"{folder}/*.parquet", target="y")
    ...     print(X.shape, y[:3], SoftmaxClassifier().fit(X, y).predict([[0.5], [2.5]]))
    (8, 1) ['no' 'no' 'yes'] ['no' 'yes']
    """
    files = parquet_paths(paths)
    groups, schema = row_groups(files)
    _require(files[0], schema, [target, *(columns or ())])
    names = [name for name in schema.names if name != target] if columns is None else list(columns)
    if not names or target in names:
        raise DataError(
            f"{subject_of(files)}: the features are to be in columns other than {target!r}, of which none is left"
        )
    widths = {name: _width(files[0], name, schema.field(name).type) for name in names}
    kinds = {_numbers_of(schema.field(name).type) for name in names}
    dtype = np.dtype(np.float32 if kinds <= {pa.float32(), pa.float16()} else np.float64)

    def convert(batch: pa.RecordBatch, path: Path, first: int) -> NDArray[Any]:
        return _matrix(batch, widths, dtype, path, first)

    X = RowFiles(ParquetRows(groups, names), convert, sum(widths.values()), dtype, spool=spool)
    return X, labels_of_files(files, target)


def _require(path: Path, schema: pa.Schema, names: Sequence[str]) -> None:
    absent = [name for name in names if name not in schema.names]
    if absent:
        raise DataError(f"{path}: no column {listed(absent)}; the columns are {listed(schema.names)}")


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _numbers_of(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column's numbers."""
    return kind.value_type if _is_list(kind) else kind


def _width(path: Path, name: str, kind: pa.DataType) -> int:
    """Return how many features a column holds."""
    numbers = _numbers_of(kind)
    if not (pa.types.is_integer(numbers) or pa.types.is_floating(numbers) or pa.types.is_boolean(numbers)):
        raise DataError(
            f"{path}: column {name!r} holds {kind}; expected numbers: leave it out, or turn it into numbers"
        )
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    if not _is_list(kind):
        return 1
    with pq.ParquetFile(path) as file:
        first = next(file.iter_batches(1, columns=[name]), None)
    if first is None or not first.num_rows or not first.column(0)[0].is_valid:
        raise DataError(f"{path}: column {name!r} has no list in its first row")
    if not len(first.column(0)[0]):
        raise DataError(f"{path}: column {name!r} has a list of no numbers in its first row")
    return len(first.column(0)[0])


def _matrix(
    batch: pa.RecordBatch, widths: dict[str, int], dtype: np.dtype[Any], path: Path, first_row: int
) -> NDArray[Any]:
    """Put columns side by side, row by row."""
    features: NDArray[Any] | None = None
    first, n_features = 0, sum(widths.values())
    for part in _parts(batch, widths, dtype, path, first_row):
        width = part.shape[1]
        if width == n_features and part.flags.c_contiguous:
            return part.astype(dtype, copy=False)
        if features is None:
            features = np.empty((batch.num_rows, n_features), dtype)
        for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            features[rows, first : first + width] = part[rows]
        first += width
    assert features is not None
    return features


def _parts(
    batch: pa.RecordBatch, widths: dict[str, int], dtype: np.dtype[Any], path: Path, first_row: int
) -> Iterator[NDArray[Any]]:
    """Yield adjacent columns as matrices: those of numbers some at a time, each one of lists by itself."""
    waiting: list[NDArray[Any]] = []
    for (name, width), column in zip(widths.items(), batch.columns, strict=True):
        if not _is_list(column.type):
            waiting.append(column.to_numpy(zero_copy_only=False))
            if len(waiting) < _COLUMNS_AT_ONCE:
                continue
        if waiting:
            yield _transposed(waiting, dtype)
            waiting = []
        if _is_list(column.type):
            _check_lists(column, width, f"{path}: column {name!r}", first_row)
            yield column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    if waiting:
        yield _transposed(waiting, dtype)


def _transposed(columns: list[NDArray[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a matrix of columns that are fast to read a part of the rows at a time."""
    rows = len(columns[0])
    each = np.empty((len(columns), rows + _BYTES_APART // dtype.itemsize), dtype)[:, :rows]
    for of_each, column in zip(each, columns, strict=True):
        of_each[:] = column
    return each.T


def _check_lists(column: pa.Array, width: int, subject: str, first_row: int) -> None:
    """Refuse lists that are missing or of another length than the first."""
    wrong = np.asarray(column.is_null().to_numpy(zero_copy_only=False))
    if not pa.types.is_fixed_size_list(column.type):
        wrong = wrong | (np.diff(column.offsets.to_numpy()) != width)
    if wrong.any():
        row = first_row + int(wrong.argmax()) + 1
        raise DataError(f"{subject} holds at row {row} a list that is missing or not of {width} numbers")
