"""Evaluation: its time beside scikit-learn's log_loss, and the memory of the command on a file of any size.

Scores lie in memory, and the calls of the contenders take turns. The file is read by ``softmaxloss evaluate`` in a
process of its own, whose anonymous memory (RssAnon) is looked at while it runs; pages of the file are the system's.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.worker import status_bytes

# Rows, classes, type and kind of the scores.
CASES = (
    (1_000_000, 10, "float64", "probabilities"),
    (1_000_000, 10, "float32", "probabilities"),
    (1_000_000, 10, "float64", "logits"),
    (1_000_000, 10, "float32", "logits"),
    (100_000, 100, "float32", "logits"),
    (16_384, 1000, "float32", "logits"),
    (1_024, 32_000, "float32", "logits"),
)
CONTENDERS = {"log_loss": "scikit-learn's log_loss", "loss": "loss alone", "everything": "everything"}
BLOCK_BYTES = 1 << 26
SAMPLE_SECONDS = 0.01
COMMAND = Path(sys.executable).with_name("softmaxloss")


@dataclass(frozen=True)
class Effort:
    """How many turns each contender has, the share of the rows to take, and the size of the file, if any."""

    rounds: int = 15
    share: float = 1.0
    gigabytes: float | None = None
    classes: int = 1000
    folder: Path | None = None


def measure(effort: Effort) -> dict[str, Any]:
    """Time each contender on each case, then the command on a file."""
    found: dict[str, Any] = {"cases": [_measure_case(*case, effort) for case in CASES]}
    if effort.gigabytes is not None:
        found["file"] = measure_file(effort, effort.gigabytes)
    return found


def table(results: dict[str, Any]) -> str:
    """Return the tables in Markdown."""
    found = results["judging"]
    lines = [
        f"| scores | {' | '.join(CONTENDERS.values())} | log_loss / loss alone | everything / loss alone |",
        "|---|---|---|---|---|---|",
    ]
    for case in found["cases"]:
        seconds = case["seconds"]
        times = " | ".join(f"{1e3 * seconds[name]:.1f} ms" if name in seconds else "-" for name in CONTENDERS)
        peer = f"{seconds['log_loss'] / seconds['loss']:.1f}x" if "log_loss" in seconds else "-"
        lines.append(
            f"| {case['rows']} x {case['classes']} {case['dtype']} {case['kind']} | {times} | {peer} | "
            f"{seconds['everything'] / seconds['loss']:.1f}x |"
        )
    if "file" in found:
        file = found["file"]
        lines += [
            "",
            f"`softmaxloss evaluate` of a file of {file['bytes'] / 1e9:.3g} GB, {file['rows']} rows x "
            f"{file['classes']} float32 logits: {file['seconds']:.1f} s, {file['anonymous_bytes'] / 1e6:.0f} MB of "
            f"anonymous memory at its peak, loss {file['loss']:.6f}. To read the file alone takes "
            f"{file['read_seconds']:.1f} s.",
        ]
    return "\n".join(lines)


def measure_file(effort: Effort, gigabytes: float) -> dict[str, Any]:
    """Write logits and labels, evaluate them with the command, and return what was seen; the files go."""
    rows = math.ceil(gigabytes * 1e9 / (4 * effort.classes))
    nbytes = 4 * rows * effort.classes
    with tempfile.TemporaryDirectory(dir=effort.folder) as name:
        folder = Path(name)
        if shutil.disk_usage(folder).free < 1.1 * nbytes:
            raise ValueError(f"{folder} has {shutil.disk_usage(folder).free / 1e9:.0f} GB free; {gigabytes:g} needed")
        _write(folder, rows, effort.classes)
        read_seconds = _seconds(lambda: _read(folder / "z.npy"))
        start = time.perf_counter()
        told, peak = _watched([str(COMMAND), "evaluate", "z.npy", "y.npy", "--json"], folder)
        return {
            "rows": rows,
            "classes": effort.classes,
            "bytes": nbytes,
            "seconds": time.perf_counter() - start,
            "read_seconds": read_seconds,
            "anonymous_bytes": peak,
            "loss": json.loads(told)["loss"],
        }


def _measure_case(rows: int, classes: int, dtype: str, kind: str, effort: Effort) -> dict[str, Any]:
    rows = math.ceil(rows * effort.share)
    scores, labels = _scores(rows, classes, dtype, kind)
    calls = _calls(scores, labels, kind)
    seconds = dict.fromkeys(calls, math.inf)
    print(f"{rows} x {classes} {dtype} {kind} ...", end="", file=sys.stderr, flush=True)
    start = time.perf_counter()
    for _ in range(effort.rounds):
        for name, call in calls.items():
            seconds[name] = min(seconds[name], _seconds(call))
    print(f" {effort.rounds} rounds, {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return {"rows": rows, "classes": classes, "dtype": dtype, "kind": kind, "seconds": seconds}


def _calls(scores: NDArray[Any], labels: NDArray[Any], kind: Any) -> dict[str, Callable[[], object]]:
    """Return what to time. log_loss takes probabilities alone."""
    from sklearn.metrics import log_loss

    import softmaxloss as sl

    classes = np.arange(scores.shape[1])
    calls: dict[str, Callable[[], object]] = {
        "loss": lambda: sl.evaluate(scores, labels, kind=kind, only_loss=True).loss,
        "everything": lambda: sl.evaluate(scores, labels, kind=kind).loss,
    }
    if kind == "probabilities":
        calls["log_loss"] = lambda: log_loss(labels, scores, labels=classes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of float32 rows whose sums are not 1 to float64's precision
            np.testing.assert_allclose(calls["log_loss"](), calls["loss"](), rtol=1e-5)
    return calls


def _scores(rows: int, classes: int, dtype: str, kind: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    import softmaxloss as sl

    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, rows)
    logits = rng.standard_normal((rows, classes), np.float32)
    logits[np.arange(rows), labels] += 3
    scores = logits.astype(dtype)
    return (sl.softmax(scores) if kind == "probabilities" else scores), labels


def _seconds(call: Callable[[], object]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


def _write(folder: Path, rows: int, classes: int) -> None:
    """Write logits of one drawn block after the other, each the one before shifted: drawing is slower than a disk."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, rows)
    np.save(folder / "y.npy", labels)
    step = max(1, BLOCK_BYTES // (4 * classes))
    drawn = rng.standard_normal((step, classes), np.float32)
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, classes)}
    with (folder / "z.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, rows, step):
            block = np.roll(drawn, start // step, axis=1)[: rows - start]
            block[np.arange(len(block)), labels[start : start + len(block)]] += 3
            file.write(block.data)


def _read(path: Path) -> None:
    buffer = bytearray(1 << 22)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _watched(command: list[str], folder: Path) -> tuple[str, int]:
    """Run a command: what it printed, and its anonymous memory at its peak."""
    peak = 0
    # Into a file: a pipe that nobody reads meanwhile takes 64 KB, and then no more.
    with (
        tempfile.TemporaryFile("w+") as told,
        subprocess.Popen(command, cwd=folder, stdout=told, text=True) as process,
    ):
        while _runs(process):
            try:
                peak = max(peak, status_bytes("RssAnon", process.pid))
            except OSError:  # it ended a moment ago, and has no memory
                break
            time.sleep(SAMPLE_SECONDS)
        process.wait()
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
        told.seek(0)
        return told.read(), peak


def _runs(process: subprocess.Popen[str]) -> bool:
    """Tell whether a process has not ended, and leave it to be waited for."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
