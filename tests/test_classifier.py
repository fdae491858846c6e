"""SoftmaxClassifier in scikit-learn's hands: conventions, warm starts, progress, interruption and errors."""

import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from example_data import dataset
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_limits

import softmaxloss.objective
from softmaxloss.classifier import SoftmaxClassifier


@pytest.fixture(scope="module", autouse=True)
def one_blas_thread():
    """Matrices this small are slower with more threads, much slower where other work has the cores."""
    with threadpool_limits(1, user_api="blas"):
        yield


# ----- scikit-learn's conventions


@parametrize_with_checks(
    [SoftmaxClassifier(), SoftmaxClassifier(10.0, class_weight="balanced", label_smoothing=0.1, warm_start=True)]
)
def test_scikit_learn_finds_no_fault(estimator, check):
    check(estimator)


def test_shapes_for_two_classes_and_for_more():
    for name, classes, rows in (("breast_cancer", 2, 1), ("wine", 3, 3)):
        X, y = dataset(name)
        model = SoftmaxClassifier().fit(X, y)
        n, d = X.shape
        assert model.coef_.shape == (rows, d)
        assert model.intercept_.shape == (rows,)
        assert model.decision_function(X).shape == ((n,) if classes == 2 else (n, classes))
        assert model.predict_proba(X).shape == model.predict_log_proba(X).shape == (n, classes)
        np.testing.assert_allclose(np.exp(model.predict_log_proba(X)), model.predict_proba(X), rtol=1e-12)
        assert len(model.loss_curve_) == model.n_iter_
        assert classes == 2 or abs(model.intercept_.sum()) < 1e-12


def test_string_labels_and_data_frames():
    frame = load_iris(as_frame=True)
    names = np.array(["setosa", "versicolor", "virginica"], dtype=object)
    y = pd.Series(names[frame.target])

    model = SoftmaxClassifier(class_weight={"setosa": 2.0}).fit(frame.data, y)

    assert model.classes_.tolist() == names.tolist()
    assert model.feature_names_in_.tolist() == list(frame.data.columns)
    assert model.predict(frame.data.iloc[[0, 60, 120]]).tolist() == names.tolist()
    assert model.score(frame.data, y) > 0.95


@pytest.mark.parametrize("y", [[False, True], [-1, 1], ["no", "yes"], [0.0, 7.0]])
def test_labels_of_any_kind(y):
    X, codes = dataset("breast_cancer")
    y = np.array(y)[codes]

    model = SoftmaxClassifier().fit(X, y)

    assert model.predict(X).dtype == y.dtype
    assert np.mean(model.predict(X) == y) > 0.95


def test_clone_and_pickle():
    X, y = dataset("wine")
    model = SoftmaxClassifier(C=3.0, class_weight="balanced", label_smoothing=0.05, verbose=0).fit(X, y)

    copy = pickle.loads(pickle.dumps(model))

    np.testing.assert_array_equal(copy.predict_proba(X), model.predict_proba(X))
    assert clone(model).get_params() == model.get_params()
    assert not hasattr(clone(model), "coef_")


def test_pipeline_and_grid_search():
    X, y = dataset("wine", scaled=False)
    pipeline = make_pipeline(StandardScaler(), SoftmaxClassifier())

    search = GridSearchCV(pipeline, {"softmaxclassifier__C": [1e-6, 1.0]}, cv=3, scoring="neg_log_loss").fit(X, y)

    assert search.best_params_ == {"softmaxclassifier__C": 1.0}
    assert search.score(X, y) > -0.1


@pytest.mark.parametrize("container", [scipy.sparse.csr_array, scipy.sparse.csr_matrix, scipy.sparse.csc_array])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ["digits", "breast_cancer"])
def test_sparse_equals_dense(name, dtype, container):
    X, y = dataset(name, scaled=False)
    X = np.where(np.median(X) < X, X, 0).astype(dtype)
    weights = np.random.default_rng(0).uniform(0, 2, len(y))
    tol = 1e-5 if dtype is np.float64 else 1e-3

    dense = SoftmaxClassifier(C=0.01, tol=tol / 2).fit(X, y, weights)
    sparse = SoftmaxClassifier(C=0.01, tol=tol / 2).fit(container(X), y, weights)

    np.testing.assert_allclose(sparse.predict_proba(container(X)), dense.predict_proba(X), atol=10 * tol)
    assert sparse.decision_function(container(X)).dtype == dtype


def test_a_memory_map_and_a_column_order_are_taken(tmp_path):
    X, y = dataset("wine")
    np.save(tmp_path / "X.npy", X)
    expected = SoftmaxClassifier().fit(X, y).predict_proba(X)

    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    by_column = np.asfortranarray(X)

    np.testing.assert_allclose(SoftmaxClassifier().fit(mapped, y).predict_proba(mapped), expected, atol=1e-6)
    np.testing.assert_allclose(SoftmaxClassifier().fit(by_column, y).predict_proba(X), expected, atol=1e-6)


# ----- warm start, progress, convergence, interruption


@pytest.mark.parametrize("name", ["wine", "breast_cancer"])
def test_a_warm_start_takes_fewer_iterations(name):
    X, y = dataset(name)
    model = SoftmaxClassifier(C=1.0, warm_start=True, tol=1e-6).fit(X, y)
    cold = SoftmaxClassifier(C=1.1, tol=1e-6).fit(X, y)

    again = clone(model).fit(X, y).fit(X, y)
    warm = model.set_params(C=1.1).fit(X, y)

    assert again.n_iter_ == 0
    assert again.loss_curve_ == []
    assert 0 < warm.n_iter_ < cold.n_iter_
    np.testing.assert_allclose(warm.predict_proba(X), cold.predict_proba(X), atol=1e-4)


def test_a_warm_start_on_other_classes_or_features_starts_afresh():
    X, y = dataset("wine")
    frame = pd.DataFrame(X).add_prefix("f")
    fresh = SoftmaxClassifier().fit(X, y)

    def warm(first_X, first_y):
        return SoftmaxClassifier(warm_start=True).fit(first_X, first_y)

    for other in (warm(X, y + 1), warm(X[y < 2], y[y < 2]), warm(X[:, :5], y)):
        np.testing.assert_array_equal(other.fit(X, y).coef_, fresh.coef_)
    renamed = warm(frame, y).fit(frame.add_prefix("g"), y)
    assert renamed.n_iter_ > 0
    assert warm(frame, y).fit(frame, y).n_iter_ == 0


def test_intercepts_sum_to_zero_wherever_they_start():
    X, y = dataset("wine")
    model = SoftmaxClassifier(warm_start=True).fit(X, y)
    model.intercept_ = model.intercept_ + 5.0

    assert abs(model.fit(X, y).intercept_.sum()) < 1e-12


def test_without_warm_start_every_fit_is_the_first():
    X, y = dataset("wine")
    model = SoftmaxClassifier().fit(X, y)
    coef = model.coef_

    np.testing.assert_array_equal(model.fit(X, y).coef_, coef)


def test_running_out_of_iterations_warns_with_the_gradient_reached():
    X, y = dataset("digits")
    model = SoftmaxClassifier(max_iter=5)

    with pytest.warns(ConvergenceWarning, match=r"max_iter=5 with max \|gradient\| = \d\.\d\de-\d\d, above tol=0.0001"):
        model.fit(X, y)

    assert (model.n_iter_, model.converged_, len(model.loss_curve_)) == (5, False, 5)


def test_stopping_at_the_rounding_floor_warns_too():
    raw, y = dataset("iris", scaled=False)

    for X in (raw, raw.astype(np.float32)):
        with pytest.warns(ConvergenceWarning, match="where rounding hides any further improvement"):
            model = SoftmaxClassifier(tol=1e-30, max_iter=5000).fit(X, y)

        assert not model.converged_
        assert model.n_iter_ < 1000  # it does not wander about the minimum until max_iter


def test_verbose_reports_to_stderr(capsys):
    X, y = dataset("wine")
    model = SoftmaxClassifier(verbose=1).fit(X, y)

    out, err = capsys.readouterr()
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith(f"iteration {model.n_iter_}: loss {model.loss_curve_[-1]:.8g}, max |gradient| ")
    SoftmaxClassifier().fit(X, y)
    assert capsys.readouterr().err == ""


def test_verbose_without_a_stderr(monkeypatch):
    X, y = dataset("wine")
    monkeypatch.setattr("sys.stderr", None)

    assert SoftmaxClassifier(verbose=1).fit(X, y).converged_


def interrupt_at_call(monkeypatch, n, exception):
    """Let the loss raise `exception` when it is called for the n-th time."""
    calls = iter(range(1, n + 1))
    loss = softmaxloss.objective.softmax_cross_entropy_and_grad

    def interrupted(*args, **options):
        if next(calls) == n:
            raise exception
        return loss(*args, **options)

    monkeypatch.setattr(softmaxloss.objective, "softmax_cross_entropy_and_grad", interrupted)


@pytest.mark.parametrize("exception", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("fitted_before", [True, False])
def test_an_interrupted_fit_leaves_the_estimator_as_it_was(fitted_before, exception, monkeypatch):
    X, y = dataset("wine")
    model = SoftmaxClassifier()
    if fitted_before:
        model.fit(X[:, :4], y == 1)
    before = dict(vars(model))
    interrupt_at_call(monkeypatch, 4, exception)

    with pytest.raises(exception):
        model.fit(pd.DataFrame(X).add_prefix("f"), y)

    assert vars(model) == before
    if fitted_before:
        assert model.predict(X[:, :4]).dtype == bool


def test_a_refused_fit_leaves_the_estimator_as_it_was():
    X, y = dataset("wine")
    model = SoftmaxClassifier()
    before = dict(vars(model))

    with pytest.raises(ValueError, match="one class only"):
        model.fit(X, np.zeros(len(y)))

    assert vars(model) == before


# ----- errors


def test_one_class_is_refused():
    X, _ = dataset("iris")

    with pytest.raises(ValueError, match=r"y holds one class only, 'a': .* at least two classes"):
        SoftmaxClassifier().fit(X, ["a"] * 150)


def test_a_continuous_target_is_refused():
    X, _ = dataset("iris")

    with pytest.raises(ValueError, match="continuous"):
        SoftmaxClassifier().fit(X, X[:, 0])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"C": 0.0}, "C=0.0 was given: set C to a number above 0"),
        ({"C": np.nan}, "C=nan"),
        ({"C": "1"}, "C='1'"),
        ({"tol": -1e-3}, "tol=-0.001"),
        ({"max_iter": 0}, "max_iter=0 was given: set max_iter to an integer of at least 1"),
        ({"max_iter": 10.5}, "max_iter=10.5"),
        ({"label_smoothing": 1.5}, "label_smoothing=1.5 was given: set label_smoothing to a number from 0 to 1"),
        ({"C": True}, "C=True was given: set C to a number above 0"),
        ({"label_smoothing": True}, "label_smoothing=True was given: set label_smoothing to a number from 0 to 1"),
        ({"tol": True}, "tol=True"),
        ({"max_iter": True}, "max_iter=True"),
        ({"fit_intercept": "no"}, "fit_intercept='no' was given: set fit_intercept to True or False"),
        ({"fit_intercept": 1}, "fit_intercept=1"),
        ({"warm_start": "no"}, "warm_start='no' was given: set warm_start to True or False"),
        ({"warm_start": None}, "warm_start=None"),
        ({"verbose": "no"}, "verbose='no' was given: set verbose to an integer of at least 0, or True or False"),
        ({"verbose": -1}, "verbose=-1"),
        ({"verbose": 0.5}, "verbose=0.5"),
        ({"class_weight": "heavy"}, "class_weight"),
        ({"class_weight": {0: -1.0}}, "must not be below zero"),
        ({"class_weight": {0: np.nan}}, "adds up to nan"),
        ({"class_weight": {0: 0, 1: 0, 2: 0}}, "nor the weight of every row zero"),
    ],
)
def test_a_parameter_out_of_range_is_refused(parameters, message):
    X, y = dataset("iris")

    with pytest.raises(ValueError, match=message):
        SoftmaxClassifier(**parameters).fit(X, y)


def test_flags_and_numbers_of_numpy_are_taken(capsys):
    X, y = dataset("iris")
    plain = SoftmaxClassifier(C=float(np.float32(0.3)), fit_intercept=False, label_smoothing=0.25, max_iter=50).fit(
        X, y
    )

    numpys = SoftmaxClassifier(
        np.float32(0.3),
        fit_intercept=np.False_,
        label_smoothing=np.float64(0.25),
        max_iter=np.int64(50),
        warm_start=np.False_,
        verbose=np.False_,
    ).fit(X, y)

    np.testing.assert_array_equal(numpys.coef_, plain.coef_)
    assert capsys.readouterr().err == ""
    SoftmaxClassifier(verbose=True).fit(X, y)
    assert "iteration" in capsys.readouterr().err


@pytest.mark.parametrize("weight", [2.0, 3, np.float32(0.5)])
def test_one_weight_for_every_row(weight):
    X, y = dataset("iris")

    model = SoftmaxClassifier().fit(X, y, weight)

    np.testing.assert_array_equal(model.coef_, SoftmaxClassifier().fit(X, y, np.full(150, weight)).coef_)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros(150), "nor the weight of every row zero"),
        (np.r_[-1.0, np.ones(149)], "must not be below zero.*the lowest is -1"),
        (np.ones(3), r"sample_weight has shape \(3,\) and X 150 rows"),
        (np.ones((150, 1)), r"sample_weight has shape \(150, 1\)"),
        (np.r_[np.nan, np.ones(149)], "NaN"),
        (0.0, "nor the weight of every row zero"),
        (-2, "must not be below zero.*the lowest is -2"),
        (np.nan, "NaN"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    X, y = dataset("iris")

    with pytest.raises(ValueError, match=message):
        SoftmaxClassifier().fit(X, y, weights)


def test_prediction_needs_a_fit_and_the_same_features():
    X, y = dataset("iris")

    with pytest.raises(NotFittedError):
        SoftmaxClassifier().predict(X)
    with pytest.raises(ValueError, match="3 features, but SoftmaxClassifier is expecting 4"):
        SoftmaxClassifier().fit(X, y).predict(X[:, :3])


def test_logarithms_in_float32_are_those_of_the_probabilities():
    """Of one that is rounded to 1 it is 0, as scikit-learn's checks have it, and no small number."""
    X, y = np.linspace(-20, 20, 401, dtype=np.float32)[:, None], np.arange(401) > 200
    model = SoftmaxClassifier().fit(X, y)
    p, log_p = model.predict_proba(X), model.predict_log_proba(X)
    assert p.dtype == log_p.dtype == np.float32
    np.testing.assert_array_equal(log_p == 0.0, p == 1.0)
    assert (p == 1.0).any()
    assert ((log_p < 0.0) & (log_p > -1e-6)).any()
    assert np.isfinite(log_p).all()


@pytest.mark.parametrize("C", [1e-4, 1.0, 100.0])
def test_features_a_million_times_smaller_and_larger_than_others(C):
    """Where nothing else converges in a few hundred iterations, the Hessian itself does."""
    random = np.random.default_rng(1)
    y = np.arange(3000) % 20
    X = random.standard_normal((20, 40))[y] + random.standard_normal((3000, 40))
    model = SoftmaxClassifier(C=C).fit(X * np.geomspace(1e-6, 1e6, 40), y)
    assert model.converged_
    assert 100 < model.n_iter_ < 300
