"""Labels are told apart by shape, compared by value, and checked before anything is written."""

import numpy as np
import pytest

import softmaxloss as sl
from softmaxloss import _native

LOGITS = np.random.default_rng(0).standard_normal((4, 3))


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u2"])
def test_any_integer_dtype(dtype):
    expected = sl.softmax_cross_entropy(LOGITS, [0, 2, 1, 1])
    assert sl.softmax_cross_entropy(LOGITS, np.array([0, 2, 1, 1], dtype)) == expected


def test_strided_and_read_only_labels():
    labels = np.zeros(8, np.int64)
    labels[::2] = [0, 2, 1, 1]
    labels.flags.writeable = False
    assert sl.softmax_cross_entropy(LOGITS, labels[::2]) == sl.softmax_cross_entropy(LOGITS, [0, 2, 1, 1])
    assert sl.softmax_cross_entropy(LOGITS[::-1], labels[::2][::-1]) == pytest.approx(
        sl.softmax_cross_entropy(LOGITS, [0, 2, 1, 1])
    )


@pytest.mark.parametrize("label", [3, -1, -99, 2**40])
def test_label_out_of_range(label):
    with pytest.raises(sl.LabelError, match=rf"labels\[2\] is {label}; with 3 classes a label is from 0 to 2") as e:
        sl.softmax_cross_entropy(LOGITS, [0, 1, label, 5])
    assert isinstance(e.value, ValueError)
    assert isinstance(e.value, IndexError)


def test_label_error_names_the_place_in_many_dimensions():
    labels = np.zeros((2, 5, 6), int)
    labels[1, 3, 2] = 9
    with pytest.raises(sl.LabelError, match=r"labels\[1, 3, 2\] is 9"):
        sl.softmax_cross_entropy(np.zeros((2, 4, 5, 6)), labels, axis=1)
    with pytest.raises(sl.LabelError, match="labels is 9"):
        sl.softmax_cross_entropy(np.zeros(4), 9)


@pytest.mark.parametrize(("dtype", "value"), [("u8", 2**64 - 100), ("u8", 2**64 - 1), ("u1", 156), ("u4", 2**32 - 100)])
def test_unsigned_labels_never_wrap(dtype, value):
    with pytest.raises(sl.LabelError, match=str(value)):
        sl.softmax_cross_entropy(LOGITS, np.array([0, value, 1, 1], dtype))


@pytest.mark.parametrize("labels", [[0.0, 1.0, 2.0, 1.0], [True, False, True, True], ["a", "b", "c", "a"]])
def test_index_labels_must_be_integers(labels):
    with pytest.raises(TypeError, match="index labels have dtype"):
        sl.softmax_cross_entropy(LOGITS, labels)


@pytest.mark.parametrize("shape", [(3,), (5,), (3, 4), (4, 1), (4, 3, 1), ()])
def test_shapes_must_match(shape):
    with pytest.raises(ValueError, match="labels have shape"):
        sl.softmax_cross_entropy(LOGITS, np.zeros(shape, int))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u8", "?", ">f4"])
def test_one_hot_of_any_dtype_is_the_index(dtype):
    index = np.array([0, 2, 1, 1])
    one_hot = np.eye(3)[index].astype(dtype)
    loss, grad = sl.softmax_cross_entropy_and_grad(LOGITS, one_hot)
    expected, expected_grad = sl.softmax_cross_entropy_and_grad(LOGITS, index)
    assert loss == pytest.approx(expected, rel=1e-14)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-12)


def test_a_square_of_labels_is_a_distribution_because_of_its_shape():
    """Three rows of three classes: (3,) is indices, (3, 3) distributions, whatever the values."""
    logits = np.arange(9.0).reshape(3, 3)
    expected = sl.softmax_cross_entropy(logits, np.eye(3)[[0, 1, 0]])
    assert sl.softmax_cross_entropy(logits, [0, 1, 0]) == pytest.approx(expected, rel=1e-14)


BAD = {
    "sums to 1.1, not 1": [0.5, 0.6, 0.0],
    "sums to 0, not 1": [0.0, 0.0, 0.0],
    "has a negative entry, -0.5": [1.0, 0.5, -0.5],
    "sums to nan, not 1": [np.nan, 0.5, 0.5],
    "sums to 2, not 1": [1, 1, 0],
}


@pytest.mark.parametrize(("message", "row"), BAD.items())
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("label_dtype", ["f4", "f8"])
@pytest.mark.parametrize("position", [0, 3])
def test_a_row_that_is_no_distribution(message, row, dtype, label_dtype, position):
    labels = np.full((4, 3), 1 / 3)
    labels[position] = row
    logits = LOGITS.astype(dtype)
    before = logits.copy()
    for out in (None, logits):  # in place, nothing may have been written
        with pytest.raises(ValueError, match=rf"row \[{position}\] {message}: it is not a label distribution"):
            sl.softmax_cross_entropy_and_grad(logits, labels.astype(label_dtype), out=out)
    np.testing.assert_array_equal(logits, before)
    with pytest.raises(ValueError, match=rf"row \[{position}\] {message}"):
        sl.softmax_cross_entropy(logits, labels.astype(label_dtype), label_smoothing=0.1)


@pytest.mark.parametrize("total", [1 + 1e-3, 1 - 1e-3])
def test_in_place_a_row_at_the_edge_of_the_tolerance_is_taken_or_left_untouched(total):
    rng = np.random.default_rng(0)
    for _ in range(300):
        labels = rng.dirichlet(np.ones(100), 2).astype(np.float32)
        labels[1] *= np.float32(total) / labels[1].sum(dtype=np.float64)
        logits = rng.standard_normal((2, 100)).astype(np.float32)
        before = logits.copy()
        try:
            sl.softmax_cross_entropy_and_grad(logits, labels, out=logits)
        except ValueError:
            np.testing.assert_array_equal(logits, before)


def test_a_label_written_over_meanwhile_is_a_nan_row():
    """What checks a label and what uses it run without the GIL: between them it must not become an address."""
    logits, row_loss, gradient = np.zeros((3, 4)), np.empty(3), np.ones((3, 4))
    labels = np.array([1, 2**40, -5])
    terms = _native.LossTerms(
        *(labels, None, 1.0, None, -100),
        *(None, None, 0.0, None, None, 0.0),  # no class weights, no smoothing
        *(1.0, 0.0, None, 0.0, 0.0, 0.0),  # no options
    )
    _native.loss(logits, 1, terms, row_loss, gradient)
    np.testing.assert_array_equal(np.isnan(row_loss), [False, True, True])
    np.testing.assert_array_equal(np.isnan(gradient).all(axis=1), [False, True, True])


def test_bad_row_among_many_is_named():
    rng = np.random.default_rng(0)
    labels = rng.dirichlet(np.ones(100), 3000).astype(np.float32)
    labels[2001, 5] += 0.1
    labels[2500, 5] += 0.1
    with pytest.raises(ValueError, match=r"row \[2001\]"):
        sl.softmax_cross_entropy(np.zeros((3000, 100), np.float32), labels)
    with pytest.raises(ValueError, match=r"row \[2001\]"):
        sl.softmax_cross_entropy(np.zeros((3000, 100), np.float32), labels.astype(np.float64))


@pytest.mark.parametrize(("dtype", "off", "accepted"), [("f8", 9e-4, True), ("f8", 2e-3, False), ("f2", 6e-3, True)])
def test_tolerance_of_the_sum(dtype, off, accepted):
    labels = np.array([[0.5, 0.5 - off, 0.0]], dtype)
    if accepted:
        assert np.isfinite(sl.softmax_cross_entropy(np.zeros((1, 3)), labels))
    else:
        with pytest.raises(ValueError, match="not 1"):
            sl.softmax_cross_entropy(np.zeros((1, 3)), labels)


def test_bad_row_is_named_in_many_dimensions_and_blocks():
    labels = np.broadcast_to(np.eye(1000)[0], (3, 2, 700, 1000)).copy()
    labels[2, 1, 699, 0] = 0.5
    logits = np.broadcast_to(np.float32(0), labels.shape)
    with pytest.raises(ValueError, match=r"row \[2, 1, 699\] sums to 0.5"):
        sl.softmax_cross_entropy(logits, labels)


def test_complex_labels():
    with pytest.raises(TypeError, match="label distributions have dtype complex128"):
        sl.softmax_cross_entropy(LOGITS, np.ones((4, 3), complex))


def test_nothing_is_written_when_a_label_is_wrong():
    logits = LOGITS.copy()
    with pytest.raises(sl.LabelError):
        sl.softmax_cross_entropy_and_grad(logits, [0, 1, 2, 3], out=logits)
    np.testing.assert_array_equal(logits, LOGITS)
