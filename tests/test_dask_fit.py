"""SoftmaxClassifier.fit on Dask collections: the optimum in memory, whatever the chunks and the scheduler."""

import os
import signal

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from threadpoolctl import threadpool_limits

import softmaxloss.training
from softmaxloss.checkpoint import CheckpointError
from softmaxloss.classifier import SoftmaxClassifier
from softmaxloss.rows import LocalRows, Rows, weighted_sum

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
dd = pytest.importorskip("dask.dataframe")
pd = pytest.importorskip("pandas")
distributed = pytest.importorskip("distributed")

from softmaxloss import dask_rows  # noqa: E402  # needs Dask

# Sockets and pipes of a cluster's processes are closed by the garbage collector, some time after the cluster.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

N_ROWS, N_FEATURES = 600, 7
OPTIONS = {"C": 3.0, "tol": 1e-9}


@pytest.fixture(autouse=True)
def one_blas_thread():
    """Matrices this small are slower with more threads, much slower where other work has the cores."""
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def cluster():
    """Three worker processes of one thread each."""
    with (
        distributed.LocalCluster(
            n_workers=3, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
        dask.config.set(scheduler="distributed"),
    ):
        yield client


def problem(n_classes=4, seed=0, dtype=np.float64):
    random = np.random.default_rng(seed)
    X = random.standard_normal((N_ROWS, N_FEATURES)) @ random.standard_normal((N_FEATURES, N_FEATURES)) + 5.0
    logits = X @ random.standard_normal((N_FEATURES, n_classes)) * 0.3
    y = (logits - logits.mean(axis=0) + random.gumbel(size=logits.shape)).argmax(axis=1)
    return X.astype(dtype), np.array(["ash", "birch", "cedar", "elm"])[y]


def weights(seed=1):
    return np.random.default_rng(seed).integers(0, 4, N_ROWS).astype(float)


def assert_same_optimum(model, reference, atol=1e-5, rtol=1e-8):
    np.testing.assert_array_equal(model.classes_, reference.classes_)
    assert model.loss_curve_[-1] == pytest.approx(reference.loss_curve_[-1], rel=rtol)
    np.testing.assert_allclose(model.coef_, reference.coef_, atol=atol)
    np.testing.assert_allclose(model.intercept_, reference.intercept_, atol=10 * atol)
    assert model.n_features_in_ == reference.n_features_in_


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
@pytest.mark.parametrize("chunks", [N_ROWS, 150, (1, 0, 340, 259), 30], ids=["1", "4", "uneven", "20"])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_optimum_is_that_in_memory(n_classes, chunks, scheduler):
    X, y = problem(n_classes)
    with dask.config.set(scheduler=scheduler):
        model = SoftmaxClassifier(**OPTIONS).fit(
            da.from_array(X, chunks=-1).rechunk((chunks, -1)), da.from_array(y, chunks=200)
        )
    assert model.converged_
    assert_same_optimum(model, SoftmaxClassifier(**OPTIONS).fit(X, y))


@pytest.mark.parametrize("class_weight", [None, "balanced", {"ash": 3.0, "elm": 0.5}], ids=["1", "balanced", "dict"])
@pytest.mark.parametrize("sample_weight", [None, 2.5, "numpy", "dask"])
@pytest.mark.parametrize("others", [{}, {"fit_intercept": False, "label_smoothing": 0.1}], ids=["plain", "others"])
def test_weights_and_options_mean_what_they_mean_in_memory(class_weight, sample_weight, others):
    X, y = problem()
    given = there = sample_weight
    if isinstance(sample_weight, str):
        there = weights()
        given = there if sample_weight == "numpy" else da.from_array(there, chunks=77)
    model = SoftmaxClassifier(**OPTIONS, class_weight=class_weight, **others)
    reference = clone(model).fit(X, y, sample_weight=there)
    model.fit(da.from_array(X, chunks=(250, -1)), y, sample_weight=given)
    assert_same_optimum(model, reference)


def test_float32_features_are_learned_in_float32():
    X, y = problem(dtype=np.float32)
    source = dask_rows.learn_from(da.from_array(X, chunks=(100, -1)), y, None, None)[1]
    assert source.dtype == np.float32
    model = SoftmaxClassifier(C=3.0, tol=1e-4).fit(da.from_array(X, chunks=(100, -1)), da.from_array(y, chunks=100))
    assert model.converged_
    assert_same_optimum(model, SoftmaxClassifier(C=3.0, tol=1e-4).fit(X, y), atol=2e-2, rtol=1e-6)


@pytest.mark.parametrize("kind", ["dataframe", "unknown lengths", "y in memory"])
def test_dataframes_and_chunks_of_unknown_length(kind):
    X, y = problem()
    table = pd.DataFrame(X, columns=list("abcdefg")).assign(kind=y, count=np.arange(N_ROWS) % 5)
    table["count"] = table["count"].astype("Int64")
    frame = dd.from_pandas(table, npartitions=4)
    features = [*"abcdefg", "count"]
    reference = SoftmaxClassifier(**OPTIONS).fit(table[features], y)
    given, labels = frame[features], frame["kind"]
    if kind == "unknown lengths":
        given, labels = given.astype(float).to_dask_array(), labels.astype(object).to_dask_array()
    elif kind == "y in memory":
        labels = y
    model = SoftmaxClassifier(**OPTIONS).fit(given, labels)
    assert_same_optimum(model, reference)
    if kind != "unknown lengths":
        assert model.feature_names_in_.tolist() == features


def test_partitions_without_rows_are_no_matter():
    X, y = problem()
    table = pd.DataFrame(X, columns=list("abcdefg")).assign(kind=y)
    frame = dd.from_pandas(table, npartitions=5)
    frame = frame[frame["a"] > table["a"].iloc[: N_ROWS // 5].max()]  # leaves some of most, and none of the first
    kept = table[table["a"] > table["a"].iloc[: N_ROWS // 5].max()]
    if kept["kind"].nunique() < 2:
        pytest.fail("the problem has changed")
    model = SoftmaxClassifier(**OPTIONS).fit(frame[list("abcdefg")], frame["kind"])
    assert_same_optimum(model, SoftmaxClassifier(**OPTIONS).fit(kept[list("abcdefg")], kept["kind"]), atol=1e-3)


@pytest.mark.parametrize("of", ["array", "table"])
def test_the_same_chunks_give_the_same_bits(of):
    X, y = problem()
    X = da.from_array(X, chunks=(33, -1)) if of == "array" else dd.from_pandas(pd.DataFrame(X), npartitions=9)
    y = y if of == "array" else dd.from_pandas(pd.Series(y), npartitions=9)
    X = X if of == "array" else X.rename(columns=str)
    first = SoftmaxClassifier(**OPTIONS).fit(X, y)
    with dask.config.set(scheduler="threads"):
        again = SoftmaxClassifier(**OPTIONS).fit(X, y)
    np.testing.assert_array_equal(first.coef_, again.coef_)


def source_and_rows(chunks=(100, -1), given=None):
    (X, y), given = problem(), weights() if given is None else given
    classes, source, weight = dask_rows.learn_from(da.from_array(X, chunks=chunks), y, given, "balanced")
    codes = np.searchsorted(classes, y)
    of_classes = np.bincount(codes, given).sum() / (4 * np.bincount(codes, given))
    s = given * of_classes[codes]
    assert weight == pytest.approx(s.sum())
    return source, LocalRows(Rows(X, codes, s / s.mean()))


@pytest.mark.parametrize("count", [1, 5, 64, 599, 600, 10_000])
def test_a_sample_is_that_of_one_array(count):
    few = np.where((np.arange(N_ROWS) // 150) % 2, 0.0, weights())
    for source, local in (source_and_rows(), source_and_rows(given=few)):
        for ours, theirs in zip(source.sample(count), local.sample(count), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-14)


def test_sums_and_the_first_row_are_those_of_one_array():
    source, local = source_and_rows()
    np.testing.assert_array_equal(source.first_row(), local.first_row())
    origin = local.first_row()
    np.testing.assert_allclose(source.total(weighted_sum, origin, 2)[0], local.total(weighted_sum, origin, 2)[0])


def test_identity_tells_rows_weights_and_chunks_apart():
    X, y = problem()
    chunked = da.from_array(X, chunks=(100, -1))

    def identity(X=chunked, y=y, sample_weight=None):
        return dask_rows.learn_from(X, y, sample_weight, None)[1].identity()

    changed, other = X.copy(), y.copy()
    changed[555, 3] += 1e-9
    other[17] = "ash" if y[17] == "elm" else "elm"
    assert identity() == identity()
    for different in (
        {"X": chunked.rechunk((200, -1))},
        {"X": chunked.astype(np.float32)},
        {"X": da.from_array(changed, chunks=(100, -1))},
        {"y": other},
        {"sample_weight": np.arange(N_ROWS) + 1.0},
    ):
        assert identity(**different) != identity()


def test_a_checkpoint_goes_on_and_refuses_other_chunks(tmp_path, monkeypatch):
    X, y = problem()
    X = da.from_array(X, chunks=(100, -1))
    path = tmp_path / "state.npz"
    whole = SoftmaxClassifier(**OPTIONS).fit(X, y)
    with monkeypatch.context() as patch:
        _at_iteration(patch, 8, _interrupt)
        with pytest.raises(KeyboardInterrupt):
            SoftmaxClassifier(**OPTIONS, checkpoint=path).fit(X, y)
    with pytest.raises(CheckpointError, match="chunks of X"):
        SoftmaxClassifier(**OPTIONS, checkpoint=path).fit(X.rechunk((300, -1)), y)
    resumed = SoftmaxClassifier(**OPTIONS, checkpoint=path).fit(X, y)
    np.testing.assert_array_equal(resumed.coef_, whole.coef_)
    assert resumed.loss_curve_ == whole.loss_curve_


def test_warm_start_goes_on():
    X, y = problem()
    X = da.from_array(X, chunks=(100, -1))
    model = SoftmaxClassifier(C=3.0, tol=1e-6, warm_start=True).fit(X, y)
    assert model.fit(X, y).n_iter_ < 3


def _refusals():
    X, y = problem()
    chunked = da.from_array(X, chunks=(100, -1))
    hole, far = X.copy(), X.copy()
    hole[450, 2], far[450, 2] = np.nan, np.inf
    frame = dd.from_pandas(pd.DataFrame(X, columns=list("abcdefg")).assign(kind=y), npartitions=4)
    labels = dd.from_pandas(pd.DataFrame({"kind": y}), npartitions=3)["kind"]
    short = da.from_array(y[:-1], chunks=100)
    bad = weights()
    bad[7] = -1.0
    yield (
        "features in chunks",
        (chunked.rechunk((100, 3)), y),
        {},
        r"in 3 chunks.*rechunk\(\{1: -1\}\)",
    )
    yield "y too short", (chunked, short), {}, "y has 599 rows and X 600"
    yield "y in memory too short", (chunked, y[:-1]), {}, "y has 599 rows and X 600"
    yield "weights too short", (chunked, y, bad[:-1]), {}, "sample_weight has 599 rows and X 600"
    yield "weights of Dask too short", (chunked, y, da.from_array(bad[:-1])), {}, "sample_weight has 599 rows"
    yield "NaN", (da.from_array(hole, chunks=(100, -1)), y), {}, "Input X contains NaN"
    yield "infinity", (da.from_array(far, chunks=(100, -1)), y), {}, "Input X contains infinity"
    yield "one class", (chunked, np.full(N_ROWS, "ash")), {}, "one class only, 'ash'"
    yield "no classes", (chunked, X[:, 0]), {}, "Unknown label type"
    yield "NaN in y", (chunked, np.where(np.arange(N_ROWS) == 5, np.nan, 1.0)), {}, "Input y contains NaN"
    yield "below zero", (chunked, y, bad), {}, "must not be below zero"
    yield "nothing weighs", (chunked, y, 0.0), {}, "nor the weight of every row zero"
    yield "text", (frame, frame["kind"]), {}, "column 'kind' of X holds .* no numbers"
    yield "partitions", (frame[["a"]], labels), {}, "y is in 3 chunks and X in 4"
    yield "one dimension", (chunked[:, 0], y), {}, "X has 1 dimension"
    yield "two columns of y", (chunked, chunked[:, :2]), {}, r"y has shape \(600, 2\)"
    yield "no rows", (chunked[:0], y[:0]), {}, "X has no rows"
    yield "no features", (chunked[:, :0], y), {}, "X has no features"
    yield "shifted", (frame[frame["a"] > 5][["a"]], frame["kind"]), {}, "a chunk of X has"
    yield "C", (chunked, y), {"C": -1}, "C=-1 was given"


@pytest.mark.parametrize(("given", "options", "message"), [pytest.param(*case, id=name) for name, *case in _refusals()])
def test_what_is_refused_and_why(given, options, message):
    model = SoftmaxClassifier(**options)
    before = dict(vars(model))
    with pytest.raises(ValueError, match=message):
        model.fit(*given)
    assert vars(model) == before


def test_sparse_chunks():
    X, y = problem()
    X[np.abs(X - 5) > 2] = 0.0
    sparse = da.from_array(X, chunks=(200, -1)).map_blocks(scipy.sparse.csr_matrix)
    model = SoftmaxClassifier(**OPTIONS).fit(sparse, da.from_array(y, chunks=200))
    assert_same_optimum(model, SoftmaxClassifier(**OPTIONS).fit(scipy.sparse.csr_matrix(X), y))


def test_a_cluster_learns_the_same_although_a_worker_dies(cluster, monkeypatch):
    X, y = problem()
    given = da.from_array(X, chunks=(60, -1)), da.from_array(y, chunks=100)
    victim = next(iter(cluster.run(os.getpid).values()))
    killed = []

    def kill():
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

    with monkeypatch.context() as patch:
        _at_iteration(patch, 3, kill)
        model = SoftmaxClassifier(**OPTIONS).fit(*given)
    assert killed == [victim]
    assert victim not in cluster.run(os.getpid).values()
    assert_same_optimum(model, SoftmaxClassifier(**OPTIONS).fit(X, y))

    with dask.config.set(scheduler="synchronous"):  # the sums have the same tree, whoever adds them
        alone = SoftmaxClassifier(**OPTIONS).fit(*given)
    np.testing.assert_array_equal(model.coef_, alone.coef_)


def _interrupt():
    raise KeyboardInterrupt


def _at_iteration(monkeypatch, number, action):
    """Have the solver do something in its n-th iteration."""
    minimize = softmaxloss.training.minimize

    def watched(*args, on_iteration, **options):
        def told(iteration):
            on_iteration(iteration)
            if iteration.number == number:
                action()

        return minimize(*args, on_iteration=told, **options)

    monkeypatch.setattr(softmaxloss.training, "minimize", watched)
