"""SoftmaxClassifier against scikit-learn's LogisticRegression, against its own formula, and in scikit-learn's hands."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine, make_classification
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_limits

import softmaxloss.objective
from softmaxloss.classifier import SoftmaxClassifier
from softmaxloss.objective import Objective

LOADERS = {"digits": load_digits, "iris": load_iris, "wine": load_wine, "breast_cancer": load_breast_cancer}


@pytest.fixture(scope="module", autouse=True)
def one_blas_thread():
    """Matrices this small are slower with more threads, much slower where other work has the cores."""
    with threadpool_limits(1, user_api="blas"):
        yield


def dataset(name, *, scaled=True):
    X, y = LOADERS[name](return_X_y=True)
    return (StandardScaler().fit_transform(X) if scaled else X), y


def reference(X, y, sample_weight=None, **parameters):
    """Return scikit-learn's answer at its optimum, by its most accurate solver."""
    model = LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=1000, **parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it falls back on L-BFGS where its Hessian is singular
        return model.fit(X, y, sample_weight)


def objective(model, X, y, s, *, eps=0.0):
    """Return the objective at a fitted model's parameters, from the formula."""
    z = model.decision_function(X)
    z = np.column_stack([np.zeros(len(z)), z]) if z.ndim == 1 else z
    log_p = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
    target = (1 - eps) * np.eye(z.shape[1])[np.searchsorted(model.classes_, y)] + eps / z.shape[1]
    losses = -(target * log_p).sum(axis=1)
    return (s * losses).sum() / s.sum() + (model.coef_**2).sum() / (2 * model.C * s.sum())


# ----- the optimum is LogisticRegression's


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "raw"])
@pytest.mark.parametrize("name", LOADERS)
def test_it_agrees_with_logistic_regression(name, scaled, C):
    X, y = dataset(name, scaled=scaled)

    tol = 1e-7

    ours = SoftmaxClassifier(C=C, tol=tol, max_iter=3000).fit(X, y)

    theirs = reference(X, y, C=C)
    assert ours.converged_
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=0, atol=1e-4)
    everyone = np.ones(len(y))
    # Where the curvature is at least 1 / (C * rows), the minimum is no deeper than |gradient|^2 / (2 * curvature).
    excess = ours.coef_.size * tol**2 * C * len(y) / 2
    assert objective(ours, X, y, everyone) <= objective(theirs, X, y, everyone) + excess + 1e-14
    assert ours.loss_curve_[-1] == pytest.approx(objective(ours, X, y, everyone), rel=1e-9)


@pytest.mark.parametrize("name", ["wine", "breast_cancer"])
def test_coefficients_and_intercepts_agree_too(name):
    X, y = dataset(name)

    ours = SoftmaxClassifier(C=0.5, tol=1e-8).fit(X, y)

    theirs = reference(X, y, C=0.5)
    assert ours.coef_.shape == theirs.coef_.shape
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=0, atol=1e-5)
    theirs_centred = theirs.intercept_ - (theirs.intercept_.mean() if len(ours.classes_) > 2 else 0)
    np.testing.assert_allclose(ours.intercept_, theirs_centred, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["wine", "breast_cancer"])
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 3.0, 1: 0.25}], ids=["none", "balanced", "dict"])
@pytest.mark.parametrize("fit_intercept", [True, False], ids=["intercept", "none"])
def test_weights_and_no_intercept_agree(name, class_weight, fit_intercept):
    X, y = dataset(name)
    sample_weight = np.random.default_rng(0).uniform(0, 3, len(y))
    sample_weight[::7] = 0.0
    options = {"C": 2.0, "class_weight": class_weight, "fit_intercept": fit_intercept}

    ours = SoftmaxClassifier(tol=1e-7, **options).fit(X, y, sample_weight)

    theirs = reference(X, y, sample_weight, **options)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=0, atol=1e-4)
    assert fit_intercept or not ours.intercept_.any()


@pytest.mark.parametrize("name", LOADERS)
def test_float32_agrees_and_stays_float32(name):
    X, y = dataset(name)
    X = X.astype(np.float32)

    ours = SoftmaxClassifier(tol=1e-7).fit(X, y)

    assert ours.coef_.dtype == ours.intercept_.dtype == np.float64
    assert ours.decision_function(X).dtype == ours.predict_proba(X).dtype == np.float32
    theirs = reference(X.astype(np.float64), y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=0, atol=1e-4)


def test_no_regularisation():
    X, y = make_classification(500, 5, n_informative=5, n_redundant=0, flip_y=0.3, random_state=0)

    ours = SoftmaxClassifier(C=np.inf, tol=1e-8).fit(X, y)

    np.testing.assert_allclose(ours.coef_, reference(X, y, C=np.inf).coef_, rtol=1e-5)


# ----- the objective is its formula


def small_problem(n_classes, dtype=np.float64):
    random = np.random.default_rng(n_classes)
    X = random.standard_normal((60, 4)).astype(dtype) + 2
    return X, np.arange(60) % n_classes, random.uniform(0, 2, 60)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("fit_intercept", [True, False], ids=["intercept", "none"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_gradient_is_the_slope_of_the_value(n_classes, fit_intercept, sparse, monkeypatch):
    monkeypatch.setattr(softmaxloss.objective, "_LOGITS_BYTES", 24 * 7)  # seven rows a block of three classes
    X, codes, weights = small_problem(n_classes)
    of = Objective(
        scipy.sparse.csr_array(X) if sparse else X,
        codes,
        weights,
        n_classes=n_classes,
        C=0.3,
        fit_intercept=fit_intercept,
        label_smoothing=0.1,
    )
    assert len(list(of._blocks())) > 5
    point = np.random.default_rng(1).standard_normal(of.shape)
    if not fit_intercept:
        point[:, -1] = 0.0
    point = point.ravel()

    value, gradient = of.value_and_gradient(point)

    differences = np.empty_like(gradient)
    for i in range(len(point)):
        step = np.zeros_like(point)
        step[i] = 1e-5
        rise = of.value_and_gradient(point + step)[0] - of.value_and_gradient(point - step)[0]
        differences[i] = rise / 2e-5
    if not fit_intercept:
        differences.reshape(of.shape)[:, -1] = 0.0
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-8)
    assert np.isfinite(value)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_label_smoothing_is_the_formula(n_classes):
    X, y, weights = small_problem(n_classes)
    eps, C, rows = 0.15, 0.7, 1 if n_classes == 2 else n_classes

    def formula(parameters):
        matrix = parameters.reshape(rows, 5)
        z = X @ matrix[:, :4].T + matrix[:, 4]
        if n_classes == 2:
            z = np.column_stack([np.zeros(60), z])
        log_p = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
        q = (1 - eps) * np.eye(n_classes)[y] + eps / n_classes
        data = (weights * -(q * log_p).sum(axis=1)).sum() / weights.sum()
        return data + (matrix[:, :4] ** 2).sum() / (2 * C * weights.sum())

    best = scipy.optimize.minimize(formula, np.zeros(rows * 5), method="BFGS", options={"gtol": 1e-7})
    ours = SoftmaxClassifier(C=C, label_smoothing=eps, tol=1e-9).fit(X, y, weights)

    assert ours.loss_curve_[-1] == pytest.approx(best.fun, abs=1e-10)
    assert ours.loss_curve_[-1] == pytest.approx(objective(ours, X, y, weights, eps=eps), abs=1e-12)
    np.testing.assert_allclose(ours.coef_, best.x.reshape(rows, 5)[:, :4], atol=1e-5)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_weight_counts_as_repeated_rows(n_classes):
    X, y, _ = small_problem(n_classes)
    times = np.random.default_rng(0).integers(0, 4, 60)

    weighted = SoftmaxClassifier(tol=1e-9).fit(X, y, times)
    repeated = SoftmaxClassifier(tol=1e-9).fit(X.repeat(times, axis=0), y.repeat(times))

    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-6)
    np.testing.assert_allclose(weighted.intercept_, repeated.intercept_, rtol=1e-6)


def test_scaling_all_weights_and_dividing_c_changes_nothing():
    X, y, weights = small_problem(3)

    one = SoftmaxClassifier(C=1.0, tol=1e-9).fit(X, y, weights)
    other = SoftmaxClassifier(C=1e-30, tol=1e-6).fit(X.astype(np.float32), y, weights * 1e30)

    np.testing.assert_allclose(other.coef_, one.coef_, atol=1e-4)


def test_blocks_of_rows_give_the_answer_of_one_block(monkeypatch):
    X, y = dataset("digits")
    whole = SoftmaxClassifier(tol=1e-6).fit(X, y)
    monkeypatch.setattr(softmaxloss.objective, "_LOGITS_BYTES", 100 * 10 * 8)

    in_blocks = SoftmaxClassifier(tol=1e-6).fit(X, y)

    np.testing.assert_allclose(in_blocks.predict_proba(X), whole.predict_proba(X), atol=1e-4)


def test_a_class_without_weight_is_never_predicted():
    X, y = dataset("iris")
    weights = np.where(y == 1, 0.0, 1.0)

    for class_weight in (None, "balanced"):
        model = SoftmaxClassifier(class_weight=class_weight).fit(X, y, weights)
        assert model.predict_proba(X)[:, 1].max() < 0.01


# ----- features of any scale


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["iris", "breast_cancer"])
def test_features_of_wildly_different_scales(name, seed):
    X, y = dataset(name)
    random = np.random.default_rng(seed)
    scale = 10.0 ** random.uniform(-6, 6, X.shape[1])
    X = (X + random.uniform(-5, 5, X.shape[1])) * scale
    model = SoftmaxClassifier().fit(X, y)

    assert model.converged_
    # The optimum for certain: minimised in the variables coef * scale, where nothing is badly scaled.
    n, codes = len(y), y
    coef = model.coef_ * scale
    value = objective(model, X, y, np.ones(n))
    Z = X / scale - (X / scale).mean(axis=0)
    rows = model.coef_.shape[0]

    def formula(parameters):
        matrix = parameters.reshape(rows, -1)
        z = Z @ matrix[:, :-1].T + matrix[:, -1]
        z = np.column_stack([np.zeros(n), z]) if rows == 1 else z
        log_p = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
        by_z = (np.exp(log_p) - np.eye(z.shape[1])[codes])[:, -rows:] / n
        gradient = np.column_stack([by_z.T @ Z + matrix[:, :-1] / scale**2 / n, by_z.sum(axis=0)])
        penalty = ((matrix[:, :-1] / scale) ** 2).sum() / (2 * n)
        return -log_p[np.arange(n), codes].mean() + penalty, gradient.ravel()

    start = np.column_stack([coef, model.intercept_ + model.coef_ @ X.mean(axis=0)]).ravel()
    better = scipy.optimize.minimize(formula, start, jac=True, method="BFGS", options={"gtol": 1e-10, "maxiter": 300})
    assert value <= better.fun * (1 + 1e-6)


def test_constant_features_get_no_weight():
    X, y = dataset("iris")
    padded = np.column_stack([np.full(150, 7e3), X, np.zeros(150), np.full(150, 0.1)])

    for C in (1.0, 1e6):
        plain = SoftmaxClassifier(C=C, tol=1e-8).fit(X, y)
        model = SoftmaxClassifier(C=C, tol=1e-8).fit(padded, y)
        assert not model.coef_[:, [0, 5, 6]].any()
        np.testing.assert_allclose(model.predict_proba(padded), plain.predict_proba(X), atol=1e-6)


def test_without_an_intercept_a_constant_feature_is_one():
    X, y = dataset("iris")
    padded = np.column_stack([X, np.full(150, 5.0)])

    model = SoftmaxClassifier(fit_intercept=False, tol=1e-7).fit(padded, y)

    np.testing.assert_allclose(
        model.predict_proba(padded), reference(padded, y, fit_intercept=False).predict_proba(padded), atol=1e-4
    )


def test_features_too_large_to_square_are_refused():
    X, y = dataset("iris")
    X[3, 2] = 1e200

    with pytest.raises(ValueError, match="feature 2 of X holds values too large"):
        SoftmaxClassifier().fit(X, y)


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

    dense = SoftmaxClassifier(C=0.01, tol=tol).fit(X, y, weights)
    sparse = SoftmaxClassifier(C=0.01, tol=tol).fit(container(X), y, weights)

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


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros(150), "nor the weight of every row zero"),
        (np.r_[-1.0, np.ones(149)], "must not be below zero.*the lowest is -1"),
        (np.ones(3), r"sample_weight has shape \(3,\) and X 150 rows"),
        (np.ones((150, 1)), r"sample_weight has shape \(150, 1\)"),
        (np.r_[np.nan, np.ones(149)], "NaN"),
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
