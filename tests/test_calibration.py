"""Tests of temperature scaling: against SciPy's minimiser, at the limits where no temperature is best, in blocks."""

import numpy as np
import pytest

from softmaxloss import LabelError, fit_temperature, softmax_cross_entropy

optimize = pytest.importorskip("scipy.optimize")


def make_rows(n=300, classes=5, scale=1.0, seed=0):
    """Give logits `scale` times those that the labels were drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=(n, classes))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return logits * scale, labels


def by_scipy(logits, labels, **options):
    def loss(logarithm):
        return softmax_cross_entropy(logits, labels, temperature=float(np.exp(logarithm)), **options)

    found = optimize.minimize_scalar(loss, bracket=(-1, 1), options={"xtol": 1e-12})
    return float(np.exp(found.x))


@pytest.mark.parametrize("scale", [1e-6, 0.1, 1.0, 7.0, 1e5])
def test_agrees_with_scipy(scale):
    logits, labels = make_rows()
    expected = by_scipy(logits, labels)
    assert fit_temperature(logits * scale, labels) == pytest.approx(expected * scale, rel=1e-6)


def test_the_slope_is_zero_there():
    logits, labels = make_rows(scale=3.0)
    found = fit_temperature(logits, labels)
    losses = [softmax_cross_entropy(logits, labels, temperature=found * (1 + e)) for e in (-1e-4, 0, 1e-4)]
    assert losses[1] < min(losses[0], losses[2])
    z = logits / found
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    slopes = (p * z).sum(axis=1) - z[np.arange(300), labels]
    assert abs(slopes.mean()) < 1e-12 * np.abs(slopes).mean()


@pytest.mark.parametrize("factor", [1e-200, 1.0, 1e200])
def test_weights_ignored_rows_and_masked_classes(factor):
    logits, labels = make_rows()
    weight = np.random.default_rng(1).integers(0, 4, len(labels))
    expected = by_scipy(np.repeat(logits, weight, axis=0), np.repeat(labels, weight))
    assert fit_temperature(logits, labels, sample_weight=weight * factor) == pytest.approx(expected, rel=1e-6)
    masked = np.insert(logits, 2, -np.inf, axis=1)
    masked[0] = np.nan
    moved = labels + (labels >= 2)
    moved[0] = -7
    expected = by_scipy(logits[1:], labels[1:])
    assert fit_temperature(masked, moved, ignore_index=-7) == pytest.approx(expected, rel=1e-6)


def test_blocks_and_dtypes(monkeypatch):
    logits, labels = make_rows()
    logits = logits.astype(np.float32)
    whole = fit_temperature(logits.astype(np.float64), labels)
    assert fit_temperature(logits, labels.astype(np.uint8)) == whole
    monkeypatch.setattr("softmaxloss.backends.layout._BLOCK_BYTES", 333)
    assert fit_temperature(logits, labels) == pytest.approx(whole, rel=1e-12)


def test_two_rows_by_hand():
    # Two rows of logits [1, 0], three of [1, 0] with the other label: log(3 / 2) is the best gap.
    logits = [[1.0, 0.0]] * 5
    assert fit_temperature(logits, [0, 0, 0, 1, 1]) == pytest.approx(1 / np.log(1.5), rel=1e-12)
    offset = np.asarray(logits) + 1e6
    assert fit_temperature(offset, [0, 0, 0, 1, 1]) == pytest.approx(1 / np.log(1.5), rel=1e-12)


@pytest.mark.parametrize("gap", [1e-3, 1e-9])
def test_almost_separable(gap):
    # One label is short of the largest logit by so little that the best temperature is of that size.
    logits = np.array([[0.0, gap], *[[1.0, 0.0]] * 99])
    found = fit_temperature(logits, [0] * 100)
    slope = gap / (1 + np.exp(-gap / found)) - 99 / (1 + np.exp(1 / found))
    assert abs(slope) < 1e-7 * gap


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ([[2.0, 1.0], [0.0, 3.0]], [0, 1], "every label has the largest logit"),
        ([[2.0, 2.0], [1.0, 1.0]], [0, 1], "every label has the largest logit"),
        ([[2.0], [1.0]], [0, 0], "every label has the largest logit"),
        ([[2.0, 1.0], [0.0, 3.0]], [1, 0], "no larger than the other classes"),
        ([[2.0, 1.0], [2.0, 1.0]], [1, 0], "no larger than the other classes"),
        ([[2.0, 1.0]], [-100], "no row counts"),
        (np.empty((0, 2)), [], "no row counts"),
        ([[0.0, 1.0], [np.nan, 1.0]], [0, 1], r"logits\[1\] hold NaN"),
        ([[0.0, 1.0], [np.inf, 1.0]], [0, 1], r"logits\[1\] hold NaN or \+inf"),
        ([[0.0, 1.0], [np.inf, 1.0]], [0, 0], r"logits\[1\] hold NaN or \+inf"),
        ([[0.0, 1.0], [-np.inf, 1.0]], [0, 0], r"logits\[1\] .* -inf for the label"),
        ([0.0, 1.0], 0, "expected .rows, classes."),
        ([[0.0, 1.0]], [0, 1], "labels have shape"),
        ([[0.0, 1.0]], [2], r"labels\[0\] is 2"),
    ],
)
def test_refuses(logits, labels, message):
    with pytest.raises(ValueError, match=message) as raised:
        fit_temperature(logits, labels)
    assert isinstance(raised.value, LabelError) == message.startswith(r"labels\[")
