"""How far from the exact value an answer may be, measured against mpmath."""

import exact
import numpy as np
import pytest

import softmaxloss as sl

UNIT = {np.dtype("f4"): 2.0**-24, np.dtype("f8"): 2.0**-53}
DIGITS = {np.dtype("f4"): exact.FLOAT32_DIGITS, np.dtype("f8"): exact.FLOAT64_DIGITS}


def largest_gap(row):
    kept = row[np.isfinite(row)].astype(np.float64)
    return kept.max() - kept.min()


def assert_within_bound(logits, labels):
    """No option, index labels: relative error at most (16 + D) units, of loss and of each normal gradient entry."""
    dtype = logits.dtype
    reference = exact.softmax_cross_entropy(logits, labels, reduction="none", digits=DIGITS[dtype])
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, reduction="none")
    alone = sl.softmax_cross_entropy(logits, labels, reduction="none")
    np.testing.assert_array_equal(loss, alone)
    tiny = np.finfo(dtype).tiny
    for i in range(len(logits)):
        bound = (16 + largest_gap(logits[i])) * UNIT[dtype]
        if abs(reference.loss[i]) >= tiny or reference.loss[i] == 0:
            assert exact.relative_error(loss[i], reference.loss[i]) <= bound
        normal = np.array([abs(g) >= tiny or g == 0 for g in reference.grad[i]])
        errors = exact.relative_error(grad[i], reference.grad[i])
        assert errors[normal].max(initial=0) <= bound, (i, errors[normal].max() / UNIT[dtype], bound / UNIT[dtype])


def ordinary(rng, n, classes):
    return rng.standard_normal((n, classes)) * 3


def confident(rng, n, classes):
    z = rng.standard_normal((n, classes))
    z[:, rng.integers(classes)] += rng.choice([20, 40, 80])
    return z


def uniform(rng, n, classes):
    return np.full((n, classes), 0.3) + rng.standard_normal((n, classes)) * 1e-6


def constant(rng, n, classes):
    return np.full((n, classes), 1.1)


def huge_offset(rng, n, classes):
    return 1e4 + rng.standard_normal((n, classes)) * 5


def masked(rng, n, classes):
    z = rng.standard_normal((n, classes)) * 4
    mask = rng.random((n, classes)) < 0.5
    mask[:, -1] = False
    z[mask] = -np.inf
    return z


def wide(rng, n, classes):
    """Gaps at the edge of what float32's exponent holds."""
    return rng.uniform(-45, 45, (n, classes))


def late_maximum(rng, n, classes):
    """The first classes are far below the rest, so that a row's reference must rise."""
    z = rng.standard_normal((n, classes))
    z[:, : classes // 2] -= 70
    return z


def somewhat_late_maximum(rng, n, classes):
    """The rest is above the first classes by about as much as a reference may be exceeded."""
    z = rng.standard_normal((n, classes))
    z[:, : classes // 2] -= rng.uniform(10, 30, (n, 1))
    return z


def far_late_maximum(rng, n, classes):
    z = rng.standard_normal((n, classes))
    z[:, : classes // 2] -= rng.uniform(30, 280, (n, 1))
    return z


def millions(rng, n, classes):
    """Too large for an integer reference: an origin is subtracted first."""
    return 3e6 + np.round(rng.standard_normal((n, classes)) * 5)


def thousands(rng, n, classes):
    """On both sides of what the kernels without fused multiply-add reduce exactly."""
    return rng.choice([-1600, -1300, 1300, 1600]) + rng.standard_normal((n, classes)) * 5


KINDS = [
    ordinary,
    confident,
    uniform,
    constant,
    huge_offset,
    masked,
    wide,
    late_maximum,
    somewhat_late_maximum,
    far_late_maximum,
    millions,
    thousands,
]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("classes", [1, 2, 3, 7, 16, 17, 33, 64, 100, 257])
@pytest.mark.parametrize("kind", KINDS)
def test_within_bound(kind, classes, dtype, instruction_set):
    rng = np.random.default_rng(classes)
    n = 2 if dtype == "f8" else 4
    logits = kind(rng, n, classes).astype(dtype)
    labels = rng.integers(0, classes, n)
    labels[0] = np.argmax(logits[0])
    if kind is masked:
        labels[-1] = classes - 1
    assert_within_bound(logits, labels)


@pytest.mark.parametrize("classes", [1000, 5003])
@pytest.mark.parametrize("kind", KINDS)
def test_many_classes(kind, classes, instruction_set):
    rng = np.random.default_rng(classes)
    logits = kind(rng, 1, classes).astype(np.float32)
    assert_within_bound(logits, np.argmax(logits, axis=1))


@pytest.mark.parametrize(
    "kind", [ordinary, late_maximum, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (constant, confident))]
)
def test_131072_classes(kind):
    rng = np.random.default_rng(0)
    logits = kind(rng, 1, 131072).astype(np.float32)
    assert_within_bound(logits, [int(np.argmax(logits))])


def test_a_confident_row_keeps_its_digits():
    loss, grad = sl.softmax_cross_entropy_and_grad(np.float32([[20, 0, 0]]), [0])
    assert loss == np.float32(4.122307244877116e-09)
    assert grad[0, 0] == -loss


def test_many_tiny_classes_beside_a_certain_one():
    """Each class is e^-90, below float32's normal numbers; their sum, e^-78.2, is not."""
    logits = np.zeros((1, 131072), np.float32)
    logits[0, 77777] = 90
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, [77777])
    expected = 131071 * np.exp(-90.0)
    assert loss == pytest.approx(expected, rel=(16 + 90) * 2**-24)
    assert grad[0, 77777] == pytest.approx(-expected, rel=(16 + 90) * 2**-24)


@pytest.mark.parametrize("kind", [ordinary, confident, masked, huge_offset])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_log_softmax_and_softmax(kind, dtype, instruction_set):
    rng = np.random.default_rng(5)
    logits = kind(rng, 3, 40).astype(dtype)
    unit = UNIT[logits.dtype]
    probabilities, logs = sl.softmax(logits), sl.log_softmax(logits)
    lse = sl.logsumexp(logits)
    for i in range(3):
        bound = (16 + largest_gap(logits[i])) * unit
        for j in range(0, 40, 3):
            if logits[i, j] == -np.inf:
                assert probabilities[i, j] == 0
                assert logs[i, j] == -np.inf
                continue
            reference = exact.softmax_cross_entropy(logits[i], j, digits=DIGITS[logits.dtype])
            assert exact.relative_error(-logs[i, j], reference.loss) <= bound
            p = reference.grad[j] + 1
            if p >= np.finfo(dtype).tiny:
                assert exact.relative_error(probabilities[i, j], p) <= bound
            lse_exact = reference.loss + exact.mpf(float(logits[i, j]))
            assert exact.relative_error(lse[i], lse_exact) <= 2 * unit


OPTIONS = {
    "class_weight": [None, "random", "zeros"],
    "sample_weight": [None, "random"],
    "label_smoothing": [0.0, 0.1, 1.0],
    "labels": ["index", "one_hot", "soft"],
    "reduction": ["mean", "sum", "none"],
}


@pytest.mark.parametrize("reduction", OPTIONS["reduction"])
@pytest.mark.parametrize("label_kind", OPTIONS["labels"])
@pytest.mark.parametrize("label_smoothing", OPTIONS["label_smoothing"])
@pytest.mark.parametrize("sample_weight", OPTIONS["sample_weight"])
@pytest.mark.parametrize("class_weight", OPTIONS["class_weight"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("kind", [ordinary, confident, masked, wide])
def test_product_of_options(kind, dtype, class_weight, sample_weight, label_smoothing, label_kind, reduction):
    rng = np.random.default_rng(3)
    n, classes = 4, 21
    logits = kind(rng, n, classes).astype(dtype)
    index = rng.integers(0, classes, n)
    index[0] = np.argmax(logits[0])
    options = {"label_smoothing": label_smoothing, "reduction": reduction}
    if class_weight:
        options["class_weight"] = rng.random(classes) + 0.1
        if class_weight == "zeros":
            options["class_weight"][::3] = 0
            index[1] = 1
    if sample_weight:
        options["sample_weight"] = rng.random(n)
        options["sample_weight"][1] = 0
    if label_kind == "index":
        labels = index
        if reduction != "none":
            index[2] = -100
    elif label_kind == "one_hot":
        labels = np.eye(classes)[index]
    else:
        labels = rng.dirichlet(np.full(classes, 0.3), n)
        labels[:, 5] = 0
        labels = labels / labels.sum(axis=1, keepdims=True)
        if kind is masked:
            labels = np.where(np.isfinite(logits), labels, 0)
            labels /= labels.sum(axis=1, keepdims=True)
        labels = labels.astype(dtype)
    reference = exact.softmax_cross_entropy(logits, labels, **options, digits=60)
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, **options)
    np.testing.assert_array_equal(sl.softmax_cross_entropy(logits, labels, **options), loss)

    largest = np.abs(logits[np.isfinite(logits)]).max()
    bound = (16 + largest) * UNIT[logits.dtype]
    if reduction == "none":
        assert exact.relative_error(loss, reference.loss, reference.row_scale).max() <= bound
    else:
        assert exact.relative_error(loss, reference.loss) <= bound
    errors = exact.relative_error(grad, reference.grad, reference.scale)
    normal = exact.as_float(reference.scale) >= np.finfo(dtype).tiny
    assert errors[normal].max(initial=0) <= bound


def test_tiny_weights_keep_their_digits():
    logits = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    labels = np.array([1, 2, 3])
    _, plain = sl.softmax_cross_entropy_and_grad(logits, labels, reduction="none")
    _, scaled = sl.softmax_cross_entropy_and_grad(logits, labels, reduction="none", sample_weight=np.full(3, 2.0**-100))
    np.testing.assert_allclose(scaled * np.float64(2.0**100), plain, rtol=4 * 2**-24)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_wide_rows_with_options(dtype, instruction_set):
    """Rows as wide as twice their largest logit: the gap to the maximum must not be rounded on the way."""
    rng = np.random.default_rng(0)
    unit = UNIT[np.dtype(dtype)]
    for _ in range(60):
        largest = rng.uniform(32, 43)
        logits = rng.uniform(-largest, -0.9 * largest, (1, 4)).astype(dtype)
        logits[0, 0] = largest
        labels = np.eye(4)[[1]]
        reference = exact.softmax_cross_entropy(logits, labels, digits=100)
        loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels)
        bound = (16 + np.abs(logits).max()) * unit
        assert exact.relative_error(loss, reference.loss) <= bound
        assert exact.relative_error(grad, reference.grad, reference.scale).max() <= bound


def test_a_million_weights_add_up():
    n = 10**6
    logits = np.broadcast_to([1.0, 2.0, 3.0], (n, 3))
    expected = sl.softmax_cross_entropy([1.0, 2.0, 3.0], 0)
    labels = np.zeros(n, int)
    for weights in ({"sample_weight": np.full(n, 0.1)}, {"class_weight": [0.1, 1, 1]}):
        assert sl.softmax_cross_entropy(logits, labels, **weights) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("logits", "label", "eps", "class_weight"),
    [
        ([0.3] * 64 + [26.3], 1, 0.5, [0] * 64 + [1]),
        ([0.3] * 64 + [20.7], 1, 0.5, [0] * 64 + [1]),
        ([40, 0, 0, 1, 2, 3], 2, 1.0, [1, 0, 0, 0, 0, 0]),
        ([40, 0, 0, 1, 2, 3], 2, 0.25, [1, 0, 1, 0, 0, 0]),
    ],
)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_smoothing_over_a_certain_class_that_is_not_the_label(logits, label, eps, class_weight, dtype):
    logits = np.array([logits], dtype)
    options = {"label_smoothing": eps, "class_weight": class_weight, "reduction": "sum"}
    reference = exact.softmax_cross_entropy(logits, [label], digits=60, **options)
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, [label], **options)
    bound = (16 + np.abs(logits).max()) * UNIT[logits.dtype]
    assert exact.relative_error(loss, reference.loss) <= bound
    assert exact.relative_error(grad, reference.grad, reference.scale).max() <= bound


WEIGHTS = [1e-310, 1e-300, 1e-46, 1e-42, 1e-30, 1e30, 1e39, 1e60, 1e300]


@pytest.mark.parametrize("label_kind", ["index", "smoothed", "soft"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("which", ["sample_weight", "class_weight"])
def test_a_common_weight_cancels_in_the_mean(which, weight, dtype, label_kind):
    logits = np.array([[5, 0, 1], [0, 2, -3]], dtype)
    labels = np.array([0, 1])
    options = {"label_smoothing": 0.1} if label_kind == "smoothed" else {}
    if label_kind == "soft":
        labels = np.array([[0.75, 0.25, 0], [0.5, 0.5, 0]])
    expected, expected_grad = sl.softmax_cross_entropy_and_grad(logits, labels, **options)
    weights = np.full(2 if which == "sample_weight" else 3, weight)
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, **{which: weights}, **options)
    if label_kind == "soft" and which == "class_weight":  # the mean over distributions does not divide by these
        with np.errstate(over="ignore"):
            expected = (np.float64(expected) * weight).astype(dtype)
            expected_grad = (expected_grad.astype(np.float64) * weight).astype(dtype)
    rtol = 1e-5 if dtype == "f4" else 1e-13
    subnormal = np.finfo(dtype).tiny
    np.testing.assert_allclose(loss, expected, rtol=rtol, atol=subnormal)
    np.testing.assert_allclose(grad, expected_grad, rtol=rtol, atol=subnormal)


def test_large_weights_leave_masked_classes_alone():
    logits = np.array([[5, 0, -np.inf, -120]], np.float32)
    _, grad = sl.softmax_cross_entropy_and_grad(logits, [0], sample_weight=[1e60], reduction="sum")
    reference = exact.softmax_cross_entropy(logits, [0], sample_weight=[1e60], reduction="sum")
    assert grad[0, 2] == 0
    assert grad[0, 3] == pytest.approx(float(reference.grad[0, 3]), rel=1e-5)
    assert grad[0, 1] == np.inf  # more than float32 holds


def test_a_mass_too_small_for_float32_still_meets_its_mask():
    logits = np.array([[0, -np.inf]], np.float32)
    assert sl.softmax_cross_entropy(logits, [[1, 1e-50]]) == np.inf
    assert sl.softmax_cross_entropy(logits, [[1, 0.0]]) == 0
