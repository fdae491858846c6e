"""What evaluation is told of each row by the kernels: sums, largest class, rank, confidence, Brier score."""

import numpy as np
import pytest

from softmaxloss import _native
from softmaxloss.measures.rows import KINDS

CLASSES = [1, 2, 3, 4, 5, 7, 8, 16, 17, 40, 41, 64, 100, 1023, 2500]
ROWS = [0, 1, 7, 16, 33]


def scores_of(kind, rows, classes, dtype, seed=0):
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((rows, classes))
    if kind == "logits":
        return logits.astype(dtype)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return (np.exp(logits) if kind == "probabilities" else logits).astype(dtype)


def judged(scores, labels, kind):
    sums, least, confidence, brier = np.full((4, len(labels)), -7.0)
    prediction, rank = np.full((2, len(labels)), -7)
    _native.judge_rows(scores, labels, KINDS.index(kind), sums, least, prediction, rank, confidence, brier)
    return sums, least, prediction, rank, confidence, brier


def expected(scores, labels, kind):
    z, rows = scores.astype(np.longdouble), np.arange(len(labels))
    p = z if kind == "probabilities" else np.exp(z - (z.max(axis=1, keepdims=True) if kind == "logits" else 0))
    sums = p.sum(axis=1)
    if kind == "logits":
        p = p / sums[:, None]
    own = scores[rows, labels][:, None]
    before = np.arange(scores.shape[1]) < labels[:, None]
    rank = ((scores > own) | ((scores == own) & before)).sum(axis=1)
    one_hot = np.eye(scores.shape[1])[labels] if len(labels) else np.zeros(scores.shape)
    return sums, z.min(axis=1), scores.argmax(axis=1), rank, p.max(axis=1), ((p - one_hot) ** 2).sum(axis=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", CLASSES)
def test_rows_are_judged_as_numpy_would(kind, dtype, classes, instruction_set):
    eps = np.finfo(dtype).eps
    for rows in ROWS:
        scores = scores_of(kind, rows, classes, dtype, seed=rows)
        labels = np.random.default_rng(1).integers(0, classes, rows)
        sums, least, prediction, rank, confidence, brier = judged(scores, labels, kind)
        right = expected(scores, labels, kind)
        if kind != "logits":
            np.testing.assert_allclose(sums, right[0], rtol=40 * eps)
        if kind == "probabilities":
            np.testing.assert_array_equal(least, right[1])
        np.testing.assert_array_equal(prediction, right[2])
        np.testing.assert_array_equal(rank, right[3])
        np.testing.assert_allclose(confidence, right[4], rtol=40 * eps)
        np.testing.assert_allclose(brier, right[5], rtol=80 * eps, atol=0 if kind == "logits" else 4 * eps)


@pytest.mark.parametrize("classes", [3, 10, 50])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_that_are_nearly_certain_keep_their_digits(dtype, classes, instruction_set):
    scores = scores_of("logits", 40, classes, dtype)
    labels = np.arange(40) % classes
    scores[np.arange(40), labels] += 30
    z = scores.astype(np.longdouble)
    others = np.exp(z - z[np.arange(40), labels][:, None])
    others[np.arange(40), labels] = 0
    rest = others.sum(axis=1)
    brier = judged(scores, labels, "logits")[-1]
    assert brier.max() < 1e-12
    np.testing.assert_allclose(
        brier, (rest**2 + (others**2).sum(axis=1)) / (1 + rest) ** 2, rtol=100 * np.finfo(dtype).eps
    )


@pytest.mark.parametrize("classes", [2, 3, 9, 40, 41, 200])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_scores_are_ranked_by_index(dtype, classes, instruction_set):
    scores = np.random.default_rng(0).integers(0, 3, (50, classes)).astype(dtype)
    scores[::7] = -np.inf
    scores[::7, classes // 2] = 0
    labels = np.random.default_rng(1).integers(0, classes, 50)
    _, _, prediction, rank, _, _ = judged(scores, labels, "logits")
    np.testing.assert_array_equal(prediction, scores.argmax(axis=1))
    np.testing.assert_array_equal(rank, expected(scores, labels, "probabilities")[3])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [3, 10, 50])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_row_that_is_no_distribution_has_no_finite_sum(kind, classes, wrong, instruction_set):
    scores = scores_of(kind, 20, classes, np.float32)
    scores[4, 1] = wrong
    labels = np.full(20, 2)
    found = judged(scores, labels, kind)
    without = judged(np.delete(scores, 4, axis=0), np.delete(labels, 4), kind)
    assert kind == "logits" or not np.isfinite(found[0][4])
    for ours, theirs in zip(found, without, strict=True):
        np.testing.assert_array_equal(np.delete(ours, 4), theirs)
    assert 0 <= found[2][4] < classes


@pytest.mark.parametrize("classes", [3, 50])
@pytest.mark.parametrize("most", [1.5, 60.0, 1e30])
def test_large_logits_are_never_taken_for_logarithms(classes, most, instruction_set):
    scores = scores_of("log_probabilities", 20, classes, np.float32)
    scores[:, 0] = most
    assert (judged(scores, np.zeros(20, np.int64), "log_probabilities")[0] > 2).all()


def test_only_the_sums(instruction_set):
    for classes in (3, 50):
        scores = scores_of("probabilities", 20, classes, np.float64)
        labels = np.zeros(20, np.int64)
        sums, least = np.zeros((2, 20))
        _native.judge_rows(scores, labels, KINDS.index("probabilities"), sums, least, None, None, None, None)
        whole = judged(scores, labels, "probabilities")
        np.testing.assert_array_equal(sums, whole[0])
        np.testing.assert_array_equal(least, whole[1])


def test_details_are_added_in_order():
    rng = np.random.default_rng(0)
    n, classes = 1000, 4
    labels, rank = rng.integers(0, classes, n), rng.integers(0, classes, n)
    weights, loss, confidence, brier = rng.uniform(size=(4, n))
    confidence[0] = 1.0
    cell = rng.integers(0, 8, n)
    hits, top, total = np.zeros(classes), np.zeros(2), np.zeros(1)
    by_cell, by_confidence, counts = np.zeros((3, 8)), np.zeros((3, 5)), np.zeros(5, np.int64)
    for part in np.array_split(np.arange(n), 3):
        rows = (weights[part], rank[part], loss[part], confidence[part], brier[part], cell[part])
        sums = (hits, np.array([1, 3]), top, total, by_cell, by_confidence, counts)
        _native.add_details(labels[part], *rows, *sums)
    right = weights * (rank == 0)
    np.testing.assert_allclose(hits, np.bincount(labels, right), rtol=1e-13)
    np.testing.assert_allclose(top, [right.sum(), (weights * (rank < 3)).sum()], rtol=1e-12)
    np.testing.assert_allclose(total, (weights * brier).sum(), rtol=1e-12)
    np.testing.assert_allclose(by_cell, [np.bincount(cell, w) for w in (weights, weights * loss, right)], rtol=1e-12)
    bins = np.minimum((confidence * 5).astype(int), 4)
    np.testing.assert_array_equal(counts, np.bincount(bins))
    np.testing.assert_allclose(
        by_confidence, [np.bincount(bins, w) for w in (weights, weights * confidence, right)], rtol=1e-12
    )
