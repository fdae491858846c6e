"""How long the first step is: as long as the objective's derivative along it says, told by all rows or by a few."""

import warnings

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from learning_problems import objective_of
from sklearn.exceptions import ConvergenceWarning

import softmaxloss.training
from softmaxloss.classifier import SoftmaxClassifier
from softmaxloss.first_step import FirstStep, first_step_rows
from softmaxloss.objective import Objective
from softmaxloss.path import solve_path
from softmaxloss.rows import Rows
from softmaxloss.solver import minimize
from softmaxloss.training import solve


def separable(n_rows=1200, n_features=30, n_classes=40, seed=0):
    """Return rows about centres that are far apart."""
    random = np.random.default_rng(seed)
    codes = np.arange(n_rows) % n_classes
    return random.standard_normal((n_classes, n_features))[codes] * 2 + random.normal(size=(n_rows, n_features)), codes


def problem(n_classes=5, kind=np.asarray, dtype=np.float64, **options):
    X, codes = separable(300, 8, n_classes)
    X, weights = kind((X + 1).astype(dtype)), np.random.default_rng(1).uniform(0, 2, 300)
    options = {"C": 0.1, "n_classes": n_classes, "fit_intercept": True, "label_smoothing": 0.0} | options
    return objective_of(X, codes, weights, **options), Rows(X, codes, weights / weights.mean())


def along(objective, variables, u, direction):
    """Return the objective's derivative along a direction, as a function of the length."""

    def slope(length):
        _, gradient = objective.value_and_gradient(variables.to_original(u + length * direction))
        return float(variables.gradient(gradient) @ direction)

    return slope


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.2}, {"fit_intercept": False}, {"C": np.inf, "label_smoothing": 0.1}]
)
@pytest.mark.parametrize("start", [0.0, 0.1])
def test_all_rows_tell_where_the_objective_is_lowest(start, options, n_classes, kind, dtype):
    objective, rows = problem(n_classes, kind, dtype, **options)
    variables = objective.centred_and_scaled()
    u = np.random.default_rng(2).normal(0, start, objective.shape)
    if not objective.fit_intercept:
        u[:, -1] = 0.0
    u = u.ravel()
    _, gradient = objective.value_and_gradient(variables.to_original(u))
    downhill = -variables.gradient(gradient)
    slope = along(objective, variables, u, downhill)
    lowest = scipy.optimize.brentq(slope, 0, 1e4)
    first_step = FirstStep(objective, lambda: rows, variables)

    lengths = [first_step(u, times * lowest * downhill, times * lowest * slope(0.0)) for times in (0.9, 1.5, 6.0)]

    np.testing.assert_allclose(lengths, [1.0, 1 / 1.5, 1 / 6.0], rtol=0.03)


def test_a_few_rows_tell_it_nearly():
    X, codes = separable(20000)
    objective = objective_of(X, codes, np.ones(20000), C=1.0, n_classes=40, fit_intercept=True, label_smoothing=0.0)
    variables, u = objective.centred_and_scaled(), np.zeros(objective.shape).ravel()
    _, gradient = objective.value_and_gradient(u)
    direction = -100 * variables.gradient(gradient)
    slope = along(objective, variables, u, direction)
    lowest = scipy.optimize.brentq(slope, 0, 1)

    length = FirstStep(objective, lambda: objective.source.sample(512), variables)(u, direction, slope(0.0))

    assert 0.05 < lowest < 0.95
    assert length == pytest.approx(lowest, rel=0.1)


@pytest.mark.parametrize("times", [0.4, 2.5, -1.0, np.nan])
def test_rows_that_are_not_like_the_others_tell_nothing(times):
    objective, rows = problem(C=np.inf)
    variables, u = objective.centred_and_scaled(), np.zeros(objective.shape).ravel()
    _, gradient = objective.value_and_gradient(u)
    direction = -1000 * variables.gradient(gradient)
    slope = along(objective, variables, u, direction)(0.0)
    first_step = FirstStep(objective, lambda: rows, variables)

    assert first_step(u, direction, slope) < 1.0
    assert first_step(u, direction, times * slope) == 1.0


def test_rows_without_weight_tell_nothing():
    objective, rows = problem()
    variables, u = objective.centred_and_scaled(), np.zeros(objective.shape).ravel()
    first_step = FirstStep(objective, lambda: rows._replace(weights=np.zeros(300)), variables)

    assert first_step(u, np.ones_like(u), -1.0) == 1.0


@pytest.mark.parametrize("size", [1e200, 1e308])
def test_a_direction_beyond_all_numbers_is_left_as_it_is(size):
    objective, rows = problem(dtype=np.float32)
    variables, u = objective.centred_and_scaled(), np.zeros(objective.shape).ravel()

    assert FirstStep(objective, lambda: rows, variables)(u, np.full_like(u, size), -1.0) == 1.0


def test_the_shortest_that_is_looked_for():
    objective, rows = problem()
    variables, u = objective.centred_and_scaled(), np.zeros(objective.shape).ravel()
    _, gradient = objective.value_and_gradient(u)
    direction = -1e9 * variables.gradient(gradient)
    slope = along(objective, variables, u, direction)(0.0)

    assert FirstStep(objective, lambda: rows, variables)(u, direction, slope) == pytest.approx(2.0**-10, rel=0.03)


def test_rows_are_sampled_when_a_step_is_asked_for():
    """Not for a fit that begins where it ends."""
    X, codes = separable(1200)
    objective = objective_of(X, codes, np.ones(1200), C=1.0, n_classes=40, fit_intercept=True, label_smoothing=0.0)
    found = solve(objective, None, tol=1e-6, max_iter=200)
    objective.source.sample = None

    assert solve(objective, found.x, tol=1e-5, max_iter=200).n_iter == 0


@pytest.mark.parametrize("heavy", [False, True], ids=["weights", "rows"])
def test_directions_from_rows_unlike_all_lead_somewhere(heavy):
    """As where few rows have weight, fewer than features, or some are a thousand times as large as others."""
    random = np.random.default_rng(3)
    y = random.integers(0, 10, 3000)
    X = 0.2 * random.standard_normal((10, 200))[y] + random.standard_normal((3000, 200))
    weights = None if heavy else (random.random(3000) < 0.04).astype(float)
    if heavy:
        X *= 10 ** random.standard_normal((3000, 1))

    fit = SoftmaxClassifier(C=100.0, max_iter=60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit.fit(X, y, weights)

    assert fit.n_iter_ > 0
    assert fit.loss_curve_[-1] < (1.5 if heavy else 0.01)
    assert fit.converged_ or heavy


def test_they_are_few_but_not_too_few():
    assert first_step_rows(10**6, 10, 10) == 2048
    assert first_step_rows(4000, 10, 10) == 1000
    assert first_step_rows(1000, 10, 10) == 0
    for size in ((10, 4096), (4096, 10)):
        assert first_step_rows(10**6, *size) == 1024
    for size in ((10, 10**5), (10**5, 10)):
        assert first_step_rows(10**6, *size) == 0


def test_the_minimisation_asks_where_no_steps_are_known():
    asked, tried = [], []

    def value_and_gradient(x):
        tried.append(x)
        return 0.5 * float(x @ (x * [1.0, 9.0])), x * [1.0, 9.0]

    def first_step(u, direction, slope):
        asked.append((u, direction.copy(), slope))
        return 0.25

    solution = minimize(value_and_gradient, [2.0, 1.0], tol=1e-9, max_iter=50, first_step=first_step)

    assert solution.converged
    ((u, direction, slope),) = asked
    np.testing.assert_array_equal(u, [2.0, 1.0])
    np.testing.assert_array_equal(direction, [-2.0, -9.0])
    assert slope == -85.0
    np.testing.assert_array_equal(tried[1], [1.5, -1.25])


def calls_of_a_fit(X, y, monkeypatch, **options):
    evaluate, calls = Objective.value_and_gradient, []
    with monkeypatch.context() as patch:
        patch.setattr(Objective, "value_and_gradient", lambda *given: calls.append(1) or evaluate(*given))
        fit = SoftmaxClassifier(tol=1e-6, **options).fit(X, y)
    assert fit.converged_
    return len(calls)


def test_it_saves_a_fit_of_separable_rows_a_third_of_its_passes(monkeypatch):
    X, y = separable(4000, 128, 200)
    measured = calls_of_a_fit(X, y, monkeypatch)
    monkeypatch.setattr(softmaxloss.training, "first_step_rows", lambda *_: 0)

    assert measured <= 0.67 * calls_of_a_fit(X, y, monkeypatch)


def test_a_path_measures_the_first_step_of_its_first_fit(monkeypatch):
    """The others begin near their minima, where their steps need no help."""
    X, codes = separable(1200)
    objective = objective_of(X, codes, np.ones(1200), C=1.0, n_classes=40, fit_intercept=True, label_smoothing=0.0)
    measure, starts = FirstStep.__call__, []
    monkeypatch.setattr(FirstStep, "__call__", lambda self, u, *rest: starts.append(u) or measure(self, u, *rest))

    solutions = solve_path(objective, [1e-2, 1e-3, 1e-4], tol=1e-6, max_iter=200)

    assert all(solution.converged for solution in solutions)
    (start,) = starts
    assert not start.any()
