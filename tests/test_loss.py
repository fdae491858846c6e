"""softmax_cross_entropy and its gradient: meaning, reductions, ignored and degenerate rows, errors."""

import math

import numpy as np
import pytest

import softmaxloss as sl

torch_missing = None
try:
    import torch
except ImportError:
    torch_missing = "PyTorch is not installed"

CLASSIC = 1.4076059644443804


def test_the_classic_example():
    assert sl.softmax_cross_entropy([1.0, 2.0, 3.0], [0, 1, 0]) == pytest.approx(CLASSIC, rel=1e-15)
    assert sl.softmax_cross_entropy([1.0, 2.0, 3.0], 1) == pytest.approx(CLASSIC, rel=1e-15)
    assert sl.softmax_cross_entropy([[1, 2, 3]], [1]) == pytest.approx(CLASSIC, rel=1e-15)
    with pytest.raises(ValueError, match=r"labels have shape \(3, 3\)"):
        sl.softmax_cross_entropy([1.0, 2.0, 3.0], np.eye(3)[[0, 1, 0]])


def test_gradient_is_p_minus_y():
    logits = np.array([[1.0, 2.0, 3.0], [0.5, -0.5, 0.0]])
    _, grad = sl.softmax_cross_entropy_and_grad(logits, [1, 0])
    expected = (sl.softmax(logits) - np.eye(3)[[1, 0]]) / 2
    np.testing.assert_allclose(grad, expected, rtol=1e-14)


def test_finite_differences():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((5, 7))
    labels = np.array([0, 6, -100, 3, 3])
    options = {
        "sample_weight": rng.random(5),
        "class_weight": rng.random(7),
        "label_smoothing": 0.2,
    }
    for reduction in ("mean", "sum"):
        _, grad = sl.softmax_cross_entropy_and_grad(logits, labels, reduction=reduction, **options)
        for i, j in np.ndindex(*logits.shape):
            step = np.zeros_like(logits)
            step[i, j] = 1e-5
            up = sl.softmax_cross_entropy(logits + step, labels, reduction=reduction, **options)
            down = sl.softmax_cross_entropy(logits - step, labels, reduction=reduction, **options)
            assert grad[i, j] == pytest.approx((up - down) / 2e-5, abs=1e-9)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "u1", "?"])
def test_dtypes(dtype):
    logits = np.random.default_rng(0).integers(0, 2, (6, 5)).astype(dtype)
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, np.arange(6) % 5)
    integer = np.dtype(dtype).kind in "iub"
    assert loss.dtype == (np.float64 if integer or dtype == "f8" else np.float32)
    assert grad.dtype == (np.float64 if integer else np.dtype(dtype))
    expected, expected_grad = sl.softmax_cross_entropy_and_grad(logits.astype(np.float64), np.arange(6) % 5)
    assert loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-3 if dtype == "f2" else 1e-6)


def test_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    logits = np.random.default_rng(0).standard_normal((40, 50)).astype(ml_dtypes.bfloat16)
    labels = np.arange(40)
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels)
    exact_loss, exact_grad = sl.softmax_cross_entropy_and_grad(logits.astype(np.float32), labels)
    assert loss == exact_loss
    assert grad.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(grad, exact_grad.astype(ml_dtypes.bfloat16))


def test_zero_rows():
    for labels in (np.zeros(0, int), np.zeros((0, 4)), []):
        logits = np.zeros((0, 4))
        loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels)
        assert math.isnan(loss)
        assert grad.shape == (0, 4)
        assert sl.softmax_cross_entropy(logits, labels, reduction="sum") == 0
        assert sl.softmax_cross_entropy(logits, labels, reduction="none").shape == (0,)
    assert sl.softmax_cross_entropy(np.zeros((3, 0, 4)), np.zeros((3, 0), int), reduction="none").shape == (3, 0)


def test_no_classes_is_an_error():
    with pytest.raises(ValueError, match="class axis has length 0"):
        sl.softmax_cross_entropy(np.zeros((2, 0)), np.zeros(2, int))


def test_one_class_has_no_loss():
    loss, grad = sl.softmax_cross_entropy_and_grad(np.array([[3.0], [-1e30]], np.float32), [0, 0])
    assert loss == 0
    np.testing.assert_array_equal(grad, 0)


def test_ignored_rows_are_zero_whatever_they_hold():
    logits = np.array([[1.0, 2.0], [np.nan, np.inf], [-np.inf, -np.inf], [0.0, 0.0]])
    labels = np.array([0, -100, -100, 1])
    rows, grad = sl.softmax_cross_entropy_and_grad(logits, labels, reduction="none")
    np.testing.assert_array_equal(rows[[1, 2]], 0)
    np.testing.assert_array_equal(grad[[1, 2]], 0)
    mean, grad = sl.softmax_cross_entropy_and_grad(logits, labels)
    assert mean == pytest.approx(rows[[0, 3]].mean())
    np.testing.assert_array_equal(grad[[1, 2]], 0)


def test_ignore_index_may_be_a_class_or_any_integer():
    logits = np.random.default_rng(0).standard_normal((4, 3))
    kept = sl.softmax_cross_entropy(logits[1:], [1, 2, 2])
    assert sl.softmax_cross_entropy(logits, [0, 1, 2, 2], ignore_index=0) == kept
    assert sl.softmax_cross_entropy(logits, [255, 1, 2, 2], ignore_index=255) == kept
    assert sl.softmax_cross_entropy(logits, np.array([255, 1, 2, 2], np.uint8), ignore_index=255) == kept


def test_mean_over_no_rows_is_nan_with_zero_gradient():
    loss, grad = sl.softmax_cross_entropy_and_grad(np.ones((2, 3)), [-100, -100])
    assert math.isnan(loss)
    np.testing.assert_array_equal(grad, 0)
    assert sl.softmax_cross_entropy(np.ones((2, 3)), [-100, -100], reduction="sum") == 0


@pytest.mark.parametrize("weights", [{"sample_weight": [0, 0, 1]}, {"class_weight": [0, 0, 1]}])
def test_zero_total_weight_is_nan(weights):
    loss, grad = sl.softmax_cross_entropy_and_grad(np.ones((3, 3)), [0, 1, -100], **weights)
    assert math.isnan(loss)
    assert np.isnan(grad[:2]).all()
    np.testing.assert_array_equal(grad[2], 0)
    loss, grad = sl.softmax_cross_entropy_and_grad(np.ones((3, 3)), [0, 1, -100], reduction="sum", **weights)
    assert loss == 0
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize("bad", [[np.nan, 0, 1], [np.inf, 0, 1], [-np.inf] * 3, [np.inf, np.nan, -np.inf]])
@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("width", [3, 40, 3000])
@pytest.mark.parametrize("label_kind", ["index", "smoothed", "soft"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_nan_row_touches_no_other(bad, position, width, label_kind, dtype, instruction_set):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, width)).astype(dtype)
    labels = np.array([1, 2, 0])
    options = {"reduction": "none"}
    if label_kind == "smoothed":
        options["label_smoothing"] = 0.1
    elif label_kind == "soft":
        labels = np.full((3, width), 1 / width, dtype)
    clean, clean_grad = sl.softmax_cross_entropy_and_grad(logits, labels, **options)
    logits[position] = -np.inf if np.isneginf(bad).all() else logits[position]
    logits[position, rng.choice(width, 3, replace=False)] = bad
    rows, grad = sl.softmax_cross_entropy_and_grad(logits, labels, **options)
    others = [i for i in range(3) if i != position]
    assert math.isnan(rows[position])
    assert np.isnan(grad[position]).all()
    np.testing.assert_array_equal(rows[others], clean[others])
    np.testing.assert_array_equal(grad[others], clean_grad[others])
    assert np.isnan(sl.softmax(logits)[position]).all()
    assert np.isnan(sl.log_softmax(logits)[position]).all()
    assert np.isfinite(sl.softmax(logits)[others]).all()


@pytest.mark.parametrize("width", [3, 70])
def test_masked_label_has_infinite_loss_and_finite_gradient(width):
    logits = np.zeros((1, width), np.float32)
    logits[0, 1] = -np.inf
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, [1])
    assert loss == np.inf
    assert grad[0, 1] == -1
    np.testing.assert_allclose(np.delete(grad[0], 1), 1 / (width - 1), rtol=1e-6)


def test_zero_weights_silence_infinite_losses():
    logits = np.array([[0.0, -np.inf, 1.0], [0.0, 0.0, 0.0]])
    plain = sl.softmax_cross_entropy([[0.0, 0.0, 0.0]], [0])
    weighted = sl.softmax_cross_entropy(logits, [1, 0], sample_weight=[0, 1])
    assert weighted == pytest.approx(plain)
    weighted, grad = sl.softmax_cross_entropy_and_grad(logits, [1, 0], class_weight=[1, 0, 1])
    assert weighted == pytest.approx(plain)
    np.testing.assert_array_equal(grad[0], 0)


def test_a_masked_class_costs_nothing_in_a_distribution_without_it():
    logits = np.array([[0.0, -np.inf, 0.0]])
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, [[0.5, 0.0, 0.5]])
    assert loss == pytest.approx(math.log(2))
    np.testing.assert_array_equal(grad[0, 1], 0)
    assert sl.softmax_cross_entropy(logits, [[0.5, 0.25, 0.25]]) == np.inf
    assert sl.softmax_cross_entropy(logits, [0], label_smoothing=0.1) == np.inf
    assert np.isfinite(sl.softmax_cross_entropy(logits, [0], label_smoothing=0.1, class_weight=[1, 0, 1]))


@pytest.mark.parametrize("scale", [1e30, 3e38])
def test_huge_logits(scale, instruction_set):
    logits = np.array([[scale, -scale, 0.0], [scale, scale, -np.inf]], np.float32)
    rows, grad = sl.softmax_cross_entropy_and_grad(logits, [0, 0], reduction="none")
    np.testing.assert_allclose(rows, [0, math.log(2)], rtol=1e-6)
    np.testing.assert_allclose(grad, [[0, 0, 0], [-0.5, 0.5, 0]], rtol=1e-6)


def test_overflowing_loss_is_infinite_not_nan():
    assert sl.softmax_cross_entropy(np.array([[3e38, -3e38]], np.float32), [1]) == np.inf
    assert sl.softmax_cross_entropy(np.array([[3e38, -3e38]]), [1]) == 6e38
    _, grad = sl.softmax_cross_entropy_and_grad(np.float16([[1, 2]]), [0], sample_weight=[1e6], reduction="sum")
    np.testing.assert_array_equal(grad, [[-np.inf, np.inf]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"reduction": "average"}, ValueError, "expected 'mean', 'sum' or 'none'"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing is 1.5; it must be from 0 to 1"),
        ({"label_smoothing": math.nan}, ValueError, "label_smoothing is nan"),
        ({"label_smoothing": "0.1"}, TypeError, "label_smoothing is '0.1'; expected a number"),
        ({"label_smoothing": np.array("0.1")}, TypeError, "expected a number"),
        ({"label_smoothing": True}, TypeError, "expected a number"),
        ({"label_smoothing": 0.1j}, TypeError, "expected a number"),
        ({"label_smoothing": np.complex64(0.1)}, TypeError, "expected a number"),
        ({"label_smoothing": [0.1]}, TypeError, "expected a number"),
        ({"label_smoothing": 10**400}, ValueError, "label_smoothing is inf"),
        ({"class_weight": [1, 2]}, ValueError, r"class_weight has shape \(2,\); expected \(3,\): one weight a class"),
        ({"class_weight": [1, -2, 1]}, ValueError, r"class_weight\[1\] is -2.0"),
        ({"class_weight": [1, math.nan, 1]}, ValueError, r"class_weight\[1\] is nan"),
        ({"class_weight": ["a", "b", "c"]}, TypeError, "class_weight has dtype"),
        ({"sample_weight": [1, 2, 3]}, ValueError, r"sample_weight has shape \(3,\); expected \(2,\)"),
        ({"sample_weight": [1, math.inf]}, ValueError, r"sample_weight\[1\] is inf"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index is 1.5; expected an integer"),
        ({"axis": 1.0}, TypeError, "axis is 1.0; expected an integer"),
        ({"axis": None}, TypeError, "axis is None; expected an integer"),
        ({"ignore_index": 2**70}, ValueError, "64 bits"),
        ({"axis": 2}, ValueError, "out of bounds"),
        ({"temperatur": 2}, TypeError, "temperatur"),
    ],
)
def test_bad_options(arguments, error, message):
    out = np.full((2, 3), 7.0)
    with pytest.raises(error, match=message):
        sl.softmax_cross_entropy_and_grad(np.zeros((2, 3)), [0, 1], out=out, **arguments)
    np.testing.assert_array_equal(out, 7)


@pytest.mark.parametrize("logits", [np.zeros((2, 3), complex), [["a", "b"]], np.zeros((2, 3), object), "text"])
def test_bad_logits(logits):
    with pytest.raises(TypeError, match="logits have dtype"):
        sl.softmax_cross_entropy(logits, [0, 1])


def test_scalar_logits():
    with pytest.raises(ValueError, match="0 dimensions"):
        sl.softmax_cross_entropy(1.0, 0)


@pytest.mark.skipif(torch_missing is not None, reason=str(torch_missing))
class TestAgainstPyTorch:
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("kind", ["index", "soft"])
    @pytest.mark.parametrize("shape", [(9, 5), (4, 5, 3), (2, 5, 3, 2)])
    def test_same_answer(self, shape, kind, weighted, label_smoothing, reduction):
        rng = np.random.default_rng(0)
        logits = rng.standard_normal(shape)
        weight = rng.random(5) if weighted else None
        if kind == "index":
            labels = rng.integers(0, 5, (shape[0], *shape[2:]))
            labels.flat[::4] = -100
        else:
            labels = np.moveaxis(rng.dirichlet(np.ones(5), (shape[0], *shape[2:])), -1, 1)
        z = torch.tensor(logits, requires_grad=True)
        theirs = torch.nn.functional.cross_entropy(
            z,
            torch.tensor(np.ascontiguousarray(labels)),
            weight=None if weight is None else torch.tensor(weight),
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
        theirs.sum().backward()
        loss, grad = sl.softmax_cross_entropy_and_grad(
            logits, labels, axis=1, class_weight=weight, reduction=reduction, label_smoothing=label_smoothing
        )
        np.testing.assert_allclose(loss, theirs.detach().numpy(), rtol=1e-12)
        np.testing.assert_allclose(grad, z.grad.numpy(), rtol=1e-10, atol=1e-15)
