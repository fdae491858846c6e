"""Tests of evaluation: against scikit-learn's metrics, on rows that do not count, and as it prints."""

import io
import json
import math

import numpy as np
import pytest

from softmaxloss import softmax_cross_entropy
from softmaxloss.evaluation import evaluate

metrics = pytest.importorskip("sklearn.metrics")


def make_rows(n=200, classes=7, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=(n, classes)).astype(dtype)
    labels = rng.integers(0, classes, n)
    logits[np.arange(n), labels] += 1.5
    return logits, labels


def as_probabilities(logits):
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exps / exps.sum(axis=1, keepdims=True)


def numbers(evaluation):
    """Everything that is an average, as one array."""
    overall = [evaluation.loss, evaluation.loss_standard_error, evaluation.perplexity, evaluation.accuracy]
    return np.concatenate([overall, list(evaluation.top_k.values()), evaluation.class_loss, evaluation.class_accuracy])


def counts(evaluation):
    e = evaluation
    return (e.n_rows, e.n_scored, e.n_ignored, e.n_nonfinite, e.n_infinite_loss, e.class_count.tolist())


def assert_same(a, b, rtol=1e-13):
    assert counts(a) == counts(b)
    np.testing.assert_allclose(numbers(a), numbers(b), rtol=rtol)


@pytest.fixture(params=[1, 100, 1000, 1 << 22])
def block_bytes(request, monkeypatch):
    monkeypatch.setattr("softmaxloss.backends.layout._BLOCK_BYTES", request.param)
    return request.param


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_agrees_with_scikit_learn(kind, weighted, block_bytes):
    logits, labels = make_rows()
    probabilities = as_probabilities(logits)
    weight = np.random.default_rng(1).uniform(0.1, 3, len(labels)) if weighted else None
    found = evaluate(
        logits if kind == "logits" else probabilities,
        labels,
        kind=kind,
        top_k=(1, 2, 5),
        sample_weight=weight,
    )
    loss = metrics.log_loss(labels, probabilities, sample_weight=weight)
    assert found.loss == pytest.approx(loss, rel=1e-12)
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-12)
    predicted = logits.argmax(axis=1)
    accuracy = metrics.accuracy_score(labels, predicted, sample_weight=weight)
    assert found.accuracy == pytest.approx(accuracy, rel=1e-12)
    assert found.top_k[1] == pytest.approx(accuracy, rel=1e-12)
    for k in (2, 5):
        expected = metrics.top_k_accuracy_score(labels, logits, k=k, sample_weight=weight)
        assert found.top_k[k] == pytest.approx(expected, rel=1e-12)
    recall = metrics.recall_score(labels, predicted, average=None, sample_weight=weight)
    np.testing.assert_allclose(found.class_accuracy, recall, rtol=1e-12)
    np.testing.assert_array_equal(found.class_count, np.bincount(labels, minlength=7))
    for c in range(7):
        of_class = labels == c
        part = metrics.log_loss(
            labels[of_class],
            probabilities[of_class],
            labels=range(7),
            sample_weight=None if weight is None else weight[of_class],
        )
        assert found.class_loss[c] == pytest.approx(part, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loss_is_the_mean_loss(dtype):
    logits, labels = make_rows(dtype=dtype)
    rows = np.asarray(softmax_cross_entropy(logits, labels, reduction="none"), np.float64)
    found = evaluate(logits, labels)
    assert found.loss == pytest.approx(rows.mean(), rel=1e-14)
    assert found.loss_standard_error == pytest.approx(rows.std(ddof=1) / math.sqrt(len(rows)), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.int64, np.dtype(">f4")])
def test_other_dtypes_are_converted(dtype):
    logits, labels = make_rows()
    scores = (4 * logits).astype(dtype)
    working = np.float64 if scores.dtype.kind == "i" else np.float32
    assert_same(evaluate(scores, labels), evaluate(scores.astype(working), labels), rtol=0)


@pytest.mark.parametrize("name", ["float16", ">f2", "bfloat16"])
def test_probabilities_of_16_bits(name):
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else np.dtype(name)
    exact, labels = make_rows()
    probabilities = as_probabilities(exact).astype(dtype)
    probabilities[1, 0] = np.nan
    probabilities[3] = np.asarray([1 - 2.0**-8, *[0.0] * 5, 2.0**-7])  # the sum is off by 2^-8
    labels[3] = 0
    found = evaluate(probabilities, labels, kind="probabilities")
    picked = np.delete(probabilities.astype(np.float64)[np.arange(200), labels], 1)
    assert (found.n_scored, found.n_nonfinite) == (199, 1)
    assert found.loss == pytest.approx(-np.log(picked).mean(), rel=1e-6)
    probabilities[3, 1] = 2.0**-7
    with pytest.raises(ValueError, match=r"scores\[3\] sums to 1.01172 .*sum to 1 within 0.0078125"):
        evaluate(probabilities, labels, kind="probabilities")


def test_takes_lists_any_label_dtype_and_strides():
    logits, labels = make_rows()
    expected = evaluate(logits, labels)
    assert_same(evaluate(logits.tolist(), labels.tolist()), expected)
    for dtype in (np.uint8, np.uint64, np.int8, np.dtype(">i4")):
        assert_same(evaluate(logits, labels.astype(dtype)), expected)
    assert_same(evaluate(np.asfortranarray(logits), labels), expected)
    assert_same(evaluate(np.repeat(logits, 2, axis=0)[::2], np.repeat(labels, 2)[::2]), expected)


def test_integer_weights_average_as_repeated_rows_do():
    logits, labels = make_rows()
    weight = np.random.default_rng(1).integers(0, 4, len(labels))
    weighted = evaluate(logits, labels, sample_weight=weight)
    repeated = evaluate(np.repeat(logits, weight, axis=0), np.repeat(labels, weight))
    assert weighted.loss == pytest.approx(repeated.loss, rel=1e-13)
    assert weighted.accuracy == pytest.approx(repeated.accuracy, rel=1e-13)
    assert weighted.top_k == pytest.approx(repeated.top_k, rel=1e-13)
    np.testing.assert_allclose(weighted.class_loss, repeated.class_loss, rtol=1e-12)
    # A weight is not a number of rows: fewer rows know the mean less well.
    assert weighted.loss_standard_error > repeated.loss_standard_error
    assert weighted.n_scored == np.count_nonzero(weight)


def test_standard_error_with_weights():
    logits, labels = make_rows()
    weight = np.random.default_rng(1).uniform(0, 3, len(labels))
    rows = softmax_cross_entropy(logits, labels, reduction="none")
    mean = np.average(rows, weights=weight)
    n = len(rows)
    expected = math.sqrt(n / (n - 1) * (weight**2 * (rows - mean) ** 2).sum()) / weight.sum()
    assert evaluate(logits, labels, sample_weight=weight).loss_standard_error == pytest.approx(expected, rel=1e-12)
    equal = evaluate(logits, labels, sample_weight=np.full(n, 0.25))
    assert equal.loss_standard_error == pytest.approx(evaluate(logits, labels).loss_standard_error, rel=1e-12)


@pytest.mark.parametrize("ignore_index", [-100, 2, 255])
def test_ignored_rows_are_left_out_whatever_they_hold(ignore_index, block_bytes):
    logits, labels = make_rows()
    labels[labels == ignore_index] = 0
    expected = evaluate(logits, labels)
    extra = np.array([np.nan, np.inf, -np.inf, 5.0])[:, None].repeat(7, axis=1)
    where = [0, 10, 10, 150]
    found = evaluate(
        np.insert(logits, where, extra, axis=0),
        np.insert(labels, where, ignore_index),
        ignore_index=ignore_index,
    )
    assert (found.n_rows, found.n_scored, found.n_ignored, found.n_nonfinite) == (204, 200, 4, 0)
    np.testing.assert_allclose(numbers(found), numbers(expected), rtol=1e-13)


def test_zero_weight_rows_are_ignored():
    logits, labels = make_rows()
    weight = np.ones(len(labels))
    weight[5] = 0
    logits[5] = -np.inf
    found = evaluate(logits, labels, sample_weight=weight)
    assert (found.n_ignored, found.n_nonfinite) == (1, 0)
    expected = evaluate(np.delete(logits, 5, axis=0), np.delete(labels, 5))
    np.testing.assert_allclose(numbers(found), numbers(expected), rtol=1e-13)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_rows_that_are_not_finite_are_counted_and_left_out(kind, block_bytes):
    logits, labels = make_rows()
    scores = logits if kind == "logits" else as_probabilities(logits)
    expected = evaluate(scores, labels, kind=kind)
    extra = np.array([[0.1] * 6 + [np.nan], [np.inf] + [0.1] * 6, [0.1] * 3 + [np.inf] + [np.nan] * 3])
    if kind == "logits":
        extra = np.vstack([extra, np.full(7, -np.inf), [np.inf, -np.inf] + [0.0] * 5])
    where = np.linspace(0, 200, len(extra)).astype(int)
    found = evaluate(np.insert(scores, where, extra, axis=0), np.insert(labels, where, 0), kind=kind)
    assert (found.n_scored, found.n_nonfinite, found.n_rows) == (200, len(extra), 200 + len(extra))
    np.testing.assert_allclose(numbers(found), numbers(expected), rtol=1e-13)
    assert f"warning: left out: {len(extra)} of {200 + len(extra)} rows" in str(found)
    assert "warning" not in str(expected)


@pytest.mark.parametrize(
    ("kind", "scores"),
    [("logits", [[0.0, -np.inf], [0.0, 0.0]]), ("probabilities", [[1.0, 0.0], [0.5, 0.5]])],
)
def test_infinite_loss_is_not_left_out(kind, scores):
    found = evaluate(scores, [1, 1], kind=kind, top_k=(1,))
    assert found.loss == math.inf
    assert found.perplexity == math.inf
    assert math.isnan(found.loss_standard_error)
    assert (found.n_scored, found.n_nonfinite, found.n_infinite_loss) == (2, 0, 1)
    assert found.accuracy == 0.0
    assert "infinite mean loss: 1 of 2 rows give their label probability 0" in str(found)
    # Masked classes that no label names are nothing special.
    assert math.isfinite(evaluate([[0.0, -np.inf]], [0]).loss)


def test_ties_go_to_the_lowest_class():
    scores = np.array([[1.0, 1.0, 1.0, 0.0]] * 4)
    found = evaluate(scores, [0, 1, 2, 3], top_k=(1, 2, 3, 4))
    assert found.top_k == {1: 0.25, 2: 0.5, 3: 0.75, 4: 1.0}
    assert found.accuracy == np.mean(scores.argmax(axis=1) == [0, 1, 2, 3])
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 3, (300, 6)), rng.integers(0, 6, 300)
    assert evaluate(scores, labels).accuracy == np.mean(scores.argmax(axis=1) == labels)


@pytest.mark.filterwarnings("ignore:'k'")
def test_k_of_all_classes_or_more_is_one():
    logits, labels = make_rows()
    found = evaluate(logits, labels, top_k=[7, 100])
    assert found.top_k == {7: 1.0, 100: 1.0}
    assert metrics.top_k_accuracy_score(labels, logits, k=100) == 1.0
    assert evaluate(logits, labels, top_k=()).top_k == {}


def test_one_k_needs_no_sequence():
    logits, labels = make_rows()
    for k in (3, np.int64(3)):
        assert evaluate(logits, labels, top_k=k).top_k == evaluate(logits, labels, top_k=(3,)).top_k
    assert evaluate(logits, labels, top_k=iter([1, 2])).top_k.keys() == {1, 2}
    assert evaluate(logits, labels, top_k={2}).top_k.keys() == {2}


@pytest.mark.parametrize("factor", [5e-324, 1e-300, 1e-200, 1e-80, 1e80, 1e200, 1e307])
def test_weights_of_any_magnitude(factor, block_bytes):
    logits, labels = make_rows()
    weight = np.random.default_rng(1).integers(1, 9, len(labels)).astype(np.float64)
    found = evaluate(logits, labels, sample_weight=weight * factor)
    assert_same(found, evaluate(logits, labels, sample_weight=weight))


def test_memory_map(tmp_path, monkeypatch):
    monkeypatch.setattr("softmaxloss.backends.layout._BLOCK_BYTES", 1000)
    logits, labels = make_rows(dtype=np.float32)
    np.save(tmp_path / "scores.npy", logits)
    np.save(tmp_path / "labels.npy", labels)
    mapped = np.load(tmp_path / "scores.npy", mmap_mode="r"), np.load(tmp_path / "labels.npy", mmap_mode="r")
    assert_same(evaluate(*mapped), evaluate(logits, labels), rtol=0)


def test_arguments_are_left_as_they_are():
    logits, labels = make_rows()
    weight = np.ones(len(labels))
    kept = logits.copy(), labels.copy(), weight.copy()
    for array in (logits, labels, weight):
        array.flags.writeable = False
    evaluate(logits, labels, sample_weight=weight)
    for array, copy in zip((logits, labels, weight), kept, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("labels", [[], np.empty(0, np.int64)])
def test_no_rows(labels):
    found = evaluate(np.empty((0, 3)), labels)
    assert np.isnan(numbers(found)).all()
    assert found.top_k.keys() == {1, 5}
    assert counts(found) == (0, 0, 0, 0, 0, [0, 0, 0])
    assert "rows        0" in str(found)


def test_nothing_left_to_average():
    found = evaluate([[0.0, 1.0], [np.nan, 0.0]], [-100, 0])
    assert np.isnan(numbers(found)).all()
    assert counts(found) == (2, 0, 1, 1, 0, [0, 0])


def test_one_row_and_one_class():
    found = evaluate([[0.3]], [0])
    assert (found.loss, found.accuracy, found.top_k) == (0.0, 1.0, {1: 1.0, 5: 1.0})
    assert math.isnan(found.loss_standard_error)


def test_json_round_trip():
    logits, labels = make_rows()
    found = evaluate(logits, labels, class_names=list("abcdefg"))
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told == found.to_dict()
    assert told["loss"] == found.loss
    assert told["top_k"] == {"1": found.top_k[1], "5": found.top_k[5]}
    assert told["classes"][2] == {
        "name": "c",
        "loss": found.class_loss[2],
        "accuracy": found.class_accuracy[2],
        "count": found.class_count[2],
    }


def test_json_has_null_for_what_is_not_finite():
    told = evaluate([[0.0, -np.inf, 0.0], [np.nan] * 3], [1, 0]).to_dict()
    json.dumps(told, allow_nan=False)
    assert told["loss"] is None
    assert told["n_infinite_loss"] == told["n_nonfinite"] == 1
    assert [c["loss"] for c in told["classes"]] == [None, None, None]
    assert [c["count"] for c in told["classes"]] == [0, 1, 0]


def test_text():
    found = evaluate([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0]], [0, 1, 0], top_k=(1, 2))
    assert repr(found) == "Evaluation(loss=0.793595, accuracy=0.666667, n_rows=3)"
    assert str(found).splitlines() == [
        "loss        0.793595 (standard error 0.666667)",
        "perplexity  2.21133",
        "accuracy    66.67 %",
        "rows        3",
    ]


def render(evaluation, width):
    console = pytest.importorskip("rich.console").Console(width=width, file=io.StringIO())
    console.print(evaluation)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [30, 50, 120])
def test_table_fits_its_width(width):
    logits, labels = make_rows()
    logits[0] = np.nan
    names = ["[b]", *"bcdef", "a class whose name is rather long for a narrow terminal"]
    text = render(evaluate(logits, labels, class_names=names), width)
    assert max(map(len, text.splitlines())) <= width
    assert "[b]" in text
    assert "warning: left out: 1 of" in text
    assert "Classes:" in text


def test_table_of_many_classes_shows_the_worst():
    rng = np.random.default_rng(0)
    labels = np.arange(1, 100).repeat(5)
    logits = rng.normal(size=(len(labels), 100)).astype(np.float32)
    logits[np.arange(len(labels)), labels] += np.where(labels < 85, 5, -5)
    text = render(evaluate(logits, labels, class_names=[f"class {c}" for c in range(100)]), 100)
    assert "The 15 classes of the highest loss, out of 100" in text
    of_classes, _, _ = text.partition("confidence")
    assert {c for c in range(100) if f"class {c} " in of_classes} == set(range(85, 100))
