"""Options that are refused: out of range, of the wrong type or shape, or not to be combined. Nothing is written."""

import math

import numpy as np
import pytest

import softmaxloss as sl

INDEX = [0, 1]
SOFT = [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]

REFUSED = [
    *(({"temperature": x}, ValueError, "temperature is") for x in (0, -1.0, math.nan, math.inf, -0.0)),
    *(({"softcap": x}, ValueError, "softcap is") for x in (0, 0.0, -30.0, math.nan)),
    *(({"z_loss": x}, ValueError, "z_loss is") for x in (-1e-4, math.nan)),
    *(({"focal_gamma": x}, ValueError, "focal_gamma is") for x in (-1, math.nan)),
    ({"poly_epsilon": math.nan}, ValueError, "poly_epsilon is nan"),
    *(
        ({name: wrong}, TypeError, f"{name} is .*expected a number")
        for name in ("temperature", "softcap", "z_loss", "focal_gamma", "poly_epsilon")
        for wrong in ("1", [1.0], np.array([1.0]), 1j, True)
    ),
    *(
        ({name: None}, TypeError, f"{name} is None")
        for name in ("temperature", "z_loss", "focal_gamma", "poly_epsilon")
    ),
    ({"logit_bias": [1.0, 2.0]}, ValueError, r"logit_bias has shape \(2,\); expected \(3,\)"),
    ({"logit_bias": 1.0}, ValueError, r"logit_bias has shape \(\); expected \(3,\)"),
    ({"logit_bias": np.zeros((2, 3))}, ValueError, r"logit_bias has shape \(2, 3\); expected \(3,\)"),
    ({"logit_bias": np.zeros((1, 3))}, ValueError, r"logit_bias has shape \(1, 3\); expected \(3,\)"),
    ({"logit_bias": ["a", "b", "c"]}, TypeError, "logit_bias has dtype"),
    ({"logit_bias": np.zeros(3, complex)}, TypeError, "logit_bias has dtype"),
]
FUNCTIONS = {
    "loss": lambda logits, labels, **options: sl.softmax_cross_entropy(logits, labels, **options),
    "grad": lambda logits, labels, **options: sl.softmax_cross_entropy_and_grad(logits, labels, **options),
    "in place": lambda logits, labels, **options: sl.softmax_cross_entropy_and_grad(
        logits, labels, out=logits, **options
    ),
    "hessian": lambda logits, labels, **options: sl.hessian_vector_product(logits, labels, logits, **options),
}


def refuse(function, labels, options, error, message):
    logits = np.full((2, 3), 7.0)
    with pytest.raises(error, match=message):
        FUNCTIONS[function](logits, labels, **options)
    np.testing.assert_array_equal(logits, 7)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("options", "error", "message"), REFUSED, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_refused(options, error, message, function):
    refuse(function, INDEX, options, error, message)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("options", [{"focal_gamma": 2.0}, {"poly_epsilon": 1.0}, {"poly_epsilon": -0.5}])
@pytest.mark.parametrize(
    ("labels", "smoothing", "message"),
    [(INDEX, {"label_smoothing": 0.1}, "label_smoothing"), (SOFT, {}, "distribution")],
)
def test_focal_and_poly_are_for_index_labels_without_smoothing(labels, smoothing, message, options, function):
    refuse(function, labels, {**options, **smoothing}, ValueError, f"{next(iter(options))}.*{message}")


@pytest.mark.parametrize("labels", [INDEX, SOFT])
def test_focal_and_poly_of_zero_go_with_everything(labels):
    logits = np.random.default_rng(0).standard_normal((2, 3))
    expected = sl.softmax_cross_entropy(logits, labels, label_smoothing=0.1)
    loss = sl.softmax_cross_entropy(logits, labels, label_smoothing=0.1, focal_gamma=0.0, poly_epsilon=0.0)
    assert loss == expected


def test_options_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        sl.softmax_cross_entropy(np.zeros((2, 3)), INDEX, -1, "mean")
    with pytest.raises(TypeError, match="soft_cap"):
        sl.softmax_cross_entropy(np.zeros((2, 3)), INDEX, soft_cap=1.0)


def test_out_is_untouched_by_a_bad_label():
    logits, out = np.zeros((2, 3)), np.full((2, 3), 7.0)
    with pytest.raises(sl.LabelError, match=r"labels\[1\] is 3"):
        sl.softmax_cross_entropy_and_grad(logits, [0, 3], out=out, temperature=2.0, focal_gamma=2.0, z_loss=0.1)
    np.testing.assert_array_equal(out, 7)


def test_out_may_not_be_the_bias():
    memory = np.zeros(9)
    with pytest.raises(ValueError, match="out overlaps"):
        sl.softmax_cross_entropy_and_grad(np.ones((2, 3)), INDEX, logit_bias=memory[:3], out=memory[2:8].reshape(2, 3))
    np.testing.assert_array_equal(memory, 0)
