"""Scores and labels from files, the match of labels with classes, and files of probabilities."""

import numpy as np
import pandas as pd
import pytest

from softmaxloss.data.files import DataError
from softmaxloss.data.scores import (
    Scores,
    check_predictions,
    look_like_probabilities,
    read_labels,
    read_scores,
    write_predictions,
)

VALUES = np.array([[0.5, 1.5], [2, -1], [0, -np.inf]])


@pytest.fixture
def write(tmp_path):
    """Write an array, arrays or text to a file of this name."""

    def write(name, content=None, **arrays):
        path = tmp_path / name
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif content is None:
            np.savez(path, **arrays)
        else:
            np.save(path, content)
        return path

    return write


# Scores


def test_scores_of_each_kind_of_file(write, tmp_path):
    frame = pd.DataFrame(VALUES, columns=["cat", "dog"]).assign(prediction="cat")
    frame.to_parquet(tmp_path / "t.parquet")
    sources = {
        write("t.npy", VALUES): None,
        write("a.npz", logits=VALUES): None,
        write("b.npz", anything=VALUES): None,
        write("c.npz", probabilities=VALUES, classes=["cat", "dog"], prediction=["cat"] * 3): ["cat", "dog"],
        write("t.csv", frame.to_csv(index=False)): ["cat", "dog"],
        tmp_path / "t.parquet": ["cat", "dog"],
    }
    for path, classes in sources.items():
        scores = read_scores(path)
        np.testing.assert_array_equal(scores.values, VALUES)
        assert scores.classes == classes


def test_an_array_is_not_read_before_it_is_used(write):
    assert isinstance(read_scores(write("t.npy", VALUES)).values, np.memmap)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (VALUES[0], r"has shape \(2,\) and type float64; expected numbers in rows x classes, 2-D"),
        (VALUES[None], r"has shape \(1, 3, 2\)"),
        (VALUES.astype(str), "type <U32; expected numbers"),
        (VALUES + 1j, "type complex128; expected numbers"),
        (VALUES[:0], r"has shape \(0, 2\), so there is nothing to evaluate"),
        (VALUES[:, :0], r"has shape \(3, 0\), so there is nothing to evaluate"),
    ],
)
def test_arrays_that_are_no_scores(write, values, problem):
    with pytest.raises(DataError, match=rf"t\.npy: .*{problem}"):
        read_scores(write("t.npy", values))


def test_archives_and_tables_that_are_no_scores(write):
    with pytest.raises(DataError, match=r"its arrays are 'a', 'b'; expected one of 'probabilities', "):
        read_scores(write("t.npz", a=VALUES, b=VALUES))
    with pytest.raises(DataError, match="names 3 classes, but its scores have 2 columns"):
        read_scores(write("t.npz", scores=VALUES, classes=["a", "b", "c"]))
    with pytest.raises(DataError, match="column 'b' must hold numbers, but line 3 holds 'x'"):
        read_scores(write("t.csv", "a,b\n1,2\n3,x\n"))
    with pytest.raises(DataError, match="has no column of scores"):
        read_scores(write("t.csv", "prediction\n1x\n"))
    with pytest.raises(DataError, match=r"'\.txt' is not known"):
        read_scores(write("t.txt", "1"))


# Labels


def scores(*classes, rows=4):
    return Scores("s.npy", np.zeros((rows, len(classes) or 3)), list(classes) or None)


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        # No names: labels are indices.
        (["0", "2", "1", "-100"], (), [0, 2, 1, -100]),
        (["0.0", "2", "1", "0"], (), [0, 2, 1, 0]),
        (["true", "False", "true", "true"], (), [1, 0, 1, 1]),
        # Names of text: labels are names, or else indices.
        (["cat", "ant", "dog", "cat"], ("ant", "dog", "cat"), [2, 0, 1, 2]),
        (["cat", "ant", "-100", "cat"], ("ant", "dog", "cat"), [2, 0, -100, 2]),
        (["1", "0", "2", "-100"], ("ant", "dog", "cat"), [1, 0, 2, -100]),
        # Names that are numbers: labels are names, never indices.
        (["5", "3", "1", "-100"], ("1", "3", "5"), [2, 1, 0, -100]),
        (["5.0", "3", "1", "5"], ("1", "3", "5"), [2, 1, 0, 2]),
        (["01", "1", "01", "1"], ("1", "01"), [1, 0, 1, 0]),
        (["True", "False", "True", "True"], ("True", "False"), [0, 1, 0, 0]),
        (["true", "false", "true", "true"], ("False", "True"), [1, 0, 1, 1]),
    ],
)
@pytest.mark.parametrize("kind", ["txt", "csv"])
def test_text_labels_are_matched_with_the_classes(write, labels, classes, expected, kind):
    lines = "".join(f"{label}\n" for label in labels)
    path = write(f"t.{kind}", lines if kind == "txt" else "label\n" + lines)

    assert read_labels(path, scores(*classes)).tolist() == expected


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (np.array([0, 2, 1, -100]), (), [0, 2, 1, -100]),
        (np.array([0, 2, 1, 255], np.uint8), (), [0, 2, 1, 255]),
        (np.array([0.0, 2, 1, -100]), (), [0, 2, 1, -100]),
        (np.array([5, 3, 1, -100]), ("1", "3", "5"), [2, 1, 0, -100]),
        (np.array([1, 0, 1, 1]), ("ant", "dog"), [1, 0, 1, 1]),
        (np.array([True, False, True, True]), ("True", "False"), [0, 1, 0, 0]),
        (np.array([True, False, True, True]), (), [1, 0, 1, 1]),
        (np.array(["dog", "ant", "dog", "dog"]), ("ant", "dog"), [1, 0, 1, 1]),
    ],
)
def test_array_labels_are_matched_with_the_classes(write, labels, classes, expected):
    assert read_labels(write("t.npy", labels), scores(*classes)).tolist() == expected
    assert read_labels(write("t.npz", y=labels), scores(*classes)).tolist() == expected


def test_the_ignored_label_can_be_any(write):
    path = write("t.txt", "dog\n-1\nnone\nant\n")
    with pytest.raises(DataError, match=r"holds 'none' at line 3, which is none of the classes of s\.npy"):
        read_labels(path, scores("ant", "dog"), ignore_index=-1)
    path = write("t.npy", np.array([3, -1, 3, -1]))
    assert read_labels(path, scores("1", "3"), ignore_index=-1).tolist() == [1, -1, 1, -1]


def test_labels_in_a_table_of_several_columns(write):
    path = write("t.csv", "x,kind\n1.5,ant\n2024-01-01,dog\n,ant\ny,ant\n")

    assert read_labels(path, scores("ant", "dog"), target="kind").tolist() == [0, 1, 0, 0]
    with pytest.raises(DataError, match="several columns; name that of the labels with --target: 'x', 'kind'"):
        read_labels(path, scores("ant", "dog"))
    with pytest.raises(DataError, match=r"no column 'y' \(--target\)"):
        read_labels(path, scores("ant", "dog"), target="y")


@pytest.mark.parametrize(
    ("name", "content", "classes", "problem"),
    [
        ("t.txt", "0\n1\n", (), "has 2 labels, but s.npy has 4 rows"),
        ("t.txt", "a\nb\na\nb\n", (), "holds 'a' at line 1, but s.npy does not name its classes"),
        ("t.txt", "a\nb\n\nb\n", ("a", "b"), "has no label on line 3"),
        ("t.txt", "a\nb\nc\nb\n", ("a", "b"), "holds 'c' at line 3, which is none of the classes of s.npy: 'a'"),
        ("t.csv", "y,x\na,1\nb,1\n,1\nb,1\n", ("a", "b"), "column 'y' has no value at line 4"),
        ("t.csv", "y,x\n1,1\n3,1\n2,1\n3,1\n", ("1", "3"), "column 'y' holds '2' at line 4, which is none of"),
        ("t.npy", np.array([0, 0.5, 0, 1]), (), "holds 0.5 at index 1, which is a quantity"),
        ("t.npy", np.eye(4), (), r"has shape \(4, 4\)"),
        ("t.npy", np.array([1, 0, 1, 3]), ("1", "3"), "holds '0' at index 1, which is none of the classes"),
        ("t.csv", "1\n0\n1\n0\n1\n", (), "the first line holds numbers"),
    ],
)
def test_labels_that_do_not_fit(write, name, content, classes, problem):
    target = "y" if isinstance(content, str) and content.startswith("y,") else None
    with pytest.raises(DataError, match=rf"{name}: {problem}"):
        read_labels(write(name, content), scores(*classes), target=target)


def test_label_archives(write):
    path = write("t.npz", labels=[0, 1, 0, 1], other=[1, 1, 1, 1])
    assert read_labels(path, scores()).tolist() == [0, 1, 0, 1]
    assert read_labels(path, scores(), target="other").tolist() == [1, 1, 1, 1]
    with pytest.raises(DataError, match="expected one of 'labels', 'y'"):
        read_labels(write("t.npz", a=[0], b=[1]), scores())


def test_a_label_file_that_is_no_text(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="is not text in UTF-8"):
        read_labels(path, scores())


# Probabilities taken for logits


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_that_are_distributions_are_seen(dtype):
    rows = np.random.default_rng(0).dirichlet([1] * 7, size=5000).astype(dtype)
    assert look_like_probabilities(rows)
    rows[17] = np.nan
    assert look_like_probabilities(rows)
    rows[-1] *= 1.01
    assert not look_like_probabilities(rows)


def test_rows_that_are_no_distributions():
    assert not look_like_probabilities(np.array([[1.5, -0.5], [0.5, 0.5]]))
    assert not look_like_probabilities(np.full((3, 2), np.nan))
    assert not look_like_probabilities(np.array([[1, 1], [1, 0]]))
    assert look_like_probabilities(np.array([[0, 1], [1, 0]]))


def test_blocks_of_rows_are_all_looked_at(monkeypatch):
    monkeypatch.setattr("softmaxloss.data.scores.BLOCK_BYTES", 100)
    rows = np.full((50, 4), 0.25)
    assert look_like_probabilities(rows)
    rows[-1, 0] = 0
    assert not look_like_probabilities(rows)


# Predictions

PROBABILITIES = np.array([[0.1, 0.9], [1 / 3, 2 / 3], [1, 0]])


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz", "npy"])
@pytest.mark.parametrize("classes", [["猫", "a,b"], [3, 1], [False, True]])
def test_predictions_come_back_as_scores(tmp_path, suffix, classes):
    path = tmp_path / f"t.{suffix}"
    classes = np.array(classes)
    predictions = classes[[1, 1, 0]]
    write_predictions(path, PROBABILITIES, classes, predictions)

    read = read_scores(path)
    np.testing.assert_array_equal(read.values, PROBABILITIES)
    if suffix == "npy":
        assert read.classes is None
        return
    assert read.classes == [str(name) for name in classes]
    if suffix == "npz":
        with np.load(path) as arrays:
            assert arrays["prediction"].tolist() == predictions.tolist()
            assert arrays["classes"].tolist() == classes.tolist()
    else:
        frame = pd.read_csv(path) if suffix == "csv" else pd.read_parquet(path)
        assert list(frame)[-1] == "prediction"
        assert frame["prediction"].tolist() == predictions.tolist()


def test_a_class_may_not_have_the_name_of_the_last_column(tmp_path):
    with pytest.raises(DataError, match="a class has the name of the column 'prediction'"):
        check_predictions(tmp_path / "t.csv", ["prediction", "b"])
    check_predictions(tmp_path / "t.npz", ["prediction", "b"])
    with pytest.raises(DataError, match=r"'\.xlsx' is not known"):
        check_predictions(tmp_path / "t.xlsx", ["a", "b"])
