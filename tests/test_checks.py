"""What is checked at the door, and the quick way through it: signatures, options, labels, `out`, plain calls."""

import inspect
import math
import pickle

import numpy as np
import pytest
from option_cases import BFLOAT16

import softmaxloss as sl
from softmaxloss.backends import numpy as numpy_backend
from softmaxloss.backends.memory import check_out, plainly_free
from softmaxloss.options import GivenOptions, GivenTransform

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((4, 3))
INDEX = np.array([0, 2, 1, 1])
SOFT = RNG.dirichlet(np.ones(3), 4)

OPTIONS = {
    "axis": -1,
    "reduction": "mean",
    "sample_weight": None,
    "class_weight": None,
    "ignore_index": -100,
    "label_smoothing": 0.0,
    "temperature": 1.0,
    "softcap": None,
    "logit_bias": None,
    "z_loss": 0.0,
    "focal_gamma": 0.0,
    "poly_epsilon": 0.0,
}
TRANSFORMS = {name: OPTIONS[name] for name in ("axis", "temperature", "softcap", "logit_bias")}


def call(function, **options):
    if function is sl.hessian_vector_product:
        return function(LOGITS, INDEX, LOGITS, **options)
    return function(LOGITS, INDEX, **options)


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (sl.softmax_cross_entropy, OPTIONS),
        (sl.softmax_cross_entropy_and_grad, {**OPTIONS, "out": None}),
        (sl.hessian_vector_product, OPTIONS),
        (sl.row_statistics, TRANSFORMS),
    ],
)
def test_options_are_keywords_of_one_order_with_one_default(function, options):
    keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert [(p.name, p.default) for p in keywords] == list(options.items())


def test_the_options_are_passed_on_in_the_order_of_the_keywords():
    assert [*GivenOptions()._asdict().items()] == [*OPTIONS.items()][1:]
    assert [*GivenTransform()._asdict().items()] == [*TRANSFORMS.items()][1:]


FUNCTIONS = [sl.softmax_cross_entropy, sl.softmax_cross_entropy_and_grad, sl.hessian_vector_product]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature is 0.0; it must be positive and finite"),
        ({"temperature": 10**400}, "temperature is inf; it must be positive and finite"),
        ({"softcap": math.inf}, "softcap is inf; it must be positive and finite"),
        ({"z_loss": math.inf}, "z_loss is inf; it must be at least 0 and finite"),
        ({"z_loss": -1e-300}, "z_loss is -1e-300; it must be at least 0 and finite"),
        ({"focal_gamma": math.inf}, "focal_gamma is inf; it must be at least 0 and finite"),
        ({"poly_epsilon": -math.inf}, "poly_epsilon is -inf; it must be finite"),
        ({"poly_epsilon": -(10**400)}, "poly_epsilon is -inf; it must be finite"),
        ({"poly_epsilon": math.nan}, "poly_epsilon is nan; it must be finite"),
        ({"logit_bias": [0, math.nan, 0]}, r"logit_bias\[1\] is nan; it must be finite, or -inf to mask a class"),
        ({"logit_bias": [0, 0, math.inf]}, r"logit_bias\[2\] is inf; it must be finite, or -inf to mask a class"),
        ({"logit_bias": np.longdouble([0, 0, 1]) * np.finfo(np.longdouble).max}, r"logit_bias\[2\] is inf"),
        ({"sample_weight": np.longdouble([0, 0, 1, 1]) * np.finfo(np.longdouble).max}, r"sample_weight\[2\] is inf"),
        ({"label_smoothing": 0.1, "focal_gamma": 2.0}, "leave label_smoothing at 0, or leave both of them at 0"),
        (
            {"label_smoothing": 0.1, "poly_epsilon": -1.0},
            "label_smoothing is 0.1 with focal_gamma 0 and poly_epsilon -1",
        ),
    ],
)
def test_what_is_out_of_range_is_told(function, options, message):
    with pytest.raises(ValueError, match=message):
        call(function, **options)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_each_term_for_class_indices_says_so(function):
    for option in ({"focal_gamma": 2.0}, {"poly_epsilon": 1.0}):
        vector = (LOGITS,) if function is sl.hessian_vector_product else ()
        with pytest.raises(ValueError, match=r"the labels are distributions; .* labels.argmax along the class axis"):
            function(LOGITS, SOFT, *vector, **option)


@pytest.mark.parametrize("option", ["temperature", "softcap", "z_loss", "focal_gamma", "poly_epsilon"])
def test_scalars_of_any_real_kind(option):
    expected = sl.softmax_cross_entropy(LOGITS, INDEX, **{option: 2.0})
    for value in (2, np.float32(2), np.int8(2), np.array(2.0), np.longdouble(2), *(t.type(2) for t in BFLOAT16)):
        assert sl.softmax_cross_entropy(LOGITS, INDEX, **{option: value}) == expected


def test_a_bias_of_minus_infinity_masks_its_class():
    masked = np.where(np.arange(3) == 0, -np.inf, LOGITS)
    for dtype in (np.float32, np.float64):
        given = masked.astype(dtype)
        expected, expected_grad = sl.softmax_cross_entropy_and_grad(given, INDEX.clip(1), reduction="none")
        loss, grad = sl.softmax_cross_entropy_and_grad(
            LOGITS.astype(dtype), INDEX.clip(1), reduction="none", logit_bias=[-np.inf, 0, 0]
        )
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-6)
        assert (grad[:, 0] == 0).all()


def test_no_class_left_is_a_nan_row():
    loss, grad = sl.softmax_cross_entropy_and_grad(LOGITS, INDEX, logit_bias=[-np.inf] * 3)
    assert math.isnan(loss)
    assert np.isnan(grad).all()


def unaligned(array):
    """The same values, one byte off."""
    view = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def test_labels_weights_and_bias_may_be_unaligned():
    weight, class_weight, bias = RNG.random(4), RNG.random(3), RNG.random(3)
    expected = sl.softmax_cross_entropy(LOGITS, INDEX, sample_weight=weight, class_weight=class_weight, logit_bias=bias)
    loss = sl.softmax_cross_entropy(
        LOGITS,
        unaligned(INDEX),
        sample_weight=unaligned(weight),
        class_weight=unaligned(class_weight),
        logit_bias=unaligned(bias),
    )
    assert loss == expected


# Row statistics and products with the Hessian: labels and vectors.


@pytest.mark.parametrize("label", [-100, -1, 3, 2**40])
def test_row_statistics_ignore_no_label(label):
    with pytest.raises(sl.LabelError, match=rf"labels\[2\] is {label}; with 3 classes a label is from 0 to 2$"):
        sl.row_statistics(LOGITS, [0, 1, label, 5])


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (SOFT, ValueError, "row_statistics takes class indices, one dimension less: of one-hot labels, labels.argmax"),
        ([0, 1], ValueError, r"labels have shape \(2,\)"),
        ([0.0, 1.0, 2.0, 0.0], TypeError, "index labels have dtype float64"),
        ([True, False, True, False], TypeError, "index labels have dtype bool"),
        (np.array([0, 1, 2**64 - 1, 0], np.uint64), sl.LabelError, "18446744073709551615"),
    ],
)
def test_row_statistics_take_class_indices(labels, error, message):
    with pytest.raises(error, match=message):
        sl.row_statistics(LOGITS, labels)


@pytest.mark.parametrize(
    ("vector", "error", "message"),
    [
        (np.zeros(3), ValueError, r"vector has shape \(3,\); expected the logits' \(4, 3\)"),
        (np.zeros((3, 4)), ValueError, r"vector has shape \(3, 4\)"),
        (1.0, ValueError, r"vector has shape \(\)"),
        (np.zeros((4, 3), complex), TypeError, "vector has dtype complex128; expected real numbers"),
        (np.full((4, 3), "a"), TypeError, "vector has dtype"),
        (np.zeros((4, 3), object), TypeError, "vector has dtype object"),
    ],
)
def test_a_vector_is_like_the_logits(vector, error, message):
    with pytest.raises(error, match=message):
        sl.hessian_vector_product(LOGITS, INDEX, vector)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "u1", "?", ">f4", "g"])
def test_a_vector_of_any_real_dtype(dtype):
    vector = np.arange(12).reshape(4, 3).astype(dtype)
    for logits in (LOGITS, LOGITS.astype(np.float32)):
        expected = sl.hessian_vector_product(logits, INDEX, vector.astype(logits.dtype))
        np.testing.assert_array_equal(sl.hessian_vector_product(logits, INDEX, vector), expected)


# Values of kinds that are easily mistaken.


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        (
            {"reduction": np.array(["mean", "sum"])},
            ValueError,
            "reduction is array.*; expected 'mean', 'sum' or 'none'",
        ),
        ({"reduction": None}, ValueError, "reduction is None; expected"),
        ({"ignore_index": True}, TypeError, "ignore_index is True; expected an integer"),
        ({"ignore_index": np.True_}, TypeError, "ignore_index is .*True.*; expected an integer"),
        ({"temperature": True}, TypeError, "temperature is True; expected a number"),
        ({"temperature": np.True_}, TypeError, "temperature is .*True.*; expected a number"),
        ({"axis": 5}, np.exceptions.AxisError, "^axis 5 is out of bounds for array of dimension 2$"),
        ({"axis": -3}, np.exceptions.AxisError, "^axis -3 is out of bounds for array of dimension 2$"),
        ({"axis": True}, TypeError, "axis is True; expected an integer"),
    ],
)
def test_values_of_other_kinds(function, option, error, message):
    with pytest.raises(error, match=message):
        call(function, **option)


def test_masked_arrays_are_refused():
    """NumPy would give their data, masked or not."""
    mask = [[False, True, False]] * 4
    logits, labels = np.ma.array(LOGITS, mask=mask), np.ma.array(INDEX, mask=[True, False, False, False])
    calls = {
        "logits": lambda: sl.softmax_cross_entropy(logits, INDEX),
        "labels": lambda: sl.softmax_cross_entropy_and_grad(LOGITS, labels),
        "sample_weight": lambda: sl.softmax_cross_entropy(LOGITS, INDEX, sample_weight=np.ma.ones(4)),
        "class_weight": lambda: sl.softmax_cross_entropy(LOGITS, INDEX, class_weight=np.ma.ones(3)),
        "logit_bias": lambda: sl.row_statistics(LOGITS, logit_bias=np.ma.ones(3)),
        "vector": lambda: sl.hessian_vector_product(LOGITS, INDEX, logits),
    }
    for name, function in calls.items():
        with pytest.raises(TypeError, match=f"{name} is a masked array"):
            function()
    for function in (sl.softmax, sl.log_softmax, sl.logsumexp):
        with pytest.raises(TypeError, match="logits is a masked array"):
            function(logits)
    with pytest.raises(TypeError, match="labels is a masked array"):
        sl.one_hot(labels, 3)
    with pytest.raises(TypeError, match="probabilities is a masked array"):
        sl.cross_entropy(np.ma.array(SOFT), INDEX)
    with pytest.raises(TypeError, match="out is a MaskedArray; expected a NumPy array"):
        sl.softmax_cross_entropy_and_grad(LOGITS, INDEX, out=np.ma.zeros((4, 3)))


# Where the gradient may be written.

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
    assert not plainly_free(out, logits, labels)
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, out=out)
    assert grad is out
    expected, expected_grad = sl.softmax_cross_entropy_and_grad(logits, labels)
    assert loss == expected
    assert np.array_equal(grad, expected_grad)
    assert not memory[:1].any()
    assert not memory[1 + logits.nbytes :].any()


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
        if plainly_free(view, logits, labels):
            assert check_out(view, logits, logits.dtype, labels) is view
            taken += 1
    assert taken >= 20
    assert plainly_free(logits, logits, labels)


# Calls without options: the quick way, and the ordinary one for the same answer.


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
