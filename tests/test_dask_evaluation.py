"""Evaluation and prediction on Dask arrays: the numbers of the same arrays in memory, for any chunks."""

import numpy as np
import pytest

import softmaxloss as sl

da = pytest.importorskip("dask.array")
import dask  # noqa: E402

N, CLASSES = 1000, 6


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, N)
    scores = (2 * rng.normal(size=(N, CLASSES)) + 2 * np.eye(CLASSES)[labels]).astype("f4")
    labels[rng.random(N) < 0.05] = -100
    scores[17, 2] = np.nan
    return scores, labels, rng.random(N), rng.integers(0, 40, N)


def assert_same(found, expected):
    found, expected = found.to_dict(), expected.to_dict()
    rows = [row["row"] for row in expected["worst_rows"]]
    assert [row["row"] for row in found["worst_rows"]] == rows
    assert found["confusion_matrix"] == expected["confusion_matrix"]
    for name, value in expected.items():
        if isinstance(value, float | int | list) and name not in ("classes", "worst_rows", "top_confusions"):
            if "reliability" in name:
                value, got = ([list(b.values()) for b in table] for table in (value, found[name]))
            else:
                got = found[name]
            np.testing.assert_allclose(np.array(got, float), np.array(value, float), rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("chunks", [(N, CLASSES), (333, 2), (37, -1), ((0, 1, 999), -1)], ids=str)
@pytest.mark.parametrize("more", [(), ("sample_weight",), ("groups",), ("sample_weight", "groups")], ids=str)
def test_evaluation_for_any_chunks(data, chunks, more):
    scores, labels, *others = data
    given = {name: value for name, value in zip(("sample_weight", "groups"), others, strict=True) if name in more}
    expected = sl.evaluate(scores, labels, first_row=5, **given)
    lazy = {name: da.from_array(value, chunks=91) for name, value in given.items()}
    scores = da.from_array(scores, chunks=chunks)
    assert_same(sl.evaluate(scores, da.from_array(labels, chunks=250), first_row=5, **lazy), expected)
    assert_same(sl.evaluate(scores, labels, first_row=5, **given), expected)


@pytest.mark.parametrize("kind", ["probabilities", "log_probabilities"])
def test_other_kinds_and_only_the_loss(data, kind):
    scores, labels, *_ = data
    scores = (sl.softmax if kind == "probabilities" else sl.log_softmax)(scores)
    chunked = da.from_array(scores, chunks=(300, 4))
    assert_same(sl.evaluate(chunked, labels, kind=kind), sl.evaluate(scores, labels, kind=kind))
    alone = sl.evaluate(chunked, labels, kind=kind, only_loss=True)
    assert alone.loss == pytest.approx(sl.evaluate(scores, labels, kind=kind, only_loss=True).loss, rel=1e-12)


def test_an_error_names_the_row_among_all(data):
    scores, labels, *_ = data
    wrong = labels.copy()
    wrong[777] = CLASSES
    chunked = da.from_array(scores, chunks=(100, -1))
    with pytest.raises(sl.LabelError, match=r"labels\[777\] is 6"):
        sl.evaluate(chunked, da.from_array(wrong, chunks=100))
    with pytest.raises(ValueError, match="scores have shape"):
        sl.evaluate(chunked[0], labels)
    with pytest.raises(ValueError, match="labels have shape"):
        sl.evaluate(chunked, labels[:-1])
    with pytest.raises(ValueError, match="sample_weight has shape"):
        sl.evaluate(chunked, labels, sample_weight=da.ones(3))
    with pytest.raises(TypeError, match="integer class indices"):
        sl.evaluate(chunked, da.zeros(N))
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        sl.evaluate(chunked[chunked[:, 0] > 0], da.from_array(labels)[chunked[:, 0] > 0])


def test_what_takes_no_dask_arrays_says_so(data):
    scores, labels, *_ = data
    chunked = da.from_array(scores, chunks=100)
    with pytest.raises(TypeError, match=r"compare does not take: pass scores_b\.compute\(\)"):
        sl.compare(scores, chunked, labels)
    with pytest.raises(TypeError, match="fit_temperature does not take"):
        sl.fit_temperature(chunked, labels)


METHODS = ("predict", "predict_proba", "predict_log_proba", "decision_function")


@pytest.fixture(scope="module", params=[2, 3])
def classifier(request):
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 4)).astype("f4")
    return sl.SoftmaxClassifier().fit(X, np.array(["a", "bb", "ccc"])[rng.integers(0, request.param, 120)]), X


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunks", [(50, 3), ((0, 100, 20), -1)], ids=str)
def test_predictions(classifier, method, chunks):
    estimator, X = classifier
    found, expected = getattr(estimator, method)(da.from_array(X, chunks=chunks)), getattr(estimator, method)(X)
    assert isinstance(found, da.Array)
    computed = found.compute()
    assert (found.shape, found.dtype) == (computed.shape, computed.dtype) == (expected.shape, expected.dtype)
    if method == "predict":
        np.testing.assert_array_equal(computed, expected)
    else:
        np.testing.assert_allclose(computed, expected, rtol=1e-5, atol=1e-6)


def test_predictions_are_of_the_model_as_it_was_and_refused_at_once(classifier):
    estimator, X = classifier
    found, before = estimator.predict_proba(da.from_array(X, chunks=50)), estimator.predict_proba(X)
    coef = estimator.coef_
    try:
        estimator.coef_ = coef * 2
        np.testing.assert_allclose(found.compute(), before, rtol=1e-5)
    finally:
        estimator.coef_ = coef
    with pytest.raises(ValueError, match="4 features"):
        estimator.predict(da.zeros((5, 3)))
    with pytest.raises(ValueError, match="expected 2"):
        estimator.predict(da.zeros(5))
    with pytest.raises(Exception, match="not fitted"):
        sl.SoftmaxClassifier().predict(da.zeros((5, 3)))


def test_dataframes():
    pytest.importorskip("sklearn")
    dd, pd = pytest.importorskip("dask.dataframe"), pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(60, 3)), columns=["a", "b", "c"])
    estimator = sl.SoftmaxClassifier().fit(table, rng.integers(0, 3, 60))
    parts = dd.from_pandas(table, npartitions=3)
    found = estimator.predict_proba(parts)
    np.testing.assert_allclose(found.compute(), estimator.predict_proba(table), rtol=1e-12)
    with pytest.raises(ValueError, match="feature names"):
        estimator.predict(parts.rename(columns={"a": "other"}))
    labels = dd.from_pandas(pd.Series(rng.integers(0, 3, 60)), npartitions=3)
    loss = sl.softmax_cross_entropy(parts, labels).compute()
    assert loss == pytest.approx(sl.softmax_cross_entropy(table, labels.compute().to_numpy()), rel=1e-12)
