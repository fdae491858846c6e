"""A model trained from Parquet files that may be larger than memory, and evaluated on them, block by block."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from softmaxloss.data.classes import check_classes
from softmaxloss.data.datasets import Dataset, Layout, features_frame, table_dataset
from softmaxloss.data.files import DataError, listed
from softmaxloss.data.row_files import RowFiles, labels_of_files, parquet_paths, row_groups
from softmaxloss.data.tables import Table
from softmaxloss.progress import counted
from softmaxloss.rows import spread

if TYPE_CHECKING:
    from softmaxloss.evaluation import Evaluation
    from softmaxloss.persistence import Model

__all__ = ["evaluate_files", "open_features", "open_training_files", "predict_files", "prepare_files"]

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
    features = RowFiles(groups, names, _unprepared, len(names), np.float64)
    first = Table(Path(pattern), features.table(np.arange(min(len(features), SAMPLED_ROWS, _rows_sampled(names)))))
    kept = [name for name in categorical if name in names]
    found = table_dataset(first, target, [], kept)
    return dataclasses.replace(found, source=pattern, features=features, labels=labels)


def prepare_files(pipeline: Any, dataset: Dataset, rows: NDArray[np.intp]) -> Dataset:
    """Fit what comes before a pipeline's classifier to some of the rows to train on, and have all rows pass through it.

    Parameters
    ----------
    pipeline : sklearn.pipeline.Pipeline
        As `build_pipeline` makes it.
    dataset : Dataset
        As `open_training_files` opens it.
    rows : array of integers
        The rows to train on, in ascending order.
    """
    files: RowFiles = dataset.features
    chosen = rows[spread(len(rows), min(len(rows), _rows_sampled(files.columns)))]
    sample = Table(Path(dataset.source), files.table(chosen))
    pipeline[0].fit(_features(sample, dataset.layout))
    return dataclasses.replace(dataset, features=_through(pipeline[0], files, dataset.layout))


def open_features(pattern: str, model: Model) -> RowFiles:
    """Open Parquet files as the features of a model, prepared as it wants them.

    Raises
    ------
    DataError
        There are no such files, or their columns are others than the model's.
    """
    layout = model.layout
    if layout.kind != "table":
        raise DataError(
            f"{pattern}: holds tables, but the model was trained on {layout.n_features} features without names; give "
            "it a .npz or SVMlight file"
        )
    groups, schema = row_groups(parquet_paths(pattern))
    names = [*layout.numbers, *layout.text]
    Table(Path(pattern), schema.empty_table()).require(names, "used in training")
    files = RowFiles(groups, names, _unprepared, len(names), np.float64)
    return _through(model.pipeline[0], files, layout)


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
        for start, X in counted(files.blocks(), len(files), "evaluating"):
            codes = np.searchsorted(classes, labels[start : start + len(X)])
            yield evaluate(model.classifier.predict_log_proba(X), codes, class_names=names, first_row=start)

    each = parts()
    total = next(each)
    for part in each:
        total += part
    return total


def predict_files(model: Model, files: RowFiles) -> NDArray[Any]:
    """Return the probability of each class for prepared rows, of which a block is in memory at a time."""
    found: NDArray[Any] = np.concatenate(
        [model.classifier.predict_proba(X) for _, X in counted(files.blocks(), len(files), "predicting")]
    )
    return found


def _rows_sampled(columns: Sequence[str]) -> int:
    return min(SAMPLED_ROWS, max(1000, SAMPLED_BYTES // (8 * len(columns))))


def _through(preparation: Any, files: RowFiles, layout: Layout) -> RowFiles:
    """Return files whose rows go through a preparation as they are read."""
    names = [*layout.numbers, *layout.text]

    def convert(batch: pa.RecordBatch) -> NDArray[Any]:
        table = Table(Path("these files"), pa.Table.from_batches([batch]))
        prepared = preparation.transform(_features(table, layout))
        dense: NDArray[Any] = prepared.toarray() if hasattr(prepared, "toarray") else np.asarray(prepared)
        return dense

    return files.through(names, convert, len(preparation.get_feature_names_out()))


def _features(table: Table, layout: Layout) -> Any:
    columns = {name: table.column(name, "numbers") for name in layout.numbers}
    return features_frame(table, columns | {name: table.column(name, "text") for name in layout.text})


def _unprepared(batch: pa.RecordBatch) -> NDArray[Any]:
    raise TypeError("these rows are to be prepared before they are read")
