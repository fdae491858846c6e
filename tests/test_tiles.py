"""Many rows at once, of some classes or a strided class axis: the options that those loops take, against mpmath."""

import numpy as np
import pytest
from option_cases import DESTINATIONS, DTYPES, KINDS, REDUCTIONS, check, ids, label_kinds, make_case, run

import softmaxloss as sl
from softmaxloss import _native

ROWS = 18  # enough for the loops over tiles, and for a tile's last vector to be a part of one
LAYOUTS = ["last", "first", "middle", "odd_strides", "negative_strides", "negative_and_first"]
OPTIONS = [
    (),
    ("class_weight", "sample_weight"),
    ("label_smoothing", "class_weight"),
    ("z_loss", "label_smoothing", "sample_weight"),
    ("z_loss", "focal_gamma", "poly_epsilon", "class_weight"),
]


@pytest.mark.parametrize("names", OPTIONS, ids=ids)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 16, 17, 37, 64, 65, 129])
def test_few_classes(classes, dtype, names, instruction_set):
    seed = classes + OPTIONS.index(names)
    kind, reduction = list(KINDS)[seed % len(KINDS)], REDUCTIONS[seed % 3]
    case = make_case(seed, names, dtype, kind, label_kinds(names)[0], classes, reduction, ROWS)
    for i, layout in enumerate(LAYOUTS):
        check(case, layout, DESTINATIONS[(i + classes) % 3])


@pytest.mark.parametrize("names", OPTIONS, ids=ids)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["last", "first"])
@pytest.mark.parametrize("classes", [21, 100])
def test_kinds_of_logits(classes, layout, kind, names, instruction_set):
    for dtype in DTYPES[:2]:
        check(make_case(5, names, dtype, kind, "index", classes, "mean", ROWS), layout)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("names", [(), ("label_smoothing", "class_weight")], ids=ids)
def test_strided_rows_of_many_classes(names, dtype, instruction_set):
    check(make_case(7, names, dtype, "ordinary", "index", 700, "sum", ROWS), "first")


@pytest.mark.parametrize("names", OPTIONS, ids=ids)
@pytest.mark.parametrize("layout", ["last", "first", "middle"])
@pytest.mark.parametrize("classes", [2, 3, 10, 37, 64, 65, 100, 256, 257])
def test_many_rows(classes, layout, names, instruction_set):
    """Whole tiles and their remainders: each row as the same row in float64."""
    for n in (30, 64, 66, 1030):
        case = make_case(3, names, np.dtype("f4"), "ordinary", "index", classes, "none", n)
        loss, grad = run(case, np.dtype("f4"), layout)
        expected, expected_grad = run(case, np.dtype("f8"))
        np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "axis"), [((70000, 3), 1), ((9000, 21), 1), ((3000, 100), 1), ((3, 7, 120, 130), 1)])
def test_the_same_bits_for_any_number_of_threads(shape, axis, instruction_set, keep_num_threads):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(shape, dtype=np.float32) * 4
    labels = rng.integers(0, shape[axis], np.delete(shape, axis))
    answers = []
    for threads in (1, 2, 3, 7):
        sl.set_num_threads(threads)
        answers.append(sl.softmax_cross_entropy_and_grad(logits, labels, axis=axis, reduction="none"))
    for loss, grad in answers[1:]:
        np.testing.assert_array_equal(loss, answers[0][0])
        np.testing.assert_array_equal(grad, answers[0][1])


@pytest.mark.parametrize("shape", [(40, 3), (40, 20), (40, 100), (40, 1), (3, 40), (20, 5, 7)])
@pytest.mark.parametrize("names", [(), ("class_weight", "sample_weight"), ("label_smoothing",)], ids=ids)
def test_an_ignored_label_may_be_a_class(names, shape, instruction_set):
    rng = np.random.default_rng(1)
    axis = 0 if shape[0] != 40 else -1
    rows = np.delete(shape, axis)
    logits, labels = rng.standard_normal(shape, dtype=np.float32), rng.integers(0, shape[axis], rows)
    weights = {"class_weight": np.linspace(1, 2, shape[axis]), "sample_weight": rng.random(rows)}
    options = {name: weights.get(name, 0.25) for name in names}
    elsewhere = np.where(labels == 0, -1, labels)
    for reduction in REDUCTIONS:
        found = sl.softmax_cross_entropy_and_grad(
            logits, labels, axis=axis, ignore_index=0, reduction=reduction, **options
        )
        expected = sl.softmax_cross_entropy_and_grad(
            logits, elsewhere, axis=axis, ignore_index=-1, reduction=reduction, **options
        )
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
    assert (np.moveaxis(found[1], axis, -1)[labels == 0] == 0).all()


@pytest.mark.parametrize("order", ["C", "F"])  # the axis of the classes adjacent, and strided
@pytest.mark.parametrize("offset", [0, -30, -60, -200, 1e4, -np.inf])
@pytest.mark.parametrize("classes", [3, 16, 33, 64, 65, 200])
def test_rows_far_from_the_others(classes, offset, order, instruction_set):
    """What else is computed with a row, large, small, masked or NaN, changes nothing of it."""
    rng = np.random.default_rng(2)
    logits = np.asarray(rng.standard_normal((300, classes), dtype=np.float32) * 3, order=order)
    logits[::7] += offset
    logits[250] = np.nan
    labels = rng.integers(0, classes, 300)
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, reduction="none")
    for row in [0, 1, 7, 8, 249, 250, 251, 299]:
        alone, grad_alone = sl.softmax_cross_entropy_and_grad(logits[row], labels[row])
        np.testing.assert_allclose(loss[row], alone, rtol=2e-6)
        np.testing.assert_allclose(grad[row], grad_alone, rtol=1e-5)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("classes", [10, 64, 100, 256])
@pytest.mark.parametrize("weight", [1.0, 1e6, 1e20])
def test_heavy_rows_below_others_keep_small_gradients(weight, classes, order, instruction_set):
    """What is too small beside the largest row of a tile may be a normal number times the row's weight."""
    row = np.full(classes, -90, np.float32)
    row[:3] = [0, -5, -97]
    logits = np.asarray(np.tile(row, (48, 1)), order=order)
    logits[::16] += 36
    labels = np.zeros(48, np.int64)
    weights = np.full(48, weight)
    _, grad = sl.softmax_cross_entropy_and_grad(logits, labels, sample_weight=weights, reduction="none")
    _, alone = sl.softmax_cross_entropy_and_grad(logits[5], labels[5], sample_weight=weight, reduction="none")
    np.testing.assert_allclose(grad[5], alone, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("classes", [64, 65, 100, 128, 200, 253, 256])
def test_equal_logits(classes, dtype, instruction_set):
    """Their rounding errors have one sign; docs/accuracy.md says how large they may be."""
    logits = np.random.default_rng(0).uniform(-1, 1, (2000, 1)).astype(dtype).repeat(classes, axis=1)
    _, grad = sl.softmax_cross_entropy_and_grad(logits, np.zeros(2000, np.int64), reduction="none")
    assert np.abs(grad[:, 1:] * classes - 1).max() <= 16 * np.finfo(dtype).eps / 2


@pytest.mark.parametrize("classes", [5, 100])
def test_a_label_that_has_changed_since_it_was_checked(classes):
    """The row is NaN, and nothing outside of it is read or written."""
    logits, labels = np.zeros((40, classes), np.float32), np.zeros(40, np.int64)
    labels[[3, 39]] = [classes, -7]
    row_loss, grad = np.zeros(40), np.zeros_like(logits)
    terms = _native.LossTerms(
        *(labels, None, 1.0, None, -100, None, None, 0.0, None, None, 1e-3), *(1.0, 0.0, None, 0.0, 0.0, 0.0)
    )
    _native.loss(logits, 0, terms, row_loss, grad)
    assert np.flatnonzero(np.isnan(row_loss)).tolist() == [3, 39]
    assert np.flatnonzero(np.isnan(grad).all(axis=1)).tolist() == [3, 39]
    assert np.isfinite(np.delete(grad, [3, 39], axis=0)).all()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("classes", [2, 3, 5, 10, 37, 64, 100, 250])
def test_a_row_does_not_change_others_by_a_bit(classes, dtype, order, instruction_set):
    """Not one of NaN, nor one far below the others, nor a label that is improbable."""
    rng = np.random.default_rng(classes)
    logits = np.asarray(rng.standard_normal((300, classes)), dtype, order=order)
    labels = rng.integers(0, classes, 300)
    expected = sl.softmax_cross_entropy_and_grad(logits, labels, reduction="none")
    logits[7, 1], logits[101] = np.nan, -90 + logits[101]
    logits[200, labels[200]] = -100
    found = sl.softmax_cross_entropy_and_grad(logits, labels, reduction="none", out=logits)
    others = np.delete(np.arange(300), [7, 101, 200])
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got[others], want[others])
    assert np.isnan(found[0][7])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("step", [1, 9, 13, 40, 300])
@pytest.mark.parametrize("classes", [3, 21, 50, 100])
def test_logits_that_rise_and_fall_from_tile_to_tile(classes, step, order, instruction_set):
    """The rows before tell where a tile's logits lie: within its reach, or out of it."""
    rng = np.random.default_rng(classes)
    noise = rng.standard_normal((2000, classes), dtype=np.float32)
    level = np.repeat([0, 1, 2, 1, 2, 3, 1, 0], 250)[:, None] * np.float32(step)
    logits, labels = np.asarray(noise + level, order=order), rng.integers(0, classes, 2000)
    labels[::50] = -100
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, reduction="none")
    expected, expected_grad = sl.softmax_cross_entropy_and_grad(logits - level, labels, reduction="none")
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-5 * step)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-5 * step)
    np.testing.assert_array_equal(loss[::50], 0)
    np.testing.assert_array_equal(grad[::50], 0)


@pytest.mark.parametrize("side", [1, 5, 7, 14, 20, 33])
def test_images_of_any_size(side, instruction_set):
    """Tiles of one image, of many, and the pieces in between, with a gradient past the cache or not."""
    rng = np.random.default_rng(side)
    images = 3 if side > 20 else 40
    logits = rng.standard_normal((images, 21, side, side), dtype=np.float32)
    labels = rng.integers(0, 21, (images, side, side))
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, axis=1, reduction="none")
    rows = np.ascontiguousarray(np.moveaxis(logits, 1, -1)).astype(np.float64)
    expected, expected_grad = sl.softmax_cross_entropy_and_grad(rows, labels, reduction="none")
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(np.moveaxis(grad, 1, -1), expected_grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 21, 100])
def test_rows_that_go_back_in_memory_or_stay(classes, instruction_set):
    """Nothing is read beyond the first row, which then is the last in memory, nor beyond a row that is all rows."""
    rng = np.random.default_rng(classes)
    logits, labels = rng.standard_normal((600, classes), dtype=np.float32), rng.integers(0, classes, 600)
    for rows in (logits[::-1], np.broadcast_to(logits[-1], logits.shape)):
        found = sl.softmax_cross_entropy_and_grad(rows, labels, reduction="none")
        expected = sl.softmax_cross_entropy_and_grad(rows.copy(), labels, reduction="none")
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def confident_rows_after_high_ones(classes, rows):
    """Rows whose other classes vanish beside what the rows before hold, but not beside their own label."""
    logits = np.zeros((classes, rows), np.float32)
    logits[:, : rows // 2] = 36
    logits[1:, rows // 2 :] = -np.linspace(60, 100, rows - rows // 2, dtype=np.float32)
    return logits, np.zeros(rows, np.int64)


@pytest.mark.parametrize("weight", [None, 2.0**32, 1e30])
@pytest.mark.parametrize("classes", [2, 3, 21, 100])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_before_change_nothing(order, classes, weight, instruction_set, keep_num_threads):
    """Not by the number of threads, nor, of few classes, by where a tile ends."""
    n = 32768
    logits, labels = confident_rows_after_high_ones(classes, n)
    logits = np.asarray(logits, order=order)
    answers = []
    # Of more classes a row that is far from others in its tile is computed another way.
    starts = [(1, 0), (2, 0), (3, 0)] + [(1, 1), (1, 7)] * (classes <= 64)
    for threads, start in starts:
        sl.set_num_threads(threads)
        weights = None if weight is None else np.full(n - start, weight)
        loss, grad = sl.softmax_cross_entropy_and_grad(
            logits[:, start:], labels[start:], axis=0, sample_weight=weights, reduction="none"
        )
        answers.append((loss[8:] if start == 0 else loss[8 - start :], grad[:, 8 - start :]))
    for loss, grad in answers[1:]:
        np.testing.assert_array_equal(loss, answers[0][0])
        np.testing.assert_array_equal(grad, answers[0][1])
    assert (answers[0][0] > 0).all()
