"""Rows of files, decoded into a temporary file that later passes map into memory."""

from __future__ import annotations

import copy
import mmap
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from softmaxloss.data.parquet_files import RowGroup, version_of
from softmaxloss.data.row_files import RowFiles

__all__ = ["SpooledRows", "as_kept", "kept"]

# Of the folder's free space some is left to others.
_SHARE_OF_FREE = 0.9

# So many blocks may wait for the disk. What comes while they do is not kept yet, but decoded again by the next pass, so
# that the disk works while the fit computes, and the fit does not wait for it.
_MOST_WAITING = 4


class NoRoomError(Exception):
    """The temporary folder does not take the rows; each pass is to read them where they are."""


def kept(files: RowFiles) -> RowFiles | SpooledRows:
    """Return rows that are kept decoded as long as `files` is, if it says so and the temporary folder has room."""
    with _lock:  # two copies might not find the room that one does
        known = as_kept(files)
        if known is not files or not files.spool:
            return known
        try:
            made = SpooledRows(files)
        except NoRoomError:
            return files
        if made.is_of_use():
            _known[files] = made
        return made


def as_kept(files: RowFiles) -> RowFiles | SpooledRows:
    """Return the rows as they are kept, if they are; else as they lie in the files.

    Those that are no more of use are given up: of files that have changed, or are to be kept no more, or that the disk
    did not take.
    """
    known = _known.get(files)
    if known is None:
        return files
    if files.spool and known.is_of_use():
        return known
    _known.pop(files, None)
    return files


class SpooledRows:
    """The rows of a `RowFiles` in the same groups and blocks, so that all sums have the same bits.

    Blocks are written as they are read, as far as the disk keeps up; when all of a group are there, they are mapped.
    The file has no name from the start (or, where the system cannot do that, loses it at once): whatever becomes of the
    process, the system takes it back with the last who has it open.

    Parameters
    ----------
    files : RowFiles
        What to keep.

    Raises
    ------
    NoRoomError
        The temporary folder lies in memory, or has too little room.
    """

    def __init__(self, files: RowFiles) -> None:
        self.shape, self.dtype, self.groups, self.columns = files.shape, files.dtype, files.groups, files.columns
        self._files = copy.copy(files)  # what it is known by goes before it does
        self._versions = {(group.path, group.version) for group in files.groups}
        self._left = len(files)  # rows to be written yet
        self._blocks: dict[int, list[slice]] = {}  # of the groups that were read, by their first rows
        self._is_there = np.zeros(len(files), bool)  # each row
        self._takes_more = True
        self._room = threading.Semaphore(_MOST_WAITING)
        needed = files.shape[0] * files.shape[1] * files.dtype.itemsize
        try:
            folder = tempfile.gettempdir()
            if not needed or _is_in_memory(folder) or needed > _SHARE_OF_FREE * shutil.disk_usage(folder).free:
                raise NoRoomError
            self._file = tempfile.TemporaryFile(dir=folder, prefix="softmaxloss-", buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
            self._file.truncate(needed)
            mapped = mmap.mmap(self._file.fileno(), needed, access=mmap.ACCESS_READ)
        except OSError as error:
            raise NoRoomError from error
        self._rows: NDArray[np.floating] = np.frombuffer(mapped, self.dtype).reshape(self.shape)
        self._writer = ThreadPoolExecutor(1, "softmaxloss-spool")

    def is_of_use(self) -> bool:
        """Tell whether what is there is that of the files, and what is not may still come."""
        try:
            return self._takes_more and all(version_of(path) == version for path, version in self._versions)
        except OSError:  # a file is gone
            return False

    def blocks(self, group: RowGroup | None = None) -> Iterator[tuple[int, NDArray[np.floating]]]:
        """Yield blocks as `RowFiles.blocks` does; those that are there are mapped, and read-only."""
        for one in self.groups if group is None else [group]:
            blocks = self._blocks.get(one.start)
            if blocks and self._is_there[blocks[0].start : blocks[-1].stop].all():
                for rows in blocks:
                    yield rows.start, self._rows[rows]
            else:
                yield from self._keeping(one)

    def read(self, rows: NDArray[np.intp]) -> NDArray[np.floating]:
        """Read some rows into memory, whatever their order."""
        is_there = self._is_there[rows]
        features = np.empty((len(rows), self.shape[1]), self.dtype)
        features[is_there] = self._rows[rows[is_there]]
        if not is_there.all():
            features[~is_there] = self._files.read(rows[~is_there])
        return features

    def _keeping(self, group: RowGroup) -> Iterator[tuple[int, NDArray[np.floating]]]:
        """Yield the blocks of a group from the files, and have those written that the writer has room for."""
        blocks: list[slice] = []
        for start, X in self._files.blocks(group):
            rows = slice(start, start + len(X))
            blocks.append(rows)
            if self._takes_more and not self._is_there[start] and self._room.acquire(blocking=False):
                try:
                    self._writer.submit(self._write, rows, X)
                except RuntimeError:  # no thread can be started, or the interpreter is ending
                    self._room.release()
                    self._give_up()
            yield start, X
        self._blocks[group.start] = blocks

    def _write(self, rows: slice, X: NDArray[np.floating]) -> None:
        try:
            position = rows.start * self.shape[1] * self.dtype.itemsize
            rest = np.ascontiguousarray(X).data.cast("B")
            while len(rest):
                written = os.pwrite(self._file.fileno(), rest, position)
                position, rest = position + written, rest[written:]
            if not self._is_there[rows.start]:  # two passes may have met
                self._left -= len(X)
            self._is_there[rows] = True
            if not self._left:
                self._writer.shutdown(wait=False)
        except OSError:  # the disk is full, now that others have written too
            self._give_up()
        finally:
            self._room.release()

    def _give_up(self) -> None:
        """Write no more, and let go of what is there with the fit that uses it, unless that is all."""
        if not self._left:
            return
        self._takes_more = False
        for files, known in list(_known.items()):
            if known is self:
                _known.pop(files, None)


# What is kept of files that are in use. A forked process begins with nothing: the threads that write are not its.
_known: MutableMapping[RowFiles, SpooledRows] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _begin_anew() -> None:
    global _lock
    _lock = threading.Lock()
    _known.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def _is_in_memory(folder: str) -> bool:
    """Tell whether a folder lies in memory, where files take what the fit is to spare."""
    device = Path(folder).stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").strip().split("\n")
    except OSError:  # not Linux: there, temporary folders are on disks
        return False
    # "36 35 98:0 /root /mount options [fields] - type source options"
    return any(
        line.split()[2] == wanted and line.split(" - ")[-1].split()[0] in ("tmpfs", "ramfs", "devtmpfs")
        for line in mounts
    )
