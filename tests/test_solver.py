"""The optimiser by itself, on functions whose minimum is known."""

import io
import math

import numpy as np
import pytest

from softmaxloss.progress import ProgressReport
from softmaxloss.solver import Candidate, Iteration, minimize


class Quadratic:
    """offset + (x - target)^T A (x - target) / 2 for a symmetric positive definite A of given eigenvalues."""

    def __init__(self, eigenvalues, *, offset=0.0, noise=0.0, seed=0):
        self.random = np.random.default_rng(seed)
        n = len(eigenvalues)
        basis = np.linalg.qr(self.random.standard_normal((n, n)))[0]
        self.A = (basis * eigenvalues) @ basis.T
        self.target = self.random.standard_normal(n)
        self.offset = offset
        self.noise = noise
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        residual = x - self.target
        gradient = self.A @ residual
        value = self.offset + 0.5 * float(residual @ gradient)
        return value, gradient + self.noise * self.random.standard_normal(len(x))


class Scaling:
    """The variables u = x / scale."""

    def __init__(self, scale):
        self.scale = scale

    def to_original(self, u):
        return u * self.scale

    def from_original(self, x):
        return x / self.scale

    def gradient(self, gradient):
        return gradient * self.scale


def logistic(x):
    """A convex function that is far from quadratic, with its minimum at (3, 3, ...)."""
    t = x - 3
    return float(np.logaddexp(0, t).sum() + np.logaddexp(0, -t).sum()), np.tanh(t / 2)


def test_it_finds_the_minimum_and_reports_what_is_there():
    function = Quadratic(np.geomspace(1e-3, 1, 30))

    solution = minimize(function, np.zeros(30), tol=1e-9, max_iter=500)

    value, gradient = function(solution.x)
    assert solution.converged
    assert np.abs(gradient).max() == solution.gradient_norm <= 1e-9
    assert solution.value == value == solution.values[-1]
    assert solution.n_iter == len(solution.values)
    np.testing.assert_allclose(solution.x, function.target, atol=1e-6)


def test_it_takes_a_sequence_and_leaves_the_start_as_it_was():
    start = np.full(4, -20.0)

    solution = minimize(logistic, start, tol=1e-10, max_iter=100)

    np.testing.assert_array_equal(start, -20.0)
    np.testing.assert_allclose(solution.x, 3.0, atol=1e-8)
    np.testing.assert_allclose(minimize(logistic, [-20, -20], tol=1e-10, max_iter=100).x, 3.0, atol=1e-8)


def test_the_values_fall_at_every_iteration():
    solution = minimize(Quadratic(np.geomspace(1e-4, 1, 40)), np.zeros(40), tol=1e-5, max_iter=500)

    assert np.all(np.diff(solution.values) < 0)


def test_it_goes_on_below_the_rounding_of_the_value():
    # At a million a value tells nothing of steps that lower it by less than 1e-10, so nothing of gradients below 1e-5.
    function = Quadratic(np.geomspace(1e-2, 1, 20), offset=1e6)

    solution = minimize(function, np.zeros(20), tol=1e-11, max_iter=500)

    assert solution.converged
    np.testing.assert_allclose(solution.x, function.target, atol=1e-9)


def test_it_says_so_where_rounding_stops_it():
    function = Quadratic(np.geomspace(1e-2, 1, 20), noise=1e-6)

    norms: list[float] = []

    solution = minimize(
        function,
        np.zeros(20),
        tol=1e-12,
        max_iter=10_000,
        on_iteration=lambda iteration: norms.append(iteration.gradient_norm),
    )

    assert not solution.converged
    assert solution.n_iter < 1000  # it gave up, rather than wander until max_iter
    assert 1e-12 < solution.gradient_norm < 1e-5
    assert solution.gradient_norm == min(norms)
    np.testing.assert_allclose(solution.x, function.target, atol=1e-3)


def test_it_stops_at_max_iter():
    function = Quadratic(np.geomspace(1e-4, 1, 40))

    solution = minimize(function, np.zeros(40), tol=1e-9, max_iter=7)

    assert (solution.n_iter, len(solution.values), solution.converged) == (7, 7, False)
    assert solution.gradient_norm == np.abs(function(solution.x)[1]).max() > 1e-9


def test_a_start_at_the_minimum_needs_no_iteration():
    function = Quadratic(np.ones(5))

    solution = minimize(function, function.target, tol=1e-9, max_iter=10)

    assert (solution.n_iter, solution.values, solution.converged, function.calls) == (0, [], True, 1)


def test_good_variables_save_iterations_and_the_tolerance_is_about_both():
    scale = np.geomspace(1e-6, 1e6, 12)
    well_scaled = Quadratic(np.linspace(0.5, 1, 12))

    def badly_scaled(x):
        value, gradient = well_scaled(x / scale)
        return value, gradient / scale

    start = np.zeros(12)
    variables = Scaling(scale)
    solution = minimize(badly_scaled, start, tol=1e-5, max_iter=300, variables=variables)
    without = minimize(badly_scaled, start, tol=1e-5, max_iter=300)

    assert solution.converged
    by_x = badly_scaled(solution.x)[1]
    by_u = variables.gradient(by_x)
    assert solution.gradient_norm == max(np.abs(by_x).max(), np.abs(by_u).max()) <= 1e-5
    assert solution.n_iter < 50
    assert solution.value < 1e-12 < without.value


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_it_goes_on_until_neither_gradient_exceeds_the_tolerance(unit):
    # Where x is measured in large units its derivatives are small everywhere, and where u is, those of u.
    function = Quadratic(np.geomspace(1e-2, 1, 10))
    norms: list[float] = []

    def in_units(x):
        value, gradient = function(x / max(unit, 1))
        return value, gradient / max(unit, 1)

    solution = minimize(
        in_units,
        np.zeros(10),
        tol=1e-8,
        max_iter=300,
        variables=Scaling(unit),
        on_iteration=lambda iteration: norms.append(iteration.gradient_norm),
    )

    by_x = in_units(solution.x)[1]
    assert solution.converged
    assert solution.gradient_norm == norms[-1] == max(1, unit) * np.abs(by_x).max() <= 1e-8
    np.testing.assert_allclose(solution.x / max(unit, 1), function.target, atol=1e-5)


def test_every_iteration_is_announced():
    seen: list[Iteration] = []

    solution = minimize(logistic, np.zeros(3), tol=1e-8, max_iter=100, on_iteration=seen.append)

    assert [iteration.number for iteration in seen] == list(range(1, solution.n_iter + 1))
    assert [iteration.value for iteration in seen] == solution.values
    assert seen[-1].gradient_norm == solution.gradient_norm
    np.testing.assert_array_equal(seen[-1].x, solution.x)
    assert all(iteration.value == logistic(iteration.x)[0] for iteration in seen)


def test_an_exception_of_the_listener_ends_it():
    def interrupt(iteration):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        minimize(logistic, np.zeros(3), tol=1e-8, max_iter=100, on_iteration=interrupt)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_start_where_the_function_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match=r"finite where the minimisation starts.*rescale"):
        minimize(lambda x: (bad, x), np.ones(2), tol=1e-8, max_iter=10)
    with pytest.raises(ValueError, match="finite where the minimisation starts"):
        minimize(lambda x: (0.0, x * bad), np.ones(2), tol=1e-8, max_iter=10)


def report(n):
    with ProgressReport() as progress:
        for number in range(1, n + 1):
            progress(Iteration(number, np.zeros(1), 1 / number, 0.5**number))


def test_progress_in_a_log_is_every_tenth_line_and_the_last(capsys):
    report(23)

    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(":")[0] for line in err.splitlines()] == ["iteration 10", "iteration 20", "iteration 23"]
    assert err.splitlines()[0] == "iteration 10: loss 0.1, max |gradient| 9.77e-04"


def test_progress_in_a_log_names_no_iteration_twice(capsys):
    report(20)

    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["iteration 10", "iteration 20"]


def test_progress_on_a_terminal_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("softmaxloss.progress._bar", lambda *_: None)  # as without rich

    report(12)

    err = capsys.readouterr().err
    assert err.count("\r") == 12
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "iteration 12: loss 0.083333333" in err


def test_progress_on_a_terminal_covers_the_longer_line_before(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("softmaxloss.progress._bar", lambda *_: None)  # as without rich

    with ProgressReport() as progress:
        progress(Iteration(1, np.zeros(1), 1 / 3, 1.0))
        progress(Iteration(2, np.zeros(1), 0.5, 1.0))

    first, second = capsys.readouterr().err.strip("\r\n").split("\r")
    assert len(second) == len(first)


def test_progress_can_be_off(capsys):
    with ProgressReport(enabled=False) as progress:
        progress(Iteration(10, np.zeros(1), 1.0, 1.0))

    assert capsys.readouterr().err == ""


def test_progress_without_a_stderr_is_off(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)

    report(23)


def test_progress_on_a_closed_stderr_is_off(monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", closed)

    report(23)


class Doubtful:
    """Makes a preconditioner at a point, which helps as much as the next of the gains says, and is used only if so."""

    def __init__(self, *gains):
        self.gains, self.made = gains, []

    def __call__(self, x):
        self.made.append(x)
        return self.At(self.gains[min(len(self.made), len(self.gains)) - 1])

    class At:
        is_newton = False

        def __init__(self, gain):
            self._gain = gain

        def __call__(self, gradient):
            assert self._gain > np.log(1.2)
            return gradient.copy()

        def gain(self, steps, changes):
            assert 0 < len(steps) == len(changes) <= 3
            return self._gain


def test_steps_at_higher_values_are_forgotten_on_request():
    """A loss of rows that a plane separates, with next to no penalty, has less curvature where it is lower."""
    rows = np.random.default_rng(0).standard_normal((30, 60))

    def separable(x):
        margins = rows @ x
        value = np.logaddexp(0, -margins).mean() + 5e-6 * (x @ x)
        return float(value), -rows.T @ (1 / (1 + np.exp(margins))) / len(rows) + 1e-5 * x

    for stale in (math.inf, 2.0):
        seen = []
        solution = minimize(
            separable,
            np.zeros(60),
            tol=1e-7,
            max_iter=500,
            stale=stale,
            on_state=lambda state, seen=seen: seen.append((state.pairs.values, state.current.value)),
        )
        assert solution.converged
        of_last, _ = seen[-1]
        if stale == math.inf:
            assert len(of_last) == min(40, solution.n_iter)
        else:
            assert 6 <= len(of_last) < solution.n_iter
            assert all(value <= stale * now for values, now in seen for value in values[:-6])


@pytest.mark.parametrize("stale", [math.inf, 2.0])
@pytest.mark.parametrize("level", [-1e3, 0.0, 1e3])
def test_functions_of_any_sign(level, stale):
    solution = minimize(
        lambda x: (logistic(x)[0] - 6 * np.log(4) + level, logistic(x)[1]),
        np.zeros(6),
        tol=1e-9,
        max_iter=99,
        stale=stale,
    )
    assert solution.converged
    np.testing.assert_allclose(solution.x, 3.0, atol=1e-7)


def states_of(*candidates, **options):
    """Return which preconditioner was used after each iteration, and the points where it was made."""
    states = []
    solution = minimize(
        Quadratic(np.geomspace(1e-4, 1, 40)),
        np.zeros(40),
        tol=1e-9,
        max_iter=500,
        preconditioners=candidates,
        on_state=lambda state: states.append(
            (state.preconditioner if state.preconditioned else None, state.renewed_at)
        ),
        **options,
    )
    assert solution.converged
    assert solution.n_iter > 30
    return states


@pytest.mark.parametrize("gain", [0.0, np.log(1.2), -np.inf])
def test_a_preconditioner_is_used_while_it_helps(gain):
    """It is made anew after iterations 4, 8, 16 and 28."""
    maker = Doubtful(1.0, 0.2, gain, 0.2, gain)

    states = states_of(Candidate(maker))

    used = [state[0] for state in states]
    assert used[:30] == [0] * 7 + [None] * 8 + [0] * 12 + [None] * 3
    np.testing.assert_array_equal(states[-1][1], maker.made[-1])


def test_of_several_preconditioners_the_one_that_helps_most_is_used():
    """The second is first considered after the fifth iteration."""
    first, second = Doubtful(1.0, 0.5, 0.5, 0.5, 0.5), Doubtful(0.3, 0.4, 0.6, 0.7)

    used = [state[0] for state in states_of(Candidate(first), Candidate(second, after=5))]

    assert used[:30] == [0] * 15 + [1] * 15
    assert len(first.made) == len(second.made) + 2


@pytest.mark.parametrize("gain", [0.9, 0.0])
def test_a_preconditioner_is_not_taken_up_late(gain):
    """One that has been in use stays as long as it helps; one that has not, or was left, does not come after that."""
    one, other = Doubtful(1.0, 0.5, gain, 0.9), Doubtful(0.1, 0.1, 0.95)

    used = [state[0] for state in states_of(Candidate(one, until=8), Candidate(other, until=10))]

    assert used[:30] == [0] * 7 + [0 if gain else None] * 23


def test_any_preconditioner_may_be_the_first_one():
    """Then it is among those that are considered from the beginning."""
    first, second = Doubtful(0.5, 0.5, 0.5, 0.7), Doubtful(1.0, 0.6, 0.6, 0.6)

    used = [state[0] for state in states_of(Candidate(first), Candidate(second, after=5), first=1)]

    assert used[:16] == [1] * 15 + [0]


def test_no_preconditioner_is_made_where_the_start_is_a_solution():
    maker = Doubtful(1.0)
    quadratic = Quadratic(np.ones(3))
    solution = minimize(quadratic, quadratic.target, tol=1e-9, max_iter=10, preconditioners=[Candidate(maker)])
    assert solution.converged
    assert not maker.made


class Newton:
    """The inverse of the Hessian of ``sum(log(cosh(x - target)))`` at a point."""

    is_newton = True

    def __init__(self, x):
        self.inverse = np.cosh(x - TARGET) ** 2

    def __call__(self, gradient):
        return self.inverse * gradient

    def gain(self, steps, changes):
        return np.inf


TARGET = np.linspace(-1.2, 1.2, 50)


def test_newton_steps_are_as_few_as_they_are_known_to_be():
    """The Hessian is made anew after early iterations, and no pairs from before blur it."""
    remembered = []
    solution = minimize(
        lambda x: (float(np.log(np.cosh(x - TARGET)).sum()), np.tanh(x - TARGET)),
        np.zeros(50),
        tol=1e-12,
        max_iter=50,
        preconditioners=[Candidate(Newton)],
        renewals=(1, 4, 8),
        on_state=lambda state: remembered.append(len(state.pairs.steps)),
    )
    assert solution.converged
    assert solution.n_iter <= 10
    assert remembered[:4] == [0, 1, 2, 0]  # made anew after iterations 1 and 4
    np.testing.assert_allclose(solution.x, TARGET, atol=1e-11)
