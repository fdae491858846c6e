"""Parquet files as rows that are read a row group at a time: which they are, what they hold, and their labels."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from softmaxloss.data.classes import as_classes
from softmaxloss.data.files import DataError, check_input, listed, one_line
from softmaxloss.data.tables import Table

__all__ = [
    "ParquetRows",
    "Paths",
    "RowGroup",
    "Version",
    "labels_of_files",
    "parquet_paths",
    "row_groups",
    "subject_of",
    "version_of",
]

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

# What changes where a file does.
Version = tuple[int, ...]


class RowGroup(NamedTuple):
    """A part of a file that is read by itself, and where its rows begin: among those of all files, and in its own.

    `version` is that of the file as it was opened.
    """

    path: Path
    metadata: Any  # pyarrow.parquet.FileMetaData; None for other files
    number: int
    start: int
    rows: int
    first: int
    version: Version


class ParquetRows:
    """Columns of Parquet files, as what `RowFiles` reads from.

    Parameters
    ----------
    groups : sequence of RowGroup
        Where the rows are.
    columns : sequence of str
        The columns to read.
    """

    def __init__(self, groups: Sequence[RowGroup], columns: Sequence[str]) -> None:
        self.groups = list(groups)
        self.columns = list(columns)

    def batches(self, group: RowGroup, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a group, so many at a time, with their columns in order."""
        row = group.first
        try:
            # The last number tells of a new name or new permissions too, which do not matter here.
            if version_of(group.path)[:-1] != group.version[:-1]:
                raise DataError(f"{group.path}: has changed since it was opened; open the files again")
            # Mapped, so that what is read is the system's to keep, and by pages: a row group may be large.
            with pq.ParquetFile(group.path, metadata=group.metadata, memory_map=True, pre_buffer=False) as file:
                _announce(group)
                for batch in file.iter_batches(
                    rows, row_groups=[group.number], columns=self.columns, use_threads=False
                ):
                    row += batch.num_rows
                    yield batch.select(self.columns)  # which may lie in another order in this file
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{group.path}: is damaged or cut off (after row {row}, and before row "
                f"{group.first + group.rows + 1}: {one_line(error)})"
            ) from None


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
            version = version_of(path)
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
        first = start
        for index in range(metadata.num_row_groups):
            rows = metadata.row_group(index).num_rows
            groups.append(RowGroup(path, metadata, index, start, rows, start - first, version))
            start += rows
    if schema is None or not start:
        raise DataError(f"{files[0] if files else 'no file'}: has columns but no rows")
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise DataError(f"{files[0]}: more than one column is named {listed(twice)}; rename all but one")
    return groups, schema


def version_of(path: Path) -> Version:
    """Return what tells a file from what it may become, or be replaced by.

    Raises
    ------
    OSError
        There is no such file.
    """
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def subject_of(files: Sequence[Path]) -> str:
    """Name files in a message."""
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def labels_of_files(files: Sequence[Path], target: str, kind: Literal["text"] | None = None) -> NDArray[Any]:
    """Read the labels of all rows.

    Raises
    ------
    DataError
        A label is missing, or is no class.
    """
    parts, ends = [], []
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                parts.append(file.read(columns=[target]))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: is damaged or cut off ({one_line(error)})") from None
        ends.append(parts[-1].num_rows)

    def where(row: int) -> str:
        bounds = np.cumsum(ends)
        of = int(np.searchsorted(bounds, row, side="right"))
        within = f"row {row - int(bounds[of]) + ends[of] + 1}"
        return within if len(files) == 1 else f"{within} of {files[of]}"

    table = Table(Path(subject_of(files)), pa.concat_tables(parts).replace_schema_metadata(None), place=where)
    values = table.column(target, kind, label=True).values
    return as_classes(values, f"{subject_of(files)}: target {target!r}", where)


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
