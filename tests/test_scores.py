"""Scores and labels from files, the match of labels with classes, and files of probabilities."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from softmaxloss.data.files import DataError
from softmaxloss.data.row_files import RowFiles
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


def looks_like_probabilities(values):
    return look_like_probabilities(Scores(Path("scores.npy"), values))


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
    with pytest.raises(DataError, match="more than one class is named 'a'"):
        read_scores(write("t.npz", scores=VALUES, classes=["a", "a"]))
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


def test_labels_of_svmlight_files_and_digits(write):
    path = write("t.svm", "3 1:1\n1 2:1\n1 1:2\n3 3:1\n")
    assert read_labels(path, scores("1", "3")).tolist() == [1, 0, 0, 1]
    with pytest.raises(DataError, match=r"t\.svm: the label holds '1' at row 2, which is none of the classes"):
        read_labels(path, scores("3", "5"))

    digits = read_labels(Path("digits"), scores(*map(str, range(10)), rows=1797))
    assert digits[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    with pytest.raises(DataError, match="digits: has 1797 labels, but"):
        read_labels(Path("digits"), scores())


@pytest.mark.parametrize("labels", [["5", "-100", "5", "5"], ["5.0", "-100.0", "5", "5"], np.array([5, -100, 5, 5])])
def test_a_class_with_the_name_of_the_ignored_label(write, labels):
    path = write("t.txt", "\n".join(labels)) if isinstance(labels, list) else write("t.npy", labels)
    with pytest.raises(DataError, match=r"s\.npy: a class is named -100, .* with --ignore-index$"):
        read_labels(path, scores("-100", "5"))
    assert read_labels(path, scores("-100", "5"), ignore_index=-1).tolist() == [1, 0, 1, 1]


def test_huge_labels_are_exact_or_named(write):
    path = write("t.txt", "9007199254740993\n-9223372036854775808\n0\n1\n")
    assert read_labels(path, scores())[:2].tolist() == [2**53 + 1, -(2**63)]
    names = ("9007199254740992", "9007199254740993")
    labels = write("t.npy", np.array([2**53 + 1, 2**53, 2**53, 2**53]))
    assert read_labels(labels, scores(*names)).tolist() == [1, 0, 0, 0]
    for label in ("99999999999999999999", "1e300", "9007199254740992.0"):
        with pytest.raises(DataError, match=rf"t\.txt: holds '{label}' at line 2, but s\.npy does not name"):
            read_labels(write("t.txt", f"0\n{label}\n0\n1\n"), scores())


def test_whole_numbers_as_names_in_either_spelling(write):
    path = write("t.csv", "y\n1.0\nx\n1\nNone\n")
    assert read_labels(path, scores("1", "x", "None")).tolist() == [0, 1, 0, 2]
    assert read_labels(path, scores("1.0", "x", "None")).tolist() == [0, 1, 0, 2]


def test_a_label_file_that_is_no_text(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="is not text in UTF-8"):
        read_labels(path, scores())


# Probabilities taken for logits


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_that_are_distributions_are_seen(dtype):
    rows = np.random.default_rng(0).dirichlet([1] * 7, size=5000).astype(dtype)
    assert looks_like_probabilities(rows)
    rows[17] = np.nan
    assert looks_like_probabilities(rows)
    rows[-1] *= 1.1
    assert not looks_like_probabilities(rows)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("decimals", [2, 3])
def test_rounded_distributions_are_seen(classes, decimals):
    rows = np.random.default_rng(0).dirichlet([1] * classes, size=5000).round(decimals)
    assert decimals == 3 or classes == 2 or (abs(rows.sum(axis=1) - 1) > 1e-3).any()
    assert looks_like_probabilities(rows)
    exact = np.full((100, classes), 1 / classes)
    exact[50] = exact[50].round(decimals) if classes == 3 else [0.34, 0.67, *[0] * (classes - 2)]
    assert looks_like_probabilities(exact)


def test_rows_that_are_no_distributions():
    assert not looks_like_probabilities(np.array([[1.5, -0.5], [0.5, 0.5]]))
    assert not looks_like_probabilities(np.full((3, 2), np.nan))
    assert not looks_like_probabilities(np.zeros((3, 1000)))
    assert not looks_like_probabilities(np.array([[0.5, 0.5], [0.5, 0.4]]))
    assert not looks_like_probabilities(np.array([[np.inf, -np.inf], [0.5, 0.5]]))
    assert not looks_like_probabilities(np.array([[1, 1], [1, 0]]))
    assert looks_like_probabilities(np.array([[0, 1], [1, 0]]))


def test_blocks_of_rows_are_all_looked_at(monkeypatch):
    monkeypatch.setattr("softmaxloss.data.scores.BLOCK_BYTES", 100)
    rows = np.full((50, 4), 0.25)
    assert looks_like_probabilities(rows)
    rows[-1, 0] = 0
    assert not looks_like_probabilities(rows)


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
    for suffix in ("csv", "parquet"):
        for classes, problem in (
            ([" prediction ", "b"], "the name of the column 'prediction'"),
            (["", "b"], "a class has an empty name"),
            (["  ", "b"], "a class has an empty name"),
            (["x", " x", "y"], r"differ in blanks only \('x'\); write to a \.npz"),
        ):
            with pytest.raises(DataError, match=problem):
                check_predictions(tmp_path / f"t.{suffix}", classes)
            check_predictions(tmp_path / "t.npz", classes)
    with pytest.raises(DataError, match=r"'\.xlsx' is not known"):
        check_predictions(tmp_path / "t.xlsx", ["a", "b"])


def test_parquet_scores_are_read_a_row_group_at_a_time(tmp_path, monkeypatch):
    values = np.random.default_rng(5).normal(size=(700, 3))
    folder = tmp_path / "scores"
    folder.mkdir()
    frame = pd.DataFrame(values, columns=["a", "b", "c"]).assign(prediction="a")
    frame[:400].to_parquet(folder / "1.parquet", row_group_size=150, index=False)
    frame[400:].to_parquet(folder / "2.parquet", index=False)

    def whole(self, *_, **__):
        raise AssertionError("all rows were read at once")

    monkeypatch.setattr(RowFiles, "__array__", whole)
    for source, expected in ((folder, values), (folder / "*.parquet", values), (folder / "1.parquet", values[:400])):
        scores = read_scores(source)
        assert scores.classes == ["a", "b", "c"]
        starts, blocks = zip(*scores.blocks(), strict=True)
        np.testing.assert_array_equal(np.concatenate(blocks), expected)
        assert starts[:3] == (0, 150, 300)


def test_damage_is_named_with_its_row(tmp_path):
    frame = pd.DataFrame(np.random.default_rng(5).normal(size=(700, 3)), columns=["a", "b", "c"])
    path = tmp_path / "p.parquet"
    frame.to_parquet(path, row_group_size=200, index=False, compression="gzip")
    column = pq.ParquetFile(path).metadata.row_group(2).column(1)
    content = bytearray(path.read_bytes())
    begin = column.dictionary_page_offset or column.data_page_offset
    content[begin : begin + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"p\.parquet: is damaged or cut off \(after row 400, and before row 601"):
        list(read_scores(path).blocks())
    frame.assign(b=["x"] * 700).to_parquet(path, row_group_size=200, index=False)
    with pytest.raises(DataError, match=r"p\.parquet: column 'b' must hold numbers, but row 1 holds 'x'"):
        list(read_scores(path).blocks())
    np.save(tmp_path / "z.npy", np.ascontiguousarray(frame))
    with (tmp_path / "z.npy").open("r+b") as file:
        file.truncate(128 + 3 * 8 * 99 + 5)
    with pytest.raises(DataError, match=r"z\.npy: .* cut off.*; it ends after row 99 of 700"):
        read_scores(tmp_path / "z.npy")
