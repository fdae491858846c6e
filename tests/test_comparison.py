"""Tests of comparisons: against SciPy's tests and plain NumPy, on rows that do not count, and as they print."""

import io
import json
import math

import numpy as np
import pytest

from softmaxloss import compare, evaluate, row_statistics, softmax

stats = pytest.importorskip("scipy.stats")


def make_rows(n=500, classes=4, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes))
    labels = rng.integers(0, classes, n)
    logits[np.arange(n), labels] += 1.5
    return logits, logits + noise * rng.normal(size=logits.shape), labels


def losses(a, b, labels):
    return row_statistics(a, labels).loss, row_statistics(b, labels).loss


@pytest.fixture(params=[1, 1000, 1 << 22])
def block_bytes(request, monkeypatch):
    monkeypatch.setattr("softmaxloss.backends.layout._BLOCK_BYTES", request.param)


def test_agrees_with_scipy(block_bytes):
    a, b, labels = make_rows()
    found = compare(a, b, labels)
    loss_a, loss_b = losses(a, b, labels)
    paired = stats.ttest_rel(loss_a, loss_b)
    assert found.difference == pytest.approx((loss_a - loss_b).mean(), rel=1e-12)
    assert found.t_statistic == pytest.approx(paired.statistic, rel=1e-10)
    assert found.t_p_value == pytest.approx(paired.pvalue, rel=1e-8)
    assert found.standard_error == pytest.approx(stats.sem(loss_a - loss_b), rel=1e-12)
    right_a, right_b = (z.argmax(axis=1) == labels for z in (a, b))
    assert (found.only_a_right, found.only_b_right) == (np.sum(right_a & ~right_b), np.sum(right_b & ~right_a))
    exact = stats.binomtest(found.only_a_right, found.only_a_right + found.only_b_right).pvalue
    assert found.mcnemar_p == pytest.approx(exact, rel=1e-12)
    for c in range(4):
        expected = (loss_a - loss_b)[labels == c].mean()
        assert found.class_difference[c] == pytest.approx(expected, rel=1e-12)
    np.testing.assert_array_equal(found.class_count, np.bincount(labels))
    order = np.argsort(-np.abs(loss_a - loss_b))[:10]
    assert [row.row for row in found.rows] == order.tolist()
    np.testing.assert_allclose([(r.loss_a, r.loss_b) for r in found.rows], np.stack([loss_a, loss_b], 1)[order])
    assert [row.label for row in found.rows] == labels[order].tolist()


def test_agrees_with_evaluate():
    a, b, labels = make_rows()
    labels[3] = -100
    weight = np.random.default_rng(1).uniform(0, 3, len(labels))
    found = compare(a, b, labels, sample_weight=weight)
    of_a, of_b = (evaluate(z, labels, sample_weight=weight) for z in (a, b))
    assert (found.loss_a, found.loss_b) == pytest.approx((of_a.loss, of_b.loss), rel=1e-12)
    assert (found.accuracy_a, found.accuracy_b) == pytest.approx((of_a.accuracy, of_b.accuracy), rel=1e-12)
    assert found.difference == pytest.approx(of_a.loss - of_b.loss, rel=1e-10)
    np.testing.assert_allclose(found.class_difference, of_a.class_loss - of_b.class_loss, rtol=1e-10)
    # Independent means know less than pairs do.
    assert found.standard_error < math.hypot(of_a.loss_standard_error, of_b.loss_standard_error)


def test_bootstrap_agrees_with_the_standard_error():
    a, b, labels = make_rows(n=5000)
    found = compare(a, b, labels)
    low, high = found.interval
    assert high - low == pytest.approx(2 * 1.96 * found.standard_error, rel=0.12)
    assert low < found.difference < high < 0
    assert found.p_value == pytest.approx(2 / 2001)
    half = compare(a, b, labels, level=0.5)
    low, high = half.interval
    assert high - low == pytest.approx(2 * 0.6745 * found.standard_error, rel=0.15)
    assert (found.level, half.level, half.to_dict()["level"]) == (0.95, 0.5, 0.5)
    assert "(95 % interval" in str(found)
    assert "(50 % interval" in str(half)


def test_p_value_where_chance_is_all():
    # Over data sets of two equally good models p-values are uniform: their mean is 1/2, give or take 0.29 / sqrt(60).
    values = []
    for seed in range(60):
        a, b, labels = make_rows(n=150, seed=seed)
        shuffled = np.random.default_rng(seed).random(150) < 0.5
        a[shuffled], b[shuffled] = b[shuffled], a[shuffled]
        values.append(compare(a, b, labels, replicates=300).p_value)
    assert np.mean(values) == pytest.approx(0.5, abs=0.15)


def test_order_turns_the_signs():
    a, b, labels = make_rows()
    one, other = compare(a, b, labels), compare(b, a, labels)
    assert one.difference == -other.difference
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]), rel=1e-12)
    assert (one.p_value, one.t_p_value, one.mcnemar_p) == (other.p_value, other.t_p_value, other.mcnemar_p)
    assert (one.only_a_right, one.only_b_right) == (other.only_b_right, other.only_a_right)


def test_kinds_and_dtypes():
    a, b, labels = make_rows()
    expected = compare(a, b, labels)
    mixed = compare(np.asarray(softmax(a)), b, labels, kind=("probabilities", "logits"))
    assert mixed.difference == pytest.approx(expected.difference, rel=1e-10)
    narrow = compare(a.astype(np.float32), b, labels)
    assert narrow.difference == pytest.approx(expected.difference, rel=1e-5)


def test_groups_widen_the_interval():
    a, b, labels = make_rows()
    same = np.repeat(np.arange(500), 9)
    plain, grouped = (compare(a[same], b[same], labels[same], groups=g) for g in (None, same))
    once = compare(a, b, labels)
    widths = [found.interval[1] - found.interval[0] for found in (plain, grouped, once)]
    assert widths[1] == pytest.approx(widths[2], rel=0.15)
    assert widths[0] == pytest.approx(widths[2] / 3, rel=0.2)


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_weights_of_any_magnitude(factor):
    a, b, labels = make_rows()
    weight = np.random.default_rng(1).integers(0, 9, len(labels)).astype(np.float64)
    one, other = (compare(a, b, labels, sample_weight=w) for w in (weight, weight * factor))
    assert other.difference == pytest.approx(one.difference, rel=1e-12)
    assert other.t_statistic == pytest.approx(one.t_statistic, rel=1e-12)


def test_rows_that_do_not_count(block_bytes):
    a, b, labels = make_rows(n=60)
    expected = compare(np.delete(a, [3, 7, 9], 0), np.delete(b, [3, 7, 9], 0), np.delete(labels, [3, 7, 9]))
    a[3], b[7], labels[9] = np.nan, np.inf, -100
    found = compare(a, b, labels)
    assert (found.n_rows, found.n_scored, found.n_ignored, found.n_nonfinite) == (60, 57, 1, 2)
    assert found.difference == pytest.approx(expected.difference, rel=1e-12)
    assert found.only_a_right == expected.only_a_right
    assert "warning: left out: 2 of 60 rows" in str(found)


def test_infinite_losses():
    one = compare([[0.0, -np.inf], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]], [1, 1])
    assert one.difference == math.inf
    assert np.isnan([*one.interval, one.p_value, one.t_p_value]).all()
    assert one.rows[0].loss_a == math.inf
    assert one.n_infinite_loss == 1
    both = compare([[0.0, -np.inf], [0.0, 1.0]], [[5.0, -np.inf], [0.0, 2.0]], [1, 1])
    assert math.isfinite(both.difference)
    json.dumps([one.to_dict(), both.to_dict()], allow_nan=False)


def test_equal_models_and_no_rows():
    a, _, labels = make_rows()
    found = compare(a, a, labels)
    assert (found.difference, found.interval, found.rows) == (0.0, (0.0, 0.0), [])
    assert (found.p_value, found.t_p_value, found.mcnemar_p) == (1.0, 1.0, 1.0)
    empty = compare(np.empty((0, 3)), np.empty((0, 3)), [])
    assert np.isnan([empty.difference, empty.p_value, empty.t_p_value, empty.mcnemar_p]).all()
    assert empty.n_rows == 0


def test_prints_and_dictionary():
    a, b, labels = make_rows()
    found = compare(a, b, labels, class_names=["[b]", *"bcd"])
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["difference"] == found.difference
    assert told["classes"][1] == {"name": "b", "difference": found.class_difference[1], "count": found.class_count[1]}
    assert told["rows"][0]["row"] == found.rows[0].row
    assert str(found).splitlines()[1].startswith("difference A - B")
    console = pytest.importorskip("rich.console").Console(width=60, file=io.StringIO())
    console.print(found)
    assert "[b]" in console.file.getvalue()
    assert "McNemar" in console.file.getvalue()


@pytest.mark.parametrize(
    ("a", "b", "labels", "options", "error", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), [0, 1], {}, ValueError, r"scores_b have shape \(2, 4\)"),
        (np.zeros(3), np.zeros(3), 0, {}, ValueError, r"scores_a have shape \(3,\)"),
        (np.zeros((2, 3)), np.zeros((2, 3)), [0], {}, ValueError, "labels have shape"),
        (np.zeros((2, 3)), np.zeros((2, 3)), [0, 3], {}, ValueError, r"labels\[1\] is 3"),
        (np.zeros((2, 3)), np.zeros((2, 3)), [0, 1], {"kind": "log"}, ValueError, "kind is 'log'"),
        (np.zeros((2, 3)), np.zeros((2, 3)), [0, 1], {"level": 95}, ValueError, "level is 95"),
        (np.zeros((2, 3)), np.zeros((2, 3)), [0, 1], {"replicates": 0}, ValueError, "replicates is 0"),
        (np.full((1, 2), 0.5), np.ones((1, 2)), [0], {"kind": "probabilities"}, ValueError, r"scores_b\[0\] sums to 2"),
        (np.zeros((1, 2), complex), np.ones((1, 2)), [0], {}, TypeError, "scores_a have dtype complex128"),
    ],
)
def test_refuses(a, b, labels, options, error, message):
    with pytest.raises(error, match=message):
        compare(a, b, labels, **options)
