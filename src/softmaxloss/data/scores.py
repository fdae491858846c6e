"""Files of scores and of labels in, for an evaluation; files of probabilities out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from softmaxloss.data.arrays import array_names, map_array, read_array
from softmaxloss.data.classes import EXACT_INTEGERS, as_classes
from softmaxloss.data.datasets import DIGITS, SPARSE_SUFFIXES, is_many_files, read_own_labels
from softmaxloss.data.files import DataError, check_input, known_suffix, listed, replacing
from softmaxloss.data.tables import TABLE_SUFFIXES, read_table

__all__ = [
    "PREDICTION",
    "PREDICTION_SUFFIXES",
    "Scores",
    "check_predictions",
    "has_one_array_of_labels",
    "look_like_probabilities",
    "read_labels",
    "read_scores",
    "write_predictions",
]

PREDICTION = "prediction"
SCORE_SUFFIXES = (".npy", ".npz", *TABLE_SUFFIXES)
LABEL_SUFFIXES = (*SCORE_SUFFIXES, ".txt", *SPARSE_SUFFIXES)
PREDICTION_SUFFIXES = (*TABLE_SUFFIXES, ".npz", ".npy")

# How far from 1 a row of probabilities may sum: each of 2 decimals is off by 0.005 at most, and more than 0.1 in
# all is no longer the work of rounding. What lies in [0, 1] and comes so near in each row is not taken for logits.
ROUNDING, LEAST_TOLERANCE, MOST_TOLERANCE = 0.005, 0.011, 0.1

# As texts spell a whole number: exactly, or as a float does.
INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
INT64 = np.iinfo(np.int64)
# Rows are looked at in blocks of this many bytes, so that a memory map may be larger than memory.
BLOCK_BYTES = 1 << 22


@dataclass(frozen=True)
class Scores:
    """Scores (rows, classes), a memory map or `RowFiles` where the file allows it, and the classes' names if any."""

    path: Path
    values: Any
    classes: list[str] | None = None

    def blocks(self, nbytes: int = BLOCK_BYTES) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield scores in blocks of about so many bytes, each after the number of its first row."""
        return self.values.blocks() if hasattr(self.values, "blocks") else _blocks(self.values, nbytes)


def read_scores(path: Path) -> Scores:
    r"""Read scores: a .npy file, a .npz file's "probabilities", "logits", "scores" or only array, or tables.

    Tables are a CSV or Parquet file, or a folder or pattern of Parquet files, which are read as they are used.

    A table has a column for each class, named by it; the column "prediction", which the predict command
    adds, is left out. The array "classes" of a .npz file names the classes.

    Raises
    ------
    DataError
        The file cannot be read, or does not hold numbers for rows and classes.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from softmaxloss.data.scores import read_scores
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "scores.csv")
    ...     _ = path.write_text("cat,dog,prediction\n0.9,0.1,cat\n")
    ...     scores = read_scores(path)
    ...     scores.values, scores.classes
    (array([[0.9, 0.1]]), ['cat', 'dog'])
    """
    suffix = ".parquet" if is_many_files(str(path)) else known_suffix(path, SCORE_SUFFIXES)
    if suffix == ".parquet":
        from softmaxloss.data.score_files import open_scores

        scores = Scores(path, *open_scores(path, without=[PREDICTION]))
    elif suffix == ".npy":
        scores = Scores(path, map_array(path))
    elif suffix == ".npz":
        scores = _archive_scores(path)
    else:
        scores = _table_scores(path)
    shape, dtype = scores.values.shape, scores.values.dtype
    if len(shape) != 2 or dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise DataError(f"{path}: has shape {shape} and type {dtype}; expected numbers in rows x classes, 2-D")
    if 0 in shape:
        raise DataError(f"{path}: has shape {shape}, so there is nothing to evaluate")
    return scores


def _archive_scores(path: Path) -> Scores:
    values = read_array(path, _choose(path, ("probabilities", "logits", "scores")))
    if "classes" not in array_names(path):
        return Scores(path, values)
    classes = [str(name) for name in read_array(path, "classes").ravel()]
    if values.ndim == 2 and len(classes) != values.shape[1]:
        raise DataError(f"{path}: names {len(classes)} classes, but its scores have {values.shape[1]} columns")
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise DataError(f"{path}: more than one class is named {listed(twice)}")
    return Scores(path, values, classes)


def _choose(path: Path, wanted: Sequence[str]) -> str:
    names = array_names(path)
    found = [name for name in wanted if name in names] or names
    if len(found) != 1:
        raise DataError(f"{path}: its arrays are {listed(names)}; expected one of {listed(wanted)}")
    return found[0]


def _table_scores(path: Path) -> Scores:
    table = read_table(path)
    classes = [name for name in table.names if name != PREDICTION]
    if not classes:
        raise DataError(f"{path}: has no column of scores")
    values = np.empty((table.rows, len(classes)))
    for index, name in enumerate(classes):
        values[:, index] = table.column(name, "numbers").values
    return Scores(path, values, classes)


def has_one_array_of_labels(source: Path) -> bool:
    """Tell whether a source of labels has no columns or arrays to choose from."""
    return str(source) == DIGITS or source.suffix.lower() in (".npy", ".txt", *SPARSE_SUFFIXES)


def read_labels(path: Path, scores: Scores, *, target: str | None = None, ignore_index: int = -100) -> NDArray[Any]:
    """Read the label of each row of scores, as the index of its class.

    Where the scores name their classes, a label is matched with these names: text with text, and numbers with
    names that are all whole numbers. Other labels are indices already, and are not checked here.

    Parameters
    ----------
    path : Path
        A .npy array, a .npz file's "labels", "y" or only array, a .txt file with a label on each line, a
        table, an SVMlight file, or "digits".
    scores : Scores
        What the labels belong to.
    target : str, optional
        The column of a table that has more than one, or the array of a .npz file.
    ignore_index : int
        A label that stays as it is.

    Raises
    ------
    DataError
        The file cannot be read, has not a label for each row of the scores, or holds one that is no class, or
        that is both the name of a class and `ignore_index`.
    """
    labels, subject, where = _raw_labels(path, target)
    rows = len(scores.values)
    if len(labels) != rows:
        raise DataError(f"{path}: has {len(labels)} labels, but {scores.path} has {rows} rows; expected one a row")
    if labels.dtype.kind == "b":
        labels = labels.astype(str)
    if labels.dtype.kind == "U":
        for names in _spellings(scores.classes or []):
            found, lost = _matched(labels, pd.Index(names, dtype=object), scores, ignore_index)
            if not lost.any():
                return found
        numbers, words = _numbers(labels)
        if words.any():
            raise _unmatched(labels, lost & words if (lost & words).any() else lost, scores, subject, where)
        labels = numbers
    numbered, words = _numbers(np.array(scores.classes or [], dtype=str))
    if not len(numbered) or words.any() or len(np.unique(numbered)) < len(numbered):
        return labels
    found, lost = _matched(labels, pd.Index(numbered), scores, ignore_index)
    if lost.any():
        raise _unmatched(labels, lost, scores, subject, where)
    return found


def _raw_labels(path: Path, target: str | None) -> tuple[NDArray[Any], str, Callable[[int], str]]:
    """Give labels as integers or text, what to call them in a message, and where each is to be found."""
    if str(path) == DIGITS:
        return read_own_labels(DIGITS), f"{DIGITS}:", lambda row: f"row {row + 1}"
    suffix = known_suffix(path, LABEL_SUFFIXES)
    if suffix == ".txt":
        return _lines(path), f"{path}:", lambda row: f"line {row + 1}"
    if suffix in TABLE_SUFFIXES:
        table = read_table(path)
        if target is None and len(table.names) > 1:
            raise DataError(
                f"{path}: has several columns; name that of the labels with --target: {listed(table.names)}"
            )
        name = target or table.names[0]
        table.require([name], "--target")
        subject = f"{path}: column {name!r}"
        return as_classes(table.column(name, "text", label=True).values, subject, table.where), subject, table.where
    if suffix in SPARSE_SUFFIXES:
        return read_own_labels(str(path)), f"{path}: the label", lambda row: f"row {row + 1}"
    if suffix == ".npy":
        values, subject = map_array(path), f"{path}:"
    else:
        name = target or _choose(path, ("labels", "y"))
        values, subject = read_array(path, name), f"{path}: array {name!r}"

    def where(row: int) -> str:
        return f"index {row}"

    return as_classes(values, subject, where), subject, where


def _lines(path: Path) -> NDArray[np.str_]:
    check_input(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not text in UTF-8 (byte {error.start}); save it in UTF-8") from None
    labels = [line.strip() for line in lines]
    if "" in labels:
        raise DataError(f"{path}: has no label on line {labels.index('') + 1}")
    return np.array(labels, dtype=str)


def _spellings(classes: list[str]) -> Iterator[list[str]]:
    """Give the names of classes, and then without the ".0" that text in a table has lost."""
    yield classes
    shorter = [name[:-2] if name.endswith(".0") and INTEGER.fullmatch(name[:-2]) else name for name in classes]
    if len(set(shorter)) == len(shorter):
        yield shorter


def _matched(
    labels: NDArray[Any], classes: pd.Index[Any], scores: Scores, ignore_index: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Find each label among the classes, and tell which ones are not there."""
    ignored = labels == (str(ignore_index) if labels.dtype.kind == "U" else ignore_index)
    found = np.asarray(classes.get_indexer(pd.Index(labels, dtype=classes.dtype)), np.int64)
    if (ignored & (found >= 0)).any():
        raise DataError(
            f"{scores.path}: a class is named {ignore_index}, which is the label of rows to leave out; give rows to "
            "leave out another label with --ignore-index"
        )
    lost = (found < 0) & ~ignored
    found[ignored] = ignore_index
    return found, lost


def _numbers(texts: NDArray[np.str_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Give the whole numbers that texts stand for, true/false as 1/0, and tell which texts stand for none."""
    lower = np.char.lower(texts)
    if np.isin(lower, ["true", "false"]).all():
        return np.asarray(lower == "true", np.int64), np.zeros(len(texts), np.bool_)
    codes, distinct = pd.factorize(pd.Series(texts, dtype=object))
    numbers = [_number(text) for text in distinct]
    words = np.array([number is None for number in numbers], np.bool_)
    return np.array([number or 0 for number in numbers], np.int64)[codes], words[codes]


def _number(text: str) -> int | None:
    if INTEGER.fullmatch(text):
        number = int(text)
        return number if INT64.min <= number <= INT64.max else None
    if not FLOAT.fullmatch(text):
        return None
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < EXACT_INTEGERS else None


def _unmatched(
    labels: NDArray[Any],
    lost: NDArray[np.bool_],
    scores: Scores,
    subject: str,
    where: Callable[[int], str],
) -> DataError:
    row = int(lost.argmax())
    holds = f"{subject} holds {str(labels[row])!r} at {where(row)}"
    if scores.classes is None:
        return DataError(
            f"{holds}, but {scores.path} does not name its classes; give class indices, or scores in a table "
            "or .npz file that names them"
        )
    return DataError(f"{holds}, which is none of the classes of {scores.path}: {listed(scores.classes)}")


def look_like_probabilities(scores: Scores) -> bool:
    """Tell whether all rows lie in [0, 1] and sum to 1 but for rounding, rows with NaN left aside.

    Reading ends at the first block of rows with one that does not, which with logits is the first of all.

    Examples
    --------
    >>> import numpy as np
    >>> from pathlib import Path
    >>> from softmaxloss.data.scores import Scores, look_like_probabilities
    >>> look_like_probabilities(Scores(Path("p.npy"), np.array([[0.25, 0.75], [0.33, 0.66]])))
    True
    >>> look_like_probabilities(Scores(Path("z.npy"), np.array([[0.25, 0.75], [1.0, 2.0]])))
    False
    """
    tolerance = min(max(ROUNDING * scores.values.shape[1], LEAST_TOLERANCE), MOST_TOLERANCE)
    some = False
    for _, block in scores.blocks():
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf, and logits of 1e308
            sums = block.sum(axis=1, dtype=np.float64)
        numbers = ~np.isnan(block).any(axis=1)
        distribution = (np.abs(sums - 1) <= tolerance) & (block.min(axis=1) >= 0)
        if not distribution[numbers].all():
            return False
        some = some or bool(numbers.any())
    return some


def _blocks(values: NDArray[Any], nbytes: int) -> Iterator[tuple[int, NDArray[Any]]]:
    step = max(1, nbytes // (values.shape[1] * values.itemsize))
    for start in range(0, len(values), step):
        yield start, values[start : start + step]


def check_predictions(path: Path, classes: Sequence[str]) -> None:
    """Check that predictions of these classes can be written to a file of this name, and read again.

    Raises
    ------
    DataError
        Its suffix is not known, or a column of the table would have no name or that of another, in which blanks
        around a name do not count.
    """
    if known_suffix(path, PREDICTION_SUFFIXES) not in TABLE_SUFFIXES:
        return
    advice = "write to a .npz or .npy file instead"
    names = Counter(name.strip() for name in classes)
    if PREDICTION in names:
        raise DataError(f"{path}: a class has the name of the column {PREDICTION!r}; {advice}")
    if "" in names:
        raise DataError(f"{path}: a class has an empty name, which no column of a table can have; {advice}")
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise DataError(f"{path}: names of classes differ in blanks only ({listed(twice)}); {advice}")


def write_predictions(
    path: Path, probabilities: NDArray[np.float64], classes: NDArray[Any], predictions: NDArray[Any]
) -> None:
    """Write probabilities and predicted classes, in the form that the suffix says, whole or not at all.

    A table has a column for each class, named by it, and the column "prediction"; a .npz file has the arrays
    "probabilities", "classes" and "prediction"; a .npy file has the probabilities only.

    Raises
    ------
    DataError
        The file cannot be written.
    """
    suffix = known_suffix(path, PREDICTION_SUFFIXES)
    with replacing(path) as temporary:
        if suffix == ".npy":
            np.save(temporary, probabilities)
        elif suffix == ".npz":
            np.savez(temporary, probabilities=probabilities, classes=classes, prediction=predictions)
        else:
            frame = pd.DataFrame(probabilities, columns=[str(name) for name in classes])
            frame[PREDICTION] = predictions
            if suffix == ".csv":
                frame.to_csv(temporary, index=False)
            else:
                frame.to_parquet(temporary, engine="pyarrow", index=False)
