"""The blocks of the Hessian by class: against NumPy, on every instruction set and number of threads, and in a fit."""

import numpy as np
import pytest
from learning_problems import objective_of

import softmaxloss as sl
from softmaxloss import _native, class_blocks
from softmaxloss.class_blocks import BlockPreconditioner, block_rows, room_for_blocks
from softmaxloss.classifier import SoftmaxClassifier
from softmaxloss.preconditioner import FeatureSpectrum
from softmaxloss.rows import Rows

# What the kernel adds to each entry of the diagonal, relative to it, in units of rounding.
ROUNDINGS = 8


def problem(n_rows, n_features, n_classes, dtype, fit_intercept=True):
    """Return an objective, its rows, and a point where it is sure of many of them."""
    random = np.random.default_rng(n_features)
    codes = np.arange(n_rows) % n_classes
    centres = random.standard_normal((n_classes, n_features))
    X = (centres[codes] + random.standard_normal((n_rows, n_features)) + 2).astype(dtype)
    weights = random.uniform(0.5, 2.0, n_rows)
    options = {"n_classes": n_classes, "fit_intercept": fit_intercept, "label_smoothing": 0.0}
    objective = objective_of(X, codes, weights, C=0.3, **options)
    x = random.normal(0, 1.0, objective.shape)
    x[:, -1] *= fit_intercept
    return objective, Rows(X, codes, weights / weights.mean()), x.ravel()


def preconditioner_of(objective, rows, x):
    variables = objective.centred_and_scaled()
    spectrum = FeatureSpectrum(objective, rows, variables)
    return BlockPreconditioner(objective, rows, variables, x, spectrum, room_for_blocks(objective))


def exact_blocks(objective, rows, x, unsure):
    """Return what the module's formula says, in float64."""
    variables = objective.centred_and_scaled()
    coef, intercept = (part.astype(np.float64) for part in objective.layer(x))
    X = rows.X.astype(np.float64)
    p = sl.softmax(X @ coef.T + intercept)[:, objective.first :]
    weights = rows.weights / rows.weights.sum()
    features = np.column_stack([(X - variables.mean) * variables.scale, np.full(len(X), variables.intercept_scale)])
    of_all = (features.T * weights) @ features
    of_all[-1, :-1] = of_all[:-1, -1] = 0.0  # of centred features, to rounding
    curvatures = p * (1 - p)
    least = unsure * (weights @ curvatures.sum(axis=1))
    blocks = []
    for curvature in curvatures.T:
        own = weights * curvature * (curvature >= least)
        block = (features.T * own) @ features + (weights * curvature - own).sum() * of_all
        blocks.append(block + np.diag(np.append(objective.penalty * variables.scale**2, 0.0)))
    return np.array(blocks)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize(
    ("n_rows", "n_features", "n_classes"), [(1, 1, 2), (9, 3, 2), (60, 15, 3), (61, 16, 4), (500, 40, 7), (2, 33, 2)]
)
@pytest.mark.parametrize("unsure", [0.0, 0.3, np.inf])
def test_blocks_are_inverted(n_rows, n_features, n_classes, unsure, fit_intercept, dtype, instruction_set, monkeypatch):
    monkeypatch.setattr(class_blocks, "_UNSURE", unsure)
    objective, rows, x = problem(n_rows, n_features, n_classes, dtype, fit_intercept)
    precondition = preconditioner_of(objective, rows, x)
    blocks = exact_blocks(objective, rows, x, unsure)
    raised = blocks + ROUNDINGS * np.finfo(dtype).eps * blocks * np.eye(n_features + 1)
    vectors = np.random.default_rng(0).standard_normal((len(blocks), n_features + 1))
    gradients = np.einsum("kij,kj->ki", raised, vectors)

    found = precondition(gradients.ravel()).reshape(vectors.shape)

    seen = np.linalg.norm(raised, axis=(1, 2), keepdims=True)[..., 0]
    again = np.einsum("kij,kj->ki", raised, found)
    tolerance = 3e-4 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(again / seen, gradients / seen, rtol=0, atol=tolerance * np.abs(found).max())
    length = np.einsum("ki,kij,kj->", vectors, raised, vectors)
    np.testing.assert_allclose(precondition._squared_length(vectors.ravel()), length, rtol=10 * tolerance)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_same_bits_with_any_number_of_threads(dtype, threads, keep_num_threads):
    sl.set_num_threads(threads)
    objective, rows, x = problem(400, 100, 20, dtype)
    gradient = np.random.default_rng(0).standard_normal(len(x))

    found = preconditioner_of(objective, rows, x)(gradient)

    sl.set_num_threads(1)
    np.testing.assert_array_equal(found, preconditioner_of(objective, rows, x)(gradient))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("C", [1.0, 1e30])
def test_features_that_repeat_each_other_have_some_inverse(dtype, C):
    few = np.random.default_rng(0).standard_normal((300, 2))
    X = np.column_stack([np.tile(few, 20), np.ones(300)]).astype(dtype)
    codes = np.arange(300) % 3
    objective = objective_of(X, codes, np.ones(300), C=C, n_classes=3, fit_intercept=True, label_smoothing=0.0)
    x = np.random.default_rng(1).standard_normal(objective.shape).ravel()
    precondition = preconditioner_of(objective, Rows(X, codes, np.ones(300)), x)

    for gradient in np.random.default_rng(2).standard_normal((10, len(x))):
        step = precondition(gradient)
        assert np.isfinite(step).all()
        assert step @ gradient > 0.0


def test_rows_without_any_doubt_leave_the_penalty():
    objective, rows, x = problem(50, 4, 3, np.float32)
    step = preconditioner_of(objective, rows, 1e4 * x)(np.ones(len(x)))
    assert np.isfinite(step).all()
    assert (step > 0.0).all()


@pytest.mark.parametrize(
    ("sizes", "rows"),
    [
        ((20000, 256, 100), 20000),  # all of them
        ((20000, 512, 1000), 0),  # too much memory
        ((20000, 2000, 10), 0),  # too much time
        ((10**7, 20, 10), 16 * 20 * 10),  # enough for each feature and class
    ],
)
def test_rows_are_as_many_as_are_worth_it(sizes, rows):
    assert block_rows(*sizes, itemsize=4, is_sparse=False) == rows
    assert block_rows(*sizes, itemsize=4, is_sparse=True) == 0


def test_no_more_rows_than_memory_and_time_allow():
    count = block_rows(60000, 784, 10, itemsize=4, is_sparse=False)
    assert 2 * 784 * 10 < count < 60000
    assert count * 784 * 4 <= 1 << 27


@pytest.mark.parametrize("sizes", [(10**6, 10, 2000), (10**6, 64, 2000), (10**6, 4, 500), (10**8, 4, 3)])
def test_what_is_known_of_each_row_and_class_fits_memory(sizes):
    count = block_rows(*sizes, itemsize=4, is_sparse=False)
    assert count * sizes[2] * 4 <= 1 << 27


def test_rows_that_weigh_nothing_leave_the_penalty():
    objective, rows, x = problem(50, 4, 3, np.float64)
    variables = objective.centred_and_scaled()
    spectrum = FeatureSpectrum(objective, rows, variables)
    nothing = rows._replace(weights=np.zeros(50))

    precondition = BlockPreconditioner(objective, nothing, variables, x, spectrum, room_for_blocks(objective))

    step = precondition(np.ones(len(x))).reshape(objective.shape)[:, :-1]
    np.testing.assert_allclose(step, np.tile(1.0 / (objective.penalty * variables.scale**2), (3, 1)), rtol=1e-3)


def test_the_kernels_refuse_what_does_not_go_together():
    vector = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="multiple of block_unit"):
        _native.solve_blocks(np.zeros((1, 15, 15), np.float32), np.zeros((1, 15), np.float32))
    with pytest.raises(ValueError, match="vector for each"):
        _native.solve_blocks(np.zeros((2, 16, 16), np.float32), np.zeros((1, 16), np.float32))
    with pytest.raises(TypeError):  # it would be written to a copy
        _native.solve_blocks(np.zeros((1, 16, 16), np.float32), np.zeros((1, 16)))
    with pytest.raises(TypeError):
        _native.solve_blocks(np.zeros((2, 16, 16), np.float32), np.zeros((16, 2), np.float32).T)
    with pytest.raises(ValueError, match="do not go together"):
        _native.class_blocks(
            np.zeros((5, 3), np.float32),
            np.zeros((2, 4), np.float32),
            np.zeros(5, np.float32),
            0.0,
            vector,
            vector,
            1.0,
            np.zeros((16, 16), np.float32),
            np.zeros(16, np.float32),
            np.zeros((2, 16, 16), np.float32),
        )


def test_a_fit_of_many_classes_takes_fewer_iterations_with_blocks(monkeypatch):
    random = np.random.default_rng(0)
    y = np.arange(6000) % 30
    X = (0.5 * random.standard_normal((30, 40))[y] + random.standard_normal((6000, 40))).astype(np.float32)
    with_blocks = SoftmaxClassifier(tol=1e-6).fit(X, y)

    monkeypatch.setattr(class_blocks, "_MOST_BYTES", 0)

    without = SoftmaxClassifier(tol=1e-6).fit(X, y)
    assert with_blocks.converged_
    assert without.converged_
    assert with_blocks.n_iter_ < 0.7 * without.n_iter_
    np.testing.assert_allclose(with_blocks.predict_proba(X), without.predict_proba(X), atol=1e-3)
