"""softmax and log_softmax of rows of few classes, which are computed many at once."""

import math

import numpy as np
import pytest
from mpmath import mp, mpf

import softmaxloss as sl

RNG = np.random.default_rng(1)
CLASSES = [2, 3, 4, 5, 8, 15, 16, 17, 37, 63, 64, 65]
FUNCTIONS = {"softmax": sl.softmax, "log_softmax": sl.log_softmax}


def exact(row, name):
    """Return the row's answer in 300 digits, of which a logarithm near 0 needs most."""
    with mp.workdps(300):
        z = [mpf(float(x)) for x in row]
        e = [mp.exp(x - max(z)) for x in z]
        total = mp.fsum(e)
        return [x / total if name == "softmax" else y - max(z) - mp.log(total) for x, y in zip(e, z, strict=True)]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("classes", CLASSES)
def test_accuracy(classes, dtype, name, instruction_set):
    """To a relative (16 + D) units, of any gap D between logits: also of logarithms near 0."""
    unit = 2.0**-24 if dtype == "f4" else 2.0**-53
    scale = np.array([0.0, 1.0, 10.0, 60.0, 300.0])[:, None]
    logits = (RNG.uniform(-1, 1, (5, classes)) * scale + RNG.choice([0, -700, 1e4])).astype(dtype)
    logits[3, -1] = logits[3].max() + 70  # nearly all there is
    for row, ours in zip(logits, FUNCTIONS[name](logits), strict=True):
        bound = (16 + float(np.ptp(row))) * unit
        for found, expected in zip(ours, exact(row, name), strict=True):
            if abs(expected) > np.finfo(dtype).tiny:
                assert abs(mpf(float(found)) - expected) <= bound * abs(expected)
            else:
                assert abs(found) <= np.finfo(dtype).tiny


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("rows", [1, 7, 127, 128, 129, 1000])
@pytest.mark.parametrize("classes", CLASSES)
def test_a_row_depends_on_nothing_but_the_row(classes, rows, name, instruction_set, keep_num_threads):
    function = FUNCTIONS[name]
    logits = (RNG.standard_normal((rows, classes)) * 8).astype(np.float32)
    special = logits[:: max(1, rows // 5), 0]
    special[:] = np.resize([math.nan, math.inf, -math.inf, 3e38, 90.0], len(special))
    expected = np.stack([function(row) for row in logits])
    for threads in (1, 3):
        sl.set_num_threads(threads)
        np.testing.assert_array_equal(function(logits), expected)
        np.testing.assert_array_equal(function(np.asfortranarray(logits)), expected)
        np.testing.assert_array_equal(function(np.ascontiguousarray(logits.T), axis=0).T, expected)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("classes", [2, 3, 20, 64])
def test_infinities_and_nan_are_those_of_many_classes(classes, name):
    """More columns of -inf change nothing, and there are too many then."""
    function, inf = FUNCTIONS[name], math.inf
    logits = np.full((7, classes), -inf)
    logits[:, :2] = [[inf, 0], [inf, inf], [-inf, -inf], [math.nan, inf], [-inf, 3], [1, 1], [-1e300, 1e300]]
    wide = np.full((7, 100), -inf)
    wide[:, :classes] = logits
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(function(logits), function(wide)[:, :classes])


@pytest.mark.parametrize("classes", [2, 5, 64])
def test_what_is_read_and_written(classes):
    """Rows beside others in memory: nothing before, between or after them is touched."""
    memory = np.full((40, classes + 3), 7.0)
    memory[:, 1:-2] = RNG.standard_normal((40, classes))
    before, rows = memory.copy(), memory[:, 1:-2]
    np.testing.assert_array_equal(sl.softmax(rows), sl.softmax(rows.copy()))
    np.testing.assert_array_equal(memory, before)
