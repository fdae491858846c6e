"""Features in a .npy file, mapped and read in blocks, and the labels of its rows from another file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softmaxloss.data.arrays import array_names, map_array, read_array
from softmaxloss.data.classes import as_classes
from softmaxloss.data.columns import convert_text
from softmaxloss.data.datasets import table_classes
from softmaxloss.data.extremes import extreme, extreme_value
from softmaxloss.data.files import DataError, check_input, known_suffix, listed
from softmaxloss.data.parquet_files import RowGroup, version_of
from softmaxloss.data.row_files import RowFiles
from softmaxloss.data.tables import TABLE_SUFFIXES, read_table

__all__ = ["ROW_LABEL_SUFFIXES", "ArrayRows", "dense_rows", "open_rows", "read_row_labels"]

ROW_LABEL_SUFFIXES = (".npy", ".npz", *TABLE_SUFFIXES, ".txt")

# Threads take such parts of the file in turn.
_GROUP_BYTES = 1 << 26


class ArrayRows:
    """The rows of a mapped array, as what `RowFiles` reads from.

    Parameters
    ----------
    path : Path
        The file.
    array : array of shape (rows, features)
        What it holds.
    """

    def __init__(self, path: Path, array: NDArray[Any]) -> None:
        self._array = array
        self.columns: list[str] = []  # they have no names
        version = version_of(path)
        step = max(1, _GROUP_BYTES // (array.shape[1] * array.itemsize))
        self.groups = [
            RowGroup(path, None, start // step, start, min(step, len(array) - start), start, version)
            for start in range(0, len(array), step)
        ]

    def batches(self, group: RowGroup, rows: int) -> Iterator[NDArray[Any]]:
        """Yield the rows of a group, so many at a time; they stay where they are."""
        end = group.start + group.rows
        for start in range(group.start, end, rows):
            yield self._array[start : min(start + rows, end)]


def open_rows(path: Path) -> RowFiles:
    """Open a .npy file of features: float32 as it is, and anything else as float64.

    Raises
    ------
    DataError
        It is no such file, or does not hold numbers in rows and columns.
    """
    array = map_array(path)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "buif":
        raise DataError(f"{path}: has shape {array.shape} and type {array.dtype}; expected rows of numbers, 2-D")
    dtype = np.float32 if array.dtype.newbyteorder("=") == np.float32 else np.float64
    return RowFiles(ArrayRows(path, array), dense_rows, array.shape[1], dtype)


def dense_rows(batch: NDArray[Any], path: Path, first: int) -> NDArray[Any]:
    """Return rows of a file as float32 or float64; NaN is a missing number.

    Raises
    ------
    DataError
        A number is infinite, or too large to compute with.
    """
    features = np.asarray(batch, np.float32 if batch.dtype.newbyteorder("=") == np.float32 else np.float64)
    wrong = extreme(features)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise DataError(f"{path}: [{first + row}, {column}] is {extreme_value(features[row, column])}")
    return features


def read_row_labels(path: Path, target: str | None = None) -> tuple[NDArray[Any], str, str]:
    """Read class labels: a .npy array, a .npz file's "labels", "y" or only array, a table's column, or lines of text.

    Returns
    -------
    labels : array of shape (rows,)
        Integers, booleans or text. What lines and fields of text stand for is told as in a table to train on.
    name : str
        What they are called.
    subject : str
        The file and what is in it, to begin a message with.

    Raises
    ------
    DataError
        The file cannot be read, a label is missing, or they are no classes.
    """
    suffix = known_suffix(path, ROW_LABEL_SUFFIXES)
    if suffix in TABLE_SUFFIXES:
        table = read_table(path)
        if target is None and len(table.names) > 1:
            raise DataError(
                f"{path}: has several columns; name that of the labels with --target: {listed(table.names)}"
            )
        name = target or table.names[0]
        table.require([name], "--target")
        return table_classes(table, name, None), name, f"{path}: target {name!r}"
    if suffix == ".txt":
        lines = _lines(path)
        values = convert_text(pa.chunked_array([pa.array(lines)]), None).values
        return as_classes(values, f"{path}:", lambda row: f"line {row + 1}"), path.stem, f"{path}:"
    if suffix == ".npy":
        return as_classes(np.asarray(map_array(path)), f"{path}:", lambda row: f"index {row}"), path.stem, f"{path}:"
    names = array_names(path)
    found = [target] if target else [name for name in ("labels", "y") if name in names] or names
    if len(found) != 1:
        raise DataError(f"{path}: its arrays are {listed(names)}; name that of the labels with --target")
    subject = f"{path}: array {found[0]!r}"
    return as_classes(read_array(path, found[0]), subject, lambda row: f"index {row}"), found[0], subject


def _lines(path: Path) -> list[str]:
    check_input(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text in UTF-8 (byte {error.start}); save it in UTF-8") from None
    labels = [line.strip() for line in lines]
    if "" in labels:
        raise DataError(f"{path}: has no label on line {labels.index('') + 1}")
    return labels
