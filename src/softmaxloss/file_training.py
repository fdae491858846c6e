"""A model trained from files that may be larger than memory, and evaluated on them, block by block."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softmaxloss.data.array_rows import ArrayRows, dense_rows, open_rows, read_row_labels
from softmaxloss.data.classes import check_classes
from softmaxloss.data.datasets import Dataset, Layout, features_frame, table_dataset
from softmaxloss.data.files import DataError, listed
from softmaxloss.data.parquet_files import ParquetRows, labels_of_files, parquet_paths, row_groups
from softmaxloss.data.row_files import RowFiles
from softmaxloss.data.spool import as_kept
from softmaxloss.data.tables import Table
from softmaxloss.progress import counted
from softmaxloss.rows import spread

if TYPE_CHECKING:
    from softmaxloss.evaluation import Evaluation
    from softmaxloss.persistence import Model

__all__ = [
    "evaluate_files",
    "features_of_batch",
    "open_training_array",
    "open_training_files",
    "prepare_files",
    "stored_table",
]

# Medians, scales and categories are those of at most so many rows to train on, of about so many bytes as numbers.
SAMPLED_ROWS = 100_000
SAMPLED_BYTES = 1 << 26


def open_training_files(
    pattern: str, *, target: str, drop: Sequence[str] = (), categorical: Sequence[str] = ()
) -> Dataset:
    r"""Open Parquet files as a data set: labels in memory, features where they are.

    What its columns are is told by the first rows, and its features are to be prepared by `prepare_files`.

    Parameters
    ----------
    pattern : str
        A file, a folder, or several as in "data/\*.parquet".
    target : str
        The column to predict.
    drop, categorical : sequence of str
        Columns to leave out, and columns to take as text whatever they hold.

    Raises
    ------
    DataError
        There are no such files, or they do not hold what a classifier learns from.
    """
    files = parquet_paths(pattern)
    groups, schema = row_groups(files)
    for option, wanted in (("--target", [target]), ("--drop", drop), ("--categorical", categorical)):
        if absent := [name for name in wanted if name not in schema.names]:
            raise DataError(f"{pattern}: no column {listed(absent)} ({option}); the columns are {listed(schema.names)}")
    labels = labels_of_files(files, target, "text" if target in categorical else None)
    check_classes(labels, f"{pattern}: target {target!r}")
    names = [name for name in schema.names if name not in drop and name and not name.startswith("__index_level_")]
    features = RowFiles(ParquetRows(groups, names), _unprepared, len(names), np.float64)
    first = _table_of(features, np.arange(min(len(features), SAMPLED_ROWS, _rows_sampled(features))), pattern)
    kept = [name for name in categorical if name in names]
    found = table_dataset(first, target, [], kept)
    return dataclasses.replace(found, source=pattern, features=features, labels=labels)


def open_training_array(path: Path, labels: Path, target: str | None = None) -> Dataset:
    """Open a .npy file of features, which is mapped, and read the labels of its rows from another file.

    Parameters
    ----------
    path : Path
        A .npy file of numbers, rows x features.
    labels : Path
        What `read_row_labels` takes.
    target : str, optional
        The column or array of that file.

    Raises
    ------
    DataError
        A file cannot be read, or they do not hold what a classifier learns from.
    """
    features = open_rows(path)
    of_rows, name, subject = read_row_labels(labels, target)
    if len(of_rows) != len(features):
        raise DataError(f"{path}: has {len(features)} rows, but {labels} has {len(of_rows)} labels; expected one a row")
    check_classes(of_rows, subject)
    return Dataset(str(path), features, of_rows, name, Layout("dense", n_features=features.shape[1]))


def prepare_files(pipeline: Any, dataset: Dataset, rows: NDArray[np.intp]) -> Dataset:
    """Fit what comes before a pipeline's classifier to some of the rows to train on, and have all rows pass through it.

    Parameters
    ----------
    pipeline : sklearn.pipeline.Pipeline
        As `build_pipeline` makes it.
    dataset : Dataset
        As `open_training_files` or `open_training_array` opens it.
    rows : array of integers
        The rows to train on, in ascending order.
    """
    files: RowFiles = dataset.features
    chosen = rows[spread(len(rows), min(len(rows), _rows_sampled(files)))]
    is_table = dataset.layout.kind == "table"
    if is_table:
        sample = features_of_batch(_table_of(files, chosen, dataset.source), dataset.layout)
    else:
        sample = files.read(chosen)
    pipeline[0].fit(sample)
    return dataclasses.replace(dataset, features=_through(pipeline[0], files, dataset.layout))


def evaluate_files(model: Model, files: RowFiles, labels: NDArray[Any]) -> Evaluation:
    """Evaluate a model on prepared rows, of which a block is in memory at a time.

    Parameters
    ----------
    model : Model
        A fitted model.
    files : RowFiles
        Features that went through what comes before its classifier.
    labels : array of shape (rows,)
        The class of each row.
    """
    from softmaxloss.evaluation import evaluate

    classes = model.classifier.classes_
    names = [str(name) for name in classes]

    def parts() -> Iterator[Evaluation]:
        for start, X in counted(as_kept(files).blocks(), len(files), "evaluating"):
            codes = np.searchsorted(classes, labels[start : start + len(X)])
            yield evaluate(model.classifier.predict_log_proba(X), codes, class_names=names, first_row=start)

    each = parts()
    total = next(each)
    for part in each:
        total += part
    return total


def stored_table(batch: pa.RecordBatch, path: Path, first: int) -> Table:
    """Return a batch of a file's rows as a table that says where in the file they are."""
    return Table(path, pa.Table.from_batches([batch]), place=lambda row: f"row {first + row + 1}")


def features_of_batch(table: Table, layout: Layout) -> Any:
    """Return the columns that a model wants of some rows, as `read_features` returns them of all."""
    columns = {name: table.column(name, "numbers") for name in layout.numbers}
    return features_frame(table, columns | {name: table.column(name, "text") for name in layout.text})


def _table_of(files: RowFiles, rows: NDArray[np.intp], source: str) -> Table:
    """Read some rows of Parquet files, in ascending order, as a table of their columns."""

    def where(row: int) -> str:
        path, within = files.place(int(rows[row]))
        return f"row {within + 1}" if str(path) == source else f"row {within + 1} of {path}"

    taken = [batch.take(pa.array(of_batch)) for batch, of_batch in files.parts(rows)]
    return Table(Path(source), pa.Table.from_batches(taken), place=where)


def _rows_sampled(files: RowFiles) -> int:
    return min(SAMPLED_ROWS, max(1000, SAMPLED_BYTES // (8 * files.shape[1])))


def _through(preparation: Any, files: RowFiles, layout: Layout) -> RowFiles:
    """Return files whose rows go through a preparation as they are read."""
    n_features = len(preparation.get_feature_names_out())

    def prepared(features: Any) -> NDArray[Any]:
        found = preparation.transform(features)
        dense: NDArray[Any] = found.toarray() if hasattr(found, "toarray") else np.asarray(found)
        return dense

    if isinstance(files.stored, ArrayRows):

        def of_array(batch: NDArray[Any], path: Path, first: int) -> NDArray[Any]:
            return prepared(dense_rows(batch, path, first))

        return files.through(files.stored, of_array, n_features, files.dtype)

    def of_table(batch: pa.RecordBatch, path: Path, first: int) -> NDArray[Any]:
        return prepared(features_of_batch(stored_table(batch, path, first), layout))

    return files.through(ParquetRows(files.stored.groups, [*layout.numbers, *layout.text]), of_table, n_features)


def _unprepared(batch: Any, path: Path, first: int) -> NDArray[Any]:
    raise TypeError("these rows are to be prepared before they are read")
