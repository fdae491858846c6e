"""NumPy's own files in: one array, or several by name; never unpickled."""

from __future__ import annotations

import contextlib
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softmaxloss.data.files import DataError, check_input, listed, one_line

__all__ = ["array_names", "map_array", "read_array"]

# What NumPy and zipfile raise on files that are cut off, damaged or something else. NumPy reads a header as
# Python's own syntax, and what Python says of a damaged one goes through.
BROKEN = (
    *(ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError),
    *(SyntaxError, tokenize.TokenError, TypeError, OverflowError, RecursionError, AttributeError, IndexError),
)


def map_array(path: Path) -> NDArray[Any]:
    """Map a .npy file into memory, to be read only where it is used.

    Raises
    ------
    DataError
        It is no such file, cut off, or holds Python objects.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from softmaxloss.data.arrays import map_array
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "scores.npy")
    ...     np.save(path, [[0.5, 1.5]])
    ...     print(map_array(path))
    [[0.5 1.5]]
    """
    check_input(path)
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except BROKEN as error:
        raise DataError(f"{_broken(path, '', error)}{_end(path)}") from None


def _end(path: Path) -> str:
    """Say after which row a .npy file ends, if its header tells of more."""
    with contextlib.suppress(*BROKEN), path.open("rb") as file:
        old = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        (rows, *rest), by_column, dtype = read(file)
        whole = (path.stat().st_size - file.tell()) // max(1, dtype.itemsize * math.prod(rest))
        if whole < rows and not by_column and not dtype.hasobject:
            return f"; it ends after row {whole} of {rows}"
    return ""


def array_names(path: Path) -> list[str]:
    """List the arrays of a .npz file.

    Raises
    ------
    DataError
        It is no such file, or cut off.
    """
    with _archive(path) as arrays:
        return list(arrays.files)


def read_array(path: Path, name: str) -> NDArray[Any]:
    """Read one array of a .npz file.

    Raises
    ------
    DataError
        There is no array of that name, or it is damaged or holds Python objects.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from softmaxloss.data.arrays import array_names, read_array
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "data.npz")
    ...     np.savez(path, X=[[0.5, 1.5]], y=[1])
    ...     array_names(path), read_array(path, "y")
    (['X', 'y'], array([1]))
    """
    names = array_names(path)
    if name not in names:
        raise DataError(f"{path}: no array {name!r}; the arrays are {listed(names)}")
    with _archive(path, f"array {name!r} ") as arrays:
        return np.asarray(arrays[name])


@contextlib.contextmanager
def _archive(path: Path, subject: str = "") -> Iterator[Any]:
    check_input(path)
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: is not a NumPy .npz file, or is cut off")
    try:
        # Opened here, as NumPy leaves a file open that turns out to be damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            yield arrays
    except BROKEN as error:
        raise _broken(path, subject, error) from None


def _broken(path: Path, subject: str, error: Exception) -> DataError:
    reason = one_line(error)
    if "Python objects" in reason or "Object arrays" in reason:
        return DataError(f"{path}: {subject}holds Python objects, which are never unpickled; save numbers or text")
    return DataError(f"{path}: {subject}is not in NumPy's format, or is damaged or cut off ({reason})")
