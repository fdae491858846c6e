"""softmax, log_softmax, logsumexp, one_hot and cross_entropy against SciPy, scikit-learn and their definitions."""

import math

import numpy as np
import pytest
import scipy.special
from mpmath import mp, mpf
from option_cases import BFLOAT16
from sklearn.metrics import log_loss

import softmaxloss as sl

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 1), (2, 300, 3), (70, 2, 129), (0, 3, 2)])
def test_against_scipy(shape, axis, dtype):
    if shape[axis] == 0:
        pytest.skip("no classes")
    logits = (RNG.standard_normal(shape) * 5).astype(dtype)
    rtol = 2e-6 if dtype == "f4" else 1e-14
    double = logits.astype(np.float64)
    for ours, theirs in (
        (sl.softmax, scipy.special.softmax),
        (sl.log_softmax, scipy.special.log_softmax),
        (sl.logsumexp, scipy.special.logsumexp),
    ):
        answer = ours(logits, axis)
        assert answer.dtype == logits.dtype
        # SciPy's logarithms near 0 are right to an absolute 1e-16 only; ours are held to mpmath elsewhere.
        atol = 6e-8 if ours is sl.logsumexp and dtype == "f4" else 1e-15
        np.testing.assert_allclose(answer, theirs(double, axis=axis), rtol=rtol, atol=atol)


LAYOUTS = {
    "as it lies": lambda z: z,
    "fortran": np.asfortranarray,
    "reversed": lambda z: z[:, ::-1].copy()[:, ::-1],
    "every other": lambda z: np.repeat(z, 2, axis=1)[:, ::2],
    "unaligned": lambda z: np.frombuffer(b"x" + z.tobytes(), z.dtype, z.size, 1).reshape(z.shape),
    "one row": lambda z: z[0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize(
    "dtype", [np.dtype("f2"), *BFLOAT16, *map(np.dtype, ("f4", "f8", "i2", "?", ">f2", ">f4"))], ids=str
)
def test_every_dtype_in_every_layout(dtype, axis, layout):
    """16-bit answers are the float32 ones, rounded once."""
    logits = LAYOUTS[layout]((RNG.standard_normal((7, 33)) * 5).astype(dtype))
    native = np.dtype("f8") if dtype.kind in "ib" else dtype.newbyteorder("=")
    computed = np.dtype("f8") if native == np.float64 else np.dtype("f4")
    plain = np.ascontiguousarray(logits).astype(computed)
    for function in (sl.softmax, sl.log_softmax, sl.logsumexp):
        answer = function(logits, axis)
        assert answer.dtype == native
        np.testing.assert_array_equal(answer, function(plain, axis).astype(native))


@pytest.mark.parametrize("dtype", [np.dtype("f2"), *BFLOAT16], ids=str)
def test_16_bits_of_many_blocks(dtype):
    logits = (RNG.standard_normal((3, 1 << 20)) * 3).astype(dtype)
    wide = logits.astype(np.float32)
    for function in (sl.softmax, sl.log_softmax, sl.logsumexp):
        np.testing.assert_array_equal(function(logits), function(wide).astype(dtype))


def test_keepdims():
    logits = RNG.standard_normal((2, 3, 4))
    for axis in (0, 1, -1):
        kept = sl.logsumexp(logits, axis, keepdims=True)
        assert kept.shape == scipy.special.logsumexp(logits, axis=axis, keepdims=True).shape
        np.testing.assert_array_equal(np.squeeze(kept, axis), sl.logsumexp(logits, axis))
    assert sl.logsumexp([1.0, 2.0]).shape == ()
    assert sl.logsumexp([1.0, 2.0], keepdims=True).shape == (1,)


@pytest.mark.parametrize(
    "row", [[math.inf, 0], [math.inf, math.inf], [-math.inf, -math.inf], [math.nan, math.inf], [-math.inf, 3]]
)
@pytest.mark.parametrize("width", [2, 100])
def test_logsumexp_at_infinity_as_scipy(row, width):
    logits = np.full((1, width), -np.inf, np.float32)
    logits[0, :2] = row
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(sl.logsumexp(logits), scipy.special.logsumexp(logits, axis=1))


@pytest.mark.parametrize("temperature", [0.1, 1.0, 2.5, 1e3, 10])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i8"])
def test_temperature(temperature, dtype):
    logits = (RNG.standard_normal((5, 130)) * 9).astype(dtype)
    scaled = logits.astype(np.float64) / temperature
    rtol = 1e-4 if dtype == "f4" else 1e-12
    np.testing.assert_allclose(
        sl.softmax(logits, temperature=temperature), scipy.special.softmax(scaled, axis=1), rtol=rtol, atol=1e-37
    )
    # As above; at a temperature of 0.1 the scaled logits are rounded to 1e-14 themselves.
    np.testing.assert_allclose(
        sl.log_softmax(logits, temperature=temperature),
        scipy.special.log_softmax(scaled, axis=1),
        rtol=rtol,
        atol=1e-13,
    )


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_extreme_temperatures(dtype):
    logits = np.array([1, 2, -np.inf], dtype)
    np.testing.assert_array_equal(sl.softmax(logits, temperature=1e-50), [0, 1, 0])
    np.testing.assert_allclose(sl.softmax(logits, temperature=1e39), [0.5, 0.5, 0], rtol=1e-6)
    np.testing.assert_array_equal(sl.softmax(np.array([300, 200, 0], dtype), temperature=1e-38), [1, 0, 0])
    for bad in (np.nan, np.inf):
        logits[0] = bad
        assert np.isnan(sl.softmax(logits, temperature=2.0)).all()
    assert np.isnan(sl.log_softmax(np.full(3, -np.inf, dtype), temperature=2.0)).all()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("temperature", [0.3, 1.7])
def test_accuracy_with_temperature(temperature, dtype):
    logits = RNG.uniform(-15, 15, (3, 30)).astype(dtype)
    unit = 2.0**-24 if dtype == "f4" else 2.0**-53
    p = sl.softmax(logits, temperature=temperature)
    with mp.workdps(60):
        for row, ours in zip(logits, p, strict=True):
            e = [mp.exp(mpf(float(z)) / mpf(temperature)) for z in row]
            bound = (16 + float(np.abs(row).max()) / temperature) * unit
            for x, q in zip(e, ours, strict=True):
                if x / sum(e) < np.finfo(dtype).tiny:
                    continue
                assert abs(mpf(float(q)) - x / sum(e)) <= bound * x / sum(e)


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
def test_temperature_out_of_range(temperature):
    with pytest.raises(ValueError, match=r"temperature is .*; it must be positive and finite"):
        sl.softmax([1.0, 2.0], temperature=temperature)


@pytest.mark.parametrize("function", [sl.softmax, sl.log_softmax, sl.logsumexp])
def test_bad_arrays(function):
    with pytest.raises(TypeError, match="logits have dtype"):
        function(np.zeros((2, 2), complex))
    with pytest.raises(ValueError, match="class axis has length 0"):
        function(np.zeros((2, 0)))
    with pytest.raises(ValueError, match="out of bounds"):
        function(np.zeros((2, 2)), 2)
    with pytest.raises(ValueError, match="0 dimensions"):
        function(3.0)


@pytest.mark.parametrize("n", [3, 9000])
def test_large_softmax_equals_small_pieces(n):
    """Large enough for streamed stores and threads."""
    logits = (RNG.standard_normal((n, 1000)) * 5).astype(np.float32)
    whole = sl.softmax(logits)
    np.testing.assert_array_equal(whole, np.concatenate([sl.softmax(logits[:1]), sl.softmax(logits[1:])]))


@pytest.mark.parametrize("dtype", ["f4", "f8", "i1", "?"])
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_one_hot(axis, dtype):
    labels = RNG.integers(0, 4, (3, 5))
    result = sl.one_hot(labels, 4, axis=axis, dtype=dtype)
    assert result.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(np.moveaxis(result, axis, -1), np.eye(4)[labels])


def test_one_hot_of_a_scalar_and_of_nothing():
    np.testing.assert_array_equal(sl.one_hot(2, 3), [0, 0, 1])
    assert sl.one_hot([], 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("labels", "classes", "error", "message"),
    [
        ([0, 3], 3, sl.LabelError, r"labels\[1\] is 3; with 3 classes a label is from 0 to 2$"),
        ([-1], 3, sl.LabelError, r"labels\[0\] is -1"),
        (np.array([2**64 - 1], np.uint64), 3, sl.LabelError, str(2**64 - 1)),
        ([0.5], 3, TypeError, "expected integers"),
        ([0], 0, ValueError, "num_classes is 0"),
        ([0], 2.5, TypeError, "num_classes is 2.5; expected an integer"),
    ],
)
def test_one_hot_errors(labels, classes, error, message):
    with pytest.raises(error, match=message):
        sl.one_hot(labels, classes)


def test_one_hot_axis_out_of_range():
    with pytest.raises(ValueError, match="axis is 2"):
        sl.one_hot([0, 1], 3, axis=2)
    with pytest.raises(ValueError, match="axis is -3"):
        sl.one_hot([0, 1], 3, axis=-3)


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_against_scikit_learn(weighted):
    p = RNG.dirichlet(np.ones(5), 40)
    labels = RNG.integers(0, 5, 40)
    weight = RNG.random(40) if weighted else None
    assert sl.cross_entropy(p, labels, sample_weight=weight) == pytest.approx(
        log_loss(labels, p, sample_weight=weight, labels=range(5)), rel=1e-13
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_kind", ["index", "soft"])
@pytest.mark.parametrize("axis", [1, -1])
def test_cross_entropy_of_softmax_is_the_fused_loss(axis, label_kind, reduction):
    logits = np.moveaxis(RNG.standard_normal((6, 4, 5)), -1, axis)
    labels = RNG.integers(0, 5, (6, 4))
    labels[0, 0] = -100
    if label_kind == "soft":
        labels = np.moveaxis(RNG.dirichlet(np.ones(5), (6, 4)), -1, axis)
    options = {
        "axis": axis,
        "reduction": reduction,
        "sample_weight": RNG.random((6, 4)),
        "class_weight": RNG.random(5),
    }
    np.testing.assert_allclose(
        sl.cross_entropy(sl.softmax(logits, axis), labels, **options),
        sl.softmax_cross_entropy(logits, labels, **options),
        rtol=1e-13,
    )


def test_cross_entropy_edges():
    assert sl.cross_entropy([0.0, 1.0], 1) == 0
    assert sl.cross_entropy([0.0, 1.0], 0) == np.inf
    assert sl.cross_entropy([[0.0, 1.0]], [0], class_weight=[0, 1], reduction="sum") == 0
    assert sl.cross_entropy([0.0, 0.5, 0.5], [0.0, 0.5, 0.5]) == pytest.approx(math.log(2))
    assert math.isnan(sl.cross_entropy([math.nan, 0.5], 1))
    np.testing.assert_array_equal(
        sl.cross_entropy([[math.nan, 0.5], [0.5, 0.5], [7.0, -3.0]], [0, 1, -100], reduction="none"),
        [math.nan, math.log(2), 0],
    )
    np.testing.assert_array_equal(
        sl.cross_entropy([[math.inf, -math.inf], [0.5, 0.5]], [-100, 0], reduction="none"), [0, math.log(2)]
    )
    assert sl.cross_entropy(np.float32([[0.5, 0.5]]), [0], sample_weight=[1e300], reduction="sum") == np.inf
    assert math.isnan(sl.cross_entropy(np.zeros((0, 3)), []))
    assert sl.cross_entropy(np.array([[0.25, 0.75]], np.float32), [1]).dtype == np.float32
    assert sl.cross_entropy([[0, 1]], [1]).dtype == np.float64


@pytest.mark.parametrize(
    ("row", "message"),
    [([1.0, 2.0, 3.0], "sums to 6, not 1"), ([1.5, -0.5, 0.0], "has a negative entry, -0.5")],
)
def test_logits_given_as_probabilities(row, message):
    p = np.full((3, 3), 1 / 3)
    p[1] = row
    with pytest.raises(ValueError, match=rf"row \[1\] {message}: it is not probabilities.*softmax_cross_entropy"):
        sl.cross_entropy(p, [0, 1, 2])


def test_cross_entropy_checks_labels():
    p = np.full((2, 3), 1 / 3)
    with pytest.raises(sl.LabelError, match=r"labels\[1\] is 3"):
        sl.cross_entropy(p, [0, 3])
    with pytest.raises(ValueError, match="not a label distribution"):
        sl.cross_entropy(p, [[0.5, 0.5, 0.5], [1, 0, 0]])
    with pytest.raises(ValueError, match="not a label distribution"):
        sl.cross_entropy([0.5, 0.5], [math.nan, 0.5])
    with pytest.raises(ValueError, match="labels have shape"):
        sl.cross_entropy(p, [0])
