"""Features and class labels from files, for training and for predicting, and what cannot be learned from."""

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from sklearn.datasets import dump_svmlight_file

from softmaxloss.data.arrays import array_names, map_array, read_array
from softmaxloss.data.classes import as_classes
from softmaxloss.data.datasets import Layout, read_features, read_own_labels, read_training_data, split_rows
from softmaxloss.data.files import DataError

TABLE = "width,colour,old,species\n1.5,red,true,cat\n,blue,false,dog\n2,,true,cat\n3,red,,dog\n"


@pytest.fixture
def csv(tmp_path):
    def write(content, name="t.csv"):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return str(path)

    return write


def target(csv, *values, **options):
    """Read a table whose target has these values."""
    rows = "".join(f"{row},{value}\n" for row, value in enumerate(values))
    return read_training_data(csv("a,y\n" + rows), target="y", **options)


# Tables


def test_a_table_becomes_numbers_and_text(csv):
    dataset = read_training_data(csv(TABLE), target="species")

    assert dataset.layout == Layout("table", ("width", "old"), ("colour",), 3)
    assert dataset.features["width"].tolist()[2:] == [2, 3]
    assert dataset.features["old"].tolist()[:3] == [1, 0, 1]
    assert dataset.features["colour"].tolist()[:2] == ["red", "blue"]
    assert dataset.features.isna().sum().tolist() == [1, 1, 1]
    assert dataset.labels.tolist() == ["cat", "dog", "cat", "dog"]
    assert dataset.notes == ()


def test_columns_to_drop_and_to_take_as_text(csv):
    path = csv("zip,x,y\n01234,2020-01-01,a\nA99,2020-01-02,b\n01234,2020-01-02,a\n")
    dataset = read_training_data(path, target="y", drop=["x"], categorical=["zip"])

    assert dataset.layout == Layout("table", (), ("zip",), 1)
    assert dataset.features["zip"].tolist() == ["01234", "A99", "01234"]
    for options in ({"drop": ["z"]}, {"categorical": ["z"]}, {"target": "z"}):
        with pytest.raises(DataError, match=r"no column 'z' .*; the columns are 'zip', 'x', 'y'"):
            read_training_data(path, **{"target": "y", **options})
    for drop in (["zip", "x"], ["y"]):
        with pytest.raises(DataError, match="no column is left to predict 'y' from"):
            read_training_data(path, target="y", drop=drop)


def test_a_column_without_a_name_is_noted(csv):
    dataset = read_training_data(csv(",a,y\n0,1,p\n1,2,p\n2,3,q\n"), target="y")

    assert list(dataset.features) == ["a"]
    assert dataset.notes == ("columns without a name, left out: 1",)


def test_infinite_numbers_are_refused(csv):
    with pytest.raises(DataError, match="column 'a' holds at line 4 an infinite number"):
        read_training_data(csv("a,y\n1,p\n2,q\n-inf,q\n"), target="y")


@pytest.mark.parametrize("value", [1e151, -1.7e308])
def test_numbers_too_large_are_refused(csv, npz, value):
    problem = f"{value:g}, a number too large to compute with .above 1e.150 in magnitude.".replace("+", ".")
    with pytest.raises(DataError, match=rf"column 'a' holds at line 4 {problem}"):
        read_training_data(csv(f"a,y\n1,p\n1e150,q\n{value},q\n"), target="y")
    with pytest.raises(DataError, match=rf"X\[2, 1\] is {problem}"):
        read_training_data(npz(X=np.where(X == 6, value, X), y=[0, 1, 1]))
    path = csv(f"1 2:1\n1 5:-1e150 7:{value}\n2 2:2\n", "t.svm")
    with pytest.raises(DataError, match=rf"feature 7 of row 2 is {problem}"):
        read_training_data(path)
    with pytest.raises(DataError, match=rf"feature 7 of row 2 is {problem}"):
        read_features(path, Layout("sparse", n_features=7))
    small = npz(X=np.full((3, 2), 3e38, np.float32), y=[0, 1, 1])
    assert read_training_data(small).features.max() == np.float32(3e38)


def test_text_of_too_many_categories_is_noted(csv):
    def notes(*fields):
        rows = "".join(f'"{field}",{"pq"[row % 2]}\n' for row, field in enumerate(fields))
        return read_training_data(csv("price,y\n" + rows), target="y").notes

    assert notes(*(f"1,{row:03}" for row in range(200)), "") == (
        "column 'price' is text with 200 different values in 200 rows, such as '1,000'; --drop it, or turn it "
        "into numbers",
    )
    assert len(notes(*(f"name {row}" for row in range(80)), *["none"] * 19)) == 1
    assert notes(*(f"name {row % 40}" for row in range(80))) == ()
    assert notes("few", "rows", "say", "nothing") == ()


def test_a_table_needs_a_target(csv):
    with pytest.raises(TypeError, match="target"):
        read_training_data(csv(TABLE))


# Targets


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["3", "1", "3"], [3, 1, 3]),
        (["3.0", "1.0", "3"], [3, 1, 3]),
        (["true", "False", "true"], [True, False, True]),
        (["是", "否", "是"], ["是", "否", "是"]),
        (["-1", "+1", "1"], [-1, 1, 1]),
    ],
)
def test_targets_are_integers_booleans_or_text(csv, values, expected):
    labels = target(csv, *values).labels

    assert labels.tolist() == expected
    assert labels.dtype.kind == {int: "i", bool: "b", str: "U"}[type(expected[0])]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (["1", "", "0", ""], r"target 'y' has no value at line 3 and 1 more; every row needs a class"),
        (["p", "q", "nan"], r"target 'y' has no value at line 4 \('nan' counts as .*; every row"),
        (["1", "1.5", "1"], r"target 'y' holds 1.5 at line 3, which is a quantity and not a class"),
        (["1", "inf", "1"], r"target 'y' holds inf at line 3, which is a quantity"),
        (["1", "1", "1"], r"target 'y' holds one class only, '1'"),
        (["5", "6", "7"], r"target 'y' has another value in each of its 3 rows, so it is an identifier"),
        (["1", "1", "x"], r"column 'y' mixes numbers and text: line 4 holds 'x'"),
        (["9007199254740992", "1", "1"], r"target 'y' holds 9007199254740992 at line 2; whole numbers of 2\*\*53 or"),
        (["2024-01-01", "2024-01-02", "2024-01-01"], r"column 'y' holds dates; take each .* --categorical y$"),
        (["p", "None", "q", ""], r"target 'y' has no value at line 3 \('None' counts as missing, unless with --cat"),
    ],
)
def test_targets_that_are_no_classes(csv, values, problem):
    with pytest.raises(DataError, match=rf"t\.csv: {problem}"):
        target(csv, *values)


def test_a_mixed_target_as_text(csv):
    assert target(csv, "1", "x", "1", categorical=["y"]).labels.tolist() == ["1", "x", "1"]


def test_a_word_for_a_missing_value_as_a_class(csv):
    assert target(csv, "None", "x", "NA", "x", categorical=["y"]).labels.tolist() == ["None", "x", "NA", "x"]
    assert target(csv, "1.0", "2", "1", categorical=["y"]).labels.tolist() == ["1", "2", "1"]
    with pytest.raises(DataError, match="has no value at line 3; every row"):
        target(csv, "None", "", "x", categorical=["y"])


def test_class_labels_of_arrays():
    assert as_classes(np.array([1, 2], np.uint8), "f", str).dtype == np.uint8
    assert as_classes(np.array(["é".encode(), b"b"]), "f", str).tolist() == ["é", "b"]
    for values in (np.eye(2), np.array([1j]), np.zeros(1, "M8[D]")):
        with pytest.raises(DataError, match=r"f has shape .* expected one label for each row"):
            as_classes(values, "f", str)


# Predicting with a table


def test_a_table_to_predict_on_is_read_by_the_columns_of_the_model(csv):
    layout = Layout("table", ("width",), ("colour",), 2)
    # Other order, further columns of any kind, a number among the text, and no value at all.
    path = csv("day,colour,mixed,width\n2024-01-01,5,1,\n2024-01-02,red,x,\n")
    features = read_features(path, layout)

    assert features["colour"].tolist() == ["5", "red"]
    assert features["width"].isna().all()
    assert features["width"].dtype == float


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("width,y\n1,p\n", "no column 'colour' .used in training.; the columns are 'width', 'y'"),
        ("width,colour\n1,red\nwide,red\n", "column 'width' must hold numbers, but line 3 holds 'wide'"),
        ("width,colour\ninf,red\n", "column 'width' holds at line 2 an infinite number"),
    ],
)
def test_a_table_that_the_model_cannot_take(csv, content, problem):
    with pytest.raises(DataError, match=problem):
        read_features(csv(content), Layout("table", ("width",), ("colour",), 2))


# NumPy archives


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        path = tmp_path / "t.npz"
        np.savez(path, **arrays)
        return str(path)

    return write


X = np.array([[1.0, 2], [3, np.nan], [5, 6]])


def test_an_archive_holds_features_and_target(npz):
    path = npz(X=X, y=[0, 1, 1], other=["b", "a", "a"])
    dataset = read_training_data(path)

    np.testing.assert_array_equal(dataset.features, X)
    assert dataset.labels.tolist() == [0, 1, 1]
    assert dataset.layout == Layout("dense", n_features=2)
    assert read_training_data(path, target="other").labels.tolist() == ["b", "a", "a"]
    np.testing.assert_array_equal(read_features(path, dataset.layout), X)
    assert read_training_data(npz(X=X.astype(np.float32), y=[0, 1, 1])).features.dtype == np.float32
    assert read_training_data(npz(X=X > 2, y=[0, 1, 1])).features.dtype == np.float64


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"X": X}, "no array 'y'; the arrays are 'X'"),
        ({"x": X, "y": [0, 1, 1]}, "no array 'X'; the arrays are 'x', 'y'"),
        ({"X": X[0], "y": [0, 1]}, r"X has shape \(2,\) and type float64; expected rows of numbers, 2-D"),
        ({"X": X.astype(str), "y": [0, 1, 1]}, "X has shape .* type <U32; expected rows of numbers"),
        ({"X": X[:, :0], "y": [0, 1, 1]}, r"X has shape \(3, 0\)"),
        ({"X": np.where(X == 6, np.inf, X), "y": [0, 1, 1]}, r"X\[2, 1\] is an infinite number"),
        ({"X": X, "y": [0, 1]}, "X has 3 rows, but y has 2 labels"),
        ({"X": X, "y": [0, np.nan, 1]}, r"target 'y' has no value at y\[1\]"),
        ({"X": X, "y": [0, 0.5, 1]}, r"target 'y' holds 0.5 at y\[1\], which is a quantity"),
        ({"X": X, "y": np.eye(3)}, r"target 'y' has shape \(3, 3\)"),
        ({"X": X, "y": np.array([0, 1, 1], object)}, "array 'y' holds Python objects, which are never"),
    ],
)
def test_an_archive_that_is_no_data(npz, arrays, problem):
    with pytest.raises(DataError, match=rf"t\.npz: {problem}"):
        read_training_data(npz(**arrays))


def test_damaged_archives(tmp_path, npz):
    path = tmp_path / "t.npz"
    npz(X=np.zeros((100, 9)), y=np.arange(100) % 2)
    content = path.read_bytes()
    for part in (content[:500], content[:400] + b"?" + content[401:], b"hello"):
        path.write_bytes(part)
        with pytest.raises(DataError, match="cut off"):
            read_training_data(str(path))
    with path.open("wb") as file:
        np.save(file, X)
    with pytest.raises(DataError, match=r"is not a NumPy \.npz file"):
        array_names(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"\x93NUMPY\x01\x00v\x00{'descr'", "damaged or cut off"),
        (b"1 2 3", "is not in NumPy's format"),
        (b"\x93NUMPY\x01\x00\x06\x00{'a':\n", "is not in NumPy's format"),  # Python's tokenizer complains
        (b"\x93NUMPY\x01\x00\x07\x00 {}\n  }\n", "is not in NumPy's format"),
        (b"", "the file is empty"),
    ],
)
def test_damaged_arrays(tmp_path, content, problem):
    path = tmp_path / "t.npy"
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem):
        map_array(path)


def test_arrays_are_mapped_and_never_unpickled(tmp_path):
    path = tmp_path / "t.npy"
    np.save(path, X)
    assert isinstance(map_array(path), np.memmap)
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    with pytest.raises(DataError, match="damaged or cut off"):
        map_array(path)
    np.save(path, X.astype(object), allow_pickle=True)
    with pytest.raises(DataError, match="holds Python objects, which are never unpickled"):
        map_array(path)
    np.savez(tmp_path / "t.npz", X=X)
    with pytest.raises(DataError, match="no array 'Y'"):
        read_array(tmp_path / "t.npz", "Y")


# SVMlight

SPARSE = csr_matrix([[0, 1.5, 0], [2, 0, 0], [0, 0, 3.0], [1, 0, 1]])


@pytest.mark.parametrize("zero_based", [True, False])
@pytest.mark.parametrize("suffix", ["svm", "svmlight", "libsvm"])
def test_svmlight_files_count_features_from_0_or_1(tmp_path, zero_based, suffix):
    path = str(tmp_path / f"t.{suffix}")
    dump_svmlight_file(SPARSE, [1, -1, 1, -1], path, zero_based=zero_based)
    dataset = read_training_data(path)

    assert dataset.layout == Layout("sparse", n_features=3, zero_based=zero_based)
    np.testing.assert_array_equal(dataset.features.toarray(), SPARSE.toarray())
    assert dataset.labels.tolist() == [1, -1, 1, -1]

    # Rows that say nothing of the first feature, nor of the last: counted as in training.
    dump_svmlight_file(SPARSE[:1], [0], path, zero_based=zero_based)
    np.testing.assert_array_equal(read_features(path, dataset.layout).toarray(), [[0, 1.5, 0]])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("1 1:0.5 2:\n", "is not an SVMlight file, or is damaged or cut off"),
        ("cat 1:0.5\n", "is not an SVMlight file"),
        ("1 2:1 1:1\n", "is not an SVMlight file"),
        ("# nothing\n", "has no rows"),
        ("1\n2\n1\n", "no row holds a feature"),
        ("1 1:nan\n2 1:1\n1 1:1\n", "feature 1 of row 1 is not a number"),
        ("1.5 1:1\n2 1:1\n2 1:1\n", "the label holds 1.5 at row 1, which is a quantity"),
    ],
)
def test_svmlight_files_that_are_no_data(csv, content, problem):
    with pytest.raises(DataError, match=rf"t\.svm: {problem}"):
        read_training_data(csv(content, "t.svm"))


def test_svmlight_features_beyond_those_of_the_model(csv):
    one_based = Layout("sparse", n_features=4)
    with pytest.raises(DataError, match="has feature 5, but the model was trained with 4 features"):
        read_features(csv("1 5:1\n", "t.svm"), one_based)
    with pytest.raises(DataError, match="has feature 4, but the model was trained with 4 features"):
        read_features(csv("1 4:1\n", "t.svm"), Layout("sparse", n_features=4, zero_based=True))
    with pytest.raises(DataError, match="Invalid index 0"):
        read_features(csv("1 0:1\n", "t.svm"), one_based)


def test_labels_that_come_with_features(csv):
    assert read_own_labels(csv("2 1:1\n1 0:3\n1 2:1\n", "t.svm")).tolist() == [2, 1, 1]
    assert read_own_labels("digits")[:3].tolist() == [0, 1, 2]
    with pytest.raises(DataError, match=r"the label holds 0\.5 at row 2, which is a quantity"):
        read_own_labels(csv("2 1:1\n0.5 0:3\n", "t.svm"))


# Features of another kind than the model's


def test_features_of_another_layout(csv, npz):
    table, dense = Layout("table", ("a",), ("b",), 2), Layout("dense", n_features=3)
    with pytest.raises(DataError, match="is a table, but the model was trained on 3 features without names"):
        read_features(csv(TABLE), dense)
    with pytest.raises(DataError, match=r"no named columns, but .* with the columns 'a', 'b'"):
        read_features(npz(X=X), table)
    with pytest.raises(DataError, match="digits: has no named columns"):
        read_features("digits", table)
    with pytest.raises(DataError, match="is sparse, but the model was trained on dense data"):
        read_features(csv("1 1:1\n", "t.svm"), dense)
    with pytest.raises(DataError, match="has 2 features, but the model was trained with 3"):
        read_features(npz(X=X), dense)
    with pytest.raises(DataError, match=r"'\.json' is not known; .* or digits, the built-in data"):
        read_features(csv("{}", "t.json"), dense)


# Digits, and the split


def test_digits_are_built_in():
    dataset = read_training_data("digits")

    assert dataset.features.shape == (1797, 64)
    assert dataset.features.max() == 16
    np.testing.assert_array_equal(read_features("digits", dataset.layout), dataset.features)


def labelled(*labels):
    """Make a data set of these labels; a row's feature is its number."""
    from softmaxloss.data.datasets import Dataset

    rows = np.arange(len(labels))[:, None]
    return Dataset("t.csv", rows, np.array(labels), "y", Layout("dense", n_features=1))


def test_the_split_keeps_the_classes_proportions():
    dataset = labelled(*["a"] * 60, *["b"] * 30, *["c"] * 10)
    train, test, notes = split_rows(dataset, 0.2, seed=0)

    assert sorted([*train, *test]) == list(range(100))
    assert np.unique(dataset.labels[test], return_counts=True)[1].tolist() == [12, 6, 2]
    assert notes == ()
    np.testing.assert_array_equal(split_rows(dataset, 0.2, seed=0)[1], test)
    assert (split_rows(dataset, 0.2, seed=1)[1] != test).any()
    features, labels = dataset.rows(test)
    assert features[:, 0].tolist() == test.tolist()
    assert labels.tolist() == dataset.labels[test].tolist()


def test_all_rows_to_train_on():
    train, test, _ = split_rows(labelled("a", "b"), 0, seed=0)

    assert train.tolist() == [0, 1]
    assert not len(test)


def test_a_class_of_one_row_is_trained_on():
    dataset = labelled(*["a"] * 10, "only", *["b"] * 10)
    for seed in range(5):
        train, _, notes = split_rows(dataset, 0.5, seed=seed)
        assert 10 in train
    assert notes == ("classes with a single row are trained on and not tested: 'only'",)


def test_too_few_rows_for_the_split():
    with pytest.raises(DataError, match=r"4 rows of 2 classes cannot be split with --test-size 0\.2 "):
        split_rows(labelled("a", "a", "b", "b"), 0.2, seed=0)
    with pytest.raises(DataError, match="0 to train on all rows"):
        split_rows(labelled("a", "b"), 0.5, seed=0)
    with pytest.raises(DataError, match="leaves no row to train on of class 'b'"):
        split_rows(labelled(*["a"] * 90, *["b"] * 2, *["c"] * 90), 0.9, seed=0)


def test_rows_of_a_frame_are_taken_by_position(csv):
    dataset = read_training_data(csv(TABLE), target="species")
    features, labels = dataset.rows(np.array([3, 1]))

    assert isinstance(features, pd.DataFrame)
    assert features["colour"].tolist() == ["red", "blue"]
    assert labels.tolist() == ["dog", "dog"]
