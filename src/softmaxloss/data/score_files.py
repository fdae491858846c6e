"""Scores in Parquet files, which are read a row group at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softmaxloss.data.files import DataError
from softmaxloss.data.parquet_files import ParquetRows, parquet_paths, row_groups
from softmaxloss.data.row_files import RowFiles
from softmaxloss.data.tables import Table

__all__ = ["mapped_scores", "open_scores"]


def open_scores(source: Path, *, without: Sequence[str] = ()) -> tuple[RowFiles, list[str]]:
    """Open a Parquet file, a folder or a pattern of them, with a column of numbers for each class.

    Parameters
    ----------
    source : Path
        What `parquet_paths` takes.
    without : sequence of str
        Columns that are no class.

    Returns
    -------
    scores : RowFiles
        Numbers as float64, of which a block is in memory at a time; a missing one is NaN.
    classes : list of str
        The names of the columns.

    Raises
    ------
    DataError
        There is no such file, it is no Parquet file, its columns are not those of the first, or none is left.
    """
    groups, schema = row_groups(parquet_paths(source))
    # The long name is what pandas calls a row index that has none.
    names = [name for name in schema.names if name and name not in without and not name.startswith("__index_level_")]
    if not names:
        raise DataError(f"{source}: has no column of scores")

    def convert(batch: pa.RecordBatch, path: Path, first: int) -> NDArray[Any]:
        table = Table(path, pa.Table.from_batches([batch]), place=lambda row: f"row {first + row + 1}")
        values = np.empty((batch.num_rows, len(names)))
        for index, name in enumerate(names):
            values[:, index] = table.column(name, "numbers").values
        return values

    return RowFiles(ParquetRows(groups, names), convert, len(names), np.float64), names


def mapped_scores(files: RowFiles) -> NDArray[Any]:
    """Decode scores into a temporary file without a name, and map it: rows to be had in any order, and no memory.

    Raises
    ------
    DataError
        The files are damaged.
    OSError
        The temporary folder has no room for ``rows * classes * 8`` bytes.
    """
    if 0 in files.shape:
        return np.empty(files.shape, files.dtype)
    with tempfile.TemporaryFile(prefix="softmaxloss-") as file:
        for _, block in files.blocks():
            file.write(np.ascontiguousarray(block).data)
        file.flush()
        return np.memmap(file, files.dtype, "r", shape=files.shape)
