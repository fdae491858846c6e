"""A model's predictions for rows that may be larger than memory, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softmaxloss.data.array_rows import open_rows
from softmaxloss.data.datasets import is_array, is_many_files, read_features
from softmaxloss.data.files import DataError
from softmaxloss.data.parquet_files import ParquetRows, parquet_paths, row_groups
from softmaxloss.data.tables import Table
from softmaxloss.file_training import features_of_batch, stored_table
from softmaxloss.persistence import UnseenCategories
from softmaxloss.progress import counted

if TYPE_CHECKING:
    from softmaxloss.persistence import Model

__all__ = ["Predictions"]

# A block's features as numbers, and its probabilities: large against what a block costs, small against memory.
_BLOCK_BYTES = 1 << 24
_FEWEST_ROWS = 256


class Predictions:
    """The probabilities that a model gives the rows of a file, or of several: `blocks` goes through them once.

    Parquet and .npy files are read in blocks; other files, and the built-in digits, are read as a whole. A block's
    matrix product may round otherwise than that of all rows at once, in the last bits.

    Parameters
    ----------
    model : Model
        A fitted model.
    data : str
        A file, a folder or a pattern, or "digits".

    Attributes
    ----------
    rows : int
        How many rows there are.

    Raises
    ------
    DataError
        There are no such files, or their features are others than the model's.
    """

    def __init__(self, model: Model, data: str) -> None:
        self._model = model
        self._unseen = UnseenCategories(model)
        width = max(model.layout.n_features, 1) + len(model.classifier.classes_)
        step = max(_FEWEST_ROWS, _BLOCK_BYTES // (8 * width))
        self._features: Callable[[], Iterator[Any]]
        if is_many_files(data) or Path(data).suffix.lower() == ".parquet":
            self._features, self.rows = _of_parquet(data, model, step)
        elif is_array(data):
            self._features, self.rows = _of_array(data, model)
        else:
            features = read_features(data, model.layout)
            self._features, self.rows = lambda: iter([features]), features.shape[0]

    def blocks(self) -> Iterator[Any]:
        """Yield the probabilities of blocks of rows, shape (some rows, classes), with a bar on a terminal."""
        return counted(map(self._predicted, self._features()), self.rows, "predicting")

    def notes(self) -> list[str]:
        """Return what there is to say of the rows, after all of them."""
        return self._unseen.notes()

    def _predicted(self, features: Any) -> Any:
        self._unseen.count(features)
        return self._model.pipeline.predict_proba(features)


def _of_parquet(pattern: str, model: Model, step: int) -> tuple[Callable[[], Iterator[Any]], int]:
    layout = model.layout
    if layout.kind != "table":
        raise DataError(
            f"{pattern}: is a table, but the model was trained on {layout.n_features} features without names; give "
            "it a .npz, .npy or SVMlight file"
        )
    groups, schema = row_groups(parquet_paths(pattern))
    names = [*layout.numbers, *layout.text]
    Table(Path(pattern), schema.empty_table()).require(names, "used in training")
    stored = ParquetRows(groups, names)

    def features() -> Iterator[Any]:
        for group in groups:
            first = group.first
            for batch in stored.batches(group, step):
                yield features_of_batch(stored_table(batch, group.path, first), layout)
                first += len(batch)

    return features, sum(group.rows for group in groups)


def _of_array(data: str, model: Model) -> tuple[Callable[[], Iterator[Any]], int]:
    layout = model.layout
    if layout.kind not in ("dense", "pixels"):
        read_features(data, layout)  # says why not
    files = open_rows(Path(data))
    if files.shape[1] != layout.n_features:
        raise DataError(f"{data}: has {files.shape[1]} features, but the model was trained with {layout.n_features}")
    return lambda: (block for _, block in files.blocks()), len(files)
