"""Parquet files learned from by Dask: the model of the same rows in one table."""

import numpy as np
import pytest

dask = pytest.importorskip("dask")
pytest.importorskip("dask.dataframe")
pd = pytest.importorskip("pandas")

from typer.testing import CliRunner  # noqa: E402

from softmaxloss import __version__  # noqa: E402
from softmaxloss.classifier import SoftmaxClassifier  # noqa: E402
from softmaxloss.cli import app  # noqa: E402
from softmaxloss.dask_files import train_on_parquet  # noqa: E402
from softmaxloss.data.datasets import read_features, read_training_data  # noqa: E402
from softmaxloss.data.files import DataError  # noqa: E402
from softmaxloss.persistence import Model, build_pipeline, load_model, save_model  # noqa: E402


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def table(rows=300):
    random = np.random.default_rng(0)
    length = random.standard_normal(rows)
    kind = np.where(length + random.standard_normal(rows) > 0, "oak", "ash")
    frame = pd.DataFrame({"length": length, "rings": random.integers(1, 90, rows), "kind": kind})
    frame["soil"] = random.choice(["clay", "sand", "loam"], rows)
    frame.loc[5, "length"] = np.nan
    return frame


@pytest.mark.parametrize("text", [False, True], ids=["numbers", "and text"])
def test_the_model_is_that_of_one_table(text, tmp_path):
    frame = table() if text else table().drop(columns="soil")
    (tmp_path / "parts").mkdir()
    for k, start in enumerate(range(0, 300, 100)):
        frame.iloc[start : start + 100].to_parquet(tmp_path / "parts" / f"{k}.parquet")
    frame.to_parquet(tmp_path / "all.parquet")
    classifier = SoftmaxClassifier(C=2.0, tol=1e-9)
    model, notes = train_on_parquet(str(tmp_path / "parts" / "*.parquet"), "kind", classifier)

    dataset = read_training_data(str(tmp_path / "all.parquet"), target="kind")
    pipeline = build_pipeline(dataset.layout, SoftmaxClassifier(C=2.0, tol=1e-9)).fit(dataset.features, dataset.labels)
    assert notes == ()
    assert model.layout == dataset.layout
    np.testing.assert_allclose(model.classifier.coef_, pipeline[-1].coef_, atol=1e-6)

    save_model(tmp_path / "model.skops", model)
    features = read_features(str(tmp_path / "all.parquet"), model.layout)
    read = load_model(tmp_path / "model.skops")
    assert isinstance(read, Model)
    assert read.version == __version__
    np.testing.assert_allclose(read.pipeline.predict_proba(features), pipeline.predict_proba(features), atol=1e-6)


def test_what_is_refused(tmp_path):
    table().to_parquet(tmp_path / "all.parquet")
    pattern = str(tmp_path / "*.parquet")
    with pytest.raises(DataError, match="there is no such file"):
        train_on_parquet(str(tmp_path / "*.pq"), "kind", SoftmaxClassifier())
    with pytest.raises(DataError, match="no column 'tree'"):
        train_on_parquet(pattern, "tree", SoftmaxClassifier())
    table().assign(kind="oak").to_parquet(tmp_path / "all.parquet")
    with pytest.raises(DataError, match="one class"):
        train_on_parquet(pattern, "kind", SoftmaxClassifier())


def test_the_command(tmp_path):
    table().to_parquet(tmp_path / "0.parquet")
    table().to_parquet(tmp_path / "1.parquet")
    run = CliRunner().invoke
    given = ["train", str(tmp_path / "*.parquet"), "--target", "kind", "--engine", "dask", "--quiet"]
    done = run(app, [*given, "--out", str(tmp_path / "model.skops")])
    assert done.exit_code == 0, done.output
    assert "saved" in done.output
    assert load_model(tmp_path / "model.skops").classifier.converged_
    for options, message in (
        (["--report", str(tmp_path / "report.html")], "--report"),
        (["--engine", "local", "--scheduler", "tcp://127.0.0.1:9"], "--scheduler"),
    ):
        refused = run(app, [*given, *options])
        assert refused.exit_code == 2
        assert message in refused.output


@pytest.mark.parametrize("option", [["--test-size", "0.1"], ["--seed", "1"], ["--report", "page.html"]])
def test_dask_refuses_what_is_about_rows_set_aside(option):
    found = CliRunner().invoke(app, ["train", "rows.parquet", "--target", "y", "--engine", "dask", *option])

    assert found.exit_code == 2
    assert "sets none aside" in " ".join(found.output.replace("│", " ").split())
