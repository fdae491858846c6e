"""What SoftmaxClassifier minimises and how far: against LogisticRegression, its formula, and features of any scale."""

import warnings

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from example_data import LOADERS, dataset
from learning_problems import objective_of
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

import softmaxloss.rows
from softmaxloss.classifier import SoftmaxClassifier


@pytest.fixture(scope="module", autouse=True)
def one_blas_thread():
    """Matrices this small are slower with more threads, much slower where other work has the cores."""
    with threadpool_limits(1, user_api="blas"):
        yield


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
    monkeypatch.setattr(softmaxloss.rows, "_ENOUGH_ROWS", 7)
    monkeypatch.setattr(softmaxloss.rows, "_LOGITS_BYTES", 1)
    X, codes, weights = small_problem(n_classes)
    of = objective_of(
        scipy.sparse.csr_array(X) if sparse else X,
        codes,
        weights,
        n_classes=n_classes,
        C=0.3,
        fit_intercept=fit_intercept,
        label_smoothing=0.1,
    )
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

    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(weighted.intercept_, repeated.intercept_, rtol=1e-6)


def test_scaling_all_weights_and_dividing_c_changes_nothing():
    X, y, weights = small_problem(3)

    one = SoftmaxClassifier(C=1.0, tol=1e-9).fit(X, y, weights)
    other = SoftmaxClassifier(C=1e-30, tol=1e-6).fit(X.astype(np.float32), y, weights * 1e30)

    np.testing.assert_allclose(other.coef_, one.coef_, atol=1e-4)


def test_blocks_of_rows_give_the_answer_of_one_block(monkeypatch):
    X, y = dataset("digits")
    whole = SoftmaxClassifier(tol=1e-6).fit(X, y)
    monkeypatch.setattr(softmaxloss.rows, "_ENOUGH_ROWS", 100)
    monkeypatch.setattr(softmaxloss.rows, "_LOGITS_BYTES", 1)

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


def test_tiny_features_without_much_regularisation_are_fitted_to_the_end():
    # No derivative with respect to coef_ exceeds 1e-4 even at 0, where only guesses are right.
    X, y = dataset("iris", scaled=False)

    model = SoftmaxClassifier(C=1e8).fit(X * 1e-4, y)

    theirs = reference(X, y, C=1.0)  # the same problem: features a 10,000th, coefficients free to be 10,000 times
    assert model.converged_
    assert model.n_iter_ > 5
    assert model.score(X * 1e-4, y) == theirs.score(X, y)
    assert model.loss_curve_[-1] == pytest.approx(objective(theirs, X, y, np.ones(150)), rel=1e-4)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rare_features_are_fitted_as_far_as_common_ones(dtype):
    random = np.random.default_rng(0)
    X = scipy.sparse.random_array((1000, 2000), density=0.003, format="csr", rng=random)
    y = (X @ random.standard_normal((2000, 5))).argmax(axis=1)
    X = X.astype(dtype)

    model = SoftmaxClassifier(C=100).fit(X, y)

    best = SoftmaxClassifier(C=100, tol=1e-6).fit(X, y)
    assert model.converged_
    assert model.loss_curve_[-1] < 1.001 * best.loss_curve_[-1]


def test_both_gradients_are_within_the_tolerance():
    X, y = dataset("breast_cancer", scaled=False)
    tol = 1e-5

    for factor in (1e-4, 1.0, 1e4):
        model = SoftmaxClassifier(C=100, tol=tol, max_iter=5000).fit(X * factor, y)
        of = objective_of(X * factor, y, np.ones(len(y)), n_classes=2, C=100, fit_intercept=True, label_smoothing=0.0)
        gradient = of.value_and_gradient(np.append(model.coef_, model.intercept_))[1]
        assert np.abs(gradient).max() <= tol
        assert np.abs(of.centred_and_scaled().gradient(gradient)).max() <= tol


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_features_are_scaled_as_dense_ones_are(dtype):
    random = np.random.default_rng(5)
    X = random.standard_normal((60, 6)) * (random.random((60, 6)) < 0.3)
    X[:, 1], X[:, 2] = 0.0, 7.3  # nothing stored, and everything the same
    X, codes, weights = X.astype(dtype), np.arange(60) % 3, random.uniform(0, 2, 60)
    options = {"n_classes": 3, "C": 0.3, "fit_intercept": True, "label_smoothing": 0.0}

    of_sparse = objective_of(scipy.sparse.csr_array(X), codes, weights, **options).centred_and_scaled()

    of_dense = objective_of(X, codes, weights, **options).centred_and_scaled()
    np.testing.assert_allclose(of_sparse.mean, of_dense.mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(of_sparse.scale, of_dense.scale, rtol=1e-12)
    assert of_sparse.scale[1] == of_sparse.scale[2] == 0


@pytest.mark.parametrize("is_sorted", [False, True])
def test_float32_rows_are_summed_in_float64(is_sorted):
    """Gradients of so many rows are far below what float32 loses of their sum, most where equal rows are adjacent."""
    rng = np.random.default_rng(0)
    codes = rng.choice(3, 200_000, p=[0.6, 0.2, 0.2])
    codes = np.sort(codes) if is_sorted else codes
    X = rng.standard_normal((len(codes), 2)).astype(np.float32)
    options = {"C": 1.0, "n_classes": 3, "fit_intercept": True, "label_smoothing": 0.0}
    weights, x = np.ones(len(codes)), np.zeros(9)

    _, gradient = objective_of(X, codes, weights, **options).value_and_gradient(x)

    _, wanted = objective_of(X.astype(np.float64), codes, weights, **options).value_and_gradient(x)
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)
    model = SoftmaxClassifier().fit(X, codes)
    assert model.converged_
    assert model.n_iter_ < 10
