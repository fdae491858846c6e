"""The directions of L-BFGS: against its two loops, and the Hessian where the steps tell all of it."""

import numpy as np
import pytest

import softmaxloss as sl
from softmaxloss import _native, lbfgs
from softmaxloss.lbfgs import Pairs


def two_loops(pairs, gradient, precondition):
    """Return the direction as Nocedal's paper computes it."""
    downhill, weights = -gradient, []
    for step, change in zip(reversed(pairs.steps), reversed(pairs.changes), strict=True):
        weights.append(step @ downhill / (step @ change))
        downhill = downhill - weights[-1] * change
    direction = precondition(downhill)
    if pairs.steps:
        step, change = pairs.steps[-1], pairs.changes[-1]
        direction = direction * (step @ change) / (change @ precondition(change))
    for step, change, weight in zip(pairs.steps, pairs.changes, reversed(weights), strict=True):
        direction = direction + (weight - change @ direction / (step @ change)) * step
    return direction


def quadratic(size, seed=0):
    """Return the Hessian, and steps with the changes that they make."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((size, size))
    hessian = root @ root.T + np.diag(np.geomspace(1e-3, 1e3, size))
    steps = rng.standard_normal((size, size))
    return hessian, steps, steps @ hessian


@pytest.mark.parametrize("count", [0, 1, 2, 9, 25])
def test_directions_are_those_of_the_two_loops(count):
    _, steps, changes = quadratic(25)
    scales = np.geomspace(0.01, 1, 25)
    pairs = Pairs(steps[:count], changes[:count])
    for gradient in np.random.default_rng(1).standard_normal((5, 25)):
        for precondition in (np.copy, lambda vector: scales * vector):
            wanted = two_loops(pairs, gradient, precondition)
            np.testing.assert_allclose(pairs.direction(gradient, precondition), wanted, rtol=1e-9, atol=1e-9)


def test_conjugate_steps_in_all_directions_give_newtons():
    hessian, *_ = quadratic(12)
    steps = np.linalg.eigh(hessian)[1].T.copy()
    gradient = np.random.default_rng(2).standard_normal(12)
    direction = Pairs(steps, steps @ hessian).direction(gradient, np.copy)
    np.testing.assert_allclose(direction, -np.linalg.solve(hessian, gradient), rtol=1e-8)


def test_a_direction_leaves_what_it_is_made_of_as_it_was():
    _, steps, changes = quadratic(6)
    pairs, gradient = Pairs(steps[:3], changes[:3]), np.ones(6)
    pairs.direction(gradient, np.copy)
    np.testing.assert_array_equal(pairs.steps, steps[:3])
    np.testing.assert_array_equal(pairs.changes, changes[:3])
    np.testing.assert_array_equal(gradient, np.ones(6))


def test_the_oldest_are_forgotten(monkeypatch):
    """As if they had never been there, to the bit: a state that is read from a file goes on as the one written."""
    _, steps, changes = quadratic(30)
    monkeypatch.setattr(lbfgs, "MOST_STEPS", 7)
    pairs, last = Pairs(steps, changes), Pairs(steps[-7:], changes[-7:])
    assert pairs.is_full
    np.testing.assert_array_equal(pairs.steps, steps[-7:])
    gradient = np.random.default_rng(3).standard_normal(30)
    np.testing.assert_array_equal(pairs.direction(gradient, np.copy), last.direction(gradient, np.copy))


def test_fewer_are_kept_where_they_are_long(monkeypatch):
    monkeypatch.setattr(lbfgs, "_STEPS_BYTES", 2 * 8 * 30 * 6)
    _, steps, changes = quadratic(30)
    assert len(Pairs(steps, changes).steps) == 6
    monkeypatch.setattr(lbfgs, "_STEPS_BYTES", 1)
    assert len(Pairs(steps, changes).steps) == 4


@pytest.mark.parametrize("change", [np.zeros(3), -np.ones(3), np.array([1.0, -1.0, 0.0]), np.full(3, np.nan)])
def test_a_step_without_curvature_is_not_remembered(change):
    pairs = Pairs()
    pairs.add(np.ones(3), change)
    assert not pairs.steps


def test_all_may_be_forgotten():
    _, steps, changes = quadratic(5)
    pairs = Pairs(steps, changes)
    pairs.clear()
    np.testing.assert_array_equal(pairs.direction(np.ones(5), np.copy), -np.ones(5))
    pairs.add(steps[0], changes[0])
    assert len(pairs.steps) == 1


@pytest.mark.parametrize(
    ("above", "kept"), [(30.0, 30), (29.0, 30), (28.9, 29), (20.0, 21), (5.5, 6), (0.0, 6), (-1.0, 6)]
)
def test_those_of_high_values_are_forgotten(above, kept):
    """As if they had never been there, to the bit, but for six."""
    _, steps, changes = quadratic(30)
    values = [*np.arange(30.0)[::-1]]
    pairs, last = Pairs(steps, changes, values), Pairs(steps[-kept:], changes[-kept:], values[-kept:])
    pairs.forget(above)
    assert pairs.values == last.values == values[-kept:]
    np.testing.assert_array_equal(pairs.steps, steps[-kept:])
    gradient = np.random.default_rng(3).standard_normal(30)
    np.testing.assert_array_equal(pairs.direction(gradient, np.copy), last.direction(gradient, np.copy))


@pytest.mark.parametrize("rows", [0, 1, 5, 3000])
@pytest.mark.parametrize("columns", [0, 1, 2, 3, 8, 17, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_of_columns(instruction_set, dtype, columns, rows):
    """In float64 and row after row, whatever the instructions."""
    matrix = np.random.default_rng(rows).standard_normal((rows, columns)).astype(dtype)
    sums = np.arange(columns, dtype=np.float64)

    _native.add_columns(matrix, sums)

    wanted = np.arange(columns, dtype=np.float64)
    for row in matrix:
        wanted += row
    np.testing.assert_array_equal(sums, wanted)


@pytest.mark.parametrize("arguments", [(np.ones((3, 2)), np.ones(3)), (np.ones((4, 4))[:, :2], np.ones(2))])
def test_columns_that_cannot_be_summed(arguments):
    with pytest.raises((ValueError, TypeError)):
        _native.add_columns(*arguments)


@pytest.mark.parametrize("size", [0, 1, 7, 64, 2047, 2048, 2049, 70001])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_sums_of_several_vectors(instruction_set, size, count):
    rng = np.random.default_rng(size)
    vectors, vector = list(rng.standard_normal((count, size))), rng.standard_normal(size)
    factors, products, total = rng.standard_normal(count), np.empty(count), vector.copy()

    _native.dots(vectors, vector, products)
    _native.add_multiples(vectors, factors, total)

    np.testing.assert_allclose(products, [each @ vector for each in vectors], rtol=1e-10, atol=1e-10)
    wanted = vector + sum((factor * each for factor, each in zip(factors, vectors, strict=True)), np.zeros(size))
    np.testing.assert_allclose(total, wanted, rtol=1e-13, atol=1e-13)


def test_threads_change_no_bit(keep_num_threads):
    rng = np.random.default_rng(0)
    vectors, vector, factors = list(rng.standard_normal((3, 100000))), rng.standard_normal(100000), np.ones(3)
    found = []
    for threads in (1, 2, 5):
        sl.set_num_threads(threads)
        products, total = np.empty(3), vector.copy()
        _native.dots(vectors, vector, products)
        _native.add_multiples(vectors, factors, total)
        found.append(np.append(total, products))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_vectors_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="one size"):
        _native.dots([np.ones(3), np.ones(4)], np.ones(3), np.empty(2))
    with pytest.raises(ValueError, match="for each vector"):
        _native.dots([np.ones(3)], np.ones(3), np.empty(2))
    with pytest.raises(ValueError, match="one size"):
        _native.add_multiples([np.ones(3)], np.ones(1), np.ones(4))
    with pytest.raises(ValueError, match="for each vector"):
        _native.add_multiples([np.ones(3)], np.ones(2), np.ones(3))
