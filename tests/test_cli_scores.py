"""The commands evaluate and compare."""

import json
import os
import subprocess

import numpy as np
import pandas as pd
import pytest
from cli_runs import COMMAND, refuse, run_here, succeed

import softmaxloss


def test_an_evaluation_is_a_table_or_json(scored):
    table = succeed(scored, "evaluate", "z.npy", "y.npy").stdout
    assert "accuracy" in table
    found = json.loads(
        succeed(scored, "evaluate", "z.npy", "y.npy", "--json", "--top-k", "2", "--ignore-index", "1").stdout
    )

    logits, labels = np.load(scored / "z.npy"), np.load(scored / "y.npy")
    kept = labels != 1
    loss = softmaxloss.softmax_cross_entropy(logits[kept], labels[kept])
    assert found["loss"] == pytest.approx(loss, rel=1e-12)
    assert found["n_ignored"] == (~kept).sum()
    assert list(found["top_k"]) == ["2"]


def test_a_comparison_is_a_table_or_json(scored):
    logits, labels = np.load(scored / "z.npy"), np.load(scored / "y.npy")
    np.save(scored / "p.npy", softmaxloss.softmax(2 * logits))
    arguments = ("compare", "z.npy", "p.npy", "y.npy")
    line = refuse(scored, *arguments)
    assert line.startswith("p.npy: every row is non-negative")
    assert "McNemar" in run_here(scored, *arguments, "--kind-b", "probabilities").stdout
    found = json.loads(run_here(scored, *arguments, "--kind-b", "probabilities", "--json").stdout)
    expected = softmaxloss.compare(logits, 2 * logits, labels)
    assert found["difference"] == pytest.approx(expected.difference, rel=1e-10)
    np.save(scored / "short.npy", logits[:9])
    assert "expected (50, 3)" in refuse(scored, "compare", "z.npy", "short.npy", "y.npy")


def test_scores_in_a_folder_of_parquet_files(scored):
    logits = np.load(scored / "z.npy")
    (scored / "parts").mkdir()
    frame = pd.DataFrame(logits, columns=["0", "1", "2"])
    frame[:30].to_parquet(scored / "parts" / "a.parquet", row_group_size=7, index=False)
    frame[30:].to_parquet(scored / "parts" / "b.parquet", index=False)
    for arguments in (("evaluate",), ("compare", "z.npy")):
        of_array, of_folder = (
            json.loads(run_here(scored, *arguments, scores, "y.npy", "--json").stdout) for scores in ("z.npy", "parts")
        )
        assert of_folder.keys() == of_array.keys()
        for name in {"loss", "brier", "difference", "loss_b", "accuracy_b"} & of_array.keys():
            assert of_folder[name] == pytest.approx(of_array[name], rel=1e-12)


def test_scores_larger_than_memory(tmp_path):
    """1 GiB of zeros that take no room on the disk, read by a process that may hold 600 MiB of data."""
    shape = (1 << 18, 1 << 10)
    np.lib.format.open_memmap(tmp_path / "z.npy", mode="w+", dtype=np.float32, shape=shape)
    np.save(tmp_path / "y.npy", np.zeros(shape[0], np.int64))
    done = subprocess.run(
        ["sh", "-c", f'ulimit -d {600 << 10} && exec "$@"', "sh", COMMAND, "evaluate", "z.npy", "y.npy", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    assert found["n_rows"] == shape[0]
    assert found["loss"] == pytest.approx(np.log(shape[1]), rel=1e-6)


LOGITS = np.arange(12.0).reshape(4, 3)
LABELS = np.array([0, 1, 2, 0])


@pytest.mark.parametrize(
    ("scores", "labels", "problem"),
    [
        (LOGITS, LABELS[:3], "y.npy: has 3 labels, but z.npy has 4 rows"),
        (LOGITS, LABELS + 1, "y.npy: labels[2] is 3"),
        (LOGITS, LABELS + 0.5, "y.npy: holds 0.5 at index 0, which is a quantity"),
        (LOGITS, np.array(list("abca")), "y.npy: holds 'a' at index 0, but z.npy does not name its classes"),
        (LOGITS[0], LABELS, "z.npy: has shape (3,) and type float64; expected numbers in rows x classes"),
        (LOGITS.astype(str), LABELS, "z.npy: has shape (4, 3) and type <U32; expected numbers"),
        (LOGITS.astype(object), LABELS, "z.npy: holds Python objects, which are never unpickled"),
        (LOGITS, LABELS.astype(object), "y.npy: holds Python objects, which are never unpickled"),
        (np.full((4, 3), 1 / 3), LABELS, "z.npy: every row is non-negative and sums to 1"),
        (np.full((4, 3), 0.33), LABELS, "z.npy: every row is non-negative and sums to 1, but for rounding"),
        (..., LABELS, "z.npy: is not in NumPy's format, or is damaged or cut off"),
    ],
)
def test_scores_and_labels_that_do_not_fit(tmp_path, scores, labels, problem):
    np.save(tmp_path / "z.npy", LOGITS if scores is ... else scores, allow_pickle=True)
    np.save(tmp_path / "y.npy", labels, allow_pickle=True)
    if scores is ...:
        os.truncate(tmp_path / "z.npy", 200)

    assert refuse(tmp_path, "evaluate", "z.npy", "y.npy").startswith(problem)


def test_logits_taken_for_probabilities(scored):
    line = refuse(scored, "evaluate", "z.npy", "y.npy", "--kind", "probabilities")

    assert line.startswith("z.npy: scores[0]")
