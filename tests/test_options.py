"""Every option of the loss in combination with every other: the answer is within the promised bound of mpmath's."""

import dataclasses
import itertools

import exact
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from option_cases import (
    CLASSES,
    DESTINATIONS,
    DIGITS,
    DTYPES,
    EVERY_DENSE,
    EVERY_INDEX,
    IGNORED,
    KINDS,
    LAYOUTS,
    OPTION_SETS,
    REDUCTIONS,
    Case,
    check,
    ids,
    label_kinds,
    make_case,
    run,
)

import softmaxloss as sl
from softmaxloss import _native

try:
    import torch
except ImportError:
    torch = None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("names", OPTION_SETS, ids=ids)
def test_pairs_of_options(names, dtype, instruction_set):
    """What is no option (classes, layout, ...) is drawn, differently for each of the pairs."""
    seed = OPTION_SETS.index(names) * len(DTYPES) + DTYPES.index(dtype)
    rng = np.random.default_rng(seed)
    for kind in rng.choice(list(KINDS), 2, replace=False):
        label_kind, classes = rng.choice(label_kinds(names)), int(rng.choice(CLASSES[:-1]))
        case = make_case(seed, names, dtype, kind, label_kind, classes, rng.choice(REDUCTIONS))
        check(case, rng.choice(list(LAYOUTS)), rng.choice(DESTINATIONS))


@pytest.mark.parametrize("names", [EVERY_INDEX, EVERY_DENSE], ids=["index", "dense"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_shapes_and_layouts(classes, dtype, names, instruction_set):
    n = 2 if classes == 1000 else 4
    case = make_case(1, names, dtype, "ordinary", label_kinds(names)[-1], classes, "mean", n)
    for i, layout in enumerate(LAYOUTS):
        check(case, layout, DESTINATIONS[(i + classes) % 3])


@pytest.mark.parametrize("names", [(), ("softcap", "z_loss"), EVERY_INDEX, EVERY_DENSE], ids=ids)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_logits(kind, dtype, names, instruction_set):
    for label_kind, reduction in itertools.product(label_kinds(names), REDUCTIONS):
        case = make_case(2, names, dtype, kind, label_kind, 13, reduction)
        for layout in ("last", "first"):
            check(case, layout)


@pytest.mark.parametrize("names", [("temperature", "z_loss"), EVERY_INDEX, EVERY_DENSE], ids=ids)
@pytest.mark.parametrize("layout", ["last", "first", "middle"])
@pytest.mark.parametrize("classes", [2, 3, 10, 37, 64, 65])
def test_many_rows(classes, layout, names, instruction_set):
    """Whole tiles and their remainders: each row as the same row in float64, which the tests above hold to mpmath."""
    for n in (30, 64, 66, 1030):
        case = make_case(3, names, np.dtype("f4"), "ordinary", label_kinds(names)[-1], classes, "none", n)
        logits = case.logits.copy()
        logits[[1, n - 2]] = np.nan
        case = dataclasses.replace(case, logits=logits)
        loss, grad = run(case, np.dtype("f4"), layout)
        expected, expected_grad = run(case, np.dtype("f8"))
        assert np.isnan(expected).sum() == 2
        np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-5)


# Floats that float32 holds: an option or a logit that it cannot hold is already another problem.
def floats(low, high):
    return st.floats(low, high, width=32)


@st.composite
def option_sets(draw, n, classes, by_index):
    """Any of the options, each at any value of its range."""
    pick = {
        "temperature": floats(0.25, 8),
        "softcap": floats(2, 64),
        "logit_bias": hnp.arrays(np.float32, classes, elements=floats(-4, 4)),
        "z_loss": floats(0, 2),
        "class_weight": hnp.arrays(np.float64, classes, elements=floats(0.0009765625, 8) | st.just(0.0)),
        "sample_weight": hnp.arrays(np.float64, n, elements=floats(0.0009765625, 8) | st.just(0.0)),
    }
    if by_index and draw(st.booleans()):
        pick |= {"focal_gamma": floats(0, 4), "poly_epsilon": floats(-1, 4)}
    else:
        pick |= {"label_smoothing": floats(0, 1)}
    names = draw(st.sets(st.sampled_from(sorted(pick))))
    return {name: draw(pick[name]) for name in sorted(names)} | {"reduction": draw(st.sampled_from(REDUCTIONS))}


@st.composite
def cases(draw):
    dtype = draw(st.sampled_from(DTYPES))
    n, classes = 2 * draw(st.integers(1, 2)), draw(st.integers(1, 40))
    logits = draw(hnp.arrays(np.float32, (n, classes), elements=floats(-25, 25) | st.just(-np.inf), fill=st.just(0.5)))
    by_index = draw(st.booleans())
    labels = draw(hnp.arrays(np.int64, n, elements=st.integers(0, classes - 1) | st.just(IGNORED)))
    if not by_index:
        labels = np.eye(classes)[np.where(labels == IGNORED, 0, labels)]
        labels = (labels + np.roll(labels, draw(st.integers(0, classes)), axis=1)) / 2
    return Case(logits.astype(dtype), labels, draw(option_sets(n, classes, by_index)))


@given(cases(), st.sampled_from(list(LAYOUTS)), st.sampled_from(DESTINATIONS), st.data())
@settings(max_examples=250, deadline=None, derandomize=True)
def test_any_options(case, layout, destination, data):
    before = _native.instruction_set()
    _native.set_instruction_set(data.draw(st.sampled_from(_native.supported_instruction_sets())))
    try:
        check(case, layout, destination)
    finally:
        _native.set_instruction_set(before)


def torch_loss(z, labels, *, temperature, softcap, logit_bias, z_loss, label_smoothing, focal_gamma, poly_epsilon):
    """Return the rows' losses by the formula as one would write it in PyTorch."""
    v = softcap * torch.tanh(z / temperature / softcap) + torch.tensor(logit_bias)
    lse, logs = torch.logsumexp(v, 1), torch.log_softmax(v, 1)
    q = torch.tensor(np.eye(z.shape[1])[labels]) if labels.ndim == 1 else torch.tensor(labels)
    q = (1 - label_smoothing) * q + label_smoothing / z.shape[1]
    loss = -(q * logs).sum(1)
    if focal_gamma or poly_epsilon:
        missing = 1 - torch.exp(-loss)
        loss = missing**focal_gamma * loss + poly_epsilon * missing ** (focal_gamma + 1)
    return loss + z_loss * lse**2


@pytest.mark.skipif(torch is None, reason="PyTorch is not installed")
@pytest.mark.parametrize(
    ("soft", "label_smoothing", "focal_gamma", "poly_epsilon"),
    [
        (True, 0, 0, 0),
        (True, 0.2, 0, 0),
        (False, 0, 0, 0),
        (False, 0.2, 0, 0),
        (False, 0, 2, 0),
        (False, 0, 0, 1.5),
        (False, 0, 0.5, -0.4),
        (False, 0, 3, 2),
    ],
)
def test_agrees_with_autograd(soft, label_smoothing, focal_gamma, poly_epsilon):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((6, 5)) * 2
    labels = rng.dirichlet(np.ones(5), 6) if soft else rng.integers(0, 5, 6)
    options = {
        "temperature": 1.3,
        "softcap": 4.0,
        "logit_bias": rng.standard_normal(5),
        "z_loss": 0.3,
        "label_smoothing": label_smoothing,
        "focal_gamma": focal_gamma,
        "poly_epsilon": poly_epsilon,
    }
    z = torch.tensor(logits, requires_grad=True)
    theirs = torch_loss(z, labels, **options)
    theirs.sum().backward()
    reference = exact.softmax_cross_entropy(logits, labels, reduction="none", digits=DIGITS, **options)
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, reduction="none", **options)
    for by_us, by_us_grad in ((exact.as_float(reference.loss), exact.as_float(reference.grad)), (loss, grad)):
        np.testing.assert_allclose(by_us, theirs.detach().numpy(), rtol=1e-12)
        np.testing.assert_allclose(by_us_grad, z.grad.numpy(), rtol=1e-10, atol=1e-14)
