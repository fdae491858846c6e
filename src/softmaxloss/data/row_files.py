"""Rows in Parquet files that may be larger than memory: they are read in blocks, when they are used."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from softmaxloss.data.classes import as_classes
from softmaxloss.data.files import DataError, check_input, listed, one_line
from softmaxloss.data.tables import Table

__all__ = ["RowFiles", "RowGroup", "labels_of_files", "open_parquet", "parquet_paths", "row_groups", "subject_of"]

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Convert = Callable[[pa.RecordBatch], NDArray[Any]]

# A block of rows: large against what reading each column costs anew, small against memory.
_BLOCK_BYTES = 1 << 24
_FEWEST_ROWS = 256


class RowGroup(NamedTuple):
    """A part of a file that is read by itself: which it is, of which file, and where its rows begin among all."""

    path: Path
    metadata: Any  # pyarrow.parquet.FileMetaData
    number: int
    start: int
    rows: int


class RowFiles:
    """A matrix of features whose rows lie in Parquet files: lazily read, in blocks, and freed again.

    `SoftmaxClassifier.fit` takes it as X and keeps no more than a few blocks of it in memory.

    Parameters
    ----------
    groups : sequence of RowGroup
        Where the rows are.
    columns : sequence of str
        The columns to read.
    convert : callable
        Makes of a RecordBatch of these columns an array of shape (rows, n_features).
    n_features : int
        Number of features.
    dtype : dtype
        float32 or float64, of what `convert` returns.
    chosen : array of integers in ascending order, optional
        The rows that count; all of them unless said.

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
        groups: Sequence[RowGroup],
        columns: Sequence[str],
        convert: Convert,
        n_features: int,
        dtype: Any,
        chosen: NDArray[np.intp] | None = None,
    ) -> None:
        self.columns = list(columns)
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self._all_groups = list(groups)
        self._convert = convert
        self._chosen = chosen
        self.groups = [group for group in groups if self._count(group)]
        self.shape = (sum(self._count(group) for group in groups), n_features)

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
        return RowFiles(self._all_groups, self.columns, self._convert, self.shape[1], self.dtype, chosen)

    def through(self, columns: Sequence[str], convert: Convert, n_features: int) -> RowFiles:
        """Return the same rows as something else makes features of their columns: float64."""
        return RowFiles(self._all_groups, columns, convert, n_features, np.float64, self._chosen)

    def read(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        """Read some rows into memory, whatever their order."""
        order = np.argsort(rows, kind="stable")
        features = np.empty((len(rows), self.shape[1]), self.dtype)
        for start, block in self.only(np.asarray(rows)[order]).blocks():
            features[order[start : start + len(block)]] = block
        return features

    def table(self, rows: NDArray[np.intp]) -> pa.Table:
        """Read some rows, in ascending order, as a table of their columns."""
        rows = rows if self._chosen is None else self._chosen[rows]
        taken = []
        for group in self.groups:
            start = group.start
            for batch in self._batches(group):
                first, last = np.searchsorted(rows, [start, start + batch.num_rows])
                if first < last:
                    taken.append(batch.take(pa.array(rows[first:last] - start)))
                start += batch.num_rows
        return pa.Table.from_batches(taken).select(self.columns)

    def blocks(self, group: RowGroup | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield blocks of rows, of all groups or of one, each after the number of its first row."""
        for one in self.groups if group is None else [group]:
            start = one.start
            for batch in self._batches(one):
                end = start + batch.num_rows
                if self._chosen is None:
                    yield start, self._converted(batch, one.path)
                else:
                    first, last = np.searchsorted(self._chosen, [start, end])
                    if first < last:
                        yield int(first), self._converted(batch, one.path)[self._chosen[first:last] - start]
                start = end

    def _batches(self, group: RowGroup) -> Iterator[pa.RecordBatch]:
        step = max(_FEWEST_ROWS, _BLOCK_BYTES // max(1, self.shape[1] * self.dtype.itemsize))
        try:
            # Mapped, so that what is read is the system's to keep, and by pages: a row group may be large.
            with pq.ParquetFile(group.path, metadata=group.metadata, memory_map=True, pre_buffer=False) as file:
                _announce(group)
                yield from file.iter_batches(step, row_groups=[group.number], columns=self.columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{group.path}: is damaged or cut off ({one_line(error)})") from None

    def _converted(self, batch: pa.RecordBatch, path: Path) -> NDArray[Any]:
        # Of columns that lie in another order in this file.
        features = self._convert(batch.select(self.columns))
        if features.shape != (batch.num_rows, self.shape[1]):
            raise DataError(
                f"{path}: {batch.num_rows} rows have {features.shape[1]} features, expected {self.shape[1]}"
            )
        return features

    def _count(self, group: RowGroup) -> int:
        """Return how many rows of a group count."""
        if self._chosen is None:
            return group.rows
        first, last = np.searchsorted(self._chosen, [group.start, group.start + group.rows])
        return int(last - first)


def open_parquet(paths: Paths, *, target: str, columns: Sequence[str] | None = None) -> tuple[RowFiles, NDArray[Any]]:
    r"""Open Parquet files to learn from: features that stay where they are, and labels in memory.

    Parameters
    ----------
    paths : path, or sequence of paths
        A file, a folder, a pattern such as "data/\*.parquet", or several of them; of a folder, the .parquet files
        in it and below. Files follow each other in the order of their names.
    target : str
        The column with the class labels.
    columns : sequence of str, optional
        The columns with the features, numbers or lists of equally many numbers; all others unless said.

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
    n_features = sum(widths.values())

    def convert(batch: pa.RecordBatch) -> NDArray[Any]:
        return _matrix(batch, widths, dtype)

    return RowFiles(groups, names, convert, n_features, dtype), labels_of_files(files, target)


def parquet_paths(paths: Paths) -> list[Path]:
    """Return the files that a path, a folder, a pattern or several of them name.

    Raises
    ------
    DataError
        There are none.
    """
    if not isinstance(paths, str | os.PathLike):
        return [path for each in paths for path in parquet_paths(each)]
    path = Path(paths)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*.parquet") if file.is_file())
        if not found:
            raise DataError(f"{path}: there is no .parquet file in this folder")
        return found
    if path.exists() or not glob.has_magic(str(path)):
        check_input(path)
        return [path]
    found = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207  # the folder is part of it
    if not found:
        raise DataError(f"{path}: there is no such file")
    return found


def row_groups(files: Sequence[Path]) -> tuple[list[RowGroup], pa.Schema]:
    """Return the row groups of files that have rows, and the columns of the first, which are those of all.

    Raises
    ------
    DataError
        A file is no Parquet file, or has others; or there is no row.
    """
    groups: list[RowGroup] = []
    start, schema = 0, None
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                metadata, its = file.metadata, file.schema_arrow.remove_metadata()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: is not a Parquet file, or is cut off ({one_line(error)})") from None
        schema = its if schema is None else schema
        if {field.name: field.type for field in schema} != {field.name: field.type for field in its}:
            different = set(map(str, schema)) ^ set(map(str, its))
            raise DataError(
                f"{path}: its columns, or their types, are not those of {files[0]} ({listed(sorted(different))})"
            )
        for index in range(metadata.num_row_groups):
            rows = metadata.row_group(index).num_rows
            groups.append(RowGroup(path, metadata, index, start, rows))
            start += rows
    if schema is None or not start:
        raise DataError(f"{files[0] if files else 'no file'}: has columns but no rows")
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise DataError(f"{files[0]}: more than one column is named {listed(twice)}; rename all but one")
    return groups, schema


def subject_of(files: Sequence[Path]) -> str:
    """Name files in a message."""
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def _announce(group: RowGroup) -> None:
    """Have the system fetch a row group from the disk while its first rows are computed with, where it can."""
    if not hasattr(os, "posix_fadvise"):
        return
    of_group = group.metadata.row_group(group.number)
    first = min(
        offset
        for column in map(of_group.column, range(of_group.num_columns))
        for offset in (column.dictionary_page_offset, column.data_page_offset)
        if offset is not None
    )
    length = sum(of_group.column(k).total_compressed_size for k in range(of_group.num_columns))
    with group.path.open("rb") as file:
        os.posix_fadvise(file.fileno(), first, length, os.POSIX_FADV_WILLNEED)


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
    return len(first.column(0)[0])


def _matrix(batch: pa.RecordBatch, widths: dict[str, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Put columns side by side; each column stays together in memory, as matrix products take it too."""
    features = np.empty((sum(widths.values()), batch.num_rows), dtype)
    first = 0
    for (name, width), column in zip(widths.items(), batch.columns, strict=True):
        if _is_list(column.type):
            numbers = column.flatten().to_numpy(zero_copy_only=False)
            lengths = {width} if pa.types.is_fixed_size_list(column.type) else set(np.diff(column.offsets.to_numpy()))
            if column.null_count or lengths - {width}:
                raise DataError(f"column {name!r} holds lists that are missing or not of {width} numbers each")
            if len(widths) == 1:
                rows: NDArray[Any] = numbers.reshape(-1, width).astype(dtype, copy=False)
                return rows
            features[first : first + width] = numbers.reshape(-1, width).T
        else:
            features[first] = column.to_numpy(zero_copy_only=False)
        first += width
    by_row: NDArray[Any] = features.T
    return by_row


def labels_of_files(files: Sequence[Path], target: str, kind: Literal["text"] | None = None) -> NDArray[Any]:
    """Read the labels of all rows.

    Raises
    ------
    DataError
        A label is missing, or is no class.
    """
    parts = []
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                parts.append(file.read(columns=[target]))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: is damaged or cut off ({one_line(error)})") from None
    table = Table(files[0], pa.concat_tables(parts).replace_schema_metadata(None))
    values = table.column(target, kind, label=True).values
    return as_classes(values, f"{subject_of(files)}: target {target!r}", lambda row: f"row {row + 1}")
