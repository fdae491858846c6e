"""The mean with options: its denominators, rows that count in none, weights that cancel, sums over blocks."""

import math

import exact
import numpy as np
import pytest
from option_cases import BFLOAT16, Case, assert_exact, check

import softmaxloss as sl
from softmaxloss.backends import layout

FLOATS = ["f4", "f8"]


@pytest.mark.parametrize("dtype", ["f2", *(str(d) for d in BFLOAT16), *FLOATS])
@pytest.mark.parametrize("soft", [False, True])
def test_the_two_denominators_of_the_mean(soft, dtype, instruction_set):
    """Cross-entropy is divided by the sum of both weights, z_loss by that of the rows' alone."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((5, 4)).astype(dtype)
    labels = rng.dirichlet(np.ones(4), 5) if soft else np.array([0, 3, -100, 2, 2])
    by_class, by_row = np.array([0.5, 2, 3, 0]), np.array([1, 0, 5, 0.25, 2])
    weights = {"class_weight": by_class, "sample_weight": by_row}
    check(Case(logits, labels, {"reduction": "mean", "z_loss": 0.3, **weights}))
    if dtype != "f8":
        return
    by_row = by_row if soft else np.where(labels == -100, 0, by_row)
    divisor = by_row.sum() if soft else (by_row * by_class[labels % 4]).sum()
    ce = sl.softmax_cross_entropy(logits, labels, class_weight=by_class, reduction="none")
    z_part = 0.3 * sl.logsumexp(logits) ** 2
    expected = (by_row * ce).sum() / divisor + (by_row * z_part).sum() / by_row.sum()
    assert sl.softmax_cross_entropy(logits, labels, z_loss=0.3, **weights) == pytest.approx(expected, rel=1e-14)


ALL_OPTIONS = {"temperature": 0.5, "softcap": 9.0, "logit_bias": [0.1, 0, -0.1], "z_loss": 0.1}


@pytest.mark.parametrize("options", [{"z_loss": 0.1}, {**ALL_OPTIONS, "focal_gamma": 0.5, "poly_epsilon": 1.0}])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_ignored_rows_are_zero_whatever_they_hold(dtype, reduction, options, instruction_set):
    logits = np.array([[1, 2, 0], [np.nan, np.inf, 0], [-np.inf] * 3, [1e30, -1e30, 7], [0, 0, 3]], dtype)
    labels = np.array([0, -100, -100, -100, 1])
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, reduction=reduction, **options)
    kept_loss, kept_grad = sl.softmax_cross_entropy_and_grad(
        logits[[0, 4]], labels[[0, 4]], reduction=reduction, **options
    )
    np.testing.assert_array_equal(grad[1:4], 0)
    np.testing.assert_allclose(grad[[0, 4]], kept_grad, rtol=1e-6)
    if reduction == "none":
        np.testing.assert_array_equal(loss[1:4], 0)
        loss = loss[[0, 4]]
    np.testing.assert_allclose(loss, kept_loss, rtol=1e-6)


def test_the_mean_over_no_rows_is_nan_with_zero_gradient():
    options = {**ALL_OPTIONS, "focal_gamma": 2.0}
    loss, grad = sl.softmax_cross_entropy_and_grad(np.ones((2, 3)), [-100, -100], **options)
    assert math.isnan(loss)
    np.testing.assert_array_equal(grad, 0)
    assert sl.softmax_cross_entropy(np.ones((2, 3)), [-100, -100], reduction="sum", **options) == 0


@pytest.mark.parametrize("weights", [{"sample_weight": [0, 0, 1]}, {"class_weight": [0, 0, 1]}])
@pytest.mark.parametrize("focal_gamma", [0.0, 2.0])
def test_zero_total_weight_is_nan(weights, focal_gamma):
    """Where only the class weights are 0, z_loss has a mean, and cross-entropy has none."""
    options = {"z_loss": 0.1, "focal_gamma": focal_gamma}
    loss, grad = sl.softmax_cross_entropy_and_grad(np.ones((3, 3)), [0, 1, -100], **options, **weights)
    assert math.isnan(loss)
    assert np.isnan(grad[:2]).all()
    np.testing.assert_array_equal(grad[2], 0)
    loss = sl.softmax_cross_entropy(np.ones((3, 3)), [0, 1, -100], reduction="sum", **options, **weights)
    expected = 0 if "sample_weight" in weights else 2 * 0.1 * (1 + math.log(3)) ** 2
    assert loss == pytest.approx(expected)


@pytest.mark.parametrize("weight", [1e-310, 1e-42, 1e-30, 1e30, 1e60, 1e300])
@pytest.mark.parametrize("which", ["sample_weight", "class_weight"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_common_weight_cancels_in_the_mean(dtype, which, weight):
    logits = np.array([[5, 0, 1], [0, 2, -3]], dtype)
    options = {**ALL_OPTIONS, "focal_gamma": 1.5, "poly_epsilon": 1.0}
    expected, expected_grad = sl.softmax_cross_entropy_and_grad(logits, [0, 1], **options)
    weights = {which: np.full(2 if which == "sample_weight" else 3, weight)}
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, [0, 1], **options, **weights)
    np.testing.assert_allclose(loss, expected, rtol=1e-5 if dtype == "f4" else 1e-13)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-5 if dtype == "f4" else 1e-13)


@pytest.mark.parametrize(
    "class_weight",
    [
        [1e300, 1e-30, 1e-30],
        [1e300, 1e-300, 1e-300],
        [0, 1e-300, 1e-300],
        [1e300, 1e-297, 1e-290],
        [1e-300] * 3,
    ],
    ids=str,
)
@pytest.mark.parametrize("sample_weight", [None, [1e-300, 1e-300], [1e300, 1e300], [1e-150, 1e-145]], ids=str)
@pytest.mark.parametrize("z_loss", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_mean_over_the_lightest_classes(dtype, z_loss, sample_weight, class_weight, instruction_set):
    """However much heavier another class is: no label is of it."""
    logits, labels = np.array([[1, 0, 2], [3, 1, -1]], dtype), [1, 2]
    options = {"class_weight": class_weight, "sample_weight": sample_weight, "z_loss": z_loss, "reduction": "mean"}
    loss, grad = assert_exact(logits, labels, **options)
    assert np.isfinite(loss)
    assert np.abs(grad).max() > 1e-3


@pytest.mark.parametrize("weights", [[1e-200] * 3, [1e200] * 3, [1e-26, 1e25, 1e-26], [1e-150, 1e120, 1e-26]], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_smoothed_labels_of_classes_far_apart(dtype, soft, reduction, weights, instruction_set):
    """Masses that float32 does not hold beside each other neither vanish nor grow."""
    logits = np.array([[1, 2, 3], [0, 4, 1]], dtype)
    labels = np.array([[1, 0, 0], [0.25, 0, 0.75]], dtype) if soft else [0, 2]
    for z_loss in (0.0, 1.0):
        options = {"class_weight": weights, "label_smoothing": 0.1, "z_loss": z_loss, "reduction": reduction}
        reference = exact.softmax_cross_entropy(logits, labels, digits=900, **options)
        loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, **options)
        with np.errstate(over="ignore"):
            expected = exact.as_float(reference.loss).astype(dtype)
            expected_grad = exact.as_float(reference.grad).astype(dtype)
        rtol = 4e-6 if dtype == "f4" else 1e-14
        np.testing.assert_allclose(loss, expected, rtol=rtol, atol=np.finfo(dtype).smallest_subnormal)
        np.testing.assert_allclose(grad, expected_grad, rtol=rtol, atol=np.finfo(dtype).tiny)


def test_the_sum_of_nothing_under_enormous_weights_is_zero():
    weights = {"sample_weight": [1e300], "class_weight": [1e300, 1e300]}
    assert sl.softmax_cross_entropy([[1.0, -np.inf]], [0], reduction="sum", **weights) == 0
    assert sl.softmax_cross_entropy([[1.0, 0.0]], [-100], reduction="sum", **weights) == 0


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sums_over_blocks_are_compensated_too(dtype, reduction):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((1 << 17, 20)).astype(dtype), rng.integers(0, 20, 1 << 17)
    swapped = logits.astype(logits.dtype.newbyteorder("S"))
    native = sl.softmax_cross_entropy(logits, labels, reduction=reduction)
    np.testing.assert_array_max_ulp(sl.softmax_cross_entropy(swapped, labels, reduction=reduction), native, 1)


@pytest.mark.parametrize("logits_dtype", ["f2", *BFLOAT16, "f4", "f8"], ids=str)
@pytest.mark.parametrize("labels_dtype", ["f2", *BFLOAT16, "f4", "f8", "i8", "?"], ids=str)
@pytest.mark.parametrize("in_place", [False, True])
def test_distributions_of_any_dtype_beside_any_logits(logits_dtype, labels_dtype, in_place, monkeypatch):
    """The answer is that of the same numbers in the dtype computed in, whatever is converted on the way."""
    monkeypatch.setattr(layout, "_BLOCK_BYTES", 1000)
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((40, 21)).astype(logits_dtype)
    labels = np.eye(21)[rng.integers(0, 21, 40)]
    if np.dtype(labels_dtype).kind not in "ib":
        labels = 0.5 * labels + 0.5 * np.eye(21)[rng.integers(0, 21, 40)]
    labels = labels.astype(labels_dtype)
    computed = np.float64 if logits_dtype == "f8" else np.float32
    loss, grad = sl.softmax_cross_entropy_and_grad(logits.astype(computed), labels.astype(computed))
    given = logits.copy()
    out = given if in_place else np.empty_like(given)
    answer, written = sl.softmax_cross_entropy_and_grad(given, labels, out=out)
    assert written is out
    np.testing.assert_allclose(answer, loss, rtol=1e-6)
    unit_of = {2: 2e-3 if logits_dtype == "f2" else 8e-3, 4: 1e-6, 8: 1e-14}[logits.dtype.itemsize]
    np.testing.assert_allclose(written.astype(computed), grad, rtol=unit_of, atol=1e-7)


@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_a_negative_entry_that_float32_does_not_hold(dtype):
    with pytest.raises(ValueError, match="has a negative entry"):
        sl.softmax_cross_entropy(np.zeros((1, 3), dtype), np.array([[1, 0, -1e-60]]))


def test_a_mask_meets_a_mass_that_float32_does_not_hold():
    logits, labels = np.array([[0, 0, -np.inf]]), np.array([[1 - 1e-60, 0, 1e-60]])
    for dtype in (np.float16, np.float32, np.float64):
        assert sl.softmax_cross_entropy(logits.astype(dtype), labels) == np.inf
