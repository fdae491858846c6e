"""What stands for the inverse Hessian, against the Hessian by finite differences, and on features that repeat."""

import numpy as np
import pytest
import scipy.sparse
from learning_problems import objective_of
from threadpoolctl import threadpool_limits

from softmaxloss import newton, preconditioner, solver, training
from softmaxloss.class_blocks import BlockPreconditioner, room_for_blocks
from softmaxloss.classifier import SoftmaxClassifier
from softmaxloss.newton import HessianPreconditioner, ScaledRows, TwoClassHessian
from softmaxloss.objective import CentredAndScaled
from softmaxloss.preconditioner import (
    FeatureSpectrum,
    KroneckerPreconditioner,
    ScalePreconditioner,
    kronecker_after,
    kronecker_rows,
)
from softmaxloss.rows import Rows, spread


@pytest.fixture(scope="module", autouse=True)
def one_blas_thread():
    """Matrices this small are slower with more threads, much slower where other work has the cores."""
    with threadpool_limits(1, user_api="blas"):
        yield


OPTIONS = {"n_classes": 3, "fit_intercept": True, "label_smoothing": 0.1}


def problem(n_classes, fit_intercept=True, dtype=np.float64):
    random = np.random.default_rng(0)
    X = (random.standard_normal((200, 6)) @ random.standard_normal((6, 6)) + 3).astype(dtype)
    codes, weights = random.integers(n_classes, size=200), random.uniform(0.5, 2, 200)
    options = {**OPTIONS, "n_classes": n_classes, "fit_intercept": fit_intercept}
    objective = objective_of(X, codes, weights, C=0.3, **options)
    return objective, Rows(X, codes, weights / weights.mean())


def by_hessian(objective, rows, variables, x):
    return HessianPreconditioner(objective, ScaledRows(rows, variables), variables, x)


def by_product(objective, rows, variables, x):
    return KroneckerPreconditioner(objective, rows, variables, x, FeatureSpectrum(objective, rows, variables))


def by_blocks(objective, rows, variables, x):
    spectrum = FeatureSpectrum(objective, rows, variables)
    return BlockPreconditioner(objective, rows, variables, x, spectrum, room_for_blocks(objective))


def hessian(objective, variables, x):
    """Return the Hessian by the scaled variables, by central differences of the gradient."""
    u = variables.from_original(x)

    def gradient(v):
        return variables.gradient(objective.value_and_gradient(variables.to_original(v))[1])

    steps = 1e-5 * np.eye(len(u))
    return np.array([(gradient(u + step) - gradient(u - step)) / 2e-5 for step in steps])


def of_two_classes(objective, rows, variables, x):
    return TwoClassHessian(objective, rows).preconditioner(objective, variables, x)


@pytest.mark.parametrize(("n_classes", "make"), [(2, by_hessian), (4, by_hessian), (2, of_two_classes)])
def test_the_hessian_is_inverted(n_classes, make):
    objective, rows = problem(n_classes)
    variables = objective.centred_and_scaled()
    x = np.random.default_rng(1).normal(0, 0.3, objective.shape).ravel()

    precondition = make(objective, rows, variables, x)

    matrix = hessian(objective, variables, x)
    vector = matrix @ np.random.default_rng(2).standard_normal(len(x))  # the loss sees no other directions
    np.testing.assert_allclose(matrix @ precondition(vector), vector, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_hessian_of_two_classes_is_the_same_in_one_call(dtype, fit_intercept):
    """For every penalty, with features that repeat and one that never changes, and rows without weight."""
    objective, rows = problem(2, fit_intercept)
    X = np.column_stack([rows.X, rows.X[:, 0], np.ones(200)]).astype(dtype)
    weights = np.where(np.arange(200) % 3, rows.weights, 0.0)
    options = {**OPTIONS, "n_classes": 2, "fit_intercept": fit_intercept}
    objective = objective_of(scipy.sparse.csr_array(X), rows.codes, weights, C=0.3, **options)
    two = TwoClassHessian(objective, objective.source.rows)
    x, vector = np.random.default_rng(1).normal(0, 0.3, (2, 9))
    x[8] *= fit_intercept
    vector[7] = 0.0
    vector[8] *= fit_intercept

    for penalty in (1.0, 1e-3):
        other = objective.with_penalty(penalty)
        variables = other.centred_and_scaled()
        expected = by_hessian(other, objective.source.rows, variables, x)
        made = two.preconditioner(other, variables, x)
        assert made.is_newton
        assert made.gain([vector], [vector]) == np.inf
        np.testing.assert_allclose(made(vector), expected(vector), rtol=1e-6, atol=1e-6)


def test_the_classes_covariance_takes_rows_for_each_and_some_in_all():
    assert preconditioner.class_rows(10) == 4096
    assert preconditioner.class_rows(2000) == 8000


def test_few_products_are_made_of_all_rows_and_often():
    assert newton.hessian_rows(500, 4, 2, 10, passes=1) == 500
    assert newton.hessian_rows(10**6, 4, 2, 10, passes=1) == 2560  # enough for each
    assert newton.hessian_rows(10**5, 20, 5, 105, passes=1) == 10**5 * 20 * 50 // 105**2
    assert newton.hessian_rows(2000, 64, 10, 650, passes=1) == 0
    assert newton.hessian_rows(2000, 64, 10, 650, passes=400) == 2000
    objective, rows = problem(3)
    variables, x = objective.centred_and_scaled(), np.zeros(objective.shape).ravel()
    assert by_hessian(objective, rows, variables, x).is_newton
    many, few_rows = objective_of(np.ones((10**6, 6)), np.arange(10**6) % 3, np.ones(10**6), C=1.0, **OPTIONS), rows
    assert not by_hessian(many, few_rows, variables, x).is_newton


@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_product_is_exact_where_all_rows_are_equally_unsure(n_classes):
    objective, rows = problem(n_classes)
    variables = objective.centred_and_scaled()
    x = np.zeros(objective.shape).ravel()

    precondition = by_product(objective, rows, variables, x)

    matrix = hessian(objective, variables, x)
    vector = matrix @ np.random.default_rng(2).standard_normal(len(x))
    np.testing.assert_allclose(matrix @ precondition(vector), vector, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [by_hessian, by_product, by_blocks])
@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_it_is_symmetric_and_positive(kind, n_classes, fit_intercept, dtype):
    objective, rows = problem(n_classes, fit_intercept, dtype)
    variables = objective.centred_and_scaled()
    x = np.random.default_rng(1).normal(0, 0.3, objective.shape).ravel()

    precondition = kind(objective, rows, variables, x)

    seen = np.append(np.ones(6, bool), fit_intercept)
    numbers = np.flatnonzero(np.tile(seen, objective.shape[0]))
    basis = np.eye(len(x))[numbers]
    matrix = np.array([precondition(vector) for vector in basis])[:, numbers]
    tolerance = (1e-4 if dtype == np.float32 else 1e-9) * np.abs(matrix).max()
    np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=tolerance)
    assert np.linalg.eigvalsh(matrix).min() > -tolerance


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("C", [1.0, np.inf])
def test_features_that_repeat_each_other(dtype, C, monkeypatch):
    monkeypatch.setattr(newton, "_MOST_HESSIAN_PRODUCTS", 0)  # to the Kronecker product
    random = np.random.default_rng(3)
    few = random.standard_normal((400, 2))
    X = np.tile(few, 150).astype(dtype)
    y = (few @ random.standard_normal((2, 3)) + random.gumbel(size=(400, 3))).argmax(axis=1)

    model = SoftmaxClassifier(C=C).fit(X, y)

    assert model.converged_
    once = SoftmaxClassifier(C=C * 150).fit(few, y)  # the coefficients share the work: each has a 150th of it
    np.testing.assert_allclose(model.predict_proba(X), once.predict_proba(few), atol=2e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_product_helps_where_steps_show_it(n_classes, fit_intercept, dtype):
    objective, rows = problem(n_classes, fit_intercept, dtype)
    x = np.random.default_rng(1).normal(0, 0.3, objective.shape)
    x[:, -1] *= fit_intercept
    precondition = by_product(objective, rows, objective.centred_and_scaled(), x.ravel())
    seen = np.flatnonzero(np.tile([True] * (objective.shape[1] - 1) + [fit_intercept], objective.shape[0]))
    if n_classes > 2:  # whose probabilities' sum is 1: in one direction there is no curvature
        seen = seen[: -objective.shape[1]]
    columns = np.eye(x.size)[seen]
    gradients = list(np.random.default_rng(2).standard_normal((12, len(seen))) @ columns)
    steps = [precondition(gradient) for gradient in gradients]

    for step, gradient in zip(steps, gradients, strict=True):
        if n_classes == 2:
            np.testing.assert_allclose(precondition._squared_length(step), step @ gradient, rtol=1e-3)
    assert precondition.gain(steps, gradients) > np.log(1.2)
    assert precondition.gain(steps, steps) < 0.0
    assert precondition.gain(gradients, [np.full_like(gradient, np.nan) for gradient in gradients]) == -np.inf
    assert precondition.gain([np.zeros_like(step) for step in steps], gradients) == -np.inf
    assert precondition.gain([], []) == 0.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("share", [1.0, 1e-2, 1e-4])
def test_a_spectrum_serves_smaller_penalties(share, fit_intercept, dtype):
    objective, rows = problem(4, fit_intercept, dtype)
    other = objective.with_penalty(share * objective.penalty)
    variables = other.centred_and_scaled()
    x = np.random.default_rng(1).normal(0, 0.3, objective.shape).ravel()
    own = by_product(other, rows, variables, x)
    spectrum = FeatureSpectrum(objective, rows, objective.centred_and_scaled()).of(other, variables)

    served = KroneckerPreconditioner(other, rows, variables, x, spectrum)

    gradient = np.random.default_rng(2).standard_normal(objective.shape)
    gradient = (gradient - gradient.mean(axis=0)).ravel()  # all classes together have no curvature
    np.testing.assert_allclose(served(gradient), own(gradient), rtol=1e-2, atol=1e-2 * np.abs(own(gradient)).max())
    np.testing.assert_allclose(served._squared_length(gradient), own._squared_length(gradient), rtol=2e-3)
    np.testing.assert_allclose(spectrum.moments, FeatureSpectrum(other, rows, variables).moments, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5, 1.0])
def test_scales_are_raised_to_a_power(power):
    """The step in the original variables is that of features whose scales are these."""
    scale = np.array([0.5, 2.0, 0.0, 8.0])
    variables = CentredAndScaled(np.arange(4.0), scale, 1.5)
    precondition = ScalePreconditioner(variables, power)
    gradient = np.random.default_rng(0).standard_normal((3, 5))
    gradient[:, 2] = 0.0  # of a feature that says nothing

    step = precondition(gradient.ravel()).reshape(3, 5)

    wanted = gradient[:, [0, 1, 3]] / scale[[0, 1, 3]] * scale[[0, 1, 3]] ** (2 * power - 1)
    ratio = step[:, [0, 1, 3]] / wanted
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-13)
    np.testing.assert_array_equal(step[:, 0], gradient[:, 0])  # the smallest scale
    np.testing.assert_array_equal(step[:, -1], gradient[:, -1])
    assert np.all(step[:, 2] == 0.0)
    assert precondition._squared_length(step.ravel()) == pytest.approx(step.ravel() @ gradient.ravel(), rel=1e-13)


def test_scales_of_any_size():
    scale = np.array([1e-150, 1.0, 1e150, 0.0])
    precondition = ScalePreconditioner(CentredAndScaled(np.zeros(4), scale, 0.0), 0.5)
    step = precondition(np.ones(5))
    assert np.isfinite(step).all()
    assert precondition.gain([step], [np.ones(5)]) > 0.0
    nothing = ScalePreconditioner(CentredAndScaled(np.zeros(4), np.zeros(4), 0.0), 0.5)
    np.testing.assert_array_equal(nothing(np.ones(5)), np.ones(5))


def words(n_rows=3000, n_features=1500, n_classes=4, dtype=np.float32):
    """Return rows of words that are the rarer the later they come, by the classes' own tastes."""
    rng = np.random.default_rng(0)
    y = rng.integers(n_classes, size=n_rows)
    shares = 1.0 / np.arange(1, n_features + 1)
    tastes = shares * rng.gamma(0.5, size=(n_classes, n_features))
    counts = rng.poisson(60 * tastes[y] / tastes.sum(axis=1)[y, np.newaxis])
    rows = np.log1p(counts)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) + 1e-9
    return scipy.sparse.csr_array(rows.astype(dtype)), y


def used(X, y, monkeypatch, **options):
    """Return the fit, and which of the scalings was used after each iteration; None for the whole one."""
    states = []

    def watched(*arguments, **others):
        def on_state(state):
            states.append(state.preconditioner if state.preconditioned else None)

        return solver.minimize(*arguments, **{**others, "on_state": on_state})

    monkeypatch.setattr(training, "minimize", watched)
    return SoftmaxClassifier(**options).fit(X, y), states


def test_words_are_scaled_less_than_wholly(monkeypatch):
    X, y = words()
    model, states = used(X, y, monkeypatch, C=100.0, tol=1e-6)
    assert None not in states
    monkeypatch.setattr(training, "_POWERS", (1.0,))
    whole, _ = used(X, y, monkeypatch, C=100.0, tol=1e-6)
    assert model.converged_
    assert whole.converged_
    assert 1.5 * model.n_iter_ < whole.n_iter_
    np.testing.assert_allclose(model.predict_proba(X), whole.predict_proba(X), atol=1e-3)


def test_units_are_scaled_away(monkeypatch):
    """Of a few numbers in units of their own beside many categories: then that is left wholly."""
    rng = np.random.default_rng(0)
    categories = rng.integers(400, size=(2000, 2)) * rng.integers(2, size=(2000, 2))
    numbers = rng.standard_normal((2000, 3))
    hot = [scipy.sparse.csr_array((np.ones(2000), (np.arange(2000), each))) for each in categories.T]
    y = (numbers @ [1.0, -1.0, 0.5] + 0.01 * categories[:, 0] + rng.logistic(size=2000) > 2).astype(int)
    X = scipy.sparse.hstack([scipy.sparse.csr_array(numbers * [1.0, 1e3, 1e-3]), *hot]).tocsr()
    model, states = used(X, y, monkeypatch, tol=1e-6)
    assert set(states[4:]) == {None}
    monkeypatch.setattr(training, "_POWERS", (1.0,))
    whole, _ = used(X, y, monkeypatch, tol=1e-6)
    assert model.n_iter_ < 1.3 * whole.n_iter_


@pytest.mark.parametrize(
    ("size", "after"),
    [
        ((20000, 256, 100), 0),
        ((60000, 784, 10), 0),
        ((1000000, 2048, 1000), 0),  # so many rows that the spectrum takes less than a pass
        ((20000, 2048, 100), 12),
        ((200, 4096, 2), 27644),
    ],
)
def test_the_product_is_made_when_it_is_worth_its_time(size, after):
    assert kronecker_after(*size) == after


@pytest.mark.parametrize("n_features", [1, 100, 1024, 2048, 4096])
def test_the_rows_of_the_product_take_little_memory(n_features):
    count = kronecker_rows(10**9, n_features, 10, is_sparse=False)
    assert 2 * n_features <= count
    assert count * n_features <= 1 << 25
    assert kronecker_rows(10**9, 4097, 10, is_sparse=False) == 0


def test_a_product_that_comes_late(monkeypatch):
    """Of features strongly correlated: before it, the scalings are tried."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((600, 40)) @ (np.geomspace(1, 1e-3, 40)[:, np.newaxis] * rng.standard_normal((40, 40)))
    y = (X @ rng.standard_normal((40, 4)) / X.std() + rng.gumbel(size=(600, 4))).argmax(axis=1)
    monkeypatch.setattr(newton, "_MOST_HESSIAN_PRODUCTS", 0)
    monkeypatch.setattr(newton, "_FEW_HESSIAN_PRODUCTS", 0)
    monkeypatch.setattr(training, "block_rows", lambda *size, **options: 0)
    at_once, _ = used(X, y, monkeypatch, C=100.0, tol=1e-7)
    monkeypatch.setattr(training, "kronecker_after", lambda *size: 6)

    late, states = used(X, y, monkeypatch, C=100.0, tol=1e-7)

    assert set(states[:5]) <= {None, 0, 1}
    assert 2 in states[5:]
    assert late.converged_
    assert late.n_iter_ < at_once.n_iter_ + 20
    np.testing.assert_allclose(late.predict_proba(X), at_once.predict_proba(X), atol=1e-4)


def test_rows_that_weigh_nothing_tell_nothing():
    """The rows that are sampled for the product, here: then all is as without one."""
    rng = np.random.default_rng(0)
    X, y, weights = rng.standard_normal((3000, 30)), np.arange(3000) % 40, np.zeros(3000)
    X[:, 0] += y
    chosen = spread(3000, kronecker_rows(3000, 30, 40, is_sparse=False))
    weights[np.setdiff1d(np.arange(3000), chosen)] = 1.0
    model = SoftmaxClassifier(tol=1e-5).fit(X, y, weights)
    assert model.converged_
    kept = weights > 0
    alone = SoftmaxClassifier(tol=1e-5).fit(X[kept], y[kept])
    np.testing.assert_allclose(model.predict_proba(X), alone.predict_proba(X), atol=1e-3)


def test_penalties_share_references():
    penalties = [1.0, 0.5, 2e-4, 5e-5, 1e-7, 0.0]  # the fourth is less than a ten-thousandth of the first
    expected = {1.0: 1.0, 0.5: 1.0, 2e-4: 1.0, 5e-5: 5e-5, 1e-7: 5e-5, 0.0: 0.0}
    assert preconditioner.reference_penalties(penalties) == expected
    assert preconditioner.reference_penalties(penalties[::-1]) == expected
