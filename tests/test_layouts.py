"""Any memory layout in, any out: strides, axes, byte order, alignment, in place, and what must be refused."""

import itertools
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import softmaxloss as sl

RNG = np.random.default_rng(0)


def unaligned(array):
    """The same values, one byte off."""
    raw = np.zeros(array.nbytes + 1, np.uint8)
    view = raw[1:].view(np.uint8)[: array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def packed_record(array):
    """The same values, in a field of records of an odd size: strides that are no multiple of the item."""
    records = np.zeros(array.shape, np.dtype([("pad", "u1"), ("value", array.dtype)]))
    records["value"] = array
    return records["value"]


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def padded(array):
    wide = np.full(tuple(n + 3 for n in array.shape), np.nan, array.dtype)
    view = wide[tuple(slice(2, n + 2) for n in array.shape)]
    view[...] = array
    return view


def every_other(array):
    wide = np.full(tuple(2 * n for n in array.shape), np.nan, array.dtype)
    view = wide[(slice(None, None, 2),) * array.ndim]
    view[...] = array
    return view


LAYOUTS = {
    "c": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "reversed": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "all reversed": lambda a: np.flip(np.ascontiguousarray(np.flip(a))),
    "every other": every_other,
    "padded": padded,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "swapped bytes": lambda a: a.astype(a.dtype.newbyteorder()),
    "unaligned": unaligned,
    "records": packed_record,
    "read-only": read_only,
    "list": lambda a: a.tolist(),
}

SHAPES_AND_AXES = [((7,), 0), ((5, 3), -1), ((5, 3), 0), ((2, 21, 5, 4), 1), ((3, 2, 70), -1), ((70, 300), 0)]


def assert_same_but_for_rounding(ours, expected):
    """Each layout has a loop of its own, which adds in an order of its own."""
    eps = np.finfo(np.asarray(expected).dtype).eps
    np.testing.assert_allclose(ours, expected, rtol=64 * eps, atol=0.02 * eps)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(("shape", "axis"), SHAPES_AND_AXES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("label_kind", ["index", "soft"])
def test_layout_does_not_matter(layout, shape, axis, dtype, label_kind):
    logits = RNG.standard_normal(shape).astype(dtype)
    rows_shape = tuple(np.delete(shape, axis))
    classes = shape[axis]
    if label_kind == "index":
        labels = RNG.integers(0, classes, rows_shape)
    else:
        labels = np.moveaxis(RNG.dirichlet(np.ones(classes), rows_shape), -1, axis).astype(dtype)
    moved_labels = labels if label_kind == "index" else np.ascontiguousarray(np.moveaxis(labels, axis, -1))
    options = {"reduction": "none", "label_smoothing": 0.1, "class_weight": RNG.random(classes)}
    plain = np.ascontiguousarray(np.moveaxis(logits, axis, -1))
    expected, expected_grad = sl.softmax_cross_entropy_and_grad(plain, moved_labels, **options)

    laid_out = LAYOUTS[layout](logits)
    given_labels = LAYOUTS[layout](labels) if label_kind == "soft" else labels
    loss, grad = sl.softmax_cross_entropy_and_grad(laid_out, given_labels, axis=axis, **options)
    tolerance = {"rtol": 1e-6, "atol": 1e-7}  # a list of float32 numbers becomes float64
    compare = np.testing.assert_allclose if layout == "list" else np.testing.assert_array_equal
    keywords = tolerance if layout == "list" else {}
    if layout == "list":
        compare(loss, expected, **keywords)
        compare(np.moveaxis(grad, axis, -1), expected_grad, **keywords)
    else:
        assert_same_but_for_rounding(loss, expected)
        assert_same_but_for_rounding(np.moveaxis(grad, axis, -1), expected_grad)
    for function in (sl.softmax, sl.log_softmax):
        compare(np.moveaxis(function(laid_out, axis), axis, -1), function(plain), **keywords)
    compare(sl.logsumexp(laid_out, axis), sl.logsumexp(plain), **keywords)


@pytest.mark.parametrize(
    "layout", ["c", "fortran", "every other", "swapped bytes", "unaligned", "records", "transposed"]
)
@pytest.mark.parametrize(("shape", "axis"), SHAPES_AND_AXES)
@pytest.mark.parametrize("in_place", [False, True])
def test_out(layout, shape, axis, in_place):
    logits = RNG.standard_normal(shape).astype(np.float32)
    labels = RNG.integers(0, shape[axis], np.delete(shape, axis))
    expected, expected_grad = sl.softmax_cross_entropy_and_grad(logits, labels, axis=axis)
    source = LAYOUTS[layout](logits)
    out = source if in_place else LAYOUTS[layout](np.full_like(logits, 5))
    loss, grad = sl.softmax_cross_entropy_and_grad(source, labels, axis=axis, out=out)
    assert grad is out
    assert_same_but_for_rounding(loss, expected)
    assert_same_but_for_rounding(out, expected_grad)


def test_out_leaves_its_surroundings_alone():
    logits = RNG.standard_normal((30, 50)).astype(np.float32)
    wide = np.full((34, 71), 9, np.float32)
    sl.softmax_cross_entropy_and_grad(logits, np.zeros(30, int), out=wide[2:32, 5:55])
    wide[2:32, 5:55] = 9
    np.testing.assert_array_equal(wide, 9)


@pytest.mark.parametrize("offset", [0, 1, 3, 8, 15, 16])
@pytest.mark.parametrize("classes", [256, 300, 1031])
def test_large_gradients_at_any_alignment(offset, classes, instruction_set):
    """Large enough to be written past the cache, from any place in a cache line."""
    n = (33 << 20) // (4 * classes)
    memory = np.full(n * classes + 40, 3, np.float32)
    out = memory[offset : offset + n * classes].reshape(n, classes)
    logits = RNG.standard_normal((n, classes)).astype(np.float32)
    labels = RNG.integers(0, classes, n)
    _, grad = sl.softmax_cross_entropy_and_grad(logits, labels, out=out)
    _, few_grad = sl.softmax_cross_entropy_and_grad(logits[:50], labels[:50], reduction="none")
    np.testing.assert_allclose(grad[:50] * n, few_grad, rtol=1e-6)
    np.testing.assert_allclose(grad.sum(axis=1), 0, atol=1e-8)
    np.testing.assert_array_equal(memory[:offset], 3)
    np.testing.assert_array_equal(memory[offset + n * classes :], 3)


def test_broadcast_logits():
    row = RNG.standard_normal(6)
    logits = np.broadcast_to(row, (4, 6))
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, [0, 1, 2, 3])
    expected, expected_grad = sl.softmax_cross_entropy_and_grad(logits.copy(), [0, 1, 2, 3])
    assert loss == expected
    np.testing.assert_array_equal(grad, expected_grad)


def test_inputs_are_never_written():
    logits, labels = RNG.standard_normal((4, 6)), np.array([0, 1, 2, 3])
    soft, weight = RNG.dirichlet(np.ones(6), 4), RNG.random(4)
    originals = [a.copy() for a in (logits, labels, soft, weight)]
    sl.softmax_cross_entropy_and_grad(logits, labels, sample_weight=weight)
    sl.softmax_cross_entropy_and_grad(logits, soft, label_smoothing=0.1)
    sl.softmax(logits)
    sl.log_softmax(logits)
    sl.logsumexp(logits)
    sl.cross_entropy(soft, labels)
    for array, original in zip((logits, labels, soft, weight), originals, strict=True):
        np.testing.assert_array_equal(array, original)


MEMORY = np.zeros(100)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        ([[0.0] * 6] * 4, TypeError, "expected a NumPy array"),
        (np.zeros((4, 5)), ValueError, r"out has shape \(4, 5\); expected the logits' \(4, 6\)"),
        (np.zeros((4, 6), np.float32), TypeError, "out has dtype float32"),
        (np.zeros((4, 6), int), TypeError, "out has dtype int64"),
        (read_only(np.zeros((4, 6))), ValueError, "read-only"),
        (np.lib.stride_tricks.as_strided(np.zeros(6), (4, 6), (0, 8)), ValueError, "share memory"),
        (np.lib.stride_tricks.as_strided(np.zeros(9), (4, 6), (8, 8)), ValueError, "share memory"),
        (MEMORY[1:25].reshape(4, 6), ValueError, "overlaps the logits"),
        (MEMORY[:24].reshape(4, 6)[::-1], ValueError, "overlaps the logits"),
        (MEMORY[26:50].reshape(4, 6), ValueError, "overlaps the labels or weights"),
    ],
)
def test_out_that_cannot_be_used(out, error, message):
    logits = MEMORY[:24].reshape(4, 6)
    logits[...] = RNG.standard_normal((4, 6))
    weight = MEMORY[48:52]
    weight[...] = 1
    before = MEMORY.copy()
    with pytest.raises(error, match=message):
        sl.softmax_cross_entropy_and_grad(logits, [0, 1, 2, 3], sample_weight=weight, out=out)
    np.testing.assert_array_equal(MEMORY, before)


def test_out_may_lie_between_the_logits():
    """The bounds of the two overlap, their elements do not."""
    both = np.zeros((4, 12))
    both[:, :6] = RNG.standard_normal((4, 6))
    expected = sl.softmax_cross_entropy_and_grad(both[:, :6].copy(), [0, 1, 2, 3])[1]
    sl.softmax_cross_entropy_and_grad(both[:, :6], [0, 1, 2, 3], out=both[:, 6:])
    np.testing.assert_array_equal(both[:, 6:], expected)


def test_in_place_whatever_the_strides_of_axes_of_length_one():
    logits = RNG.standard_normal((3, 4))
    expected = sl.softmax_cross_entropy_and_grad(logits[:1], [2])[1]
    sl.softmax_cross_entropy_and_grad(logits[:1], [2], out=logits[0][np.newaxis])
    np.testing.assert_array_equal(logits[:1], expected)


def test_gradient_keeps_the_memory_order_of_the_logits():
    logits = np.asfortranarray(RNG.standard_normal((6, 5)))
    _, grad = sl.softmax_cross_entropy_and_grad(logits, np.zeros(6, int))
    assert grad.flags.f_contiguous


@pytest.mark.parametrize("variant", ["plain", "swapped", "integer", "soft", "strided"])
def test_memory_beyond_inputs_and_out_is_of_the_order_of_rows(variant):
    n, classes = 2000, 3000  # 48 MB
    logits = RNG.standard_normal((n, classes))
    labels = RNG.integers(0, classes, n)
    out = np.zeros_like(logits)
    if variant == "swapped":
        logits = logits.astype(">f8")
    elif variant == "integer":
        logits = (logits * 3).astype(np.int64)
    elif variant == "soft":
        labels = sl.one_hot(labels, classes, dtype=np.int8)
    elif variant == "strided":
        logits, out = np.asfortranarray(logits), np.asfortranarray(out)
    tracemalloc.start()
    sl.softmax_cross_entropy_and_grad(logits, labels, out=out)
    sl.softmax_cross_entropy(logits, labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6  # three blocks of 4 MB: logits, labels, and their conversion


def test_the_kernels_take_no_memory_of_the_order_of_the_logits():
    """Their allocations are not Python's: the process's own peak tells."""
    code = """if True:
        import numpy as np, softmaxloss as sl
        def peak():
            return 1024 * int(next(l for l in open('/proc/self/status') if 'VmHWM' in l).split()[1])
        n, classes = 4000, 8000
        logits, out, labels = np.ones((n, classes), np.float32), np.ones((n, classes), np.float32), np.zeros(n, int)
        before = peak()
        for logits, out in ((logits, out), (logits.reshape(classes, n).T, out.reshape(classes, n).T)):
            for options in ({}, {'label_smoothing': 0.1}):
                sl.softmax_cross_entropy(logits, labels, **options)
                sl.softmax_cross_entropy_and_grad(logits, labels, out=out, **options)
            sl.logsumexp(logits)
        print(peak() - before)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < 16e6  # the logits are 128 MB


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 1000])
def test_strided_tiles_of_every_size(n):
    for classes, dtype in itertools.product((1, 2, 21, 600), ("f4", "f8")):
        logits = RNG.standard_normal((classes, n)).astype(dtype)
        labels = RNG.integers(0, classes, n)
        out = np.zeros_like(logits)
        loss, _ = sl.softmax_cross_entropy_and_grad(logits, labels, axis=0, out=out)
        expected, grad = sl.softmax_cross_entropy_and_grad(np.ascontiguousarray(logits.T), labels)
        assert_same_but_for_rounding(loss, expected)
        assert_same_but_for_rounding(out.T, grad)
