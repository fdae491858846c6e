"""Threads: any number of them gives the same bits, of every function; calls from several Python threads at once.

The arrays are large enough for several threads. Run under ThreadSanitizer (see CONTRIBUTING.md), the same tests tell
whether two threads touch one place in memory.
"""

import concurrent.futures
import itertools
import math

import numpy as np
import pytest
from option_cases import DTYPES

import softmaxloss as sl

THREADS = 3  # divides neither the rows nor the tiles of the shapes below


def softmax(z, y, q, w, axis):
    return sl.softmax(z, axis), sl.log_softmax(z, axis, temperature=2.0), sl.logsumexp(z, axis)


def loss(z, y, q, w, axis):
    return sl.softmax_cross_entropy(z, y, axis=axis, reduction="none"), sl.softmax_cross_entropy(z, y, axis=axis)


def gradient(z, y, q, w, axis):
    return sl.softmax_cross_entropy_and_grad(z, y, axis=axis, sample_weight=w)


def in_place(z, y, q, w, axis):
    return sl.softmax_cross_entropy_and_grad(z, y, axis=axis, out=z)


def smoothed(z, y, q, w, axis):
    class_weight = np.linspace(0.5, 2, z.shape[axis])
    options = {"label_smoothing": 0.1, "class_weight": class_weight}
    return sl.softmax_cross_entropy_and_grad(z, y, axis=axis, reduction="none", **options)


def distribution(z, y, q, w, axis):
    return sl.softmax_cross_entropy_and_grad(z, q, axis=axis)


def distribution_in_place(z, y, q, w, axis):
    return sl.softmax_cross_entropy_and_grad(z, q, axis=axis, out=z)


def transformed(z, y, q, w, axis):
    bias = np.linspace(-1, 1, z.shape[axis])
    options = {"temperature": 0.8, "softcap": 20.0, "logit_bias": bias, "z_loss": 0.1, "focal_gamma": 2.0}
    return sl.softmax_cross_entropy_and_grad(z, y, axis=axis, poly_epsilon=1.0, **options)


def statistics(z, y, q, w, axis):
    return *sl.row_statistics(z, y, axis=axis), *sl.row_statistics(z, y, axis=axis, softcap=5.0)


def hessian(z, y, q, w, axis):
    vector = z[..., ::-1].astype(np.float32 if z.itemsize < 8 else z.dtype)
    by_index = sl.hessian_vector_product(z, y, vector, axis=axis)
    return by_index, sl.hessian_vector_product(z, q, vector, axis=axis, temperature=2.0)


FUNCTIONS = [
    softmax,
    loss,
    gradient,
    in_place,
    smoothed,
    distribution,
    distribution_in_place,
    transformed,
    statistics,
    hessian,
]

# Adjacent classes, few and many; strided ones, few and many: each with elements enough to occupy all THREADS.
SHAPES_AND_AXES = [((34001, 3), -1), ((2501, 40), -1), ((83, 1300), -1), ((5, 20101), 0), ((6, 21, 29, 29), 1)]


def problem(shape, axis, dtype):
    rng = np.random.default_rng(0)
    rows_shape, classes = tuple(np.delete(shape, axis)), shape[axis]
    logits = (rng.standard_normal(shape, np.float32) * 4).astype(dtype)
    labels = rng.integers(0, classes, rows_shape)
    labels.flat[::7] = -100
    even = np.full(shape, 0.5 / classes, np.float32 if logits.itemsize < 8 else dtype)
    soft = even + 0.5 * sl.one_hot(np.maximum(labels, 0), classes, axis=axis, dtype=even.dtype)
    return logits, labels, soft, rng.random(rows_shape)


def answer(function, given, axis):
    """Return what the function returns, as arrays; it may write to a copy of the logits."""
    logits, *others = given
    return [np.asarray(array) for array in function(logits.copy(order="K"), *others, axis)]


def assert_same_bits(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()


def labels_of(given, function):
    """Return the problem with labels that the function takes: statistics ignores no row."""
    logits, labels, *others = given
    return logits, np.maximum(labels, 0) if function is statistics else labels, *others


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "axis"), SHAPES_AND_AXES)
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_any_number_of_threads_gives_the_same_bits(function, shape, axis, dtype, keep_num_threads):
    assert math.prod(shape) >= THREADS * 32768  # native/threads.cpp's kElementsWorthAThread
    given = labels_of(problem(shape, axis, dtype), function)
    sl.set_num_threads(1)
    expected = answer(function, given, axis)
    sl.set_num_threads(THREADS)
    assert_same_bits(answer(function, given, axis), expected)


def test_gradients_past_the_cache(keep_num_threads, instruction_set):
    """Large enough to be streamed, one row's last line beside the next thread's first."""
    rng = np.random.default_rng(0)
    for shape, axis in (((33001, 257), -1), ((40, 250001), 0)):
        logits, labels = rng.standard_normal(shape, np.float32), rng.integers(0, shape[axis], shape[axis + 1])
        sl.set_num_threads(1)
        expected = sl.softmax_cross_entropy_and_grad(logits, labels, axis=axis)
        sl.set_num_threads(THREADS)
        assert_same_bits(sl.softmax_cross_entropy_and_grad(logits, labels, axis=axis), expected)


@pytest.mark.parametrize(("shape", "axis"), [((3001, 40), -1), ((40, 3001), 0)])
def test_the_first_row_that_is_no_distribution_is_named(shape, axis, keep_num_threads):
    """Of those that the threads find, each in its own part."""
    soft = np.full(shape, 1 / 40)
    rows = np.moveaxis(soft, axis, -1)
    rows[[700, 1400, 2900]] = 1
    for threads in range(1, 6):
        sl.set_num_threads(threads)
        for out in (None, np.zeros(shape)):
            logits = np.zeros(shape) if out is None else out
            with pytest.raises(ValueError, match=r"row \[700\] sums to 40"):
                sl.softmax_cross_entropy_and_grad(logits, soft, axis=axis, out=out)


def test_calls_at_once(keep_num_threads):
    """From several Python threads, of every function, with the same inputs; and the number of threads changes."""
    work = []
    for function, (shape, axis) in itertools.product(FUNCTIONS, SHAPES_AND_AXES[1::3]):
        given = labels_of(problem(shape, axis, np.float32), function)
        work.append((function, given, axis, answer(function, given, axis)))

    def call(i):
        function, given, axis, expected = work[i % len(work)]
        sl.set_num_threads(1 + i % THREADS)
        assert_same_bits(answer(function, given, axis), expected)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in pool.map(call, range(4 * len(work))):
            pass
