"""Where the gradient may be written: `out` apart from all that is read, or the logits themselves."""

import math

import numpy as np
import pytest
from small_call import INDEX, LOGITS

import softmaxloss as sl
from softmaxloss.backends.memory import check_out, is_plain
from softmaxloss.backends.numpy import quick_loss_and_grad

MEMORY = np.zeros(64)


@pytest.mark.parametrize("other", ["labels", "soft labels", "sample_weight", "class_weight", "logit_bias"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_out_may_not_overlap_what_is_read(other, reduction):
    memory = np.zeros(64)
    logits, labels, options = LOGITS.copy(), INDEX, {"reduction": reduction}
    if other == "labels":
        labels = memory[:4].view(np.int64)
    elif other == "soft labels":
        memory[:12] = 1 / 3
        labels = memory[:12].reshape(4, 3)
    elif other == "sample_weight":
        options[other] = memory[:4]
    else:
        options[other] = memory[:3]
    before = memory.copy()
    for first in (0, 2):
        out = memory[first : first + 12].reshape(4, 3)
        with pytest.raises(ValueError, match="out overlaps the labels or weights, or logit_bias; pass separate memory"):
            sl.softmax_cross_entropy_and_grad(logits, labels, out=out, **options)
    np.testing.assert_array_equal(memory, before)
    sl.softmax_cross_entropy_and_grad(logits, labels, out=memory[12:24].reshape(4, 3), **options)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("labels", "i4"),
        ("labels", ">i8"),
        ("distribution", "f2"),
        ("distribution", "u1"),
        ("sample_weight", "f4"),
        ("class_weight", "f4"),
        ("logit_bias", ">f8"),
    ],
)
@pytest.mark.parametrize("logits", [LOGITS, LOGITS.astype(np.float32), LOGITS.astype(int)], ids=lambda z: str(z.dtype))
def test_out_may_not_overlap_what_is_converted(logits, name, dtype):
    """The kernels read a copy of these, and what the user has would be lost all the same."""
    dtype = np.dtype(dtype)
    out_dtype = np.float64 if logits.dtype.kind == "i" else logits.dtype
    shape = {"labels": (4,), "distribution": (4, 3), "sample_weight": (4,)}.get(name, (3,))
    memory = np.zeros(256, np.uint8)
    given = memory[16 : 16 + dtype.itemsize * math.prod(shape)].view(dtype).reshape(shape)
    if name == "distribution":
        given[:, 1] = 1
    elif name.endswith("weight"):
        given[...] = 1
    before = memory.copy()
    options = {} if name in ("labels", "distribution") else {name: given}
    labels = given if not options else INDEX
    out = memory[: 12 * np.dtype(out_dtype).itemsize].view(out_dtype).reshape(4, 3)
    with pytest.raises(ValueError, match="out overlaps the labels or weights, or logit_bias; pass separate memory"):
        sl.softmax_cross_entropy_and_grad(logits, labels, out=out, **options)
    np.testing.assert_array_equal(memory, before)
    options = {key: value.tolist() for key, value in options.items()}  # in memory of their own
    labels = labels.tolist()
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, out=out, **options)
    expected, expected_grad = sl.softmax_cross_entropy_and_grad(logits, labels, **options)
    assert loss == expected
    np.testing.assert_array_equal(grad, expected_grad)


@pytest.mark.parametrize("shape", [(4, 3), (4096, 2048)], ids=str)
@pytest.mark.parametrize("labels_kind", ["index", "soft"])
def test_an_unaligned_out(shape, labels_kind):
    """The larger gradient is one that the kernels stream past the cache, in whole and aligned elements."""
    rows, classes = shape
    logits = np.broadcast_to(np.float32(np.arange(classes) % 7), shape).copy()
    labels = np.arange(rows) % classes
    if labels_kind == "soft":
        labels = np.full(shape, np.float32(1 / classes))
    memory = np.zeros(logits.nbytes + 64, np.uint8)
    out = memory[1 : 1 + logits.nbytes].view(np.float32).reshape(shape)
    assert not out.flags.aligned
    assert not is_plain(out, logits.dtype)
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, out=out)
    assert grad is out
    expected, expected_grad = sl.softmax_cross_entropy_and_grad(logits, labels)
    assert loss == expected
    assert np.array_equal(grad, expected_grad)
    assert not memory[:1].any()
    assert not memory[1 + logits.nbytes :].any()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.1},
        {"z_loss": 0.1},
        {"soft": True},
        {"temperature": 0.7},
        {"softcap": 5.0, "label_smoothing": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("classes", [65, 300, 1031, 4096])
def test_large_gradients_are_the_same_everywhere(classes, options, instruction_set):
    """Past the cache, whose lines rows share or not, in place or elsewhere, by whatever number of threads."""
    rng = np.random.default_rng(classes)
    rows = (16 << 20) // (4 * classes) + 3
    memory = rng.standard_normal((rows * classes + 16,), dtype=np.float32)
    options = dict(options)
    if options.pop("soft", False):
        labels = rng.random((rows, classes), dtype=np.float32)
        labels /= labels.sum(1, keepdims=True)
    else:
        labels = rng.integers(0, classes, rows)
        labels[rng.integers(0, rows, 5)] = -100
    logits = memory[3 : 3 + rows * classes].reshape(rows, classes)
    # Small pieces are not written past the cache.
    piece = slice(rows // 2 - 7, rows // 2 + 33)
    expected = sl.softmax_cross_entropy_and_grad(logits[piece], labels[piece], reduction="sum", **options)[1]
    losses = []
    for start in (0, 4, 8, 3):  # the last is in place
        place = memory if start == 3 else np.empty_like(memory)
        out = place[start : start + rows * classes].reshape(rows, classes)
        loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, reduction="sum", out=out, **options)
        losses.append(loss)
        np.testing.assert_array_equal(grad[piece], expected)
        if start == 0:
            everywhere = grad
        np.testing.assert_array_equal(grad, everywhere)
    assert len(set(losses)) == 1


def test_out_may_lie_between_labels():
    """The bounds of the two overlap, their elements do not."""
    memory = np.zeros((4, 5))
    labels = memory.view(np.int64)[:, 3]
    expected = sl.softmax_cross_entropy_and_grad(LOGITS, np.zeros(4, int))[1]
    _, grad = sl.softmax_cross_entropy_and_grad(LOGITS, labels, out=memory[:, :3])
    np.testing.assert_array_equal(grad, expected)
    np.testing.assert_array_equal(labels, 0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_out_is_checked_the_same_way_quickly(dtype):
    """Whatever the quick check lets through, the exact one does, over all places in one small memory."""
    memory = np.zeros(40, dtype)
    labels = np.zeros(2, np.int64) if dtype == np.float32 else memory[20:22].view(np.int64)
    logits = memory[8:14].reshape(2, 3)
    views = [memory[i : i + 6].reshape(2, 3) for i in range(30)]
    views += [memory[i : i + 6].reshape(3, 2).T for i in range(30)]
    views += [memory[i : i + 6].reshape(2, 3)[::-1] for i in range(30)]
    views += [memory[i : i + 12].reshape(2, 6)[:, ::2] for i in range(20)]
    views += [
        np.broadcast_to(memory[:3], (2, 3)),
        memory[:6],
        logits,
        logits[...],
        logits.astype("f2"),
        [[0.0] * 3] * 2,
    ]
    read_only = np.zeros((2, 3), dtype)
    read_only.flags.writeable = False
    views += [read_only]
    taken = 0
    for view in views:
        memory[:] = 0
        if quick_loss_and_grad(logits, labels, "mean", view) is not None:
            assert check_out(view, logits, logits.dtype, labels) is view
            taken += 1
        else:
            assert not memory.any()
    assert taken >= 20
    assert quick_loss_and_grad(logits, np.zeros(2, np.int64), "mean", logits) is not None
