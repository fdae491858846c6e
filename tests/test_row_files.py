"""Rows in Parquet files: read as they are, learned from as arrays are, and refused where they do not fit."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.exceptions import NotFittedError

import softmaxloss as sl
from softmaxloss.data import row_files
from softmaxloss.data.files import DataError
from softmaxloss.data.row_files import open_parquet

ROWS, FEATURES = 1000, 6


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(ROWS, FEATURES)) * np.logspace(-2, 2, FEATURES) + 3
    return X, (X @ rng.normal(size=(FEATURES, 3)) + rng.gumbel(size=(ROWS, 3))).argmax(axis=1)


def write(folder, X, y, files=3, group=150, kind="columns"):
    """Write rows to several files, of several groups each, and return their pattern."""
    for part, rows in enumerate(np.array_split(np.arange(len(X)), files)):
        if kind == "columns":
            columns = {f"x{k}": X[rows, k] for k in range(X.shape[1])}
        else:
            lists = pa.FixedSizeListArray.from_arrays(pa.array(X[rows].ravel()), X.shape[1])
            columns = {"embedding": lists if kind == "fixed" else lists.cast(pa.list_(lists.type.value_type))}
        pq.write_table(pa.table({**columns, "y": y[rows]}), folder / f"part-{part}.parquet", row_group_size=group)
    return str(folder / "*.parquet")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["columns", "fixed", "lists"])
def test_rows_are_read_as_they_were_written(tmp_path, drawn, monkeypatch, kind, dtype):
    monkeypatch.setattr(row_files, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(row_files, "_FEWEST_ROWS", 64)
    X, y = drawn[0].astype(dtype), drawn[1]
    files, labels = open_parquet(write(tmp_path, X, y, kind=kind), target="y")

    assert (files.shape, files.dtype, files.ndim, len(files)) == (X.shape, dtype, 2, ROWS)
    np.testing.assert_array_equal(labels, y)
    np.testing.assert_array_equal(np.asarray(files), X)
    np.testing.assert_array_equal(files[333:777], X[333:777])
    assert files[5:5].shape == (0, FEATURES)
    assert max(len(block) for _, block in files.blocks()) <= 64
    some = np.array([900, 3, 3, 150])
    np.testing.assert_array_equal(files.read(some), X[some])
    kept = np.arange(100, 900, 7)
    np.testing.assert_array_equal(np.asarray(files.only(kept).only(np.arange(5, 50))), X[kept[5:50]])
    assert repr(files) == f"<RowFiles: {ROWS} x {FEATURES} {np.dtype(dtype)} in 3 files>"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "options", [{}, {"class_weight": "balanced", "label_smoothing": 0.1}, {"fit_intercept": False}]
)
def test_the_optimum_is_that_of_arrays(tmp_path, drawn, keep_num_threads, options, threads):
    X, y = drawn
    names = np.array(["a", "b", "c"])[y]
    weights = np.random.default_rng(1).random(ROWS)
    sl.set_num_threads(threads)
    files, labels = open_parquet(write(tmp_path, X, names), target="y")
    of_files = sl.SoftmaxClassifier(tol=1e-9, **options).fit(files, labels, weights)
    of_arrays = sl.SoftmaxClassifier(tol=1e-9, **options).fit(X, names, weights)

    assert of_files.converged_
    assert of_files.n_features_in_ == FEATURES
    np.testing.assert_array_equal(of_files.classes_, of_arrays.classes_)
    np.testing.assert_allclose(of_files.predict_proba(X), of_arrays.predict_proba(X), atol=1e-6)
    np.testing.assert_allclose(of_files.loss_curve_[-1], of_arrays.loss_curve_[-1], rtol=1e-10)


def test_the_same_bits_for_any_number_of_threads_that_share_groups(tmp_path, drawn, keep_num_threads):
    files, labels = open_parquet(write(tmp_path, *drawn), target="y")
    coefficients = []
    for threads in (2, 3):
        sl.set_num_threads(threads)
        coefficients.append(sl.SoftmaxClassifier().fit(files, labels).coef_)

    np.testing.assert_array_equal(*coefficients)


@pytest.mark.filterwarnings("default::sklearn.exceptions.ConvergenceWarning")
def test_a_checkpoint_tells_files_apart(tmp_path, drawn):
    X, y = drawn
    files, labels = open_parquet(write(tmp_path, X, y), target="y")
    begun = sl.SoftmaxClassifier(checkpoint=tmp_path / "state.npz", max_iter=5)
    begun.fit(files, labels)
    whole = sl.SoftmaxClassifier().fit(files, labels)
    resumed = sl.SoftmaxClassifier(checkpoint=tmp_path / "state.npz").fit(files, labels)
    np.testing.assert_array_equal(resumed.coef_, whole.coef_)

    X[0] += 1
    other, labels = open_parquet(write(tmp_path, X, y), target="y")
    with pytest.raises(ValueError, match="checkpoint of another fit"):
        sl.SoftmaxClassifier(checkpoint=tmp_path / "state.npz").fit(other, labels)


def test_columns_in_another_order_integers_and_booleans(tmp_path):
    first = pd.DataFrame({"a": np.arange(6), "b": [True, False] * 3, "y": [0, 1] * 3, "note": list("abcdef")})
    first.to_parquet(tmp_path / "1.parquet")
    first[["y", "note", "b", "a"]].to_parquet(tmp_path / "2.parquet")
    files, labels = open_parquet(tmp_path, target="y", columns=["b", "a"])

    np.testing.assert_array_equal(np.asarray(files), np.tile(first[["b", "a"]].to_numpy(np.float64), (2, 1)))
    np.testing.assert_array_equal(labels, [0, 1] * 6)


@pytest.mark.parametrize("rows", [1, 511, 513, 1200])
@pytest.mark.parametrize("n_columns", [1, 15, 16, 17, 50])
def test_numbers_of_all_kinds_and_lists_side_by_side(tmp_path, n_columns, rows):
    rng = np.random.default_rng(n_columns)
    kinds = [np.float64, np.float32, np.int8, np.uint64, np.bool_]
    numbers = [rng.integers(0, 2, rows).astype(kinds[k % len(kinds)]) for k in range(n_columns)]
    lists = [rng.normal(size=(rows, width)).astype(np.float32) for width in (1, 5, 3)]
    columns = {f"x{k}": column for k, column in enumerate(numbers)}
    for k, matrix in enumerate(lists):
        columns[f"list{k}"] = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])
    names = list(columns)
    rng.shuffle(names)
    pq.write_table(pa.table({**columns, "y": np.arange(rows) % 2}), tmp_path / "all.parquet", row_group_size=1000)

    files, _ = open_parquet(tmp_path, target="y", columns=names)

    whole = [lists[int(name[4:])] if name[0] == "l" else numbers[int(name[1:])][:, np.newaxis] for name in names]
    np.testing.assert_array_equal(np.asarray(files), np.hstack(whole).astype(np.float64))
    assert all(block.flags.c_contiguous for _, block in files.blocks())


def test_what_does_not_fit_is_refused(tmp_path, drawn):
    X, y = drawn
    pattern = write(tmp_path, X, y)
    files, labels = open_parquet(pattern, target="y")
    with pytest.raises(ValueError, match=r"y has shape \(999,\) and X 1000 rows"):
        sl.SoftmaxClassifier().fit(files, labels[1:])
    with pytest.raises(TypeError, match="read by ranges"):
        files[3]
    for arguments, problem in (
        ({"target": "z"}, "no column 'z'; the columns are 'x0'"),
        ({"target": "y", "columns": ["x9"]}, "no column 'x9'"),
        ({"target": "y", "columns": ["y"]}, "of which none is left"),
    ):
        with pytest.raises(DataError, match=problem):
            open_parquet(pattern, **arguments)
    with pytest.raises(DataError, match="there is no such file"):
        open_parquet(tmp_path / "none*.parquet", target="y")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.parquet file in this folder"):
        open_parquet(tmp_path / "empty", target="y")
    pd.DataFrame({"x0": ["text"], "y": [1]}).to_parquet(tmp_path / "empty" / "text.parquet")
    with pytest.raises(DataError, match="are not those of"):
        open_parquet([tmp_path / "part-0.parquet", tmp_path / "empty"], target="y")
    with pytest.raises(DataError, match=r"column 'x0' holds (large_)?string; expected numbers"):
        open_parquet(tmp_path / "empty", target="y")


def test_missing_values_are_refused_and_the_estimator_stays_as_it_was(tmp_path, drawn):
    X, y = drawn
    classifier = sl.SoftmaxClassifier().fit(X, y)
    before = dict(vars(classifier))
    X[700, 2] = np.nan
    files, labels = open_parquet(write(tmp_path, X, y), target="y")
    with pytest.raises(ValueError, match=r"X holds nan in row 700, feature 2, which is row 34 of .*part-2\.parquet"):
        classifier.fit(files, labels)
    assert vars(classifier) == before


@pytest.mark.parametrize("spool", [True, False])
def test_a_value_damaged_late_in_the_second_file_is_placed_there(tmp_path, drawn, monkeypatch, spool):
    monkeypatch.setattr(row_files, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(row_files, "_FEWEST_ROWS", 64)
    X, y = drawn
    classifier = sl.SoftmaxClassifier().fit(X, y)
    X[660, 5] = np.inf
    files, labels = open_parquet(write(tmp_path, X, y), target="y", spool=spool)
    place = r"row 660, feature 5, which is row 327 of .*part-1\.parquet"
    for call in (lambda: sl.SoftmaxClassifier().fit(files, labels), lambda: classifier.predict(files)):
        with pytest.raises(DataError, match=place):
            call()
    some = np.arange(600, 700)
    with pytest.raises(DataError, match=r"row 60, feature 5, which is row 327 of .*part-1\.parquet"):
        sl.SoftmaxClassifier().fit(files.only(some), labels[some])


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba", "decision_function", "score"])
def test_predictions_of_files_are_those_of_arrays_and_hold_a_block(tmp_path, drawn, monkeypatch, method, classes):
    monkeypatch.setattr(row_files, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(row_files, "_FEWEST_ROWS", 64)
    X, y = drawn
    names = np.array(["a", "b", "long"])[np.minimum(y, classes - 1)]
    files, labels = open_parquet(write(tmp_path, X, names), target="y")
    classifier = sl.SoftmaxClassifier().fit(X, names)

    def whole(self, *_, **__):
        raise AssertionError("all rows were read at once")

    monkeypatch.setattr(row_files.RowFiles, "__array__", whole)
    answers = [getattr(classifier, method)(rows, *([labels] * (method == "score"))) for rows in (files, X)]
    if method in ("predict", "score"):
        np.testing.assert_array_equal(*answers)
    else:
        np.testing.assert_allclose(*answers, rtol=1e-12)
        assert answers[0].dtype == answers[1].dtype


def test_predictions_that_cannot_be_made(tmp_path, drawn):
    X, y = drawn
    files, _ = open_parquet(write(tmp_path, X, y), target="y")
    with pytest.raises(NotFittedError):
        sl.SoftmaxClassifier().predict(files)
    with pytest.raises(ValueError, match="expecting 5 features"):
        sl.SoftmaxClassifier().fit(X[:, 1:], y).predict(files)
    with pytest.raises(ValueError, match="has no rows"):
        sl.SoftmaxClassifier().fit(X, y).predict(files.only(np.array([], dtype=int)))


@pytest.mark.parametrize(("first", "problem"), [(None, "no list"), ([], "a list of no numbers")])
def test_a_first_list_that_tells_no_length(tmp_path, first, problem):
    lists = pa.array([first, [1.0, 2.0]], pa.list_(pa.float64()))
    pq.write_table(pa.table({"e": lists, "y": [0, 1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"a\.parquet: column 'e' has {problem} in its first row"):
        open_parquet(tmp_path, target="y")


def test_lists_of_other_lengths(tmp_path):
    table = pa.table({"e": [[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]], "y": [0, 1, 0]})
    pq.write_table(table, tmp_path / "a.parquet")
    files, labels = open_parquet(tmp_path / "a.parquet", target="y")
    with pytest.raises(DataError, match=r"a\.parquet: column 'e' holds at row 2 a list that is missing or not of 2"):
        sl.SoftmaxClassifier().fit(files, labels)


def test_a_file_that_is_cut_off_after_it_was_opened(tmp_path, drawn):
    files, labels = open_parquet(write(tmp_path, *drawn, files=1), target="y")
    path = tmp_path / "part-0.parquet"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"part-0\.parquet: "):
        sl.SoftmaxClassifier().fit(files, labels)
