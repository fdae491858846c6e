"""Class labels of the values that a column or an array holds, and what cannot be one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from softmaxloss.data.files import DataError

__all__ = ["as_classes", "check_classes"]

# Whole numbers from here on are not all told apart in float64, which holds the numbers of a table.
EXACT_INTEGERS = 2**53


def as_classes(values: NDArray[Any], subject: str, where: Callable[[int], str]) -> NDArray[Any]:
    """Make class labels of an array's or column's values: integers, booleans or strings.

    Whole numbers that are stored as floats become integers.

    Parameters
    ----------
    values : array of shape (rows,)
        Numbers, booleans or text; NaN where one is missing.
    subject : str
        The file and column, to begin a message with.
    where : callable
        Says where a row is to be found.

    Raises
    ------
    DataError
        A label is missing, or the values are no class labels.

    Examples
    --------
    >>> import numpy as np
    >>> from softmaxloss.data.classes import as_classes
    >>> as_classes(np.array([1.0, 0.0]), "iris.csv: column 'species'", str)
    array([1, 0])
    """
    if values.ndim != 1 or values.dtype.kind not in "buifSUO":
        raise DataError(
            f"{subject} has shape {values.shape} and type {values.dtype}; expected one label for each row, "
            "integer or text"
        )
    missing = np.asarray(pd.isna(values))
    if missing.any():
        first, more = int(missing.argmax()), int(missing.sum()) - 1
        others = f" and {more} more" if more else ""
        raise DataError(f"{subject} has no value at {where(first)}{others}; every row needs a class")
    if values.dtype.kind == "O":
        return values.astype(bool) if isinstance(values[0], bool) else values.astype(str)
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8", "replace")
    return _whole(values, subject, where) if values.dtype.kind == "f" else values


def _whole(values: NDArray[Any], subject: str, where: Callable[[int], str]) -> NDArray[np.int64]:
    fractional = (values != np.rint(values)) | np.isinf(values)
    if fractional.any():
        row = int(fractional.argmax())
        raise DataError(
            f"{subject} holds {values[row]:g} at {where(row)}, which is a quantity and not a class; a "
            "classifier predicts classes, so give it whole numbers or text"
        )
    large = np.abs(values) >= EXACT_INTEGERS
    if large.any():
        row = int(large.argmax())
        raise DataError(
            f"{subject} holds {values[row]:.0f} at {where(row)}; whole numbers of 2**53 or more are not all told "
            "apart in float64"
        )
    return values.astype(np.int64)


def check_classes(labels: NDArray[Any], subject: str) -> None:
    """Check that a classifier can learn labels.

    Raises
    ------
    DataError
        They are all the same, or all different.
    """
    rows, classes = len(labels), len(np.unique(labels))
    if classes == 1:
        raise DataError(f"{subject} holds one class only, {str(labels[0])!r}; a classifier needs two or more")
    if classes == rows:
        raise DataError(
            f"{subject} has another value in each of its {rows} rows, so it is an identifier or a quantity "
            "and not a class; choose another target"
        )
