"""What stands for the inverse Hessian, against the Hessian by finite differences, and on features that repeat."""

import numpy as np
import pytest
from learning_problems import objective_of
from threadpoolctl import threadpool_limits

from softmaxloss import preconditioner
from softmaxloss.class_blocks import BlockPreconditioner, room_for_blocks
from softmaxloss.classifier import SoftmaxClassifier
from softmaxloss.preconditioner import FeatureSpectrum, HessianPreconditioner, KroneckerPreconditioner
from softmaxloss.rows import Rows


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


@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_hessian_is_inverted(n_classes):
    objective, rows = problem(n_classes)
    variables = objective.centred_and_scaled()
    x = np.random.default_rng(1).normal(0, 0.3, objective.shape).ravel()

    precondition = HessianPreconditioner(objective, rows, variables, x)

    matrix = hessian(objective, variables, x)
    vector = matrix @ np.random.default_rng(2).standard_normal(len(x))  # the loss sees no other directions
    np.testing.assert_allclose(matrix @ precondition(vector), vector, rtol=1e-5, atol=1e-6)


def test_few_products_are_made_of_all_rows_and_often():
    assert preconditioner.hessian_rows(500, 4, 2, 10, passes=1) == 500
    assert preconditioner.hessian_rows(10**6, 4, 2, 10, passes=1) == 2560  # enough for each
    assert preconditioner.hessian_rows(10**5, 20, 5, 105, passes=1) == 10**5 * 20 * 50 // 105**2
    assert preconditioner.hessian_rows(2000, 64, 10, 650, passes=1) == 0
    assert preconditioner.hessian_rows(2000, 64, 10, 650, passes=400) == 2000
    objective, rows = problem(3)
    variables, x = objective.centred_and_scaled(), np.zeros(objective.shape).ravel()
    assert HessianPreconditioner(objective, rows, variables, x).is_newton
    many, few_rows = objective_of(np.ones((10**6, 6)), np.arange(10**6) % 3, np.ones(10**6), C=1.0, **OPTIONS), rows
    assert not HessianPreconditioner(many, few_rows, variables, x).is_newton


@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_product_is_exact_where_all_rows_are_equally_unsure(n_classes):
    objective, rows = problem(n_classes)
    variables = objective.centred_and_scaled()
    x = np.zeros(objective.shape).ravel()

    precondition = by_product(objective, rows, variables, x)

    matrix = hessian(objective, variables, x)
    vector = matrix @ np.random.default_rng(2).standard_normal(len(x))
    np.testing.assert_allclose(matrix @ precondition(vector), vector, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [HessianPreconditioner, by_product, by_blocks])
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
    monkeypatch.setattr(preconditioner, "_MOST_HESSIAN_PRODUCTS", 0)  # to the Kronecker product
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


def test_penalties_share_references():
    penalties = [1.0, 0.5, 2e-4, 5e-5, 1e-7, 0.0]  # the fourth is less than a ten-thousandth of the first
    expected = {1.0: 1.0, 0.5: 1.0, 2e-4: 1.0, 5e-5: 5e-5, 1e-7: 5e-5, 0.0: 0.0}
    assert preconditioner.reference_penalties(penalties) == expected
    assert preconditioner.reference_penalties(penalties[::-1]) == expected
