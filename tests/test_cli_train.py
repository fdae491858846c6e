"""The command train: what it prints and writes, and the data that it refuses."""

import io
import re

import numpy as np
import pandas as pd
import pytest
import skops.io
from cli_runs import GOOD, refuse, run_here, succeed


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
    assert re.search(r"iteration \d+: loss ", done.stderr)
    assert sorted(path.name for path in folder.glob("*")) == ["iris.csv", "models.skops"]


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
