"""Commands on folders and patterns of Parquet files: streamed, and the same answers as for one file in memory."""

import numpy as np
import pandas as pd
import pytest
import skops.io
from cli_runs import refuse, run_here

from softmaxloss import file_training
from softmaxloss.commands import train as train_command

ROWS = 900


@pytest.fixture
def folder(tmp_path):
    """Give a folder with whole.parquet, and the same rows in parts/*.parquet, of numbers, text and missing values."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 2)) * [1, 50] + [0, 1000]
    table = pd.DataFrame(x, columns=["a", "b"]).assign(colour=rng.choice(["red", "green", "blue"], ROWS))
    table["y"] = np.where(x[:, 0] + (table["colour"] == "red") + rng.logistic(size=ROWS) > 0.5, "yes", "no")
    table.loc[rng.choice(ROWS, 30), "a"] = np.nan
    table.to_parquet(tmp_path / "whole.parquet")
    (tmp_path / "parts").mkdir()
    for part, rows in enumerate(np.array_split(np.arange(ROWS), 4)):
        table.iloc[rows].to_parquet(tmp_path / "parts" / f"{part}.parquet", index=False, row_group_size=100)
    return tmp_path


def trained(folder, data, out):
    done = run_here(folder, "train", data, "--target", "y", "--out", out, "--quiet", "--tol", "1e-8")
    assert done.returncode == 0, done.stderr
    model = skops.io.load(folder / out, trusted=skops.io.get_untrusted_types(file=folder / out))
    rows = [line for line in done.stdout.splitlines() if line.startswith(("│ train", "│ test"))]
    return model[-1], rows, done


@pytest.mark.parametrize("data", ["parts", "parts/*.parquet", "**/[0-9].parquet"])
def test_a_model_is_that_of_one_file(folder, data):
    whole, of_whole, _ = trained(folder, "whole.parquet", "whole.skops")
    parts, of_parts, done = trained(folder, data, "parts.skops")

    np.testing.assert_allclose(parts.coef_, whole.coef_, atol=1e-6)
    assert of_parts == of_whole
    assert len(of_parts) == 2
    assert "900 rows, 3 features (2 of numbers, 1 of text), 2 classes of 'y'" in done.stdout

    for model, rows, out in (("whole", "whole.parquet", "1.csv"), ("parts", data, "2.csv")):
        predicted = run_here(folder, "predict", f"{model}.skops", rows, "--out", out)
        assert predicted.returncode == 0, predicted.stderr
    of_one, of_many = pd.read_csv(folder / "1.csv"), pd.read_csv(folder / "2.csv")
    np.testing.assert_allclose(of_many[["no", "yes"]], of_one[["no", "yes"]], atol=1e-6)


def test_a_large_file_is_streamed(folder, monkeypatch):
    _, in_memory, _ = trained(folder, "whole.parquet", "a.skops")
    monkeypatch.setattr(train_command, "STREAMED_BYTES", 100)
    opened = []
    original = file_training.open_training_files
    monkeypatch.setattr(file_training, "open_training_files", lambda *a, **k: opened.append(a) or original(*a, **k))
    _, streamed, _ = trained(folder, "whole.parquet", "b.skops")

    assert opened
    assert streamed == in_memory


def test_scales_of_a_sample_serve_as_well(folder, monkeypatch):
    monkeypatch.setattr(file_training, "SAMPLED_ROWS", 200)
    whole, _, _ = trained(folder, "whole.parquet", "whole.skops")
    parts, of_parts, _ = trained(folder, "parts", "parts.skops")
    assert parts.coef_.shape == whole.coef_.shape
    assert 0.3 < float(of_parts[1].strip("│").split("│")[2]) < 0.7


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["parts", "--target", "z"], "parts: no column 'z' (--target)"),
        (["parts", "--target", "y", "--drop", "z"], "parts: no column 'z' (--drop)"),
        (["none*.parquet", "--target", "y"], "none*.parquet: there is no such file"),
        (["parts/*.csv", "--target", "y"], "parts/*.csv: there is no such file"),
        (["parts", "--target", "a"], "parts/0.parquet and 3 more: target 'a' "),
    ],
)
def test_what_is_wrong_is_told_in_one_line(folder, arguments, problem):
    assert refuse(folder, "train", *arguments).startswith(problem)


def test_a_damaged_part(folder):
    (folder / "parts" / "2.parquet").write_bytes(b"PAR1")
    assert refuse(folder, "train", "parts", "--target", "y").startswith("parts/2.parquet: is not a Parquet file")
