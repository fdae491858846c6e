"""Files of predictions out, block by block: whole or not at all."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from softmaxloss.data.files import DataError, known_suffix, replacing
from softmaxloss.data.scores import PREDICTION, PREDICTION_SUFFIXES

__all__ = ["write_prediction_blocks"]

Blocks = Iterable[NDArray[np.floating]]

# A row group of Parquet holds at least so much, but for the last: many small ones are slow to read.
_GROUP_BYTES = 1 << 24


def write_prediction_blocks(path: Path, blocks: Blocks, rows: int, classes: NDArray[Any]) -> None:
    """Write probabilities and predicted classes, in the form that the suffix says, as they come.

    A table has a column for each class, named by it, and the column "prediction"; a .npz file has the arrays
    "probabilities", "classes" and "prediction"; a .npy file has the probabilities only.

    Parameters
    ----------
    path : Path
        Where to write.
    blocks : iterable of arrays of shape (some rows, classes)
        Probabilities, of which one block is in memory at a time, or a row group's worth of them; at least one.
    rows : int
        How many rows they have together.
    classes : array of shape (classes,)
        The labels of the classes.

    Raises
    ------
    DataError
        The file cannot be written, or there are more or fewer rows.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from softmaxloss.data.predictions import write_prediction_blocks
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "p.csv")
    ...     blocks = iter([np.array([[0.25, 0.75]]), np.array([[0.5, 0.5]])])
    ...     write_prediction_blocks(path, blocks, 2, np.array(["no", "yes"]))
    ...     print(path.read_text())
    no,yes,prediction
    0.25,0.75,yes
    0.5,0.5,no
    <BLANKLINE>
    """
    suffix = known_suffix(path, PREDICTION_SUFFIXES)
    write = {".npy": _write_npy, ".npz": _write_npz, ".csv": _write_csv, ".parquet": _write_parquet}[suffix]
    with replacing(path) as temporary:
        write(temporary, _counted_rows(blocks, rows), rows, classes)


def _counted_rows(blocks: Blocks, rows: int) -> Iterator[NDArray[np.floating]]:
    """Yield blocks, and refuse to end with more or fewer rows than a header may have told."""
    seen = 0
    for block in blocks:
        seen += len(block)
        yield block
    if seen != rows:
        raise DataError(f"the data changed while they were read: {seen} rows, and {rows} were there before")


def _write_array(file: BinaryIO, blocks: Iterator[NDArray[np.floating]], rows: int) -> Iterator[NDArray[np.floating]]:
    """Write one array in NumPy's format, and yield each block when it is written."""
    for number, block in enumerate(blocks):
        if not number:
            # Not a memory map: a full disk would end the process with a signal.
            descr = np.lib.format.dtype_to_descr(block.dtype)
            header = {"descr": descr, "fortran_order": False, "shape": (rows, *block.shape[1:])}
            np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(block).data)
        yield block


def _write_npy(path: Path, blocks: Iterator[NDArray[np.floating]], rows: int, classes: NDArray[Any]) -> None:
    with path.open("wb") as file:
        for _ in _write_array(file, blocks, rows):
            pass


def _write_npz(path: Path, blocks: Iterator[NDArray[np.floating]], rows: int, classes: NDArray[Any]) -> None:
    smallest = np.min_scalar_type(len(classes))  # what stays in memory of each row
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("probabilities.npy", "w", force_zip64=True) as file:
            codes = [block.argmax(axis=1).astype(smallest) for block in _write_array(file, blocks, rows)]  # type: ignore[arg-type]
        for name, array in (("classes", classes), ("prediction", classes[np.concatenate(codes)])):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def _write_csv(path: Path, blocks: Iterator[NDArray[np.floating]], rows: int, classes: NDArray[Any]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        for number, block in enumerate(blocks):
            _frame(block, classes).to_csv(file, index=False, header=not number)


def _write_parquet(path: Path, blocks: Iterator[NDArray[np.floating]], rows: int, classes: NDArray[Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    groups = _gathered(blocks)
    first = pa.Table.from_pandas(_frame(next(groups), classes), preserve_index=False)
    with pq.ParquetWriter(path, first.schema) as file:
        file.write_table(first)
        for group in groups:
            file.write_table(pa.Table.from_pandas(_frame(group, classes), first.schema, preserve_index=False))


def _gathered(blocks: Iterator[NDArray[np.floating]]) -> Iterator[NDArray[np.floating]]:
    """Yield blocks as they are or joined, so that none is small but the last."""
    waiting: list[NDArray[np.floating]] = []
    for block in blocks:
        waiting.append(block)
        if sum(each.nbytes for each in waiting) >= _GROUP_BYTES:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _frame(block: NDArray[np.floating], classes: NDArray[Any]) -> pd.DataFrame:
    frame = pd.DataFrame(block, columns=[str(name) for name in classes])
    frame[PREDICTION] = classes[block.argmax(axis=1)]
    return frame
