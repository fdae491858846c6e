"""The installed command, run as a user runs it: what it prints, what it writes, and its exit status."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.datasets import load_iris
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

import softmaxloss
from softmaxloss.classifier import SoftmaxClassifier
from softmaxloss.cli import main

# The command of the environment that runs the tests; `resolve` would leave it for the base interpreter's.
COMMAND = str(Path(sys.executable).parent / "softmaxloss")


def run(folder, *arguments, **options):
    return subprocess.run(
        [COMMAND, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=120, **options
    )


def succeed(folder, *arguments, **options):
    done = run(folder, *arguments, **options)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def run_here(folder, *arguments):
    """Run a command in this process, which has paid for the imports already."""
    out, error = io.StringIO(), io.StringIO()
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(error)
    with contextlib.chdir(folder), streams[0], streams[1], pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    return subprocess.CompletedProcess(arguments, ended.value.code, out.getvalue(), error.getvalue())


def listing(folder):
    return sorted((path.relative_to(folder), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


def refuse(folder, *arguments, run=run_here):
    """Run a command that is to fail on its data: status 1, one line, nothing written. Give the line."""
    before = listing(folder)
    done = run(folder, *arguments)
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert listing(folder) == before
    return done.stderr.removeprefix("error: ").rstrip("\n")


# No data


def test_version_and_help_come_without_heavy_imports(tmp_path):
    assert succeed(tmp_path, "--version").stdout == f"softmaxloss {softmaxloss.__version__}\n"
    helped = succeed(tmp_path, "--help").stdout
    assert all(command in helped for command in ("train", "predict", "evaluate", "compare"))
    assert "report" not in helped
    heavy = "sklearn scipy pandas pyarrow skops torch jax"
    code = f"import sys, softmaxloss.cli; print([name for name in {heavy.split()} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "fit digits",
        "train",
        "train digits --epochs 3",
        "train digits --target y",
        "train a.svm --target y",
        "train a.csv",
        "train a.npz --drop x",
        "train digits --categorical x",
        "train digits --C 0",
        "train digits --C nan",
        "train digits --tol 0",
        "train digits --test-size 1",
        "train digits --max-iter 0",
        "train digits --resume",
        "train digits --label-smoothing 2",
        "train digits --class-weight even",
        "predict m.skops a.csv",
        "evaluate s.npy l.npy --kind scores",
        "evaluate s.npy l.npy --top-k 0",
        "evaluate s.npy l.npy --target y",
        "evaluate s.npy l.svm --target y",
        "evaluate s.npy digits --target y",
        "evaluate s.npy l.npy --ignore-index 9223372036854775808",
    ],
)
def test_usage(tmp_path, arguments):
    done = run_here(tmp_path, *arguments.split())

    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# Train, predict, evaluate


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """Give a folder with iris.csv and the model trained on it."""
    folder = tmp_path_factory.mktemp("flowers")
    iris = load_iris(as_frame=True)
    table = iris.data.assign(species=iris.target_names[iris.target])
    table.to_csv(folder / "iris.csv", index=False)
    done = succeed(folder, "train", "iris.csv", "--target", "species", "--out", "models.skops")
    return folder, done


def test_training_reports_loss_accuracy_time_and_where_the_model_is(flowers):
    folder, done = flowers

    assert "150 rows, 4 features (4 of numbers, 0 of text), 3 classes of 'species'" in done.stdout
    for part, rows in (("train", "120"), ("test", "30")):
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"│ {part}"))
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        assert cells[1] == rows
        assert 0 < float(cells[2]) < 0.3
        assert 90 <= float(cells[3].rstrip("% ")) <= 100
    assert "trained in " in done.stdout
    assert "saved models.skops\n" in done.stdout
    assert "iteration 10: loss " in done.stderr
    assert sorted(path.name for path in folder.glob("*")) == ["iris.csv", "models.skops"]


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


def test_digits_need_nothing_but_their_name(tmp_path):
    done = succeed(tmp_path, "train", "digits", "--quiet")
    assert "saved digits.skops\n" in done.stdout
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["digits.skops"]


def test_a_table_as_spreadsheets_write_it(tmp_path):
    """A byte order mark, semicolons, decimal commas, Chinese names and classes, quotes, Windows line ends.

    And a column of numbers and text to be taken as text, and one of dates to be dropped.
    """
    rows = [
        f'"甲;{row % 3}, ""乙""";{row % 7},5;{row % 5 or "无"};2024-01-0{row % 9 + 1};{"是" if row % 3 else "否"}'
        for row in range(60)
    ]
    text = "\ufeff" + "\r\n".join(["说明;宽度;代码;日期;类别", *rows, ""])
    (tmp_path / "数据.csv").write_bytes(text.encode())
    options = "--target 类别 --categorical 代码 --drop 日期 --test-size 0.25 --C 100"
    done = succeed(tmp_path, "train", "数据.csv", *options.split())
    assert "60 rows, 3 features (1 of numbers, 2 of text), 2 classes of '类别'" in done.stdout
    assert "saved 数据.skops\n" in done.stdout
    succeed(tmp_path, "predict", "数据.skops", "数据.csv", "--out", "p.csv")

    frame = pd.read_csv(tmp_path / "p.csv")
    assert list(frame) == ["否", "是", "prediction"]
    assert frame["prediction"].tolist() == ["是" if row % 3 else "否" for row in range(60)]


@pytest.mark.filterwarnings("default")  # the command makes a note of each
def test_training_options_reach_the_classifier(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", X=rng.normal(size=(60, 4)), kind=np.repeat(["a", "b"], [45, 15]))
    options = "--C 0.5 --tol 1e-9 --max-iter 2 --class-weight balanced --label-smoothing 0.1 --test-size 0"
    done = run_here(tmp_path, "train", "d.npz", "--target", "kind", *options.split())
    assert done.returncode == 0, done.stderr
    assert "note: SoftmaxClassifier stopped" in done.stderr
    assert done.stderr.count("\n") < 5
    assert "│ train" in done.stdout
    assert "│ test" not in done.stdout
    trusted = skops.io.get_untrusted_types(file=tmp_path / "d.skops")
    classifier = skops.io.load(tmp_path / "d.skops", trusted=trusted)[-1]
    parameters = classifier.get_params()
    assert parameters["C"] == 0.5
    assert parameters["tol"] == 1e-9
    assert parameters["max_iter"] == 2
    assert parameters["class_weight"] == "balanced"
    assert parameters["label_smoothing"] == 0.1


CODES = "zip,price,y\n" + "".join(f'{row % 3},"1,{row:03}",{"pq"[row % 2]}\n' for row in range(40))


@pytest.mark.filterwarnings("default::sklearn.exceptions.ConvergenceWarning")
def test_a_checkpoint_is_written_and_gone_on_from(tmp_path):
    arguments = ["train", "digits", "--quiet", "--checkpoint", "state.npz"]
    missing = run_here(tmp_path, *arguments, "--resume")
    assert (missing.returncode, missing.stderr) == (
        1,
        "error: state.npz: there is no checkpoint to resume from; leave out --resume to begin anew\n",
    )
    first = run_here(tmp_path, *arguments, "--max-iter", "10")
    assert first.returncode == 0
    assert (tmp_path / "state.npz").exists()

    resumed = run_here(tmp_path, *arguments, "--resume", "--out", "resumed.skops")
    whole = run_here(tmp_path, "train", "digits", "--quiet", "--out", "whole.skops")

    assert resumed.returncode == whole.returncode == 0
    models = [
        skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))[-1]
        for path in (tmp_path / "resumed.skops", tmp_path / "whole.skops")
    ]
    np.testing.assert_array_equal(models[0].coef_, models[1].coef_)
    other = run_here(tmp_path, *arguments, "--C", "2")
    assert other.returncode == 1
    assert "is the checkpoint of another fit, with C 1.0 where this one has 2.0" in other.stderr


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


# Evaluate


@pytest.fixture
def scored(tmp_path):
    """Give a folder with logits z.npy of three classes and labels y.npy."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "z.npy", rng.normal(size=(50, 3)))
    np.save(tmp_path / "y.npy", rng.integers(0, 3, 50))
    return tmp_path


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


# Standard output and error


def run_with(folder, redirection, *arguments, **variables):
    """Run a command under a shell that redirects its standard output or error."""
    command = ["sh", "-c", f'"$@" {redirection}', "sh", COMMAND, *arguments]
    environment = {**os.environ, **variables}
    encoding = variables.get("PYTHONIOENCODING", "utf-8")
    return subprocess.run(command, cwd=folder, capture_output=True, encoding=encoding, timeout=120, env=environment)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", ["--help", "evaluate z.npy y.npy --json", "train d.npz --quiet"])
def test_standard_output_on_a_full_disk(scored, arguments):
    np.savez(scored / "d.npz", X=np.load(scored / "z.npy"), y=np.load(scored / "y.npy"))
    # Unbuffered, as in many containers, what fails is another call.
    unbuffered = {"PYTHONUNBUFFERED": "1" if arguments == "--help" else ""}
    done = run_with(scored, "> /dev/full", *arguments.split(), **unbuffered)

    assert done.returncode == 1
    assert done.stderr == "error: cannot write to standard output (No space left on device)\n"


def test_a_reader_that_leaves_is_no_problem(scored):
    done = run_with(scored, "| true", "evaluate", "z.npy", "y.npy")

    assert done.stderr == ""


def test_an_encoding_without_the_names_of_the_classes(scored):
    scores = pd.DataFrame(np.load(scored / "z.npy"), columns=["猫", "é", "dog"])
    scores.to_csv(scored / "z.csv", index=False)
    table = run_with(scored, "", "evaluate", "z.csv", "y.npy", PYTHONIOENCODING="latin-1")
    assert table.returncode == 0, table.stderr
    assert r"\u732b" in table.stdout
    found = run_with(scored, "", "evaluate", "z.csv", "y.npy", "--json", PYTHONIOENCODING="latin-1")
    assert found.returncode == 0, found.stderr
    assert found.stdout.isascii()
    assert [entry["name"] for entry in json.loads(found.stdout)["classes"]] == ["猫", "é", "dog"]


def test_closed_standard_error(scored):
    np.savez(scored / "d.npz", X=np.load(scored / "z.npy"), y=np.load(scored / "y.npy"))
    done = run_with(scored, "2>&-", "train", "d.npz", "--C", "1e6", "--tol", "1e-12")
    assert done.returncode == 0
    assert done.stdout.endswith("saved d.skops\n")
    assert run_with(scored, "2>&-", "train", "none.npz").returncode == 1


# What is wrong with the data


GOOD = "a,b,y\n" + "".join(f"{row % 7},{row % 5},{'pq'[row % 2]}\n" for row in range(40))


def parquet(frame):
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


FRAME = pd.DataFrame({"a": range(1000), "y": ["p", "q"] * 500})
ARRAYS = npz(X=np.zeros((100, 4)), y=np.arange(100) % 2)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("missing.csv", None, "there is no such file"),
        ("folder.csv", ..., "is a directory, a file is expected"),
        ("empty.csv", "", "the file is empty"),
        ("ragged.csv", GOOD + "1,2\n", "line 42 has 2 fields, the header has 3"),
        ("binary.csv", bytes(range(256)), "is not text (a zero byte at 0)"),
        ("cut.parquet", parquet(FRAME)[:4000], "is not a Parquet file, or is cut off"),
        ("cut.npz", ARRAYS[: len(ARRAYS) // 2], "is not a NumPy .npz file, or is cut off"),
        ("target.csv", GOOD.replace("y", "species"), "no column 'y' (--target); the columns are 'a', 'b', 'spec"),
        ("one.csv", GOOD.replace("q", "p"), "target 'y' holds one class only, 'p'"),
        ("nan.csv", GOOD + "1,2,\n", "target 'y' has no value at line 42"),
        ("quantity.csv", "a,y\n1,1\n2,0.5\n3,1\n", "target 'y' holds 0.5 at line 3, which is a quantity"),
        ("id.csv", "a,y\n1,1\n2,2\n3,3\n", "target 'y' has another value in each of its 3 rows"),
        ("mixed.csv", GOOD + "1,unknown,p\n", "column 'b' mixes numbers and text: line 42 holds 'unknown'"),
        ("date.csv", "when,y\n2024-01-01,p\n2024-01-02,q\n2024-01-03,q\n", "column 'when' holds dates"),
        ("twice.csv", GOOD.replace("b", "a"), "more than one column is named 'a'"),
        ("few.csv", "a,y\n1,p\n2,p\n3,q\n4,q\n", "4 rows of 2 classes cannot be split with --test-size 0.2"),
        ("table.xlsx", "x", "the suffix '.xlsx' is not known; the kind of file is told by its suffix, one of .csv"),
        ("data.svm", "1 1:0.5\n1 2:\n", "is not an SVMlight file, or is damaged or cut off"),
    ],
)
def test_data_that_cannot_be_learned_from(tmp_path, name, content, problem):
    path = tmp_path / name
    if content is ...:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    target = ("--target", "y") if path.suffix in (".csv", ".parquet") else ()
    line = refuse(tmp_path, "train", name, *target, "--out", "m.skops")

    assert line.startswith(f"{name}: {problem}")


@pytest.mark.parametrize(
    ("out", "problem"),
    [
        ("none/m.skops", "none/m.skops: cannot be written (there is no folder none)"),
        ("t.csv/m.skops", "t.csv/m.skops: cannot be written (there is no folder t.csv)"),
        ("m.pkl", "m.pkl: the suffix '.pkl' is not known"),
        ("link.skops", "link.skops: cannot be written (there is no folder "),
        ("loop.skops", "loop.skops: cannot be written (Too many levels of symbolic links)"),
    ],
)
def test_an_output_that_cannot_be_written_is_found_out_before_training(tmp_path, out, problem):
    (tmp_path / "t.csv").write_text("this is not even looked at")
    (tmp_path / "link.skops").symlink_to("none/m.skops")
    (tmp_path / "loop.skops").symlink_to("loop.skops")

    assert refuse(tmp_path, "train", "t.csv", "--target", "y", "--out", out).startswith(problem)


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


# Interrupted


def test_ctrl_c_in_the_middle_of_training_leaves_nothing(tmp_path):
    rng = np.random.default_rng(0)
    # Labels without a pattern and next to no regularisation: minutes of training.
    features = rng.normal(size=(20_000, 100)).astype(np.float32)
    np.savez(tmp_path / "d.npz", X=features, y=rng.integers(0, 50, 20_000))
    before = listing(tmp_path)
    arguments = ["train", "d.npz", "--C", "1e9", "--tol", "1e-15", "--max-iter", "1000000"]
    with subprocess.Popen([COMMAND, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline().startswith("iteration 10")
        process.send_signal(signal.SIGINT)
        error = process.stderr.read()

    assert process.returncode == 130
    assert "Traceback" not in error
    assert error.endswith("interrupted\n")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("library", ["typer", "skops"])
def test_ctrl_c_while_libraries_are_imported(tmp_path, library):
    (tmp_path / f"{library}.py").write_text("raise KeyboardInterrupt")
    arguments = ["train", "digits"]
    done = run(tmp_path, *arguments, env={**os.environ, "PYTHONPATH": str(tmp_path)})

    assert done.returncode == 130
    assert done.stderr.endswith("interrupted\n")
    assert "Traceback" not in done.stderr


def test_ctrl_c_while_a_file_is_read(tmp_path):
    os.mkfifo(tmp_path / "y.txt")
    np.save(tmp_path / "z.npy", LOGITS)
    command = [COMMAND, "evaluate", "z.npy", "y.txt"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        writer = wait_for_a_reader(tmp_path / "y.txt", process)
        process.send_signal(signal.SIGINT)
        error = process.stderr.read()
        os.close(writer)

    assert process.returncode == 130
    assert error == "interrupted\n"


def wait_for_a_reader(path, process):
    """Open a pipe for writing as soon as the process has opened it for reading."""
    while process.poll() is None:
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.01)
    raise AssertionError(process.stderr.read())
