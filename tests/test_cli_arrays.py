"""The commands on .npy files of features: mapped, with their labels in another file."""

import numpy as np
import pandas as pd
import pytest
import skops.io
from cli_runs import refuse, run_here

from softmaxloss import file_training

ROWS, FEATURES = 600, 4
NAMES = np.array(["cat", "dog", "eel"])


@pytest.fixture
def folder(tmp_path):
    """Give a folder with X.npy, the same in X.npz, and labels in each kind of file."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(ROWS, FEATURES)) * [1, 50, 0.1, 1] + 3
    y = (X[:, :1] * [1, 0, -1] + rng.gumbel(size=(ROWS, 3))).argmax(axis=1)
    X[rng.choice(ROWS, 20), 1] = np.nan
    np.save(tmp_path / "X.npy", X)
    np.savez(tmp_path / "X.npz", X=X, y=y)
    np.savez(tmp_path / "names.npz", X=X, y=NAMES[y])
    np.save(tmp_path / "y.npy", y)
    np.savez(tmp_path / "labels.npz", labels=y, other=y[:3])
    pd.DataFrame({"y": y}).to_csv(tmp_path / "y.csv", index=False)
    pd.DataFrame({"row": np.arange(ROWS), "kind": NAMES[y]}).to_csv(tmp_path / "two.csv", index=False)
    pd.DataFrame({"y": y}).to_parquet(tmp_path / "y.parquet", index=False)
    (tmp_path / "y.txt").write_text("\n".join(map(str, y)) + "\n")
    (tmp_path / "names.txt").write_text("\n".join(NAMES[y]))
    return tmp_path


def trained(folder, *arguments, out="m.skops", tol=("--tol", "1e-8")):
    done = run_here(folder, "train", *arguments, "--out", out, "--quiet", *tol)
    assert done.returncode == 0, done.stderr
    model = skops.io.load(folder / out, trusted=skops.io.get_untrusted_types(file=folder / out))
    rows = [line for line in done.stdout.splitlines() if line.startswith(("│ train", "│ test"))]
    return model, rows, done


@pytest.mark.parametrize(
    ("labels", "archive"),
    [
        *((name, "X.npz") for name in ("y.npy", "labels.npz", "y.csv", "y.parquet", "y.txt")),
        ("names.txt", "names.npz"),
        ("two.csv", "names.npz"),
    ],
)
def test_a_model_is_that_of_an_archive(folder, labels, archive):
    whole, of_whole, _ = trained(folder, archive)
    more = ("--target", "kind") if labels == "two.csv" else ()
    model, rows, done = trained(folder, "X.npy", "--labels", labels, *more)

    np.testing.assert_allclose(model[-1].coef_, whole[-1].coef_, atol=1e-6)
    np.testing.assert_array_equal(model[-1].classes_, whole[-1].classes_)
    assert rows == of_whole
    assert len(rows) == 2
    assert f"X.npy: {ROWS} rows, {FEATURES} features, 3 classes" in done.stdout

    predicted = run_here(folder, "predict", "m.skops", "X.npy", "--out", "p.npy")
    assert predicted.returncode == 0, predicted.stderr
    X = np.load(folder / "X.npy")
    np.testing.assert_allclose(np.load(folder / "p.npy"), model.predict_proba(X), rtol=1e-9)
    of_archive = run_here(folder, "predict", "m.skops", "X.npz", "--out", "q.npy")
    assert of_archive.returncode == 0, of_archive.stderr
    np.testing.assert_allclose(np.load(folder / "p.npy"), np.load(folder / "q.npy"), rtol=1e-9)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "f2", "i4", "u1", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_of_any_type(folder, dtype, order):
    y = np.load(folder / "y.npy")
    X = np.column_stack([y * 2 + np.arange(ROWS) % 3, y == 1, np.arange(ROWS) % 5]).astype(dtype, order=order)
    np.save(folder / "T.npy", X)
    np.savez(folder / "T.npz", X=X, y=y)
    options = ("--test-size", "0", "--C", "0.01", "--tol", "1e-6" if dtype.endswith("f4") else "1e-8")
    model, rows, _ = trained(folder, "T.npy", "--labels", "y.npy", *options, tol=())
    whole, of_whole, _ = trained(folder, "T.npz", *options, tol=())
    # Big-endian float32 counts as float32 here, and as float64 in an archive.
    np.testing.assert_allclose(model[-1].coef_, whole[-1].coef_, atol=1e-3 if dtype.endswith("f4") else 1e-6)
    assert len(rows) == len(of_whole) == 1


def test_options_that_go_with_it(folder):
    arguments = ("X.npy", "--labels", "y.npy", "--checkpoint", "state.npz", "--report", "r.html", "--test-size", "0.5")
    line = refuse(folder, "train", *arguments, "--resume")
    assert line.startswith("state.npz: there is no checkpoint to resume from")
    whole, rows, _ = trained(folder, *arguments)
    assert [line.split("│")[2].strip() for line in rows] == ["300", "300"]
    assert "X.npy" in (folder / "r.html").read_text()
    again, _, _ = trained(folder, *arguments, "--resume")
    np.testing.assert_array_equal(again[-1].coef_, whole[-1].coef_)
    X = np.load(folder / "X.npy")
    np.save(folder / "X.npy", X + 1e-3 * np.arange(ROWS)[:, None])
    done = run_here(folder, "train", *arguments, "--resume", "--quiet", "--tol", "1e-8")
    assert done.returncode == 1
    assert "is the checkpoint of another fit" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["X.npy"], "'--labels': X.npy holds features only: say which file has the labels."),
        (["X.npz", "--labels", "y.npy"], "'--labels': is for a .npy file, and X.npz has its own labels."),
        (["X.npy", "--labels", "y.npy", "--target", "y"], "y.npy has no other labels to choose; leave it out."),
        (["X.npy", "--labels", "y.npy", "--drop", "x0"], "X.npy has no named columns; leave it out."),
        (["X.npy", "--labels", "y.npy", "--engine", "dask"], "dask reads .parquet files, and X.npy is none."),
    ],
)
def test_options_that_do_not(folder, arguments, problem):
    done = run_here(folder, "train", *arguments)
    assert done.returncode == 2
    assert problem in " ".join(done.stderr.replace("│", " ").split())


def test_labels_that_do_not_fit(folder):
    np.save(folder / "short.npy", np.arange(599) % 2)
    np.save(folder / "parts.npy", np.arange(ROWS) % 2 + 0.5)
    np.save(folder / "one.npy", np.zeros(ROWS, int))
    (folder / "blank.txt").write_text("a\n\nb\n")
    for labels, problem in (
        ("short.npy", "X.npy: has 600 rows, but short.npy has 599 labels"),
        ("parts.npy", "parts.npy: holds 0.5 at index 0, which is a quantity"),
        ("one.npy", "one.npy: holds one class only"),
        ("X.npy", "X.npy: has shape (600, 4)"),
        ("two.csv", "two.csv: has several columns; name that of the labels with --target: 'row', 'kind'"),
        ("blank.txt", "blank.txt: has no label on line 2"),
        ("y.svm", "y.svm: the suffix '.svm' is not known"),
        ("none.npy", "none.npy: there is no such file"),
    ):
        assert refuse(folder, "train", "X.npy", "--labels", labels).startswith(problem)


def test_features_that_are_none(folder, monkeypatch):
    trained(folder, "X.npy", "--labels", "y.npy")
    np.save(folder / "flat.npy", np.arange(ROWS))
    np.save(folder / "empty.npy", np.zeros((0, FEATURES)))
    np.save(folder / "words.npy", np.full((ROWS, FEATURES), "a"))
    (folder / "cut.npy").write_bytes((folder / "X.npy").read_bytes()[:1000])
    for name, problem in (
        ("flat.npy", "flat.npy: has shape (600,) and type int64; expected rows of numbers, 2-D"),
        ("empty.npy", "empty.npy: has shape (0, 4)"),
        ("words.npy", "words.npy: has shape (600, 4) and type <U1"),
        ("cut.npy", "cut.npy: is not in NumPy's format, or is damaged or cut off"),
    ):
        assert refuse(folder, "train", name, "--labels", "y.npy").startswith(problem)
        assert refuse(folder, "predict", "m.skops", name, "--out", "p.npy").startswith(problem)
    np.save(folder / "wide.npy", np.zeros((5, FEATURES + 1)))
    line = refuse(folder, "predict", "m.skops", "wide.npy", "--out", "p.npy")
    assert line == "wide.npy: has 5 features, but the model was trained with 4"
    X = np.load(folder / "X.npy")
    X[571, 2] = -np.inf
    np.save(folder / "X.npy", X)
    monkeypatch.setattr(file_training, "SAMPLED_ROWS", 10)
    for arguments in (("train", "X.npy", "--labels", "y.npy"), ("predict", "m.skops", "X.npy", "--out", "p.npy")):
        assert refuse(folder, *arguments) == "X.npy: [571, 2] is an infinite number"


def test_a_table_s_model_refuses_an_array(folder):
    pd.DataFrame(np.nan_to_num(np.load(folder / "X.npy"))).assign(y=np.load(folder / "y.npy")).to_csv(
        folder / "t.csv", index=False
    )
    trained(folder, "t.csv", "--target", "y", out="t.skops")
    line = refuse(folder, "predict", "t.skops", "X.npy", "--out", "p.npy")
    assert line.startswith("X.npy: has no named columns, but the model was trained on a table")
    trained(folder, "X.npy", "--labels", "y.npy")
    pd.read_csv(folder / "t.csv").to_parquet(folder / "t.parquet")
    line = refuse(folder, "predict", "m.skops", "t.parquet", "--out", "p.npy")
    assert line.startswith("t.parquet: is a table, but the model was trained on 4 features without names")
