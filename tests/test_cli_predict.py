"""The command predict, and the evaluation of what it writes."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import skops.io
from cli_runs import GOOD, refuse, run, run_here, succeed
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from softmaxloss.classifier import SoftmaxClassifier


def test_predictions_are_evaluated_by_the_names_of_the_classes(flowers, tmp_path):
    folder, _ = flowers
    out = tmp_path / "p.csv"
    done = succeed(folder, "predict", "models.skops", "iris.csv", "--out", out)
    assert done.stdout == f"saved {out}: 150 rows, 3 classes of 'species'\n"
    frame = pd.read_csv(out)
    classes = ["setosa", "versicolor", "virginica"]
    assert list(frame) == [*classes, "prediction"]
    np.testing.assert_allclose(frame[classes].sum(axis=1), 1, rtol=1e-12)
    assert (frame["prediction"] == frame[classes].idxmax(axis=1)).all()

    line = refuse(folder, "evaluate", out, "iris.csv", "--target", "species")
    assert line.endswith("evaluate it with --kind probabilities")
    kind = ("--kind", "probabilities")
    found = json.loads(succeed(folder, "evaluate", out, "iris.csv", "--target", "species", "--json", *kind).stdout)
    species = pd.read_csv(folder / "iris.csv")["species"]
    assert found["accuracy"] == pytest.approx((frame["prediction"] == species).mean())
    chosen = frame[classes].to_numpy()[np.arange(150), [classes.index(name) for name in species]]
    assert found["loss"] == pytest.approx(-np.log(chosen).mean(), rel=1e-6)
    assert [entry["name"] for entry in found["classes"]] == classes


def test_a_model_applied_to_other_tables(flowers, tmp_path):
    folder, _ = flowers
    table = pd.read_csv(folder / "iris.csv")
    table.iloc[:, [3, 0, 2]].to_csv(tmp_path / "fewer.csv", index=False)
    line = refuse(tmp_path, "predict", folder / "models.skops", "fewer.csv", "--out", "p.csv")
    assert line.startswith("fewer.csv: no column 'sepal width (cm)' (used in training); the col")

    # Columns in another order and a further one, to Parquet.
    table.iloc[:, [4, 3, 0, 2, 1]].assign(day="2024-01-01").to_csv(tmp_path / "more.csv", index=False)
    done = run_here(tmp_path, "predict", folder / "models.skops", "more.csv", "--out", "p.parquet")
    assert done.returncode == 0, done.stderr
    frame = pd.read_parquet(tmp_path / "p.parquet")
    assert list(frame) == ["setosa", "versicolor", "virginica", "prediction"]
    assert (frame["prediction"] == table["species"]).mean() > 0.9


CODES = "zip,price,y\n" + "".join(f'{row % 3},"1,{row:03}",{"pq"[row % 2]}\n' for row in range(40))


def test_text_that_training_did_not_see_or_sees_too_much_of(tmp_path):
    (tmp_path / "t.csv").write_text(CODES)
    done = run_here(tmp_path, "train", "t.csv", "--target", "y", "--categorical", "zip", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "note: column 'price' is text with 40 different values in 40 rows, such as '1,000'; --drop it, or turn it "
        "into numbers\n"
    )

    # The same codes, as pandas writes them where one is missing.
    table = pd.read_csv(io.StringIO(CODES)).astype({"zip": float})
    table.loc[0, "zip"], table.loc[1, "zip"] = None, 7
    table.to_csv(tmp_path / "new.csv", index=False)
    done = run_here(tmp_path, "predict", "t.skops", "new.csv", "--out", "p.csv")
    assert done.returncode == 0, done.stderr
    zips, *prices = done.stderr.splitlines()
    assert zips == "note: column 'zip': 2 of 40 rows hold a category that training did not see, such as '7'"
    # Eight prices were in the rows to test on.
    assert [line[:38] for line in prices] == ["note: column 'price': 8 of 40 rows hol"]


def test_labels_that_come_with_features_evaluate_predictions(tmp_path):
    (tmp_path / "t.svm").write_text("".join(f"{(3, 7)[row % 2]} 1:{row % 5} 2:{row % 2}\n" for row in range(40)))
    for data, name, rows in (("t.svm", "t", 40), ("digits", "digits", 1797)):
        train, out = ("train", data, "--quiet", "--tol", "0.01"), f"{name}.csv"
        evaluate = ("evaluate", out, data, "--kind", "probabilities", "--json")
        for arguments in (train, ("predict", f"{name}.skops", data, "--out", out), evaluate):
            done = run_here(tmp_path, *arguments)
            assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["n_scored"] == rows
        assert found["accuracy"] > 0.9


def test_a_missing_word_as_a_class(tmp_path):
    (tmp_path / "t.csv").write_text(GOOD.replace("q", "None"))
    line = refuse(tmp_path, "train", "t.csv", "--target", "y")
    assert line.startswith("t.csv: target 'y' has no value at line 3 ('None' counts as missing, unless with --cat")
    steps = [
        "train t.csv --target y --categorical y --quiet",
        "predict t.skops t.csv --out p.csv",
        "evaluate p.csv t.csv --target y --kind probabilities --json",
    ]
    for step in steps:
        done = run_here(tmp_path, *step.split())
        assert done.returncode == 0, done.stderr
    assert [entry["name"] for entry in json.loads(done.stdout)["classes"]] == ["None", "p"]


def test_predictions_do_not_replace_what_they_are_made_from(tmp_path):
    (tmp_path / "t.csv").write_text(GOOD)
    line = refuse(tmp_path, "predict", "m.skops", "t.csv", "--out", "../" + tmp_path.name + "/t.csv")

    assert "is the input itself" in line
    assert "'.txt' is not known" in refuse(tmp_path, "predict", "m.skops", "t.csv", "--out", "p.txt")


def shout(values):
    """Stand for code of somebody else's."""
    raise AssertionError("was run")


@pytest.mark.filterwarnings("default")
def test_numbers_too_large_for_the_model(flowers, tmp_path):
    folder, _ = flowers
    names = pd.read_csv(folder / "iris.csv", nrows=0).columns[:4]
    (tmp_path / "t.csv").write_text(",".join(names) + "\n" + ",".join(["1e308"] * 4) + "\n")
    done = run_here(tmp_path, "predict", folder / "models.skops", "t.csv", "--out", "p.csv")

    assert done.returncode == 1
    assert done.stderr.startswith("error: t.csv: column 'sepal length (cm)' holds at line 2 1e+308, ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "p.csv").exists()


def test_what_overflows_is_told_in_one_line(tmp_path):
    """A float32 so large that it is infinite when scaled: NumPy's warning would say nothing to a user."""
    small = np.linspace(0, 1e-10, 40, dtype=np.float32)[:, None]
    np.savez(tmp_path / "small.npz", X=small, y=np.arange(40) % 2)
    np.savez(tmp_path / "t.npz", X=np.full((1, 1), 3e38, np.float32))
    done = run_here(tmp_path, "train", "small.npz", "--quiet")
    assert done.returncode == 0, done.stderr

    assert refuse(tmp_path, "predict", "small.skops", "t.npz", "--out", "p.csv").startswith("t.npz: ")


def test_files_that_are_no_models(tmp_path):
    (tmp_path / "t.csv").write_text(GOOD)
    line = refuse(tmp_path, "predict", "t.csv", "t.csv", "--out", "p.csv", run=run)
    assert line.startswith("t.csv: is not a model saved by softmaxloss")

    pipeline = Pipeline([("shout", FunctionTransformer(shout)), ("classifier", SoftmaxClassifier())])
    skops.io.dump(pipeline, tmp_path / "m.skops")
    line = refuse(tmp_path, "predict", "m.skops", "t.csv", "--out", "p.csv")
    assert line.startswith("m.skops: holds the type ")
    assert ".shout, which is not trusted" in line
