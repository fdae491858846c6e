"""Rows of files, decoded once into a temporary file that the passes of a fit map into memory."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from softmaxloss.data.parquet_files import RowGroup
from softmaxloss.data.row_files import RowFiles

__all__ = ["NoRoomError", "SpooledRows"]

# Of the folder's free space a fit leaves some to others.
_SHARE_OF_FREE = 0.9
_ALIGNMENT = 64  # bytes, at which blocks in memory begin too


class NoRoomError(Exception):
    """The temporary folder does not take the rows; each pass is to read them where they are."""


class _Block(NamedTuple):
    """Where a block lies in the file."""

    start: int
    rows: int
    offset: int


class SpooledRows:
    """The rows of a `RowFiles` in the same groups and blocks, so that all sums have the same bits.

    The file has no name from the start (or, where the system cannot do that, loses it at once): whatever becomes of the
    process, the system takes it back with the last who has it open.

    Parameters
    ----------
    files : RowFiles
        What to keep: `keep` is to be called for each of its groups, then `seal`, before rows are read.

    Raises
    ------
    NoRoomError
        The temporary folder lies in memory, or has too little room; `keep` raises it too.
    """

    def __init__(self, files: RowFiles) -> None:
        self.shape, self.dtype, self.groups, self.columns = files.shape, files.dtype, files.groups, files.columns
        self._files = files
        self._blocks: dict[int, list[_Block]] = {}
        self._end = 0
        self._lock = threading.Lock()
        with _as_no_room():
            folder = tempfile.gettempdir()
            needed = files.shape[0] * files.shape[1] * files.dtype.itemsize
            if _is_in_memory(folder) or needed > _SHARE_OF_FREE * shutil.disk_usage(folder).free:
                raise NoRoomError
            self._file = tempfile.TemporaryFile(dir=folder, prefix="softmaxloss-", buffering=0)  # noqa: SIM115

    def keep(self, group: RowGroup) -> None:
        """Decode a group, block by block, and write it; from any thread."""
        self._blocks[group.start] = [_Block(start, len(X), self._append(X)) for start, X in self._files.blocks(group)]

    def seal(self) -> None:
        """Map what was written; the file lives as long as somebody holds a block of it, or this object."""
        with _as_no_room(), self._file:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    def blocks(self, group: RowGroup | None = None) -> Iterator[tuple[int, NDArray[np.floating]]]:
        """Yield blocks as `RowFiles.blocks` does: read-only, and mapped."""
        for one in self.groups if group is None else [group]:
            for block in self._blocks[one.start]:
                yield block.start, self._mapped(block)

    def read(self, rows: NDArray[np.intp]) -> NDArray[np.floating]:
        """Read some rows into memory, whatever their order."""
        order = np.argsort(rows, kind="stable")
        ascending = np.asarray(rows)[order]
        features = np.empty((len(rows), self.shape[1]), self.dtype)
        for start, block in self.blocks():
            first, last = np.searchsorted(ascending, [start, start + len(block)])
            if first < last:
                features[order[first:last]] = block[ascending[first:last] - start]
        return features

    def close(self) -> None:
        """Give the room back, of a file that is not sealed."""
        self._file.close()

    def _append(self, array: NDArray[np.floating]) -> int:
        rest = np.ascontiguousarray(array).data.cast("B")
        with self._lock:
            offset = position = self._end
            self._end += -(-len(rest) // _ALIGNMENT) * _ALIGNMENT
        with _as_no_room():
            while len(rest):
                written = os.pwrite(self._file.fileno(), rest, position)
                position, rest = position + written, rest[written:]
        return offset

    def _mapped(self, block: _Block) -> NDArray[np.floating]:
        n_features = self.shape[1]
        flat: NDArray[np.floating] = np.frombuffer(self._map, self.dtype, block.rows * n_features, block.offset)
        return flat.reshape(block.rows, n_features)


@contextlib.contextmanager
def _as_no_room() -> Iterator[None]:
    """Turn what the system says of a file that it does not take into `NoRoomError`."""
    try:
        yield
    except OSError as error:
        raise NoRoomError from error


def _is_in_memory(folder: str) -> bool:
    """Tell whether a folder lies in memory, where files take what the fit is to spare."""
    device = Path(folder).stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:  # not Linux: there, temporary folders are on disks
        return False
    # "36 35 98:0 /root /mount options [fields] - type source options"
    return any(
        line.split()[2] == wanted and line.split(" - ")[-1].split()[0] in ("tmpfs", "ramfs", "devtmpfs")
        for line in mounts
    )
