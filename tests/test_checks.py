"""What is checked at the door: signatures, options, labels, vectors, values of kinds that are easily mistaken."""

import inspect
import math

import numpy as np
import pytest
from option_cases import BFLOAT16
from small_call import INDEX, LOGITS, OPTIONS, RNG, SOFT, unaligned

import softmaxloss as sl
from softmaxloss.options import GivenOptions, GivenTransform

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
