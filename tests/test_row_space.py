"""The objective on the space of the rows: the same values, derivatives and minima as by the coefficients."""

import numpy as np
import pytest
import scipy.sparse
from learning_problems import objective_of
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

import softmaxloss as sl
from softmaxloss import row_space
from softmaxloss.path import solve_path
from softmaxloss.row_space import Gram, RowSpace
from softmaxloss.solver import minimize
from softmaxloss.training import solve


@pytest.fixture(scope="module", autouse=True)
def one_blas_thread():
    """Matrices this small are slower with more threads, much slower where other work has the cores."""
    with threadpool_limits(1, user_api="blas"):
        yield


def rows(n_classes, n_rows=40, n_features=1200, dtype=np.float64, seed=0):
    """Return texts, as it were, the first word in all of them, the last in none, and a row that is empty."""
    rng = np.random.default_rng(seed)
    X = rng.random((n_rows, n_features)) * (rng.random((n_rows, n_features)) < 0.1)
    X[:, 0] += 1.0
    X[:, -1] = 0.0
    X[3] = 0.0
    codes = np.concatenate([np.arange(n_classes), rng.integers(n_classes, size=n_rows - n_classes)])
    return scipy.sparse.csr_array(X.astype(dtype)), codes


def space_of(n_classes, dtype, fit_intercept, label_smoothing):
    X, codes = rows(n_classes, dtype=dtype)
    weights = np.random.default_rng(1).uniform(0, 3, len(codes))
    weights[5] = 0.0
    objective = objective_of(
        X, codes, weights, C=0.7, n_classes=n_classes, fit_intercept=fit_intercept, label_smoothing=label_smoothing
    )
    variables = objective.centred_and_scaled()
    assert row_space.suits(objective)
    return objective, variables, RowSpace(objective, variables, Gram(objective))


def point_of(space, objective, variables, seed):
    """Return u of a random combination, intercepts among it where there are some, and of their changes by feature."""
    rng = np.random.default_rng(seed)
    n_rows, n_classes = objective.source.n_rows, objective.shape[0]
    combination = rng.standard_normal((n_rows, n_classes))
    centred = objective.source.rows.X.toarray().astype(np.float64) - variables.mean
    intercept = rng.standard_normal(n_classes) * objective.fit_intercept
    products = centred @ (centred.T @ combination) / space._gram.square
    return np.concatenate([combination.ravel(), products.ravel(), intercept])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_values_and_derivatives_are_those_by_the_coefficients(n_classes, dtype, fit_intercept, label_smoothing):
    objective, variables, space = space_of(n_classes, dtype, fit_intercept, label_smoothing)
    tolerance = 1e-4 if dtype == np.float32 else 1e-11
    for seed in range(3):
        u, step = (point_of(space, objective, variables, 2 * seed + k) for k in range(2))
        x, along = space.parameters(u), space.parameters(step)

        point = space.point(u)

        value, gradient = objective.value_and_gradient(x)
        assert_allclose(point.value, value, rtol=tolerance)
        assert_allclose(point.gradient @ step, gradient @ along, rtol=tolerance, atol=10 * tolerance)
        norms = np.abs(gradient).max(), np.abs(variables.gradient(gradient)).max()
        assert_allclose(point.gradient_norm, max(norms), rtol=tolerance)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_a_step_is_down_the_gradient_by_the_coefficients(fit_intercept):
    objective, variables, space = space_of(4, np.float64, fit_intercept, 0.0)
    u = point_of(space, objective, variables, 0)

    step = space.preconditioner(space.point(u).gradient)

    _, gradient = objective.value_and_gradient(space.parameters(u))
    found, whole = (each.reshape(objective.shape)[:, :-1] for each in (space.parameters(step), gradient))
    whole = whole - np.outer(gradient.reshape(objective.shape)[:, -1], variables.mean)
    assert_allclose(found / np.linalg.norm(found), whole / np.linalg.norm(whole), atol=1e-12)


@pytest.mark.parametrize("C", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("n_classes", [2, 5])
def test_the_minimum_is_that_by_the_coefficients(n_classes, fit_intercept, C):
    X, codes = rows(n_classes)
    weights = np.random.default_rng(1).uniform(0.5, 2, len(codes))
    options = {"C": C, "fit_intercept": fit_intercept}

    ours = sl.SoftmaxClassifier(tol=1e-9, **options).fit(X, codes, weights)

    objective = objective_of(X, codes, weights, n_classes=n_classes, label_smoothing=0.0, **options)
    start = np.zeros(objective.shape).ravel()
    variables = objective.centred_and_scaled()
    best = minimize(objective.value_and_gradient, start, tol=1e-10, max_iter=3000, variables=variables)
    assert ours.converged_
    value, _ = objective.value_and_gradient(np.column_stack([ours.coef_, ours.intercept_]).ravel())
    assert_allclose(value, best.value, rtol=1e-9)
    theirs = LogisticRegression(tol=1e-9, max_iter=10000, solver="newton-cg", **options).fit(X, codes, weights)
    assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-5)


def test_it_is_for_few_sparse_rows_of_features_alike_and_near_0():
    def suits(X, **options):
        codes = np.arange(X.shape[0]) % 2
        options = {"C": 1.0, "n_classes": 2, "fit_intercept": True, "label_smoothing": 0.0, **options}
        objective = objective_of(X, codes, np.ones(len(codes)), **options)
        return row_space.suits(objective)

    X, _ = rows(2)
    assert suits(X)
    assert not suits(X.toarray())
    assert not suits(X[:, :999])
    assert suits(X[:, :1000])
    assert not suits(scipy.sparse.vstack([X] * 16).tocsr())
    one = np.ones(X.shape[1])
    for dtype in (np.float32, np.float64):
        assert suits(scipy.sparse.csr_array(X * 1e6 * one).astype(dtype), C=1e-12)
        for position in (0, 5):  # a large constant, or what is large here and there
            one[position] = 1e6
            assert not suits(scipy.sparse.csr_array(X * one).astype(dtype))
            one[position] = 1.0
        far = scipy.sparse.csr_array(X.toarray() + 100.0).astype(dtype)
        assert suits(far) == suits(far, fit_intercept=False) == (dtype == np.float64)
    assert not suits(scipy.sparse.csr_array((40, 1200)))


def reached(model, X, codes, **options):
    """Return the largest derivative at the coefficients that were learnt, in float64, as the solver measures it."""
    options = {"C": 1.0, "n_classes": 3, "fit_intercept": True, "label_smoothing": 0.0, **options}
    objective = objective_of(X.astype(np.float64), codes, np.ones(len(codes)), **options)
    _, gradient = objective.value_and_gradient(np.column_stack([model.coef_, model.intercept_]).ravel())
    return max(np.abs(gradient).max(), np.abs(objective.centred_and_scaled().gradient(gradient)).max())


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1.0, 30.0, 1e3, 1e5])
@pytest.mark.parametrize("kind", ["constant", "spread", "mean"])
def test_what_is_said_to_have_converged_has(kind, size, dtype):
    X, codes = rows(3, n_rows=200)
    X = X.toarray()
    rng = np.random.default_rng(1)
    X[:, 7] = {"constant": size, "spread": size * rng.random(200), "mean": size + rng.standard_normal(200)}[kind]
    X = scipy.sparse.csr_array(X.astype(dtype))
    model = sl.SoftmaxClassifier(tol=1e-4).fit(X, codes)
    if dtype == np.float64 or (kind != "mean" and size < 1e5):
        assert model.converged_
    assert model.score(X, codes) > 0.9
    if model.converged_ and (dtype == np.float64 or size <= 30.0):
        assert reached(model, X, codes) < 1.05e-4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("power", [-8, -4, 4, 8])
def test_the_unit_of_the_features_does_not_matter(power, dtype):
    X, codes = rows(3, n_rows=100)
    unit = 10.0**power
    model = sl.SoftmaxClassifier(tol=1e-4).fit(X.astype(dtype), codes)
    scaled = sl.SoftmaxClassifier(tol=1e-4 * max(unit, 1e-3), C=unit**-2).fit((X * unit).astype(dtype), codes)
    assert scaled.converged_
    assert scaled.n_iter_ <= 20
    assert_allclose(scaled.predict_proba((X * unit).astype(dtype)), model.predict_proba(X), atol=0.01)


@pytest.mark.parametrize("options", [{"fit_intercept": False}, {"label_smoothing": 1.0}], ids=str)
def test_nothing_to_learn_without_a_penalty(options):
    X = scipy.sparse.csr_array(np.ones((4, 1000)))
    model = sl.SoftmaxClassifier(C=np.inf, **options).fit(X, [0, 1, 0, 1])
    assert_allclose(model.predict_proba(X), 0.5)


def test_every_number_of_threads_gives_the_same_bits():
    X, codes = rows(5, n_rows=300, n_features=2000)
    before = sl.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            sl.set_num_threads(threads)
            found.append(sl.SoftmaxClassifier().fit(X, codes).coef_)
    finally:
        sl.set_num_threads(before)
    assert_array_equal(found[0], found[1])
    assert_array_equal(found[0], found[2])


def interrupt_at(monkeypatch, call):
    """Have the evaluation of that number, in the space of the rows, raise what Ctrl-C does."""
    evaluate, made = RowSpace._evaluate, []

    def interrupted(self, u):
        made.append(u)
        if len(made) == call:
            raise KeyboardInterrupt
        return evaluate(self, u)

    monkeypatch.setattr(RowSpace, "_evaluate", interrupted)
    return made


def interrupt(model, calls, X, codes, monkeypatch):
    """Fit as often as there are numbers, each time until the evaluation of that number."""
    for call in calls:
        with monkeypatch.context() as patch:
            interrupt_at(patch, call)
            with pytest.raises(KeyboardInterrupt):
                model.fit(X, codes)


@pytest.mark.parametrize("calls", [(3,), (7,), (8, 2, 5)])
def test_an_interrupted_fit_ends_at_the_same_bits(calls, tmp_path, monkeypatch):
    X, codes = rows(4, n_rows=200, n_features=1500)
    options = {"C": 100.0, "tol": 1e-9}
    whole = sl.SoftmaxClassifier(**options).fit(X, codes)
    assert whole.n_iter_ > 8
    resumed = sl.SoftmaxClassifier(**options, checkpoint=tmp_path / "state.npz")

    interrupt(resumed, calls, X, codes, monkeypatch)
    resumed.fit(X, codes)

    assert_array_equal(resumed.coef_, whole.coef_)
    assert_array_equal(resumed.intercept_, whole.intercept_)
    assert resumed.loss_curve_ == whole.loss_curve_


def test_a_warm_start_begins_where_the_last_fit_ended():
    X, codes = rows(4)
    model = sl.SoftmaxClassifier(tol=1e-6, warm_start=True).fit(X, codes)
    coef = model.coef_
    model.fit(X, codes)
    assert model.n_iter_ == 0
    assert_allclose(model.coef_, coef, rtol=1e-12)


def test_a_path_of_penalties():
    X, codes = rows(3, n_rows=60)
    Cs = [0.01, 1.0, 100.0]
    model = sl.SoftmaxClassifierCV(Cs=Cs, cv=3, tol=1e-8).fit(X, codes)
    alone = sl.SoftmaxClassifier(C=model.C_, tol=1e-8).fit(X, codes)
    assert_allclose(model.coef_, alone.coef_, atol=1e-5)


@pytest.mark.parametrize("calls", [(1,), (6,), (20,), (33, 12, 9, 5)], ids=str)
def test_an_interrupted_path_ends_at_the_same_bits(calls, tmp_path, monkeypatch):
    X, codes = rows(3, n_rows=100, n_features=1500)
    options = {"Cs": np.geomspace(0.01, 1e4, 6), "cv": 2, "n_jobs": 1, "tol": 1e-7}
    whole = sl.SoftmaxClassifierCV(**options).fit(X, codes)
    resumed = sl.SoftmaxClassifierCV(**options, checkpoint=tmp_path)

    interrupt(resumed, calls, X, codes, monkeypatch)
    resumed.fit(X, codes)

    for name in ("coef_", "intercept_", "coefs_paths_", "scores_", "n_iter_"):
        assert_array_equal(getattr(resumed, name), getattr(whole, name))


def test_a_path_begins_where_the_last_fits_point(monkeypatch):
    X, codes = rows(3, n_rows=100, n_features=1500)
    made = interrupt_at(monkeypatch, None)
    penalties = [1.0 / (C * len(codes)) for C in np.geomspace(0.1, 1e3, 9)]
    objective = objective_of(X, codes, np.ones(100), C=1.0, n_classes=3, fit_intercept=True, label_smoothing=0.0)

    path = solve_path(objective, penalties, tol=1e-5, max_iter=1000)

    of_path = len(made)
    alone = [solve(objective.with_penalty(penalty), None, tol=1e-5, max_iter=1000) for penalty in penalties]
    assert of_path < 0.8 * (len(made) - of_path)
    assert [one.combination is None for one in path] == [True] * 7 + [False] * 2  # the last two point to the next
    for one, other in zip(path, alone, strict=True):
        assert one.converged
        assert_allclose(one.value, other.value, rtol=1e-4, atol=1e-6)
