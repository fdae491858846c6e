"""Files in, features and class labels out, for training a model and for predicting with one."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from softmaxloss.data.arrays import map_array, read_array
from softmaxloss.data.classes import as_classes, check_classes
from softmaxloss.data.columns import Column, ColumnKind
from softmaxloss.data.extremes import extreme, extreme_value
from softmaxloss.data.files import DataError, check_input, known_suffix, listed, one_line
from softmaxloss.data.tables import TABLE_SUFFIXES, Table, read_table

__all__ = [
    "DIGITS",
    "Dataset",
    "Layout",
    "is_array",
    "is_many_files",
    "is_sparse",
    "is_table",
    "read_features",
    "read_own_labels",
    "read_training_data",
    "split_rows",
]

DIGITS = "digits"
SPARSE_SUFFIXES = (".svmlight", ".svm", ".libsvm")
SUFFIXES = (*TABLE_SUFFIXES, ".npz", ".npy", *SPARSE_SUFFIXES)

Features = Any  # pandas.DataFrame, NumPy array or scipy.sparse CSR matrix, for which scikit-learn has no one name
LayoutKind = Literal["table", "dense", "sparse", "pixels"]

# From here on a text column is taken for one of names, identifiers or misread numbers, which the user is told.
MANY_CATEGORIES = 10
MOSTLY_DIFFERENT = 0.8


@dataclass(frozen=True)
class Layout:
    """What features look like: a table with these columns, or a matrix of so many.

    ``zero_based`` is whether an SVMlight file counts its features from 0; such files do not say.
    """

    kind: LayoutKind
    numbers: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    n_features: int = 0
    zero_based: bool = False


@dataclass(frozen=True)
class Dataset:
    """Rows to learn from; ``target`` names what is to be predicted, and ``notes`` are for the user."""

    source: str
    features: Features
    labels: NDArray[Any]
    target: str
    layout: Layout
    notes: tuple[str, ...] = field(default=())

    def rows(self, which: NDArray[np.intp]) -> tuple[Features, NDArray[Any]]:
        """Take some rows' features and labels."""
        features = self.features
        if hasattr(features, "only"):  # in files: chosen, and not read
            return features.only(which), self.labels[which]
        taken = features.iloc[which] if isinstance(features, pd.DataFrame) else features[which]
        return taken, self.labels[which]


def is_table(source: str) -> bool:
    """Tell whether a source has named columns: a table, or Parquet files by a folder or a pattern."""
    return Path(source).suffix.lower() in TABLE_SUFFIXES or is_many_files(source)


def is_many_files(source: str) -> bool:
    """Tell whether a source is a folder or a pattern of files."""
    path = Path(source)
    return source != DIGITS and not path.is_file() and (glob.has_magic(source) or (path.is_dir() and not path.suffix))


def is_array(source: str) -> bool:
    """Tell whether a source is a .npy file, which holds features and no labels."""
    return Path(source).suffix.lower() == ".npy"


def is_sparse(source: str) -> bool:
    """Tell whether a source is an SVMlight file, which holds its own labels."""
    return Path(source).suffix.lower() in SPARSE_SUFFIXES


def read_training_data(
    source: str, *, target: str | None = None, drop: Sequence[str] = (), categorical: Sequence[str] = ()
) -> Dataset:
    """Read features and class labels.

    Parameters
    ----------
    source : str
        "digits" for the data set built into scikit-learn; else a .csv, .parquet, .npz or SVMlight file.
    target : str, optional
        The column with the labels, for a table; the array with them, for .npz ("y" unless said; the features
        are in "X").
    drop, categorical : sequence of str
        Columns of a table to leave out, and columns to take as text whatever they hold.

    Raises
    ------
    DataError
        The file cannot be read, or does not hold what a classifier learns from.

    Examples
    --------
    >>> from softmaxloss.data.datasets import read_training_data
    >>> digits = read_training_data("digits")
    >>> digits.features.shape, digits.labels[:5]
    ((1797, 64), array([0, 1, 2, 3, 4]))
    """
    if source == DIGITS:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        return Dataset(source, pixels, labels, "digit", Layout("pixels", n_features=pixels.shape[1]))
    path = Path(source)
    suffix = _suffix(path)
    if suffix == ".npy":
        raise DataError(f"{path}: holds features without labels; give the file with the labels, too: --labels")
    if suffix == ".npz":
        dataset = _dense_dataset(path, target or "y")
    elif suffix in SPARSE_SUFFIXES:
        dataset = _sparse_dataset(path)
    else:
        if target is None:
            raise TypeError("a table needs a target")
        dataset = table_dataset(read_table(path), target, drop, categorical)
    check_classes(dataset.labels, f"{dataset.source}: target {dataset.target!r}")
    return dataset


def read_features(source: str, layout: Layout) -> Features:
    """Read features of the layout that a model was trained on.

    A table may have its columns in any order, and more columns than the model knows.

    Raises
    ------
    DataError
        The file cannot be read, or its features are others than the model's.
    """
    if source != DIGITS and _suffix(Path(source)) in TABLE_SUFFIXES:
        if layout.kind != "table":
            raise DataError(
                f"{source}: is a table, but the model was trained on {layout.n_features} features without "
                "names; give it a .npz, .npy or SVMlight file"
            )
        table = read_table(Path(source))
        table.require((*layout.numbers, *layout.text), "used in training")
        columns = {name: table.column(name, "numbers") for name in layout.numbers}
        columns |= {name: table.column(name, "text") for name in layout.text}
        return features_frame(table, columns)
    if layout.kind == "table":
        names = (*layout.numbers, *layout.text)
        raise DataError(
            f"{source}: has no named columns, but the model was trained on a table with the columns "
            f"{listed(names)}; give it a {' or '.join(TABLE_SUFFIXES)} file"
        )
    if is_sparse(source):
        if layout.kind != "sparse":
            raise DataError(f"{source}: is sparse, but the model was trained on dense data; give it a .npz file")
        return _sparse_features(Path(source), layout)
    if source == DIGITS:
        features = read_training_data(DIGITS).features
    else:
        path = Path(source)
        features = _dense_features(path, map_array(path) if is_array(source) else read_array(path, "X"))
    if features.shape[1] != layout.n_features:
        raise DataError(
            f"{source}: has {features.shape[1]} features, but the model was trained with {layout.n_features}"
        )
    return features


def read_own_labels(source: str) -> NDArray[Any]:
    """Read the labels that come with the features, in an SVMlight file or the built-in digits.

    Raises
    ------
    DataError
        The file cannot be read, or its labels are no classes.

    Examples
    --------
    >>> from softmaxloss.data.datasets import read_own_labels
    >>> read_own_labels("digits")[:5]
    array([0, 1, 2, 3, 4])
    """
    if source == DIGITS:
        return read_training_data(DIGITS).labels
    path = Path(source)
    return _sparse_labels(path, _load_sparse(path, zero_based=True)[1])


def split_rows(
    dataset: Dataset, test_size: float, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], tuple[str, ...]]:
    """Part the rows into those to train on and those to test on, each class in the same proportion.

    A class of one row is trained on and not tested, which the notes that come third say.

    Raises
    ------
    DataError
        There are too few rows for every class to be in both parts.

    Examples
    --------
    >>> from softmaxloss.data.datasets import read_training_data, split_rows
    >>> train, test, _ = split_rows(read_training_data("digits"), test_size=0.2, seed=0)
    >>> len(train), len(test)
    (1437, 360)
    """
    everything = np.arange(len(dataset.labels))
    if test_size == 0:
        return everything, everything[:0], ()
    from sklearn.model_selection import train_test_split

    classes, class_of_row, counts = np.unique(dataset.labels, return_inverse=True, return_counts=True)
    single = counts[class_of_row] == 1
    shared = everything[~single]
    try:
        train, test = train_test_split(shared, test_size=test_size, random_state=seed, stratify=class_of_row[shared])
    except ValueError as error:
        raise DataError(
            f"{dataset.source}: {len(shared)} rows of {np.count_nonzero(counts > 1)} classes cannot be split "
            f"with --test-size {test_size:g} ({one_line(error)}); choose another, or 0 to train on all rows"
        ) from None
    train = np.sort(np.concatenate([train, everything[single]]))
    absent = np.setdiff1d(class_of_row, class_of_row[train])
    if len(absent):
        raise DataError(
            f"{dataset.source}: --test-size {test_size:g} leaves no row to train on of class "
            f"{str(classes[absent[0]])!r}; choose a smaller one, or 0 to train on all rows"
        )
    names = [str(name) for name in classes[counts == 1]]
    notes = (f"classes with a single row are trained on and not tested: {listed(names)}",) if names else ()
    return train, np.sort(test), notes


def _suffix(path: Path) -> str:
    try:
        return known_suffix(path, SUFFIXES)
    except DataError as error:
        raise DataError(f"{error}, or {DIGITS}, the built-in data") from None


# Tables


def table_dataset(table: Table, target: str, drop: Sequence[str], categorical: Sequence[str]) -> Dataset:
    table.require([target], "--target")
    table.require(drop, "--drop")
    table.require(categorical, "--categorical")
    names = [name for name in table.names if name != target and name not in drop]
    if target in drop or not names:
        raise DataError(f"{table.path}: no column is left to predict {target!r} from")
    classes = table_classes(table, target, "text" if target in categorical else None)
    columns = {name: table.column(name, "text" if name in categorical else None) for name in names}
    numbers = tuple(name for name in names if columns[name].kind != "text")
    text = tuple(name for name in names if columns[name].kind == "text")
    layout = Layout("table", numbers, text, len(names))
    features = features_frame(table, {name: columns[name] for name in (*numbers, *text)})
    notes = [f"columns without a name, left out: {table.unnamed}"] if table.unnamed else []
    notes += [note for name in text if (note := _note_on_categories(name, columns[name]))]
    return Dataset(str(table.path), features, classes, target, layout, tuple(notes))


def table_classes(table: Table, target: str, kind: ColumnKind | None) -> NDArray[Any]:
    def where(row: int) -> str:
        word = table.missing_word(target, row) if missing[row] else ""
        counts = f" ({word!r} counts as missing, unless with --categorical {shlex.quote(target)})"
        return table.where(row) + (counts if word else "")

    labels = table.column(target, kind, label=True)
    missing = labels.missing
    return as_classes(labels.values, f"{table.path}: target {target!r}", where)


def _note_on_categories(name: str, column: Column) -> str:
    """Tell of text that is not of a few categories; "" if it is."""
    values = column.values[~column.missing]
    different = len(set(values))
    if different < max(MANY_CATEGORIES, MOSTLY_DIFFERENT * len(values)):
        return ""
    return (
        f"column {name!r} is text with {different} different values in {len(values)} rows, such as {values[0]!r}; "
        "--drop it, or turn it into numbers"
    )


def features_frame(table: Table, columns: dict[str, Column]) -> pd.DataFrame:
    """Put columns side by side; true/false counts as 1/0."""
    series = {}
    for name, column in columns.items():
        if column.kind == "text":
            series[name] = pd.Series(column.values, dtype=object)
            continue
        series[name] = pd.Series(column.values, dtype=float)
        numbers = series[name].to_numpy()
        wrong = extreme(numbers)
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(f"{table.path}: column {name!r} holds at {table.where(row)} {extreme_value(numbers[row])}")
    return pd.DataFrame(series)


# Matrices


def _dense_dataset(path: Path, target: str) -> Dataset:
    features = _dense_features(path, read_array(path, "X"))
    labels = as_classes(read_array(path, target), f"{path}: target {target!r}", lambda row: f"{target}[{row}]")
    if len(labels) != len(features):
        raise DataError(f"{path}: X has {len(features)} rows, but {target} has {len(labels)} labels")
    return Dataset(str(path), features, labels, target, Layout("dense", n_features=features.shape[1]))


def _dense_features(path: Path, features: NDArray[Any]) -> NDArray[Any]:
    if features.ndim != 2 or not features.size or features.dtype.kind not in "buif":
        raise DataError(
            f"{path}: X has shape {features.shape} and type {features.dtype}; expected rows of numbers, 2-D"
        )
    if features.dtype != np.float32:
        features = features.astype(np.float64)
    wrong = extreme(features)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise DataError(f"{path}: X[{row}, {column}] is {extreme_value(features[row, column])}")
    return features


def _sparse_dataset(path: Path) -> Dataset:
    features, values = _load_sparse(path, zero_based=True)
    # Read as counted from 0; where nothing has the index 0, the file counts from 1.
    zero_based = bool(features.nnz and features.indices.min() == 0)
    if not zero_based:
        features = features[:, 1:]
    if not features.nnz:
        raise DataError(f"{path}: no row holds a feature")
    labels = _sparse_labels(path, values)
    layout = Layout("sparse", n_features=features.shape[1], zero_based=zero_based)
    return Dataset(str(path), features, labels, "label", layout)


def _sparse_labels(path: Path, values: NDArray[np.float64]) -> NDArray[Any]:
    return as_classes(values, f"{path}: the label", lambda row: f"row {row + 1}")


def _sparse_features(path: Path, layout: Layout) -> Features:
    features, _ = _load_sparse(path, zero_based=layout.zero_based)
    if features.shape[1] > layout.n_features:
        last = features.shape[1] - layout.zero_based
        raise DataError(f"{path}: has feature {last}, but the model was trained with {layout.n_features} features")
    features.resize(features.shape[0], layout.n_features)
    return features


def _load_sparse(path: Path, *, zero_based: bool) -> tuple[Features, NDArray[np.float64]]:
    from sklearn.datasets import load_svmlight_file

    check_input(path)
    try:
        features, labels = load_svmlight_file(str(path), zero_based=zero_based)
    except (ValueError, OverflowError, OSError) as error:
        raise DataError(f"{path}: is not an SVMlight file, or is damaged or cut off ({one_line(error)})") from None
    if not features.shape[0]:
        raise DataError(f"{path}: has no rows")
    wrong = extreme(features.data) | np.isnan(features.data)
    if wrong.any():
        entry = int(wrong.argmax())
        row = int(np.searchsorted(features.indptr, entry, side="right"))
        index, value = features.indices[entry] + (not zero_based), features.data[entry]
        is_what = "not a number" if np.isnan(value) else extreme_value(value)
        raise DataError(f"{path}: feature {index} of row {row} is {is_what}")
    return features, labels
