"""Calls without options: the quick way, and the ordinary one for the same answer."""

import pickle

import numpy as np
import pytest
from small_call import INDEX, LOGITS, OPTIONS, RNG, SOFT, unaligned

import softmaxloss as sl
from softmaxloss.backends import numpy as numpy_backend


@pytest.fixture
def ways(monkeypatch):
    """Return a function that calls both ways, and says which of its calls went the quick way."""
    taken = []

    def watched(original):
        def quick(*arguments):
            answer = original(*arguments)
            taken.append(answer is not None)
            return answer

        return quick

    def both(function, *arguments, **options):
        answers = []
        for quick in (True, False):
            with monkeypatch.context() as patch:
                for name in ("quick_loss", "quick_loss_and_grad"):
                    original = getattr(numpy_backend, name)
                    patch.setattr(f"softmaxloss.loss.{name}", watched(original) if quick else lambda *_: None)
                try:
                    answers.append(function(*arguments, **options))
                except Exception as error:
                    answers.append(error)
        return (*answers, bool(taken) and taken.pop())

    return both


def assert_same(quick, ordinary):
    if isinstance(ordinary, Exception):
        assert (type(quick), str(quick)) == (type(ordinary), str(ordinary))
    elif isinstance(ordinary, tuple):
        assert_same(quick[0], ordinary[0])
        assert_same(quick[1], ordinary[1])
        assert quick[1].strides == ordinary[1].strides
    else:
        assert type(quick) is type(ordinary)
        assert quick.dtype == ordinary.dtype
        np.testing.assert_array_equal(quick, ordinary)


FIRST = {
    "c": lambda a: a,
    "fortran": np.asfortranarray,
    "every other": lambda a: np.repeat(np.repeat(a, 2, 0), 2, -1)[::2, ::2],
    "reversed": lambda a: a[::-1, ::-1],
    "unaligned": unaligned,
    "records": lambda a: np.rec.fromarrays([a, np.zeros(a.shape, "u1")], names=["value", "pad"])["value"],
    "swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "integer": lambda a: a.astype(np.int64),
    "float16": lambda a: a.astype(np.float16),
    "memmap": lambda a: a.view(np.memmap),
    "pickled": lambda a: pickle.loads(pickle.dumps(a)),
    "list": lambda a: a.tolist(),
}
QUICK = {"c", "fortran", "every other", "reversed", "pickled"}
ORDINARY = {"swapped", "integer", "float16", "memmap", "list"}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("shape", [(1, 10), (7, 3), (300, 5), (3, 1000), (2, 1), (1, 1)])
@pytest.mark.parametrize("layout", FIRST)
def test_the_quick_way_gives_the_same_bits(layout, shape, dtype, reduction, ways, instruction_set):
    logits = FIRST[layout]((RNG.standard_normal(shape) * 5).astype(dtype))
    labels = RNG.integers(0, shape[1], shape[0])
    for function in (sl.softmax_cross_entropy, sl.softmax_cross_entropy_and_grad):
        quick, ordinary, taken = ways(function, logits, labels, reduction=reduction)
        assert_same(quick, ordinary)
        assert taken or layout not in QUICK
        assert not (taken and layout in ORDINARY)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 2, 1, 1], np.int32),
        np.array([0, 2, 1, 1], ">i8"),
        np.array([0, 2, 1, 1], np.uint64),
        np.array([0, 0, 2, 2, 1, 1, 1, 1])[::2],
        np.array([1, 1, 2, 0])[::-1],
        np.array([0, -100, 1, -100]),
        np.array([-100, -100, -100, -100]),
        np.array([0, 3, 1, 1]),
        np.array([0, -1, 1, 1]),
        np.array([0.0, 2.0, 1.0, 1.0]),
        np.array([False, True, True, True]),
        np.array([0, 2, 1]),
        np.array([[0], [2], [1], [1]]),
        np.array(1),
        unaligned(np.array([0, 2, 1, 1])),
        np.array([0, 2, 1, 1]).view(np.memmap),
        SOFT,
        SOFT + 1,
        [0, 2, 1, 1],
        None,
        "text",
    ],
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "average", None])
def test_the_quick_way_leaves_every_other_label_to_the_ordinary_one(labels, reduction, ways):
    for function in (sl.softmax_cross_entropy, sl.softmax_cross_entropy_and_grad):
        quick, ordinary, _ = ways(function, LOGITS, labels, reduction=reduction)
        assert_same(quick, ordinary)


SPECIAL = {
    "overflow": np.array([[3e38, -3e38, 0.0]], "f4"),
    "overflow of float64": np.array([[1.7e308, -1.7e308, 0.0]]),
    "nan": np.array([[np.nan, 0.0, 1.0]]),
    "inf": np.array([[np.inf, 0.0, 1.0]], "f4"),
    "masked": np.array([[0.0, -np.inf, 1.0]]),
    "all masked": np.array([[-np.inf, -np.inf, -np.inf]], "f4"),
    "no rows": np.zeros((0, 3), "f4"),
    "no classes": np.zeros((1, 0), "f4"),
    "one row": np.array([1.0, 2.0, 3.0]),
    "scalar": np.array(1.0),
    "three axes": RNG.standard_normal((2, 5, 3)),
    "many axes": np.zeros((1,) * 31 + (3,)),
    "one row of odd strides": np.lib.stride_tricks.as_strided(np.zeros((1, 3), "f4"), strides=(7, 4)),
    "broadcast": np.broadcast_to(np.arange(3.0), (4, 3)),
}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_special_logits(kind, reduction, ways):
    logits = SPECIAL[kind]
    labels = np.ones(logits.shape[:-1], np.int64)
    for function in (sl.softmax_cross_entropy, sl.softmax_cross_entropy_and_grad):
        quick, ordinary, _ = ways(function, logits, labels, reduction=reduction)
        assert_same(quick, ordinary)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(
    "value", [0, 1, -1, 1.0, 0.0, -1.0, False, True, "mean", "sum", np.zeros(4), np.zeros(3), None, 0j]
)
def test_every_option_is_looked_at(name, value, ways):
    """A call is quick where nothing but a default was given, and never overlooks what is."""
    for function in (sl.softmax_cross_entropy, sl.softmax_cross_entropy_and_grad):
        quick, ordinary, taken = ways(function, LOGITS, INDEX, **{name: value})
        assert_same(quick, ordinary)
        if isinstance(ordinary, Exception):
            assert not taken


def test_calls_without_options_are_quick(ways):
    for options in ({}, {"reduction": "mean"}, {"reduction": "sum"}, {"axis": -1}):
        assert ways(sl.softmax_cross_entropy, LOGITS, INDEX, **options)[-1]
        assert ways(sl.softmax_cross_entropy_and_grad, LOGITS, INDEX, **options)[-1]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_quick_gradients_in_place_and_elsewhere(dtype, ways):
    logits = LOGITS.astype(dtype)
    expected = sl.softmax_cross_entropy_and_grad(logits, INDEX, ignore_index=-7)
    for out in (np.full_like(logits, 7), np.full((3, 4), 7, dtype).T):
        quick, ordinary, taken = ways(sl.softmax_cross_entropy_and_grad, logits, INDEX, out=out)
        assert taken
        assert quick[1] is ordinary[1] is out
        assert_same(quick[0], expected[0])
        np.testing.assert_array_equal(out, expected[1])
    in_place = logits.copy()
    loss, grad = sl.softmax_cross_entropy_and_grad(in_place, INDEX, out=in_place)
    assert grad is in_place
    assert_same(loss, expected[0])
    np.testing.assert_array_equal(in_place, expected[1])


OUT = {
    "list": [[0.0] * 3] * 4,
    "shape": np.zeros((3, 4)),
    "dtype": np.zeros((4, 3), "f4"),
    "swapped": np.zeros((4, 3), ">f8"),
    "memmap": np.zeros((4, 3)).view(np.memmap),
    "broadcast": np.lib.stride_tricks.as_strided(np.zeros(3), (4, 3), (0, 8)),
    "strided": np.zeros((8, 3))[::2],
}


@pytest.mark.parametrize("labels", [INDEX, [0, 1, 2, 3], np.array([0, 1, 2, 3])])
@pytest.mark.parametrize("kind", OUT)
def test_an_out_of_another_kind_goes_the_ordinary_way(kind, labels, ways):
    quick, ordinary, taken = ways(sl.softmax_cross_entropy_and_grad, LOGITS, labels, out=OUT[kind])
    assert not taken
    if isinstance(ordinary, tuple):
        assert quick[1] is ordinary[1] is OUT[kind]
    assert_same(quick, ordinary)


def test_nothing_is_written_where_a_label_is_wrong():
    for out in (None, np.full((4, 3), 7.0)):
        logits = LOGITS.copy()
        with pytest.raises(sl.LabelError, match=r"labels\[3\] is 3"):
            sl.softmax_cross_entropy_and_grad(logits, np.array([0, 1, 2, 3]), out=logits if out is None else out)
        np.testing.assert_array_equal(logits, LOGITS)
        if out is not None:
            np.testing.assert_array_equal(out, 7)
