"""Tests of the running totals: any blocks and any parts add up to the same, and what they refuse."""

import math

import numpy as np
import pytest

from softmaxloss import row_statistics, softmax
from softmaxloss.evaluation import Evaluation, evaluate
from softmaxloss.labels import LabelError
from softmaxloss.totals import Totals


def make_rows(n=200, classes=7, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=(n, classes)).astype(dtype)
    labels = rng.integers(0, classes, n)
    logits[np.arange(n), labels] += 1.5
    return logits, labels


def assert_same(a, b):
    assert_close(a.to_dict(), b.to_dict())


def assert_close(found, wanted):
    """Compare what JSON can hold, numbers but for rounding."""
    assert type(found) is type(wanted)
    if isinstance(found, dict):
        assert found.keys() == wanted.keys()
        for key in found:
            assert_close(found[key], wanted[key])
    elif isinstance(found, list):
        assert len(found) == len(wanted)
        for pair in zip(found, wanted, strict=True):
            assert_close(*pair)
    elif isinstance(found, float):
        assert found == pytest.approx(wanted, rel=1e-12)
    else:
        assert found == wanted


@pytest.fixture(params=[1, 100, 1000, 1 << 22])
def block_bytes(request, monkeypatch):
    monkeypatch.setattr("softmaxloss.backends.layout._BLOCK_BYTES", request.param)
    return request.param


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_block_size_does_not_matter(kind, monkeypatch):
    logits, labels = make_rows()
    scores = logits if kind == "logits" else np.asarray(softmax(logits))
    weight = np.random.default_rng(1).uniform(0, 3, len(labels))
    labels[[3, 50]] = -100
    scores[[4, 199]] = np.nan
    weight[7] = 0
    whole = evaluate(scores, labels, kind=kind, sample_weight=weight)
    assert (whole.n_ignored, whole.n_nonfinite) == (3, 2)
    for size in (1, 57, 640, 5000):
        monkeypatch.setattr("softmaxloss.backends.layout._BLOCK_BYTES", size)
        part = evaluate(scores, labels, kind=kind, sample_weight=weight)
        assert part.loss == whole.loss
        assert_same(part, whole)


def test_totals_merge_to_those_of_all_rows():
    logits, labels = make_rows()
    labels[[3, 150]] = -100
    logits[160] = np.inf
    weight = np.random.default_rng(1).uniform(0, 3, len(labels))
    expected = evaluate(logits, labels, sample_weight=weight)
    merged = Totals(7)
    for start, stop in ((0, 1), (1, 1), (1, 120), (120, 200)):
        part = Totals(7, first_row=start)
        part.add(logits[start:stop], labels[start:stop], weight[start:stop])
        merged.merge(part)
    assert_same(Evaluation.of(merged), expected)
    again = Totals(7)
    again.merge(merged)
    again.add(logits[:0], labels[:0])
    assert_same(Evaluation.of(again), expected)


@pytest.mark.parametrize("other", [Totals(3), Totals(2, top_k=(1,)), Totals(2, kind="probabilities")])
def test_totals_of_other_options_do_not_merge(other):
    with pytest.raises(ValueError, match="the other totals have"):
        Totals(2).merge(other)


def test_standard_error_does_not_cancel():
    # The row losses are about 1e6, and 1e-3 apart: a sum of squares would hold nothing of the difference.
    apart = np.array([0.0, 1e-3, 2e-3, 3e-3])
    logits = np.stack([np.zeros(4), 1e6 + apart], axis=1)
    part = Totals(2)
    part.add(logits[:1], [0])
    rest = Totals(2)
    rest.add(logits[1:], [0, 0, 0])
    part.merge(rest)
    expected = apart.std(ddof=1) / 2
    assert Evaluation.of(part).loss_standard_error == pytest.approx(expected, rel=1e-6)
    assert evaluate(logits, [0, 0, 0, 0]).loss_standard_error == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_weights_of_very_different_magnitudes_merge(order, block_bytes):
    # The averages of each class are of rows of one magnitude; those of all rows are of the heaviest.
    logits, labels = make_rows()
    light, heavy = labels < 2, labels >= 5
    factor = np.where(light, 1e-100, np.where(heavy, 1e200, 1.0))
    weight = np.random.default_rng(1).uniform(1, 3, len(labels))
    parts = [np.array_split(np.arange(200), 3)[part] for part in order]
    merged, added = Totals(7), Totals(7)
    for rows in parts:
        part = Totals(7)
        part.add(logits[rows], labels[rows], (weight * factor)[rows])
        before = Evaluation.of(part).to_dict()
        merged.merge(part)
        added.add(logits[rows], labels[rows], (weight * factor)[rows])
        assert Evaluation.of(part).to_dict() == before
    plain = evaluate(logits, labels, sample_weight=weight)
    heaviest = evaluate(logits[heavy], labels[heavy], sample_weight=weight[heavy])
    n = np.array([200, np.count_nonzero(heavy)])
    for found in (Evaluation.of(merged), Evaluation.of(added)):
        np.testing.assert_allclose(found.class_loss, plain.class_loss, rtol=1e-13)
        np.testing.assert_allclose(found.class_accuracy, plain.class_accuracy, rtol=1e-13)
        assert found.loss == pytest.approx(heaviest.loss, rel=1e-13)
        assert found.top_k == pytest.approx(heaviest.top_k, rel=1e-13)
        error = heaviest.loss_standard_error * np.sqrt(np.divide(*(n / (n - 1))))
        assert found.loss_standard_error == pytest.approx(error, rel=1e-12)


def test_totals_without_rows_have_no_say_in_the_unit():
    logits, labels = make_rows()
    tiny, nothing = Totals(7), Totals(7)
    tiny.add(logits, labels, np.full(200, 1e-200))
    tiny.merge(nothing)
    nothing.merge(tiny)
    ignored = Totals(7)
    ignored.add(logits, np.full(200, -100), np.full(200, 1e200))
    nothing.merge(ignored)
    for totals in (tiny, nothing):
        assert Evaluation.of(totals).loss_standard_error == pytest.approx(
            evaluate(logits, labels).loss_standard_error, rel=1e-12
        )


def test_weights_in_bfloat16():
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    logits, labels = make_rows()
    weight = np.random.default_rng(1).uniform(0, 3, 200).astype(bfloat16)
    assert_same(
        evaluate(logits, labels, sample_weight=weight),
        evaluate(logits, labels, sample_weight=weight.astype(np.float64)),
    )


def test_infinite_losses_merge():
    finite, infinite = Totals(2), Totals(2)
    finite.add([[0.0, 1.0]], [0])
    infinite.add([[-np.inf, 1.0]], [0])
    finite.merge(infinite)
    assert Evaluation.of(finite).loss == math.inf
    assert Evaluation.of(finite).n_infinite_loss == 1


def test_reads_a_block_at_a_time(tmp_path, monkeypatch):
    largest = 0

    def watching(scores, labels, **options):
        nonlocal largest
        largest = max(largest, scores.nbytes)
        return row_statistics(scores, labels, **options)

    monkeypatch.setattr("softmaxloss.measures.rows.row_statistics", watching)
    scores = np.lib.format.open_memmap(tmp_path / "scores.npy", "w+", np.float16, (100_000, 50))
    assert evaluate(scores, np.zeros(100_000, np.int8)).loss == pytest.approx(math.log(50), rel=1e-6)
    assert 1 << 21 < largest <= 1 << 22


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.5, 0.498], r"scores\[9\] sums to 0.998 .*kind='logits'"),
        ([1.1, -0.1], r"scores\[9\] .*least entry is -0.1; .*kind='logits'"),
        ([-np.inf, 0.0], r"scores\[9\] .*least entry is -inf; .*kind='logits'"),
    ],
)
def test_rows_that_are_no_distribution_are_named(row, message, block_bytes):
    scores = np.full((12, 2), 0.5)
    scores[3] = [2.0, 3.0]
    scores[5] = np.nan
    scores[9] = row
    labels = np.zeros(12, int)
    labels[3] = -100
    with pytest.raises(ValueError, match=message):
        evaluate(scores, labels, kind="probabilities")


def test_probabilities_within_the_tolerance_pass():
    assert evaluate([[0.5, 0.4995], [0.5, 0.5005]], [0, 0], kind="probabilities").n_scored == 2


@pytest.mark.parametrize("bad", [7, -1, -99, 1000])
def test_labels_out_of_range_name_the_row_of_the_whole(bad, block_bytes):
    logits, labels = make_rows()
    labels[100] = -100
    labels[[150, 160]] = bad
    with pytest.raises(LabelError, match=rf"labels\[150\] is {bad}; a label is from 0 to 6, .*ignore_index = -100"):
        evaluate(logits, labels)


def test_labels_are_checked_where_the_weight_is_zero():
    with pytest.raises(LabelError, match=r"labels\[0\] is 5"):
        evaluate([[0.0, 0.0]], [5], sample_weight=[0.0])


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_weights_out_of_range_name_the_row_of_the_whole(bad, block_bytes):
    logits, labels = make_rows()
    weight = np.ones(len(labels), np.float32)
    weight[[150, 160]] = bad
    with pytest.raises(ValueError, match=rf"sample_weight\[150\] is {bad}; weights must be finite"):
        evaluate(logits, labels, sample_weight=weight)


def test_a_large_unsigned_label_does_not_wrap_to_ignore_index():
    with pytest.raises(LabelError, match=r"labels\[1\] is 18446744073709551516; a label is from 0 to 1"):
        evaluate(np.zeros((2, 2)), np.array([0, 2**64 - 100], np.uint64))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1.0, 2.0], [0]), {}, ValueError, r"scores have shape \(2,\)"),
        ((np.zeros((2, 3, 4)), [0, 1]), {}, ValueError, r"reshape"),
        ((np.zeros((2, 0)), [0, 1]), {}, ValueError, "number of classes is 0"),
        ((np.zeros((2, 3)), np.eye(2, 3)), {}, ValueError, r"argmax"),
        ((np.zeros((2, 3)), [0, 1, 2]), {}, ValueError, r"labels have shape \(3,\); expected \(2,\)"),
        ((np.zeros((2, 3)), 0), {}, ValueError, r"labels have shape \(\); expected \(2,\)"),
        ((np.zeros((2, 3)), [0.0, 1.0]), {}, TypeError, "labels have dtype float64"),
        ((np.zeros((2, 3), complex), [0, 1]), {}, TypeError, "scores have dtype complex128"),
        ((np.full((2, 3), "x"), [0, 1]), {}, TypeError, "scores have dtype <U1"),
        ((np.zeros((2, 3)), [0, 1]), {"sample_weight": [1.0]}, ValueError, r"sample_weight has shape \(1,\)"),
        ((np.zeros((2, 3)), [0, 1]), {"sample_weight": ["a", "b"]}, TypeError, "sample_weight has dtype"),
        ((np.zeros((2, 3)), [0, 1]), {"kind": "log"}, ValueError, "kind is 'log'; expected 'logits' or"),
        ((np.zeros((2, 3)), [0, 1]), {"top_k": (0,)}, ValueError, r"top_k is \(0,\)"),
        ((np.zeros((2, 3)), [0, 1]), {"top_k": 0}, ValueError, r"top_k is \(0,\)"),
        ((np.zeros((2, 3)), [0, 1]), {"top_k": (1.5,)}, TypeError, "integer"),
        ((np.zeros((2, 3)), [0, 1]), {"top_k": 1.5}, TypeError, "integer"),
        ((np.zeros((2, 3)), [0, 1]), {"ignore_index": 0.5}, TypeError, "integer"),
        (
            (np.zeros((2, 3)), [0, 1]),
            {"class_names": ["a", "b"]},
            ValueError,
            "class_names has 2 names; expected 3",
        ),
    ],
)
def test_refuses(arguments, options, error, message):
    with pytest.raises(error, match=message):
        evaluate(*arguments, **options)
