"""Predictions of rows that may be larger than memory: block by block, into files that are whole or absent."""

import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_runs import refuse, run_here

from softmaxloss import file_prediction
from softmaxloss.data import predictions, row_files
from softmaxloss.data.files import DataError
from softmaxloss.data.predictions import write_prediction_blocks
from softmaxloss.persistence import load_model

ROWS, FEATURES = 3000, 5
SUFFIXES = [".npy", ".npz", ".csv", ".parquet"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Give a folder with a table, whole.csv, its rows in parts/*.parquet and in one.parquet, and a model of them."""
    folder = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(ROWS, 2)), columns=["a", "b"]).assign(c=rng.choice(["u", "v", "w"], ROWS))
    table["y"] = np.array(["no", "yes", "so"])[(table["a"] * 3 + rng.gumbel(size=ROWS)).clip(0, 2).astype(int)]
    table.to_csv(folder / "whole.csv", index=False)
    table.to_parquet(folder / "one.parquet", index=False, row_group_size=700)
    (folder / "parts").mkdir()
    for part, rows in enumerate(np.array_split(np.arange(ROWS), 2)):
        table.iloc[rows].to_parquet(folder / "parts" / f"{part}.parquet", index=False, row_group_size=500)
    done = run_here(folder, "train", "whole.csv", "--target", "y", "--out", "m.skops", "--quiet")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(file_prediction, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(file_prediction, "_FEWEST_ROWS", 64)
    monkeypatch.setattr(row_files, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(row_files, "_FEWEST_ROWS", 64)
    monkeypatch.setattr(predictions, "_GROUP_BYTES", 1 << 13)


def read(path):
    """Return the probabilities and, if the file has them, the predicted classes."""
    if path.suffix == ".npy":
        return np.load(path), None
    if path.suffix == ".npz":
        arrays = np.load(path)
        assert arrays["classes"].tolist() == ["no", "so", "yes"]
        return arrays["probabilities"], arrays["prediction"]
    frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    assert list(frame) == ["no", "so", "yes", "prediction"]
    return frame[["no", "so", "yes"]].to_numpy(), frame["prediction"].to_numpy()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("data", ["one.parquet", "parts", "parts/*.parquet"])
def test_predictions_in_blocks_are_those_at_once(made, tmp_path, small_blocks, data, suffix):
    out = tmp_path / f"p{suffix}"
    done = run_here(made, "predict", "m.skops", data, "--out", out)
    assert done.stdout == f"saved {out}: {ROWS} rows, 3 classes of 'y'\n", done.stderr
    probabilities, predicted = read(out)
    model = load_model(made / "m.skops")
    whole = model.pipeline.predict_proba(pd.read_csv(made / "whole.csv")[["a", "b", "c"]])
    np.testing.assert_allclose(probabilities, whole, rtol=1e-12)  # a product of fewer rows may round otherwise
    assert probabilities.dtype == np.float64
    if predicted is not None:
        np.testing.assert_array_equal(predicted, model.classifier.classes_[whole.argmax(axis=1)])
    if suffix == ".parquet":
        sizes = [pq.ParquetFile(out).metadata.row_group(k).num_rows for k in range(5)]
        assert min(sizes) >= 341  # of 24 bytes each, not the 64 of a block


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("labels", [np.array(["p", "q", "é"]), np.arange(3), np.array([False, True])])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_files_are_those_of_one_block(tmp_path, suffix, labels, dtype):
    values = np.random.default_rng(0).dirichlet(np.ones(len(labels)), 50).astype(dtype)
    for name, blocks in (("one", [values]), ("many", np.array_split(np.asfortranarray(values), 7))):
        write_prediction_blocks(tmp_path / f"{name}{suffix}", iter(blocks), 50, labels)
    one, many = (tmp_path / f"{name}{suffix}" for name in ("one", "many"))
    if suffix == ".npz":
        first, second = np.load(one), np.load(many)
        assert first.files == second.files == ["probabilities", "classes", "prediction"]
        for name in first.files:
            np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_array_equal(first["prediction"], labels[values.argmax(axis=1)])
    elif suffix == ".parquet":
        assert pq.read_table(one).equals(pq.read_table(many))
    else:
        assert one.read_bytes() == many.read_bytes()
    if suffix == ".npy":
        np.save(tmp_path / "saved.npy", values)
        assert one.read_bytes() == (tmp_path / "saved.npy").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_is_left_of_what_went_wrong(tmp_path, suffix):
    path = tmp_path / f"p{suffix}"
    path.write_text("as before")

    def stops():
        yield np.full((4, 2), 0.5)
        raise KeyboardInterrupt

    classes = np.array(["p", "q"])
    with pytest.raises(KeyboardInterrupt):
        write_prediction_blocks(path, stops(), 8, classes)
    for rows in (3, 5):
        with pytest.raises(DataError, match="changed while they were read: 4 rows"):
            write_prediction_blocks(path, iter([np.full((4, 2), 0.5)]), rows, classes)
    with pytest.raises(DataError, match="cannot be written"):
        write_prediction_blocks(tmp_path / "none" / f"p{suffix}", stops(), 8, classes)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "as before"


@pytest.mark.parametrize("kind", ["npy", "parquet"])
@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_a_block_is_in_memory_and_not_the_rows(tmp_path, small_blocks, monkeypatch, kind, suffix):
    rows = 20_000
    monkeypatch.setattr(file_prediction, "_FEWEST_ROWS", 1000)
    monkeypatch.setattr(row_files, "_FEWEST_ROWS", 1000)
    X = np.random.default_rng(0).normal(size=(rows, 40))
    np.save(tmp_path / "X.npy", X[:500])
    np.save(tmp_path / "y.npy", (X[:500, 0] > 0).astype(int))
    names = [f"x{k}" for k in range(40)]
    table = pd.DataFrame(X[:500], columns=names).assign(y=X[:500, 0] > 0)
    table.to_csv(tmp_path / "few.csv", index=False)
    source = ("few.csv", "--target", "y") if kind == "parquet" else ("X.npy", "--labels", "y.npy")
    assert run_here(tmp_path, "train", *source, "--out", "m.skops", "--quiet").returncode == 0
    if kind == "parquet":
        pq.write_table(pa.table(dict(zip(names, X.T, strict=True))), tmp_path / "all.parquet", row_group_size=10_000)
    else:
        np.save(tmp_path / "all.npy", X)
    model = load_model(tmp_path / "m.skops")

    def peak():
        found = file_prediction.Predictions(model, str(tmp_path / f"all.{kind}"))
        tracemalloc.start()
        try:
            write_prediction_blocks(tmp_path / f"p{suffix}", found.blocks(), found.rows, model.classifier.classes_)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak() < X.nbytes / 4
    monkeypatch.setattr(file_prediction, "_BLOCK_BYTES", 1 << 40)
    monkeypatch.setattr(row_files, "_BLOCK_BYTES", 1 << 40)
    assert peak() > X.nbytes / 4  # or it would not show


def test_notes_count_over_all_blocks(made, tmp_path, small_blocks):
    table = pd.read_parquet(made / "one.parquet")
    table.loc[[70, 900, 2999], "c"] = ["x", None, "z"]
    table.to_parquet(tmp_path / "new.parquet", row_group_size=400)
    done = run_here(tmp_path, "predict", made / "m.skops", "new.parquet", "--out", "p.csv")
    assert done.returncode == 0
    assert done.stderr == (
        f"note: column 'c': 3 of {ROWS} rows hold a category that training did not see, such as 'x'\n"
    )


@pytest.mark.parametrize("command", ["predict", "train"])
@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [("a", np.inf, "an infinite number"), ("b", -1e200, "-1e+200, a number too large")],
)
def test_a_value_damaged_late_in_the_second_file_is_placed_there(
    made, tmp_path, small_blocks, command, column, value, problem
):
    (tmp_path / "parts").mkdir()
    for part in range(2):
        table = pd.read_parquet(made / "parts" / f"{part}.parquet")
        if part:
            table.loc[1402, column] = value
        table.to_parquet(tmp_path / "parts" / f"{part}.parquet", index=False, row_group_size=500)
    more = [made / "m.skops", "parts", "--out", "p.csv"] if command == "predict" else ["parts", "--target", "y"]
    line = refuse(tmp_path, command, *more)
    place = "row 1403" if command == "predict" else "row 1403 of parts/1.parquet"
    source = "parts/1.parquet" if command == "predict" else "parts"
    assert line.startswith(f"{source}: column {column!r} holds at {place} {problem}")


def test_a_value_damaged_beyond_the_sample_is_placed_too(made, tmp_path, small_blocks, monkeypatch):
    from softmaxloss import file_training

    monkeypatch.setattr(file_training, "SAMPLED_ROWS", 10)
    (tmp_path / "parts").mkdir()
    for part in range(2):
        table = pd.read_parquet(made / "parts" / f"{part}.parquet")
        if part:
            table.loc[1402, "a"] = np.inf
        table.to_parquet(tmp_path / "parts" / f"{part}.parquet", index=False, row_group_size=500)
    line = refuse(tmp_path, "train", "parts", "--target", "y")
    assert line.startswith("parts/1.parquet: column 'a' holds at row 1403 an infinite number")


def test_a_label_that_is_missing_late_in_the_second_file(made, tmp_path):
    (tmp_path / "parts").mkdir()
    for part in range(2):
        table = pd.read_parquet(made / "parts" / f"{part}.parquet")
        if part:
            table.loc[1402, "y"] = None
        table.to_parquet(tmp_path / "parts" / f"{part}.parquet", index=False)
    line = refuse(tmp_path, "train", "parts", "--target", "y")
    assert line.startswith("parts/0.parquet and 1 more: target 'y' has no value at row 1403 of parts/1.parquet")


def test_a_file_among_those_read_is_not_replaced(made):
    line = refuse(made, "predict", "m.skops", "parts/*.parquet", "--out", "parts/1.parquet")
    assert line == "parts/1.parquet: is the input itself; write to another file"
