"""Tests of what evaluation tells beside the loss: intervals, calibration, confusions, worst rows, sums and JSON."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softmaxloss import LabelError, evaluate, softmax
from softmaxloss.evaluation import Evaluation, Totals
from softmaxloss.measures.bootstrap import bootstrap_means, cells_of_groups, cells_of_rows

metrics = pytest.importorskip("sklearn.metrics")


def make_rows(n=400, classes=7, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=(n, classes)).astype(dtype)
    labels = rng.integers(0, classes, n)
    logits[np.arange(n), labels] += 1.5
    return logits, labels


def assert_close(found, wanted, rel=1e-12):
    """Compare what JSON can hold: integers and text exactly, other numbers but for rounding."""
    assert type(found) is type(wanted)
    if isinstance(found, dict):
        assert found.keys() == wanted.keys()
        for key in found:
            assert_close(found[key], wanted[key], rel)
    elif isinstance(found, list):
        assert len(found) == len(wanted)
        for pair in zip(found, wanted, strict=True):
            assert_close(*pair, rel)
    elif isinstance(found, float):
        assert found == pytest.approx(wanted, rel=rel, abs=1e-14)
    else:
        assert found == wanted


# Against scikit-learn and plain NumPy


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [2, 7, 60])  # one way of ranking for few classes, and another for many
def test_brier_score_and_confusions_agree_with_scikit_learn(classes, weighted):
    logits, labels = make_rows(classes=classes)
    probabilities = np.asarray(softmax(logits))
    weight = np.random.default_rng(1).uniform(0.1, 3, len(labels)) if weighted else None
    found = evaluate(logits, labels, sample_weight=weight)
    errors = ((probabilities - np.eye(classes)[labels]) ** 2).sum(axis=1)
    assert found.brier == pytest.approx(np.average(errors, weights=weight), rel=1e-12)
    # The score of two classes is halved there.
    brier = metrics.brier_score_loss(labels == 1, np.where(labels == 1, probabilities[:, 1], 0), sample_weight=weight)
    half = np.average((labels == 1) * (1 - probabilities[:, 1]) ** 2, weights=weight)
    assert brier == pytest.approx(half, rel=1e-12)
    if classes == 2:
        score = metrics.brier_score_loss(labels, probabilities[:, 1], sample_weight=weight)
        assert found.brier == pytest.approx(2 * score, rel=1e-12)
    matrix = metrics.confusion_matrix(labels, logits.argmax(axis=1), labels=range(classes))
    np.testing.assert_array_equal(found.confusion_matrix, matrix)


def test_baseline_is_the_loss_of_the_class_frequencies():
    logits, labels = make_rows()
    weight = np.random.default_rng(1).uniform(0.1, 3, len(labels))
    frequencies = np.bincount(labels, weight, 7) / weight.sum()
    baseline = metrics.log_loss(labels, np.tile(frequencies, (len(labels), 1)), sample_weight=weight)
    found = evaluate(logits, labels, sample_weight=weight)
    assert found.baseline_loss == pytest.approx(baseline, rel=1e-12)
    assert found.pseudo_r2 == pytest.approx(1 - found.loss / baseline, rel=1e-12)
    assert found.bits == pytest.approx(found.loss / math.log(2), rel=1e-15)
    one_class = evaluate([[1.0, 0.0]], [0])
    assert one_class.baseline_loss == 0.0
    assert math.isnan(one_class.pseudo_r2)


@pytest.mark.parametrize("bins", [1, 10, 15, 5000])
def test_calibration_error_by_definition(bins):
    logits, labels = make_rows()
    weight = np.random.default_rng(1).uniform(0.1, 3, len(labels))
    probabilities = np.asarray(softmax(logits))
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    in_bins = [bin_of == b for b in range(bins) if (bin_of == b).any()]
    expected = sum(abs((weight * (confidence - right))[rows].sum()) for rows in in_bins) / weight.sum()
    found = evaluate(logits, labels, sample_weight=weight, bins=bins)
    assert found.calibration_error == pytest.approx(expected, rel=1e-12)
    np.testing.assert_array_equal(found.reliability.n_rows, [rows.sum() for rows in in_bins])
    accuracy = [np.average(right[rows], weights=weight[rows]) for rows in in_bins]
    np.testing.assert_allclose(found.reliability.accuracy, accuracy, rtol=1e-12)


def test_adaptive_bins_hold_about_equal_weights():
    logits, labels = make_rows(n=5000)
    probabilities = np.asarray(softmax(logits))
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    found = evaluate(logits, labels, bins=10)
    bins = found.adaptive_reliability
    assert bins.n_rows.sum() == 5000
    # A cell of 1 / 4100 is the most that a bin may be off by at either end; near confidence 1 it holds more rows.
    np.testing.assert_allclose(bins.weight, 0.1, atol=0.01)
    exact = [abs((confidence - right)[rows].mean()) for rows in np.array_split(confidence.argsort(), 10)]
    assert found.adaptive_calibration_error == pytest.approx(np.mean(exact), abs=0.005)


def test_perfect_and_uniform_predictions():
    sure = evaluate(np.where(np.eye(3), 0.0, -np.inf), [0, 1, 2])
    assert (sure.brier, sure.calibration_error, sure.adaptive_calibration_error) == (0.0, 0.0, 0.0)
    uniform = evaluate(np.zeros((4, 4)), [0, 1, 2, 3])
    assert (uniform.brier, uniform.calibration_error) == (0.75, 0.0)
    assert uniform.pseudo_r2 == pytest.approx(0, abs=1e-15)


def test_confusions_of_many_classes_are_a_list():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 300) * 400
    logits = np.zeros((300, 2000), np.float32)
    predictions = np.where(rng.random(300) < 0.5, labels, labels + rng.integers(1, 3, 300))
    logits[np.arange(300), predictions] = 5
    found = evaluate(logits, labels)
    assert found.confusion_matrix is None
    pairs, counts = np.unique([labels, predictions], axis=1, return_counts=True)
    expected = {(str(a), str(b)): n for (a, b), n in zip(pairs.T, counts, strict=True) if a != b}
    told = found.top_confusions(100)
    assert {(a, b): n for a, b, n in told} == expected
    assert [n for _, _, n in told] == sorted(expected.values(), reverse=True)
    halves = evaluate(logits[:100], labels[:100]) + evaluate(logits[100:], labels[100:], first_row=100)
    assert halves.top_confusions(100) == told


def test_worst_rows():
    logits, labels = make_rows()
    labels[[3, 5]] = -100
    logits[17] = np.nan
    rows = -np.log(np.asarray(softmax(logits))[np.arange(400), np.maximum(labels, 0)])
    rows[[3, 5, 17]] = -1
    order = np.argsort(-rows, kind="stable")[:12]
    found = evaluate(logits, labels, worst=12, first_row=1000).worst_rows
    assert [row.row - 1000 for row in found] == order.tolist()
    np.testing.assert_allclose([row.loss for row in found], rows[order], rtol=1e-12)
    assert [row.label for row in found] == labels[order].tolist()
    assert [row.prediction for row in found] == logits[order].argmax(axis=1).tolist()
    assert evaluate(logits, labels, worst=0).worst_rows == []
    ties = evaluate(np.zeros((50, 2)), np.zeros(50, int), worst=3)
    assert [row.row for row in ties.worst_rows] == [0, 1, 2]


# Kinds, options


@pytest.mark.parametrize("classes", [7, 60])
def test_kinds_agree(classes):
    logits, labels = make_rows(classes=classes)
    logits[9] = np.nan
    logits[11, labels[11] - 1] = -np.inf
    logits[13, labels[13]] = -np.inf
    probabilities = np.asarray(softmax(logits))
    with np.errstate(divide="ignore"):
        others = {"probabilities": probabilities, "log_probabilities": np.log(probabilities)}
    expected = evaluate(logits, labels).to_dict()
    for kind, scores in others.items():
        assert_close(evaluate(scores, labels, kind=kind).to_dict(), expected, rel=1e-9)
    assert (expected["n_nonfinite"], expected["n_infinite_loss"]) == (1, 1)


def test_logits_are_no_log_probabilities():
    scores = np.log([[0.5, 0.5], [0.25, 0.75]])
    assert evaluate(scores, [0, 1], kind="log_probabilities").n_scored == 2
    scores[1] += 0.01
    with pytest.raises(ValueError, match=r"exponentials of scores\[1\] sum to 1.01005.*kind='logits'"):
        evaluate(scores, [0, 1], kind="log_probabilities")
    with pytest.raises(ValueError, match=r"scores\[0\] sum to inf"):
        evaluate([[800.0, 0.0]], [0], kind="log_probabilities")


@pytest.mark.parametrize("kind", ["logits", "probabilities", "log_probabilities"])
def test_only_the_loss(kind):
    logits, labels = make_rows()
    logits[3], labels[4] = np.nan, -100
    scores = logits if kind == "logits" else np.asarray(softmax(logits))
    scores = np.log(scores) if kind == "log_probabilities" else scores
    weight = np.random.default_rng(1).uniform(0, 3, len(labels))
    whole = evaluate(scores, labels, kind=kind, sample_weight=weight)
    found = evaluate(scores, labels, kind=kind, sample_weight=weight, only_loss=True)
    assert (found.loss, found.loss_standard_error) == (whole.loss, whole.loss_standard_error)
    np.testing.assert_array_equal(found.class_loss, whole.class_loss)
    assert (found.n_scored, found.n_nonfinite, found.n_ignored) == (398, 1, 1)
    left_out = [found.accuracy, found.brier, found.calibration_error, *found.loss_interval, *found.top_k.values()]
    assert np.isnan([*left_out, *found.class_accuracy]).all()
    assert (found.confusion_matrix, found.worst_rows, found.top_confusions()) == (None, [], [])
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bins": 0}, ValueError, "bins is 0; expected at least 1"),
        ({"worst": -1}, ValueError, "worst is -1"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"first_row": -1}, ValueError, "first_row is -1"),
        ({"bins": 1.5}, TypeError, "integer"),
        ({"groups": [0]}, ValueError, r"groups have shape \(1,\); expected \(2,\)"),
        ({"groups": [0.5, 1.0]}, TypeError, "groups have dtype float64"),
    ],
)
def test_refuses(options, error, message):
    with pytest.raises(error, match=message):
        evaluate([[0.0, 1.0], [1.0, 0.0]], [0, 1], **options)


def test_errors_count_from_the_first_row():
    with pytest.raises(LabelError, match=r"labels\[101\] is 5"):
        evaluate([[0.0, 1.0], [1.0, 0.0]], [0, 5], first_row=100)


def test_interval_refuses():
    found = evaluate([[0.0, 1.0], [1.0, 0.0]], [0, 1])
    for options, message in (
        ({"level": 1.0}, "level is 1.0"),
        ({"replicates": 0}, "replicates is 0"),
        ({"measure": "brier"}, "measure is 'brier'"),
    ):
        with pytest.raises(ValueError, match=message):
            found.interval(**options)


# The bootstrap


def test_intervals_are_as_wide_as_theory_says():
    logits, labels = make_rows(n=20_000)
    found = evaluate(logits, labels)
    low, high = found.loss_interval
    assert low < found.loss < high
    # The width is uncertain by 2 % for the cells, and by 4 % for the quantiles of 1000 replicates.
    assert high - low == pytest.approx(2 * 1.96 * found.loss_standard_error, rel=0.15)
    low, high = found.accuracy_interval
    error = math.sqrt(found.accuracy * (1 - found.accuracy) / 20_000)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)
    narrow = found.interval("loss", level=0.5)
    assert found.loss_interval[0] < narrow[0] < narrow[1] < found.loss_interval[1]


def test_groups_widen_intervals():
    logits, labels = make_rows(n=2000)
    same = np.repeat(np.arange(2000), 9)
    found = evaluate(logits[same], labels[same], groups=same)
    plain = evaluate(logits[same], labels[same])
    once = evaluate(logits, labels)

    def width(interval):
        return interval[1] - interval[0]

    assert width(found.loss_interval) == pytest.approx(width(once.loss_interval), rel=0.15)
    assert width(plain.loss_interval) == pytest.approx(width(once.loss_interval) / 3, rel=0.2)
    named = evaluate(logits[same], labels[same], groups=[f"document {g}" for g in same])
    assert width(named.loss_interval) == pytest.approx(width(once.loss_interval), rel=0.15)


def test_seeds():
    logits, labels = make_rows()
    first, again, other = (evaluate(logits, labels, seed=seed).loss_interval for seed in (1, 1, 2))
    assert first == again != other


def test_no_interval_for_one_row_or_infinite_loss():
    assert np.isnan(evaluate([[0.0, 1.0]], [0]).loss_interval).all()
    assert np.isnan(evaluate([[0.0, 1.0]] * 5, [0] * 5, groups=[3] * 5).loss_interval).all()
    infinite = evaluate([[0.0, -np.inf], [0.0, 0.0]], [1, 1])
    assert np.isnan(infinite.loss_interval).all()


def test_cells_are_spread_evenly():
    n = 1 << 18
    for cells in (cells_of_rows(np.arange(n), 0), cells_of_groups(np.arange(n, dtype=np.uint64) << 20, 5)):
        counts = np.bincount(cells, minlength=1024)
        assert len(counts) == 1024
        chi_square = ((counts - 256) ** 2 / 256).sum()
        assert abs(chi_square - 1023) < 5 * math.sqrt(2 * 1023)
    np.testing.assert_array_equal(
        cells_of_groups(np.array([1, 2, 1], np.int8), 0), cells_of_rows(np.array([1, 2, 1]), 0)
    )


def test_bootstrap_means_have_the_right_spread():
    values = np.random.default_rng(0).normal(size=1024)
    means = bootstrap_means(np.ones(1024), values, 2500, 0)
    assert means.mean() == pytest.approx(values.mean(), abs=4 / 32 / math.sqrt(2500))
    assert means.std() == pytest.approx(values.std() / 32, rel=0.08)
    np.testing.assert_array_equal(means, bootstrap_means(np.ones(1024), values, 2500, 0))


# Parts and the whole


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 120), max_size=4),
    st.sampled_from([1, 3, 50, 100]),
    st.booleans(),
    st.sampled_from([np.float32, np.float64]),
    st.integers(1, 3000),
)
def test_any_parts_and_blocks_add_up_to_the_same(cuts, classes, weighted, dtype, block_bytes):
    logits, labels = make_rows(n=120, classes=classes, dtype=dtype)
    logits = logits.round(1)  # ties
    logits[7], labels[[8, 50]] = np.nan, -100
    weight = np.random.default_rng(1).uniform(0, 3, 120) if weighted else None
    whole = evaluate(logits, labels, sample_weight=weight).to_dict()
    bounds = [0, *sorted(cuts), 120]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("softmaxloss.backends.layout._BLOCK_BYTES", block_bytes)
        parts = [
            evaluate(
                logits[start:stop],
                labels[start:stop],
                sample_weight=None if weight is None else weight[start:stop],
                first_row=start,
            )
            for start, stop in itertools.pairwise(bounds)
        ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert_close(total.to_dict(), whole)
    backwards = parts[-1]
    for part in parts[-2::-1]:
        backwards = backwards + part
    assert_close(backwards.to_dict(), whole)


def test_groups_add_up_without_row_numbers():
    logits, labels = make_rows()
    groups = np.arange(400) // 7
    halves = [evaluate(logits[s], labels[s], groups=groups[s]) for s in (slice(None, 150), slice(150, None))]
    whole = evaluate(logits, labels, groups=groups)
    assert (halves[0] + halves[1]).loss_interval == pytest.approx(whole.loss_interval, rel=1e-12)


def test_adding_leaves_both_as_they_are():
    logits, labels = make_rows()
    a, b = evaluate(logits[:100], labels[:100]), evaluate(logits[100:], labels[100:], first_row=100)
    before = a.to_json(), b.to_json()
    a + b
    assert (a.to_json(), b.to_json()) == before
    with pytest.raises(ValueError, match="class_names"):
        a + evaluate(logits, labels, class_names=list("abcdefg"))
    with pytest.raises(ValueError, match="the other totals have"):
        a + evaluate(logits, labels, bins=3)
    with pytest.raises(TypeError):
        a + 1


def test_an_evaluation_of_totals_does_not_change_with_them():
    totals = Totals(2)
    totals.add([[0.0, 1.0]], [0])
    found = Evaluation.of(totals)
    totals.add([[0.0, 1.0]], [1])
    assert (found.n_rows, Evaluation.of(totals).n_rows) == (1, 2)


@pytest.mark.parametrize("case", ["plain", "weighted", "infinite", "empty", "many classes"])
def test_json_gives_the_same_evaluation_again(case):
    logits, labels = make_rows(classes=1500 if case == "many classes" else 7, n=60)
    weight = np.full(60, 1e-200) if case == "weighted" else None
    if case == "infinite":
        logits[3, labels[3]] = -np.inf
    if case == "empty":
        labels[:] = -100
    found = evaluate(logits, labels, sample_weight=weight, class_names=[f"c{c}" for c in range(logits.shape[1])])
    text = found.to_json()
    again = Evaluation.from_json(text)
    assert again.to_json() == text
    assert again.to_dict() == found.to_dict()
    assert (again + found).to_dict() == (found + again).to_dict()
    assert (again + found).n_rows == 120


@pytest.mark.parametrize("text", ["{}", "[]", '{"format": "softmaxloss.Evaluation/1", "totals": {}}', "no JSON"])
def test_from_json_refuses(text):
    with pytest.raises(ValueError, match=r"to_json wrote|Expecting value"):
        Evaluation.from_json(text)
