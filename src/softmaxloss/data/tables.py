"""CSV and Parquet files in, tables with named columns out."""

from __future__ import annotations

import codecs
import csv
import itertools
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from softmaxloss.data.columns import (
    MISSING_WORDS,
    Column,
    ColumnError,
    ColumnKind,
    convert_text,
    convert_typed,
    without_missing,
)
from softmaxloss.data.files import DataError, check_input, known_suffix, listed, one_line

__all__ = ["TABLE_SUFFIXES", "Table", "read_table"]

TABLE_SUFFIXES = (".csv", ".parquet")

DELIMITERS = ",;\t|"
# Records that must agree on the delimiter: enough to tell it, few enough to cost nothing.
DELIMITER_RECORDS = 50

# A row longer than pyarrow's block is an error; this is wide enough for 100 000 columns of 160 characters.
CSV_BLOCK_BYTES = 1 << 24
SCAN_BYTES = 1 << 20


@dataclass(frozen=True)
class Table:
    """A table whose columns are converted when asked for: a column that nobody uses may hold anything.

    ``data`` holds text only if it comes from a CSV file, whose ``delimiter`` is given then, and the file's
    own types if it comes from a Parquet file. ``unnamed`` counts the columns left out for want of a name, and ``place``
    says where a row is to be found if the table is only some of a file's rows.
    """

    path: Path
    data: pa.Table
    delimiter: str | None = None
    unnamed: int = 0
    place: Callable[[int], str] | None = None

    @property
    def names(self) -> list[str]:
        """The columns' names, in the file's order."""
        return list(self.data.column_names)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return int(self.data.num_rows)

    def require(self, names: Iterable[str], why: str) -> None:
        """Check that columns are there.

        Raises
        ------
        DataError
            Some are not; the message names them, says why they are needed and lists those there are.
        """
        there = set(self.names)
        absent = [name for name in names if name not in there]
        if absent:
            word = "column" if len(absent) == 1 else "columns"
            raise DataError(f"{self.path}: no {word} {listed(absent)} ({why}); the columns are {listed(self.names)}")

    def where(self, row: int) -> str:
        """Say where to find a row (counted from 0) for a person who opens the file."""
        if self.place is not None:
            return self.place(row)
        if self.delimiter is None:
            return f"row {row + 1}"
        records = _records(self.path, self.delimiter)
        return f"line {next(itertools.islice(records, row + 1, None))[0]}"

    def missing_word(self, name: str, row: int) -> str:
        """Give the word, such as "NA", for which a CSV file's field counts as missing; "" if there is none."""
        field = "" if self.delimiter is None else str(self.data[name][row]).strip()
        return field if field in MISSING_WORDS else ""

    def column(self, name: str, kind: ColumnKind | None = None, *, label: bool = False) -> Column:
        """Convert a column, to "numbers" or "text" if asked to, or else to what its values are.

        Of a ``label`` asked for as text only an empty field of a CSV file is missing: "None" may be a class.

        Raises
        ------
        DataError
            The values are of mixed kinds, dates, of a type that is no cell's, or not of the kind asked for.
        """
        values = self.data[name]
        try:
            if self.delimiter is None:
                return convert_typed(values, kind)
            fields = without_missing(values, words=not (label and kind == "text"))
            return convert_text(fields, kind, decimal_comma=self.delimiter == ";")
        except ColumnError as error:
            place = "" if error.row is None else self.where(error.row)
            advice = "" if kind else error.target_advice if label else error.advice
            advice = advice and f"{advice} {shlex.quote(name)}"
            raise DataError(f"{self.path}: column {name!r} {error.before}{place}{error.after}{advice}") from None


def read_table(path: Path) -> Table:
    r"""Read a CSV or Parquet file, told by its suffix.

    A CSV file is UTF-8 (a byte order mark is fine), its first line names the columns, and its fields are
    separated by commas, semicolons, tabs or bars, whichever fits; with semicolons the decimal mark may be a
    comma. Blanks around a field do not count. A column whose name is empty, which is how pandas writes a row
    index, is left out.

    Raises
    ------
    DataError
        The file cannot be read as a table with named columns and at least one row.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from softmaxloss.data.tables import read_table
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "iris.csv")
    ...     _ = path.write_text("sepal;species\n5,1;setosa\n;virginica\n")
    ...     table = read_table(path)
    ...     table.names, table.column("sepal").values, table.column("species").kind
    (['sepal', 'species'], array([5.1, nan]), 'text')
    """
    read = {".csv": _read_csv, ".parquet": _read_parquet}[known_suffix(path, TABLE_SUFFIXES)]
    check_input(path)
    table = read(path)
    if not table.names:
        raise DataError(f"{path}: has no named column")
    twice = [name for name, count in Counter(table.names).items() if count > 1]
    if twice:
        raise DataError(f"{path}: more than one column is named {listed(twice)}; rename all but one")
    if not table.rows:
        raise DataError(f"{path}: has columns but no rows")
    return table


def _read_parquet(path: Path) -> Table:
    try:
        data = pa.parquet.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: is not a Parquet file, or is cut off ({one_line(error)})") from None
    # The long name is what pandas calls a row index that has none.
    named = [bool(name) and not name.startswith("__index_level_") for name in data.column_names]
    return Table(path, data.select(_positions(named)), unnamed=named.count(False))


def _read_csv(path: Path) -> Table:
    _check_text(path)
    delimiter = _delimiter(path)
    header = next(_records(path, delimiter), (1, []))[1]
    names = [name.strip() for name in header]
    _check_header(path, names)
    # Every column as text: what a column holds is decided by all its rows, not by those of the first block.
    text = pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False)
    try:
        data = pa.csv.read_csv(
            path,
            read_options=pa.csv.ReadOptions(block_size=CSV_BLOCK_BYTES),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=text,
        )
    except pa.ArrowException as error:
        raise _ragged(path, delimiter) or DataError(f"{path}: is not a CSV file ({one_line(error)})") from None
    named = [bool(name) for name in names]
    return Table(path, data.rename_columns(names).select(_positions(named)), delimiter, named.count(False))


def _positions(wanted: Sequence[bool]) -> list[int]:
    return [index for index, want in enumerate(wanted) if want]


def _check_text(path: Path) -> None:
    """Refuse what is not text before a parser makes something of it, and a quote that never ends."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = quotes = 0
    with path.open("rb") as file:
        while block := file.read(SCAN_BYTES):
            if b"\0" in block:
                raise DataError(f"{path}: is not text (a zero byte at {read + block.index(0)})")
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, error.object[error.start], read - pending + error.start) from None
            quotes += block.count(b'"')
            read += len(block)
    if unfinished := decoder.getstate()[0]:
        raise _not_utf8(path, unfinished[0], read - len(unfinished))
    if quotes % 2:
        _check_quotes(path)


def _not_utf8(path: Path, byte: int, position: int) -> DataError:
    return DataError(f"{path}: is not text in UTF-8 (byte 0x{byte:02x} at {position}); save it in UTF-8")


def _check_quotes(path: Path) -> None:
    line = 0
    records = _records(path, _delimiter(path), strict=True)
    try:
        for begins, _ in records:
            line = begins
    except csv.Error as error:
        raise DataError(
            f"{path}: a quoted field after line {line} is broken ({error}); is the file damaged or cut off?"
        ) from None


def _records(path: Path, delimiter: str, *, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Give each record that is not blank, with the line on which it begins."""
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=strict)
        line = 1
        for record in reader:
            if record:
                yield line, record
            line = reader.line_num + 1


def _delimiter(path: Path) -> str:
    """Choose the delimiter that splits the first records into equally many fields, the most if several do.

    A ragged file agrees with none: its header decides then, and the error that follows names the line.
    """

    def fit(delimiter: str) -> tuple[int, int]:
        records = itertools.islice(_records(path, delimiter), DELIMITER_RECORDS)
        counts = [len(record) for _, record in records]
        agreed = counts[0] if len(set(counts)) == 1 and counts[0] > 1 else 0
        return agreed, counts[0] if counts else 0

    return max(DELIMITERS, key=fit)


def _check_header(path: Path, names: Sequence[str]) -> None:
    """Refuse a first line that holds data: its row would be lost without a word."""
    if not any(names):
        raise DataError(f"{path}: the first line is to name the columns, and names none")
    # Distinct whole numbers can be names: users of pandas number their columns, and
    # classes are numbers too.
    counted = 1 < len(set(names)) == len(names) and all(name.isdecimal() for name in names)
    numeric = pd.to_numeric(pd.Series(names, dtype=object), errors="coerce").notna().all()
    if numeric and not counted:
        raise DataError(
            f"{path}: the first line holds numbers ({listed(names)}) and is to name the columns; add a header"
        )


def _ragged(path: Path, delimiter: str) -> DataError | None:
    records = _records(path, delimiter)
    expected = len(next(records)[1])
    for line, record in records:
        if len(record) != expected:
            found = "1 field" if len(record) == 1 else f"{len(record)} fields"
            return DataError(
                f"{path}: line {line} has {found}, the header has {expected}; is the file damaged or cut off?"
            )
    return None
