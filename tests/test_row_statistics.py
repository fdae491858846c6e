"""row_statistics: each row's loss, logsumexp, log-probability, prediction and rank, against mpmath and NumPy."""

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import exact
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mpmath import mpf
from option_cases import CLASSES, DIGITS, DRAWS, DTYPES, KINDS, LAYOUTS, assert_within, computed_in

import softmaxloss as sl
from softmaxloss import _native

TRANSFORMS = ("temperature", "softcap", "logit_bias")
TRANSFORM_SETS = [names for size in range(4) for names in itertools.combinations(TRANSFORMS, size)]
FLOAT_FIELDS = ("loss", "logsumexp", "log_probability")


@dataclass(frozen=True)
class Case:
    logits: np.ndarray
    labels: np.ndarray
    transforms: dict[str, Any]
    ties: bool = False  # classes whose v differ by less than their rounding may change places

    @functools.cached_property
    def reference(self) -> exact.Statistics:
        return exact.row_statistics(self.logits, self.labels, digits=DIGITS, **self.transforms)


@functools.cache  # the instruction sets share a case, and its costly reference
def make_case(seed, kind, classes, dtype, names, n=4) -> Case:
    rng = np.random.default_rng(seed)
    with np.errstate(over="ignore"):
        logits = KINDS[kind](rng, n, classes).astype(dtype)
    labels = rng.integers(0, classes, n)
    labels[0] = np.argmax(logits[0])
    transforms = {name: DRAWS[name](rng, n, classes) for name in names}
    # A common offset brings the v of different z within their rounding of each other.
    return Case(logits, labels, transforms, ties=kind == "offset" and bool(names))


def check(case, layout="last"):
    """Assert the promised bound for the floats, and the very integers."""
    reference, transforms = case.reference, case.transforms
    placed, axis = LAYOUTS[layout](case.logits)
    rows_shape = np.moveaxis(placed, axis, -1).shape[:-1]
    ours = sl.row_statistics(placed, case.labels.reshape(rows_shape), axis=axis, **transforms)
    assert isinstance(ours, sl.RowStatistics)
    assert all(np.shape(field) == rows_shape for field in ours)
    for name in FLOAT_FIELDS:
        # An error of lse is absolute: it is the logarithm of a sum with a relative one.
        scale = np.full(len(case.labels), mpf(1)) if name == "logsumexp" else reference.loss
        value, bound = getattr(reference, name), 16 + reference.largest
        assert_within(np.ravel(getattr(ours, name)), value, scale, bound, computed_in(placed.dtype), (name, layout))
    assert ours.prediction.dtype == ours.rank.dtype == np.int64
    if not case.ties:
        np.testing.assert_array_equal(np.ravel(ours.prediction), reference.prediction)
        np.testing.assert_array_equal(np.ravel(ours.rank), reference.rank)

    unlabelled = sl.row_statistics(placed, axis=axis, **transforms)
    assert unlabelled.loss is unlabelled.log_probability is unlabelled.rank is None
    np.testing.assert_array_equal(unlabelled.logsumexp, ours.logsumexp)
    np.testing.assert_array_equal(unlabelled.prediction, ours.prediction)


@pytest.mark.parametrize("names", TRANSFORM_SETS, ids=lambda names: "+".join(names) or "none")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_within_bound(kind, dtype, names, instruction_set):
    seed = TRANSFORM_SETS.index(names) + 10 * list(KINDS).index(kind)
    rng = np.random.default_rng(seed)
    for layout in ("last", "first", rng.choice(list(LAYOUTS))):
        check(make_case(seed, kind, int(rng.choice(CLASSES[:-1])), dtype, names), layout)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_shapes_and_layouts(classes, dtype, instruction_set):
    for layout in LAYOUTS:
        check(make_case(0, "ordinary", classes, dtype, (), n=2), layout)


@given(st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_row(data):
    classes = data.draw(st.integers(1, 70))
    shape = (2 * data.draw(st.integers(1, 3)), classes)
    elements = st.floats(-30, 30, width=16) | st.sampled_from([-np.inf, np.inf, np.nan, 0.0, 30.0])
    logits = data.draw(hnp.arrays(np.float32, shape, elements=elements, fill=st.just(0.5)))
    labels = data.draw(hnp.arrays(np.int64, shape[0], elements=st.integers(0, classes - 1)))
    temperature = data.draw(st.sampled_from([1.0, 0.5, 4.0]))  # powers of two: v keep the order and the ties of z
    before = _native.instruction_set()
    _native.set_instruction_set(data.draw(st.sampled_from(_native.supported_instruction_sets())))
    try:
        dtype = data.draw(st.sampled_from(DTYPES))
        layout = data.draw(st.sampled_from(list(LAYOUTS)))
        check(Case(logits.astype(dtype), labels, {"temperature": temperature}), layout)
    finally:
        _native.set_instruction_set(before)


@pytest.mark.parametrize("classes", [2, 3, 10, 37, 64, 65, 300])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_rows(classes, dtype, instruction_set):
    """Whole tiles and their remainders, with ties everywhere: integers are NumPy's, floats those of the loss."""
    rng = np.random.default_rng(classes)
    for n, layout in itertools.product((30, 64, 66, 1030), ("last", "first", "middle")):
        logits = rng.integers(-4, 5, (n, classes)).astype(dtype)
        logits[1, -1] = np.nan
        logits[n - 2] = -np.inf
        labels = rng.integers(0, classes, n)
        placed, axis = LAYOUTS[layout](logits)
        rows_shape = np.moveaxis(placed, axis, -1).shape[:-1]
        ours = sl.row_statistics(placed, labels.reshape(rows_shape), axis=axis)
        wide = logits.astype(np.float64)
        of_label = wide[np.arange(n), labels][:, None]
        np.testing.assert_array_equal(ours.prediction.ravel(), np.argmax(wide, axis=1))
        np.testing.assert_array_equal(ours.rank.ravel(), (wide > of_label).sum(axis=1))
        loss = sl.softmax_cross_entropy(wide, labels, reduction="none")
        assert np.isnan(loss).sum() == 2
        np.testing.assert_allclose(ours.loss.ravel(), loss, rtol=2e-6)
        np.testing.assert_allclose(ours.logsumexp.ravel(), loss + of_label[:, 0], rtol=2e-6, atol=2e-6)
        np.testing.assert_array_equal(ours.log_probability, -ours.loss)


@pytest.mark.parametrize(
    ("row", "prediction", "ranks"),
    [
        ([1.0, np.nan, 5.0, np.nan], 1, [1, 0, 0, 0]),
        ([np.nan, 1.0, 5.0, 2.0], 0, [0, 2, 0, 1]),
        ([1.0, np.inf, 5.0, np.inf], 1, [3, 0, 2, 0]),
        ([np.inf, np.nan, 0.0, -np.inf], 1, [0, 0, 1, 2]),
        ([-np.inf] * 4, 0, [0, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transforms", [{}, {"temperature": 2.0}, {"softcap": 5.0}], ids=str)
def test_nan_rows(transforms, dtype, row, prediction, ranks, instruction_set):
    """The floats are NaN, the prediction is numpy.argmax's, and the rank counts what compares as larger."""
    for first, layout in itertools.product((0, 60, 156), ("last", "first")):
        logits = np.full((4, first + 4), -np.inf)
        logits[:, first:] = row
        placed, axis = LAYOUTS[layout](logits.astype(dtype))
        ours = sl.row_statistics(placed, first + np.arange(4), axis=axis, **transforms)
        for name in FLOAT_FIELDS:
            assert np.isnan(getattr(ours, name)).all()
        np.testing.assert_array_equal(ours.prediction, 0 if np.isneginf(row).all() else first + prediction)
        np.testing.assert_array_equal(ours.rank, ranks)


def test_masked_labels():
    logits = np.array([[0.0, -np.inf, 1.0], [0.0, -np.inf, -np.inf]])
    ours = sl.row_statistics(logits, [1, 2])
    np.testing.assert_array_equal(ours.loss, np.inf)
    np.testing.assert_array_equal(ours.log_probability, -np.inf)
    np.testing.assert_array_equal(ours.rank, [2, 1])
    np.testing.assert_array_equal(ours.prediction, [2, 0])
    np.testing.assert_allclose(ours.logsumexp, [math.log1p(math.e), 0])


def test_the_bias_decides_the_prediction():
    logits, bias = np.array([[3.0, 2.0, 1.0]] * 2), [0.0, 0.0, 5.0]
    ours = sl.row_statistics(logits, [0, 2], logit_bias=bias)
    np.testing.assert_array_equal(ours.prediction, 2)
    np.testing.assert_array_equal(ours.rank, [1, 0])
    capped = sl.row_statistics(logits * 100, [0, 1], softcap=1e-3, logit_bias=[0.0, 0.5, 0.25])
    np.testing.assert_array_equal(capped.prediction, 1)
    np.testing.assert_array_equal(capped.rank, [2, 0])


@pytest.mark.parametrize("label_dtype", ["i1", "u1", "i4", "u8", "i8"])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "u1", "?", "list"])
def test_dtypes(dtype, label_dtype):
    logits = np.random.default_rng(0).integers(0, 2, (6, 5))
    labels = (np.arange(6) % 5).astype(label_dtype)
    given = logits.tolist() if dtype == "list" else logits.astype(dtype)
    ours = sl.row_statistics(given, labels)
    expected = exact.row_statistics(logits, labels)
    work = np.float32 if dtype in ("f2", "f4") else np.float64
    for name in FLOAT_FIELDS:
        assert getattr(ours, name).dtype == work
        np.testing.assert_allclose(getattr(ours, name), exact.as_float(getattr(expected, name)), rtol=1e-6)
    np.testing.assert_array_equal(ours.rank, expected.rank)
    np.testing.assert_array_equal(ours.prediction, expected.prediction)


def test_one_row_has_no_shape():
    ours = sl.row_statistics([1.0, 2.0, 3.0], 1)
    assert all(np.shape(field) == () for field in ours)
    assert ours.loss == pytest.approx(1.4076059644443804, rel=1e-15)
    assert ours.log_probability == -ours.loss
    assert ours.logsumexp == pytest.approx(3.4076059644443804, rel=1e-15)
    assert (ours.prediction, ours.rank) == (2, 1)


def test_no_rows():
    ours = sl.row_statistics(np.zeros((0, 4), np.float32), np.zeros(0, int))
    assert all(field.shape == (0,) for field in ours)
    assert ours.loss.dtype == np.float32
    assert ours.rank.dtype == np.int64


def test_fields_come_in_order():
    loss, logsumexp, log_probability, prediction, rank = ours = sl.row_statistics(np.eye(3), [0, 1, 2])
    assert ours._fields == ("loss", "logsumexp", "log_probability", "prediction", "rank")
    assert loss is ours.loss
    assert logsumexp is ours.logsumexp
    assert log_probability is ours.log_probability
    assert prediction is ours.prediction
    assert rank is ours.rank


def test_agrees_with_the_loss_and_logsumexp():
    rng = np.random.default_rng(0)
    logits, labels, bias = rng.standard_normal((7, 30)) * 5, rng.integers(0, 30, 7), rng.standard_normal(30)
    transforms = {"temperature": 1.5, "softcap": 8.0, "logit_bias": bias}
    ours = sl.row_statistics(logits, labels, **transforms)
    np.testing.assert_allclose(
        ours.loss, sl.softmax_cross_entropy(logits, labels, reduction="none", **transforms), rtol=1e-14
    )
    v = 8 * np.tanh(logits / 12) + bias
    np.testing.assert_allclose(ours.logsumexp, sl.logsumexp(v), rtol=1e-14)
    np.testing.assert_array_equal(ours.prediction, v.argmax(axis=1))


def test_the_inputs_are_not_written():
    logits, labels = np.random.default_rng(0).standard_normal((4, 70)), np.arange(4)
    before = logits.copy()
    sl.row_statistics(logits, labels, temperature=2.0, softcap=5.0, logit_bias=np.ones(70))
    np.testing.assert_array_equal(logits, before)
    logits.flags.writeable = False
    sl.row_statistics(logits, labels)


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        ([0, 3], {}, sl.LabelError, r"labels\[1\] is 3; with 3 classes a label is from 0 to 2"),
        ([0, -1], {}, sl.LabelError, r"labels\[1\] is -1"),
        ([-100, 0], {}, sl.LabelError, r"labels\[0\] is -100"),
        (np.array([2**64 - 100, 0], np.uint64), {}, sl.LabelError, r"labels\[0\] is 18446744073709551516"),
        ([[1.0, 0.0, 0.0]] * 2, {}, ValueError, "class indices"),
        ([[1, 0, 0]] * 2, {}, ValueError, "class indices"),
        ([0, 1, 2], {}, ValueError, r"labels have shape \(3,\)"),
        ([0.0, 1.0], {}, TypeError, "index labels have dtype float64"),
        ([0, 1], {"temperature": 0.0}, ValueError, "temperature is 0.0"),
        ([0, 1], {"temperature": "1"}, TypeError, "temperature is '1'"),
        ([0, 1], {"softcap": -1.0}, ValueError, "softcap is -1.0"),
        ([0, 1], {"logit_bias": [1.0, 2.0]}, ValueError, r"logit_bias has shape \(2,\)"),
        ([0, 1], {"axis": 2}, ValueError, "out of bounds"),
        ([0, 1], {"ignore_index": 0}, TypeError, "ignore_index"),
        (None, {"temperature": 0.0}, ValueError, "temperature is 0.0"),
    ],
)
def test_errors(labels, options, error, message):
    with pytest.raises(error, match=message):
        sl.row_statistics(np.zeros((2, 3)), labels, **options)


def test_logits_that_are_not_taken():
    with pytest.raises(TypeError, match="logits have dtype complex128"):
        sl.row_statistics(np.zeros((2, 3), complex), [0, 1])
    with pytest.raises(ValueError, match="class axis has length 0"):
        sl.row_statistics(np.zeros((2, 0)), [0, 0])
