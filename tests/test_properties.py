"""Properties that hold for every input, sought by Hypothesis."""

import exact
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import softmaxloss as sl
from softmaxloss import _native

DTYPES = st.sampled_from([np.float32, np.float64])


@st.composite
def problems(draw, max_rows=6, max_classes=70, limit=60.0):
    dtype = draw(DTYPES)
    n, classes = draw(st.integers(1, max_rows)), draw(st.integers(1, max_classes))
    finite = st.floats(-limit, limit, width=32)
    logits = draw(hnp.arrays(dtype, (n, classes), elements=finite, fill=st.just(0.5)))
    labels = draw(hnp.arrays(np.int64, n, elements=st.integers(0, classes - 1)))
    return logits, labels


@st.composite
def options(draw, n, classes):
    weights = st.floats(0.0009765625, 8, width=32)
    return {
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        "class_weight": draw(st.none() | hnp.arrays(np.float64, classes, elements=weights)),
        "sample_weight": draw(st.none() | hnp.arrays(np.float64, n, elements=weights)),
    }


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_against_mpmath(data):
    logits, labels = data.draw(problems(max_classes=40))
    n, classes = logits.shape
    chosen = data.draw(options(n, classes))
    if data.draw(st.booleans()):
        labels = sl.one_hot(labels, classes, dtype=logits.dtype)
    elif n > 1:
        labels[data.draw(st.integers(0, n - 1))] = -100
    if data.draw(st.booleans()):
        logits[:, data.draw(st.integers(0, classes - 1))] = -np.inf
    before = _native.instruction_set()
    _native.set_instruction_set(data.draw(st.sampled_from(_native.supported_instruction_sets())))
    try:
        loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, **chosen)
    finally:
        _native.set_instruction_set(before)
    reference = exact.softmax_cross_entropy(logits, labels, **chosen, digits=150)
    unit = 2.0**-24 if logits.dtype == np.float32 else 2.0**-53
    bound = (16 + np.abs(logits[np.isfinite(logits)]).max(initial=0)) * unit
    scale = reference.row_scale.reshape(reference.rows.shape) if chosen["reduction"] == "none" else None
    tiny = np.finfo(logits.dtype).tiny
    normal = ~(np.abs(exact.as_float(reference.loss)) < tiny)
    assert np.all(exact.relative_error(loss, reference.loss, scale)[normal] <= bound)
    normal = ~(exact.as_float(reference.scale) < tiny)
    assert np.all(exact.relative_error(grad, reference.grad, reference.scale)[normal] <= bound)


@given(problems(), st.integers(-20, 20))
@settings(deadline=None)
def test_shift_invariance(problem, shift):
    """Adding one number to a row's logits changes nothing but rounding; the sum of small integers is exact."""
    logits, labels = problem
    logits = np.round(logits)
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, reduction="none")
    shifted = logits + logits.dtype.type(shift)
    shifted_loss, shifted_grad = sl.softmax_cross_entropy_and_grad(shifted, labels, reduction="none")
    unit = 2.0**-24 if logits.dtype == np.float32 else 2.0**-53
    bound = 2 * (16 + np.ptp(logits, axis=1, keepdims=True)) * unit
    tiny = np.finfo(logits.dtype).tiny
    assert np.all(np.abs(shifted_loss - loss) <= bound[:, 0] * loss + tiny)
    assert np.all(np.abs(shifted_grad - grad) <= bound * np.abs(grad) + tiny)


@given(problems())
@settings(deadline=None)
def test_gradient_rows_sum_to_zero(problem):
    logits, labels = problem
    _, grad = sl.softmax_cross_entropy_and_grad(logits, labels, reduction="sum")
    unit = 2.0**-24 if logits.dtype == np.float32 else 2.0**-53
    bound = (16 + np.ptp(logits, axis=1)) * unit * np.abs(grad).sum(axis=1)
    assert np.all(np.abs(grad.sum(axis=1, dtype=np.float64)) <= bound + 1e-300)


@given(problems(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_permuting_the_classes_permutes_the_gradient(problem, random):
    logits, labels = problem
    classes = logits.shape[1]
    order = np.array(random.sample(range(classes), classes))
    place = np.argsort(order)
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, reduction="none")
    moved_loss, moved_grad = sl.softmax_cross_entropy_and_grad(logits[:, order], place[labels], reduction="none")
    unit = 2.0**-24 if logits.dtype == np.float32 else 2.0**-53
    bound = 2 * (16 + np.ptp(logits, axis=1, keepdims=True)) * unit
    tiny = np.finfo(logits.dtype).tiny
    assert np.all(np.abs(moved_loss - loss) <= bound[:, 0] * loss + tiny)
    assert np.all(np.abs(moved_grad - grad[:, order]) <= bound * np.abs(grad[:, order]) + tiny)


@given(problems(max_rows=4), st.data())
@settings(deadline=None)
def test_a_whole_weight_is_a_repeated_row(problem, data):
    logits, labels = problem
    times = data.draw(hnp.arrays(np.int64, len(labels), elements=st.integers(0, 3)).filter(lambda t: t.sum() > 0))
    weighted = sl.softmax_cross_entropy(logits, labels, sample_weight=times)
    repeated = sl.softmax_cross_entropy(np.repeat(logits, times, axis=0), np.repeat(labels, times))
    assert weighted == pytest.approx(repeated, rel=1e-6, abs=1e-37)


@given(problems())
@settings(deadline=None)
def test_probabilities(problem):
    logits, labels = problem
    p = sl.softmax(logits)
    unit = 2.0**-24 if logits.dtype == np.float32 else 2.0**-53
    np.testing.assert_allclose(p.sum(axis=1, dtype=np.float64), 1, rtol=100 * unit)
    rows = np.arange(len(labels))
    losses = sl.softmax_cross_entropy(logits, labels, reduction="none")
    np.testing.assert_allclose(-sl.log_softmax(logits)[rows, labels], losses, rtol=200 * unit, atol=1e-37)
    tiny = np.finfo(logits.dtype).tiny
    np.testing.assert_allclose(np.exp(-losses), p[rows, labels], rtol=300 * unit, atol=tiny)


@given(st.integers(1, 7), st.integers(0, 2**32 - 1), st.sampled_from([(700, 90), (90, 700), (20000, 5)]))
@settings(deadline=None, max_examples=20)
def test_the_number_of_threads_changes_no_bit(threads, seed, shape):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal(shape).astype(np.float32)
    labels = rng.integers(0, shape[1], shape[0])
    before = sl.get_num_threads()
    try:
        sl.set_num_threads(1)
        loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels)
        p, column_loss = sl.softmax(logits), sl.softmax_cross_entropy(logits, np.zeros(shape[1], int), axis=0)
        sl.set_num_threads(threads)
        again, grad_again = sl.softmax_cross_entropy_and_grad(logits, labels)
        assert loss == again
        np.testing.assert_array_equal(grad, grad_again)
        np.testing.assert_array_equal(p, sl.softmax(logits))
        assert column_loss == sl.softmax_cross_entropy(logits, np.zeros(shape[1], int), axis=0)
    finally:
        sl.set_num_threads(before)
