"""A fit on files that may be larger than memory: the peak of its anonymous memory, and its time beside arrays.

The same rows lie in one NPY file, which is mapped, and in Parquet files, which are kept decoded in a temporary file, as
long as they stay open or for each fit anew, or decoded in each pass. Anonymous memory (RssAnon) is what the process
holds of its own; pages of files that are mapped or cached are the system's, to be given up at any time.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.worker import status_bytes

KINDS = {
    "npy": "NPY file, mapped",
    "parquet": "Parquet files, decoded once",
    "parquet-reopened": "Parquet files, opened and decoded for each fit",
    "parquet-each": "Parquet files, decoded in each pass",
    "memory": "array in memory",
}
# The two kinds of file, what a fit decodes, and a little.
COPIES_ON_DISK = 3.5
BLOCK_ROWS = 1 << 14
SAMPLE_SECONDS = 0.01

# A copy of the rows, and what else a process needs, are to fit in this share of the memory that is free.
SHARE_OF_MEMORY = 0.7


@dataclass(frozen=True)
class Effort:
    """How much data, of what shape, for how many iterations at most, and where it is to lie."""

    gigabytes: float = 12.0
    features: int = 512
    classes: int = 10
    files: int = 8
    max_iter: int = 30
    folder: Path | None = None

    @property
    def rows(self) -> int:
        return math.ceil(self.gigabytes * 1e9 / (4 * self.features))


def measure(effort: Effort) -> dict[str, Any]:
    """Write the files, fit on each kind in a process of its own, and return what was seen; the files go."""
    if effort.rows < effort.files * effort.classes:
        raise ValueError(f"{effort.gigabytes:g} GB are {effort.rows} rows: give more with --gigabytes")
    with tempfile.TemporaryDirectory(dir=effort.folder) as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        needed = COPIES_ON_DISK * effort.gigabytes
        if free < needed * 1e9:
            raise ValueError(f"{folder} has {free / 1e9:.0f} GB free, and the files take {needed:.1f}")
        write(folder, effort)
        kinds = [kind for kind in KINDS if kind != "memory" or _fits_in_memory(effort)]
        return {
            "rows": effort.rows,
            "features": effort.features,
            "classes": effort.classes,
            "bytes": 4 * effort.rows * effort.features,
            "fits": {kind: _in_a_process(folder, kind, effort.max_iter) for kind in kinds},
        }


def table(results: dict[str, Any]) -> str:
    """Return the table in Markdown."""
    found = results["streaming"]
    fits = found["fits"]
    lines = [
        f"{found['bytes'] / 1e9:.3g} GB of float32: {found['rows']} rows x {found['features']} features, "
        f"{found['classes']} classes",
        "",
        "| rows in | peak of anonymous memory | first fit | second fit | to in memory | iterations | objective |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, fit in fits.items():
        ratio = f"{fit['seconds'] / fits['memory']['seconds']:.2f}x" if "memory" in fits else "-"
        lines.append(
            f"| {KINDS[kind]} | {fit['anonymous_bytes'] / 1e6:.0f} MB | {fit['first_seconds']:.1f} s | "
            f"{fit['seconds']:.1f} s | {ratio} | {fit['iterations']} | {fit['objective']:.9g} |"
        )
    if "memory" not in fits:
        lines += ["", "The rows do not fit in this machine's memory: there is nothing to compare the times with."]
    return "\n".join(lines)


def write(folder: Path, effort: Effort) -> None:
    """Write rows of classes about centres of their own, block by block: X.npy, y.npy and part-*.parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    centres = rng.standard_normal((effort.classes, effort.features), np.float32) * np.float32(3 / effort.features**0.5)
    X = np.lib.format.open_memmap(folder / "X.npy", "w+", np.float32, (effort.rows, effort.features))
    labels = rng.integers(0, effort.classes, effort.rows)
    np.save(folder / "y.npy", labels)
    names = [f"x{k}" for k in range(effort.features)]
    schema = pa.schema([*((name, pa.float32()) for name in names), ("y", pa.int64())])
    for part in range(effort.files):
        first, last = effort.rows * part // effort.files, effort.rows * (part + 1) // effort.files
        with pq.ParquetWriter(
            folder / f"part-{part:03}.parquet", schema, compression="NONE", use_dictionary=False
        ) as file:
            for start in range(first, last, BLOCK_ROWS):
                y = labels[start : min(start + BLOCK_ROWS, last)]
                block = rng.standard_normal((len(y), effort.features), np.float32)
                block += centres[y]
                X[start : start + len(y)] = block
                columns = [pa.array(column) for column in np.ascontiguousarray(block.T)]
                file.write_table(pa.table([*columns, pa.array(y)], schema=schema))
    os.sync()  # else the disk is at work on these files while a fit is timed


def fit(folder: Path, kind: str, max_iter: int) -> dict[str, Any]:
    """Fit twice, the second time with the files cached as far as they can be, and return times and memory."""
    import softmaxloss as sl

    X, y = opened(folder, kind)
    seconds = []
    with peak_of_anonymous_memory() as peak, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the iterations are few on purpose
        for _ in range(2):
            start = time.perf_counter()
            if kind == "parquet-reopened":
                X, y = opened(folder, kind)
            classifier = sl.SoftmaxClassifier(max_iter=max_iter).fit(X, y)
            seconds.append(time.perf_counter() - start)
    return {
        "anonymous_bytes": max(peak),
        "first_seconds": seconds[0],
        "seconds": seconds[1],
        "iterations": classifier.n_iter_,
        "objective": classifier.loss_curve_[-1],
    }


def opened(folder: Path, kind: str) -> tuple[Any, Any]:
    """Return features and labels."""
    if kind.startswith("parquet"):
        from softmaxloss.data.row_files import open_parquet

        return open_parquet(folder / "part-*.parquet", target="y", spool=kind != "parquet-each")
    return np.load(folder / "X.npy", mmap_mode="r" if kind == "npy" else None), np.load(folder / "y.npy")


@contextmanager
def peak_of_anonymous_memory() -> Iterator[list[int]]:
    """Give a list that holds the anonymous memory of this process, looked at again and again while the block runs."""
    seen = [status_bytes("RssAnon")]
    done = threading.Event()

    def look() -> None:
        while not done.wait(SAMPLE_SECONDS):
            seen[0] = max(seen[0], status_bytes("RssAnon"))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def _in_a_process(folder: Path, kind: str, max_iter: int) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1, _decode_into, (folder,)) as pool:
        found: dict[str, Any] = pool.apply(fit, (folder, kind, max_iter))
        return found


def _decode_into(folder: Path) -> None:
    """Have a fit keep what it decodes where there is room for it."""
    tempfile.tempdir = str(folder)


def _fits_in_memory(effort: Effort) -> bool:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return effort.gigabytes * 1e9 < SHARE_OF_MEMORY * int(line.split()[1]) * 1024
    return True
