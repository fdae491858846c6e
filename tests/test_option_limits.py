"""Options at their limits: certain and masked rows, extreme scales, neutral values."""

import math

import exact
import numpy as np
import pytest
from option_cases import DIGITS, assert_exact, unit

import softmaxloss as sl

FLOATS = ["f4", "f8"]


def rows_and_grad(logits, labels, **options):
    return sl.softmax_cross_entropy_and_grad(logits, labels, **{"reduction": "none", **options})


NEUTRAL = {
    "temperature": 1.0,
    "softcap": None,
    "logit_bias": None,
    "z_loss": 0.0,
    "focal_gamma": 0.0,
    "poly_epsilon": 0.0,
}


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_neutral_values_are_no_options(dtype, soft, instruction_set):
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((6, 21)) * 4).astype(dtype)
    labels = rng.dirichlet(np.ones(21), 6) if soft else rng.integers(0, 21, 6)
    for plain in ({}, {"label_smoothing": 0.1}):
        expected, expected_grad = rows_and_grad(logits, labels, **plain)
        loss, grad = rows_and_grad(logits, labels, **plain, **NEUTRAL)
        np.testing.assert_array_equal(loss, expected)
        np.testing.assert_array_equal(grad, expected_grad)
        biased, biased_grad = rows_and_grad(logits, labels, **plain, logit_bias=np.zeros(21))
        np.testing.assert_allclose(biased, expected, rtol=16 * unit(logits.dtype))
        np.testing.assert_allclose(
            biased_grad, expected_grad, rtol=64 * unit(logits.dtype), atol=8 * unit(logits.dtype)
        )


@pytest.mark.parametrize("two", [2, 2.0, np.float32(2), np.int8(2), np.float64(2), np.array(2.0)])
def test_options_are_any_real_scalars(two):
    logits = np.array([[1.0, 2.0, 4.0]])
    for name in ("temperature", "softcap", "z_loss", "focal_gamma", "poly_epsilon"):
        assert sl.softmax_cross_entropy(logits, [1], **{name: two}) == sl.softmax_cross_entropy(
            logits, [1], **{name: 2}
        )


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i8", "?"])
def test_a_bias_of_any_real_dtype(dtype):
    logits, bias = np.array([[1.0, 2.0, 4.0]]), np.array([1, 0, 1], dtype)
    expected = sl.softmax_cross_entropy(logits + bias.astype(float), [1])
    assert sl.softmax_cross_entropy(logits, [1], logit_bias=bias) == pytest.approx(expected, rel=1e-15)
    assert sl.softmax_cross_entropy(logits, [1], logit_bias=bias.tolist()) == pytest.approx(expected, rel=1e-15)


def test_a_bias_of_any_strides():
    rng = np.random.default_rng(0)
    logits, wide = rng.standard_normal((4, 30)), rng.standard_normal((30, 3))
    expected = sl.softmax_cross_entropy(logits, [0, 7, 8, 29], logit_bias=wide[::-1, 1].copy())
    assert sl.softmax_cross_entropy(logits, [0, 7, 8, 29], logit_bias=wide[::-1, 1]) == expected


@pytest.mark.parametrize("width", [3, 70])
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0, "z_loss": 0.1}, {"label_smoothing": 0.1}], ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_bias_of_minus_infinity_masks_its_class(dtype, options, width, instruction_set):
    logits = np.random.default_rng(0).standard_normal((2, width)).astype(dtype)
    bias = np.zeros(width)
    bias[1] = -np.inf
    loss, grad = assert_exact(logits, [0, 1], logit_bias=bias, **options)
    assert loss[1] == np.inf
    assert np.isfinite(loss[0]) == ("label_smoothing" not in options)
    assert np.isfinite(grad).all()


# Temperature


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("temperature", [1e-30, 1e-10, 1e10, 1e30])
@pytest.mark.parametrize("z_loss", [0.0, 1e-3])
def test_extreme_temperatures(temperature, dtype, z_loss, instruction_set):
    logits = np.array([[1, 2, 0.5, -np.inf], [3, -1, 3, 0.25], [0, 0, 0, 0]], dtype)
    loss, grad = assert_exact(logits, [1, 0, 3], temperature=temperature, z_loss=z_loss)
    assert not np.isnan(loss).any()
    assert not np.isnan(grad).any()


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_temperature_that_no_float32_divides_by(dtype, instruction_set):
    """1 / temperature is beyond float32: what is 0 stays 0, and no row becomes NaN."""
    logits = np.array([[1, 0, 0], [1, 0, 0]], dtype)
    loss, grad = rows_and_grad(logits, [0, 1], temperature=1e-50)
    np.testing.assert_allclose(loss, [0, np.inf if dtype == "f4" else 1e50])
    np.testing.assert_array_equal(grad[0], 0)
    np.testing.assert_allclose(grad[1], [np.inf, -np.inf, 0] if dtype == "f4" else [1e50, -1e50, 0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_logits_that_overflow_once_divided(dtype, instruction_set):
    logits = np.array([[1e30, -1e30, 5], [1e30, -1e30, 5]], dtype)
    loss, grad = rows_and_grad(logits, [0, 1], temperature=1e-30)
    np.testing.assert_allclose(loss, [0, np.inf if dtype == "f4" else 2e60], rtol=1e-6)
    np.testing.assert_allclose(grad, [[0, 0, 0], [1e30, -1e30, 0]], rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.3, 1.7, 3.0, 300.0])
@pytest.mark.parametrize("dtype", FLOATS)
def test_large_logits_with_a_temperature(dtype, temperature, instruction_set):
    """What M allows is far from what is achieved: rows with a common offset lose what its division rounds, no more."""
    rng = np.random.default_rng(0)
    gaps = np.round(rng.standard_normal((4, 40)) * 20) / 8
    logits = (1e4 + gaps).astype(dtype)
    labels = rng.integers(0, 40, 4)
    loss, grad = assert_exact(logits, labels, temperature=temperature)
    expected, expected_grad = rows_and_grad(gaps, labels, temperature=temperature)
    rounding = 4 * unit(logits.dtype) * 1e4 / temperature
    np.testing.assert_allclose(loss, expected, rtol=rounding + 100 * unit(logits.dtype))
    np.testing.assert_allclose(
        grad, expected_grad, rtol=rounding + 100 * unit(logits.dtype), atol=rounding / temperature
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_wide_rows_with_a_temperature(dtype, instruction_set):
    """Rows as wide as twice their largest v: neither v nor its gap to the maximum may be rounded much on the way."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        largest, temperature = rng.uniform(20, 42), rng.uniform(0.2, 5)
        v = rng.uniform(-largest, -0.9 * largest, (1, 5))
        v[0, 0] = largest
        logits = (v * temperature).astype(dtype)
        for label in (0, 1):
            assert_exact(logits, [label], temperature=temperature)
            assert_exact(logits, [label], temperature=temperature, z_loss=0.1, focal_gamma=2, poly_epsilon=1)


# Softcap


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("softcap", [1e-30, 1e-3, 0.5])
def test_tiny_softcap(softcap, dtype, instruction_set):
    """Every class is capped, but for a logit of 0, the one that has a gradient."""
    logits = np.array([[1, 0, -2, 0.5], [4, 3, -100, -np.inf]], dtype)
    loss, grad = rows_and_grad(logits, [1, 0], softcap=softcap)
    expected = exact.softmax_cross_entropy(logits, [1, 0], softcap=softcap, reduction="none", digits=120)
    np.testing.assert_allclose(loss, exact.as_float(expected.loss), rtol=40 * unit(logits.dtype))
    smallest = np.finfo(dtype).tiny
    # sech^2(x) for x = z / softcap: the rounding of x costs 2 x units.
    rtol = np.maximum(40, np.where(np.isfinite(logits), 4 * np.abs(logits) / softcap, 0)) * unit(logits.dtype)
    difference = np.abs(grad - exact.as_float(expected.grad))
    assert np.all(difference <= rtol * np.abs(exact.as_float(expected.grad)) + smallest)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("softcap", [1e6, 1e30, 1e38, 1e300])
def test_huge_softcap_is_none(softcap, dtype, instruction_set):
    logits = np.array([[1, 1e-3, -2, 20], [4, 3, -40, -np.inf]], dtype)
    loss, grad = assert_exact(logits, [1, 0], softcap=softcap)
    expected, expected_grad = rows_and_grad(logits, [1, 0])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-5)


@pytest.mark.parametrize("dtype", FLOATS)
def test_saturated_classes(dtype, instruction_set):
    logits = np.array([[1e30, -1e30, 40, 0], [3e38, 3e38, -3e38, 1]], dtype)
    loss, grad = assert_exact(logits, [1, 0], softcap=5.0, z_loss=0.01)
    assert np.isfinite(loss).all()
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("width", [3, 70])
@pytest.mark.parametrize("options", [{"softcap": 5.0}, {"softcap": 5.0, "temperature": 2.0, "logit_bias": True}])
@pytest.mark.parametrize("dtype", FLOATS)
def test_infinite_logits_under_a_softcap(dtype, options, width, instruction_set):
    """-inf masks its class all the same, and +inf makes a NaN row, though tanh of it would be 1."""
    logits = np.random.default_rng(0).standard_normal((4, width)).astype(dtype)
    options = {**options, "logit_bias": np.arange(width) / width} if "logit_bias" in options else options
    logits[0, 1] = -np.inf
    logits[1, 2] = np.inf
    logits[2] = -np.inf
    loss, grad = assert_exact(logits, [0, 0, 0, 1], **options)
    assert np.isfinite(loss[[0, 3]]).all()
    assert grad[0, 1] == 0
    assert np.isnan(loss[[1, 2]]).all()
    assert np.isnan(grad[[1, 2]]).all()


# Masked labels


@pytest.mark.parametrize("width", [3, 70])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 2.0},
        {"softcap": 5.0, "temperature": 2.0},
        {"logit_bias": True},
        {"z_loss": 0.1},
        {"focal_gamma": 2.0},
        {"focal_gamma": 0.5, "poly_epsilon": -0.5},
        {"poly_epsilon": 1.0, "z_loss": 0.1, "temperature": 0.5},
    ],
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_masked_label(dtype, options, width, instruction_set):
    """The loss is infinite and the gradient the formula's, with p = 0 for the label."""
    logits = np.random.default_rng(0).standard_normal((1, width)).astype(dtype)
    options = {**options, "logit_bias": np.arange(width) / width} if "logit_bias" in options else options
    logits[0, 1] = -np.inf
    loss, grad = assert_exact(logits, [1], **options)
    assert loss[0] == np.inf
    assert grad[0, 1] == -1 / options.get("temperature", 1)
    assert np.isfinite(grad).all()
    weighted, weighted_grad = rows_and_grad(logits, [1], **options, sample_weight=[0.0])
    assert weighted[0] == 0
    np.testing.assert_array_equal(weighted_grad, 0)
    by_class = np.ones(width)
    by_class[1] = 0
    weighted, weighted_grad = assert_exact(logits, [1], **options, class_weight=by_class)
    assert np.isfinite(weighted[0])
    if "z_loss" not in options:
        assert weighted[0] == 0
        np.testing.assert_array_equal(weighted_grad, 0)


# Focal and poly


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("focal_gamma", [0.0, 1e-3, 0.5, 0.99, 1.0, 1.5, 2.0, 5.0])
@pytest.mark.parametrize("poly_epsilon", [0.0, 1.0, -1.0])
def test_certain_labels_have_finite_gradients(focal_gamma, poly_epsilon, dtype, instruction_set):
    """(1 - p)^(gamma - 1) is infinite at p = 1 for gamma < 1, and what multiplies it is 0: autograd makes NaN of it."""
    options = {"focal_gamma": focal_gamma, "poly_epsilon": poly_epsilon}
    for certain in ([3.0], [5.0, -np.inf, -np.inf]):
        loss, grad = rows_and_grad(np.array([certain], dtype), [0], **options)
        assert loss[0] == 0
        np.testing.assert_array_equal(grad, 0)
    for gap in (8, 20, 60, 100, 1000, 1e30):
        logits = np.array([[gap, 0, 0]], dtype)
        loss, grad = assert_exact(logits, [0], **options)
        assert np.isfinite(loss[0])
        assert np.isfinite(grad).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("options", [{"focal_gamma": 2.0}, {"poly_epsilon": 2.0}, {"focal_gamma": 0.5, "z_loss": 0.0}])
def test_confident_rows_keep_their_digits(options, dtype, instruction_set):
    """The loss of a label that is all but certain, to the bound: 1 - p of it is no difference from 1."""
    logits = np.array([[12, 0, -1, 2], [25, 1, 0, 0]], dtype)
    loss, grad = assert_exact(logits, [0, 0], **options)
    reference = exact.softmax_cross_entropy(logits, [0, 0], digits=DIGITS, reduction="none", **options)
    errors = exact.relative_error(grad, reference.grad)
    assert errors.max() <= (16 + 26) * unit(logits.dtype) * (1 + options.get("focal_gamma", 0))
    assert np.all(loss > 0)


def test_where_autograd_makes_nan():
    torch = pytest.importorskip("torch")
    z = torch.tensor([[200.0, 0.0]], dtype=torch.float64, requires_grad=True)
    missing = 1 - torch.softmax(z, 1)[:, 0]
    (missing**0.5 * -torch.log_softmax(z, 1)[:, 0]).sum().backward()
    assert torch.isnan(z.grad).all()  # what there is to do better than
    _, grad = rows_and_grad(z.detach().numpy(), [0], focal_gamma=0.5)
    np.testing.assert_allclose(grad, [[-1.5 * math.exp(-300), 1.5 * math.exp(-300)]], rtol=1e-12)
