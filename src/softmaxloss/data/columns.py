"""What the values of a table's column are: numbers, true/false or text, decided by all rows alike."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

__all__ = [
    "MISSING_WORDS",
    "Column",
    "ColumnError",
    "ColumnKind",
    "convert_text",
    "convert_typed",
    "without_missing",
]

ColumnKind = Literal["numbers", "booleans", "text"]

# What stands for a missing value in a CSV file, as an empty field does: pandas' list, so that a file means the
# same in both.
MISSING_WORDS = [
    *("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
]

DATE = (
    r"^(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})"  # 2024-05-31, 31.5.2024, 5/31/2024
    r"([T ]\d{1,2}:\d{2}.*)?$"  # and a time of day
)


@dataclass(frozen=True)
class Column:
    """The values of one column, all of one kind.

    ``values`` is float64 ("numbers"), or an object array of bool ("booleans") or str ("text"), and a missing
    value is NaN in each.
    """

    kind: ColumnKind
    values: NDArray[Any]

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Which values are missing."""
        return np.asarray(pd.isna(self.values))


class ColumnError(ValueError):
    """What is wrong with a column, to be completed by the one who knows its name and file.

    The sentence is ``before``, then the place of ``row`` if one is given, then ``after``. The ways out when
    training, which end in the option that the column's name completes, are ``advice`` for a feature and
    ``target_advice`` for what is to be predicted.
    """

    def __init__(
        self, before: str, row: int | None = None, after: str = "", *, advice: str = "", target_advice: str = ""
    ) -> None:
        super().__init__(before)
        self.before, self.row, self.after = before, row, after
        self.advice, self.target_advice = advice, target_advice


def without_missing(fields: pa.ChunkedArray, *, words: bool = True) -> pa.ChunkedArray:
    """Take the fields of a CSV file: cut the blanks around them, and make null of what stands for nothing.

    Without ``words`` only an empty field does, and "NA" or "None" is text.
    """
    trimmed = pc.utf8_trim_whitespace(fields)
    nothing = pa.array(["", *MISSING_WORDS] if words else [""])
    return pc.if_else(pc.is_in(trimmed, value_set=nothing), pa.scalar(None, pa.string()), trimmed)


def convert_text(values: pa.ChunkedArray, kind: ColumnKind | None, *, decimal_comma: bool = False) -> Column:
    """Find out what text stands for: numbers, true/false, or nothing but itself.

    Text that is a whole number loses a ".0" at its end, which 1 gets when it was once in a column of floats.

    Parameters
    ----------
    values : ChunkedArray of strings
        The fields, null where a value is missing.
    kind : {"numbers", "text"}, optional
        What the values have to be, if that is known.
    decimal_comma : bool
        Whether 1,5 is the number 1.5.

    Raises
    ------
    ColumnError
        The values are of mixed kinds, dates, or not of the kind asked for.

    Examples
    --------
    >>> import pyarrow as pa
    >>> from softmaxloss.data.columns import convert_text
    >>> convert_text(pa.chunked_array([["1.5", None, "2e1"]]), None).values
    array([ 1.5,  nan, 20. ])
    >>> convert_text(pa.chunked_array([["yes", "no"]]), None).kind
    'text'
    """
    if kind == "text":
        return _text(values, decimal_comma=decimal_comma)
    fields = pc.replace_substring(values, ",", ".") if decimal_comma else values
    with contextlib.suppress(pa.ArrowInvalid):
        return _numbers(fields.cast(pa.float64()))
    distinct = fields.unique().drop_null()
    if set(pc.utf8_lower(distinct).to_pylist()) <= {"true", "false"}:
        return convert_typed(pc.equal(pc.utf8_lower(fields), "true"), kind)
    numeric = distinct.filter(pa.array(~np.isnan(_parsed(distinct))))
    if kind is None and not len(numeric):
        refuse_dates(distinct)
        return _text(values)
    if len(numeric) < len(distinct):
        raise _mixed(fields, numeric, kind)
    # Some way to write a number that pandas reads and pyarrow does not.
    return _numbers(pa.chunked_array([_parsed(fields)]))


def convert_typed(values: pa.ChunkedArray, kind: ColumnKind | None) -> Column:
    """Convert values that have a type of their own, as Parquet files and Arrow tables do.

    Text stays text unless numbers are asked for.

    Raises
    ------
    ColumnError
        The values are dates, of a type that is no table cell, or not of the kind asked for.

    Examples
    --------
    >>> import pyarrow as pa
    >>> from softmaxloss.data.columns import convert_typed
    >>> convert_typed(pa.chunked_array([[True, None]]), None).values
    array([True, nan], dtype=object)
    """
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if str(values.type) == "string_view":  # pyarrow computes little with it
        values = values.cast(pa.large_string())
    if kind == "text":
        return _text(values)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        if kind == "numbers":
            return convert_text(values, kind)
        refuse_dates(values.unique().drop_null())
        return _text(values)
    if pa.types.is_temporal(values.type):
        raise _dates(kind)
    if pa.types.is_boolean(values.type) and kind is None:
        return Column("booleans", _objects(values))
    return _numbers(values)


def refuse_dates(distinct: pa.Array) -> None:
    """Raise ColumnError if all of some texts are dates: one category for each day would say nothing."""
    if len(distinct) and pc.all(pc.match_substring_regex(distinct, DATE)).as_py():
        raise _dates()


def _dates(kind: ColumnKind | None = None) -> ColumnError:
    return ColumnError(
        "must hold numbers, but holds dates" if kind == "numbers" else "holds dates",
        advice="; turn them into numbers first, such as days, or leave the column out with --drop",
        target_advice="; take each date as a class with --categorical",
    )


def _mixed(fields: pa.ChunkedArray, numeric: pa.Array, kind: ColumnKind | None) -> ColumnError:
    is_number = pc.is_in(fields, value_set=numeric)
    is_text = pc.and_not(pc.is_valid(fields), is_number)
    text_is_odd = kind == "numbers" or pc.sum(is_number).as_py() >= pc.sum(is_text).as_py()
    row = pc.index(is_text if text_is_odd else is_number, True).as_py()
    holds = f" holds {fields[row].as_py()!r}"
    if kind == "numbers":
        return ColumnError("must hold numbers, but ", row, holds)
    advice = "; correct it, or take the column as text with --categorical"
    return ColumnError("mixes numbers and text: ", row, holds, advice=advice, target_advice=advice)


def _numbers(values: pa.ChunkedArray) -> Column:
    try:
        # Not "safe", as that refuses whole numbers of more than 53 bits.
        return Column("numbers", values.cast(pa.float64(), safe=False).to_numpy())
    except pa.ArrowException:
        raise _unusable(values) from None


def _text(values: pa.ChunkedArray, *, decimal_comma: bool = False) -> Column:
    try:
        text = values.cast(pa.string())
    except pa.ArrowException:
        raise _unusable(values) from None
    whole = r"^([+-]?\d+)[.,]0$" if decimal_comma else r"^([+-]?\d+)\.0$"
    return Column("text", _objects(pc.replace_substring_regex(text, whole, r"\1")))


def _unusable(values: pa.ChunkedArray) -> ColumnError:
    return ColumnError(
        f"holds values of type {values.type}, neither numbers nor text", advice="; leave the column out with --drop"
    )


def _objects(values: pa.ChunkedArray) -> NDArray[Any]:
    objects: NDArray[Any] = np.array(values.to_numpy(zero_copy_only=False), dtype=np.object_)
    # NaN rather than None: scikit-learn takes it for a missing value in text, too.
    objects[pd.isna(objects)] = np.nan
    return objects


def _parsed(fields: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(pd.to_numeric(pd.Series(_objects(fields), dtype=object), errors="coerce"), np.float64)
