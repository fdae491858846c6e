"""A model trained from Parquet files by Dask: each worker reads its own parts of them."""

import contextlib
import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pyarrow as pa
from dask.delayed import delayed

from softmaxloss import __version__
from softmaxloss.classifier import SoftmaxClassifier
from softmaxloss.data.datasets import Layout, features_frame, table_classes, table_dataset
from softmaxloss.data.files import DataError, one_line
from softmaxloss.data.tables import Table
from softmaxloss.persistence import Model, build_pipeline
from softmaxloss.rows import spread

# Medians, scales and categories are those of about so many rows, spread evenly over all.
SAMPLED_ROWS = 100_000


@contextlib.contextmanager
def on_scheduler(address: str | None) -> Iterator[None]:
    """Have Dask compute on the cluster whose scheduler is at an address; without one, with threads of this process."""
    if address is None:
        yield
        return
    from distributed import Client

    try:
        client = Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise DataError(f"{address}: there is no scheduler of Dask's ({one_line(error)})") from None
    with client:
        yield


def train_on_parquet(
    pattern: str,
    target: str,
    classifier: SoftmaxClassifier,
    *,
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
) -> tuple[Model, tuple[str, ...]]:
    """Fit a classifier to Parquet files, by the scheduler that Dask has here, and return the model and notes.

    Columns mean what they mean in one file. What is done to them first (medians for missing numbers, mean 0 and
    variance 1, one column a category) comes of a sample of the rows: of all, if they are not more than 100 000.

    Parameters
    ----------
    pattern : str
        A file, or several as in "data/*.parquet".
    target : str
        The column to predict.
    classifier : SoftmaxClassifier
        Fitted here.
    drop, categorical : sequence of str
        Columns to leave out, and columns to take as text whatever they hold.

    Raises
    ------
    DataError
        There are no such files, or they do not hold what a classifier learns from.
    """
    parts = _parts(pattern)
    each = max(1, SAMPLED_ROWS // len(parts))
    sampled_of, labels_of, features_of = (delayed(function, pure=False) for function in (_sampled, _labels, _features))
    tables = delayed(list)([sampled_of(part, each) for part in parts]).compute()
    sample = Table(Path(pattern), pa.concat_tables(tables, promote_options="permissive"))
    if not sample.rows:
        raise DataError(f"{pattern}: has columns but no rows")
    dataset = table_dataset(sample, target, drop, categorical)
    pipeline = build_pipeline(dataset.layout, classifier)
    preparation = pipeline[0].fit(dataset.features)
    like = preparation.transform(dataset.features.iloc[:1])[:0]
    shape = (np.nan, like.shape[1])
    schema = sample.data.schema
    prepared = [features_of(part, pattern, schema, dataset.layout, preparation) for part in parts]
    X = da.concatenate([da.from_delayed(part, shape, meta=like) for part in prepared], allow_unknown_chunksizes=True)
    kind = "text" if target in categorical else None
    of_rows = [labels_of(part, pattern, schema, target, kind) for part in parts]
    y = da.concatenate(
        [da.from_delayed(part, (np.nan,), dtype=dataset.labels.dtype) for part in of_rows],
        allow_unknown_chunksizes=True,
    )
    try:
        classifier.fit(X, y)
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{pattern}: {error}") from None
    return Model(pipeline, dataset.layout, target, __version__), dataset.notes


def _parts(pattern: str) -> list[Any]:
    """Return the partitions of the files that a pattern names."""
    paths = sorted(glob.glob(pattern))  # noqa: PTH207  # the folder is part of the pattern
    if not paths:
        raise DataError(f"{pattern}: there is no such file")
    try:
        return list(dd.read_parquet(paths).to_delayed())
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{pattern}: is not Parquet, or files of other columns ({one_line(error)})") from None


def _sampled(part: Any, count: int) -> pa.Table:
    """Return some rows of a partition."""
    some = part.iloc[spread(len(part), min(count, len(part)))]
    return pa.Table.from_pandas(some, preserve_index=False).replace_schema_metadata(None)


def _table(part: Any, pattern: str, schema: pa.Schema) -> Table:
    """Return a partition as a table of the types that the sample has."""
    return Table(Path(pattern), pa.Table.from_pandas(part, schema=schema, preserve_index=False))


def _features(part: Any, pattern: str, schema: pa.Schema, layout: Layout, preparation: Any) -> Any:
    """Return the features of a partition as the classifier takes them."""
    table = _table(part, pattern, schema)
    if not table.rows:
        return np.zeros((0, len(preparation.get_feature_names_out())))
    columns = {name: table.column(name, "numbers") for name in layout.numbers}
    columns |= {name: table.column(name, "text") for name in layout.text}
    return preparation.transform(features_frame(table, columns))


def _labels(part: Any, pattern: str, schema: pa.Schema, target: str, kind: Any) -> Any:
    """Return the labels of a partition."""
    table = _table(part, pattern, schema)
    return table_classes(table, target, kind) if table.rows else np.zeros(0, object)
