"""What a Hessian is: symmetric, linear, the derivative of our gradient and of PyTorch's, a sum over rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from option_cases import DRAWS, KINDS, OPTION_SETS, unit

import softmaxloss as sl
from softmaxloss import _native

try:
    import torch
except ImportError:
    torch = None


@st.composite
def problems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, classes = draw(st.integers(1, 4)), draw(st.integers(1, 70))
    kind = draw(st.sampled_from(["ordinary", "confident", "masked", "constant"]))
    logits = KINDS[kind](rng, n, classes)
    names = draw(st.sampled_from(OPTION_SETS))
    options = {name: DRAWS[name](rng, n, classes) for name in names}
    labels = rng.integers(0, classes, n)
    return logits, labels, {**options, "reduction": draw(st.sampled_from(["sum", "none"]))}, rng


def with_any_instruction_set(function):
    def run(problem, instruction_set):
        before = _native.instruction_set()
        _native.set_instruction_set(instruction_set)
        try:
            function(*problem)
        finally:
            _native.set_instruction_set(before)

    run.__name__ = function.__name__
    any_set = st.sampled_from(_native.supported_instruction_sets())
    return settings(max_examples=100, deadline=None, derandomize=True)(given(problems(), any_set)(run))


def magnitude(logits, options):
    """Return what an entry of the Hessian is at most, give or take: of its weights, factors and chain."""
    by_chain = 1 / options.get("temperature", 1.0) ** 2
    largest = np.abs(logits[np.isfinite(logits)]).max() / options.get("temperature", 1.0) + 5
    factors = (1 + options.get("focal_gamma", 0)) ** 2 * (1 + abs(options.get("poly_epsilon", 0)))
    return 4 * by_chain * (factors + 2 * options.get("z_loss", 0) * (1 + largest))


@with_any_instruction_set
def test_it_is_symmetric(logits, labels, options, rng):
    u, v = rng.standard_normal((2, *logits.shape))
    hv, hu = (sl.hessian_vector_product(logits, labels, d, **options) for d in (v, u))
    tolerance = 1e-13 * magnitude(logits, options) * np.abs(u).max(axis=1) * np.abs(v).max(axis=1) * logits.shape[1]
    assert np.all(np.abs((u * hv).sum(axis=1) - (v * hu).sum(axis=1)) <= tolerance)


@with_any_instruction_set
def test_it_is_zero_along_constants(logits, labels, options, rng):
    """Where the loss does not change: no z_loss, and logits that are not capped."""
    options = {name: value for name, value in options.items() if name not in ("z_loss", "softcap")}
    dtype = rng.choice([np.float32, np.float64])
    along = np.full_like(logits, rng.standard_normal(), dtype=dtype)
    product = sl.hessian_vector_product(logits.astype(dtype), labels, along, **options)
    np.testing.assert_allclose(product, 0, atol=100 * unit(product.dtype) * magnitude(logits, options))


@with_any_instruction_set
def test_its_rows_sum_to_zero(logits, labels, options, rng):
    """The same for the other side of the matrix."""
    options = {name: value for name, value in options.items() if name not in ("z_loss", "softcap")}
    product = sl.hessian_vector_product(logits, labels, rng.standard_normal(logits.shape), **options)
    np.testing.assert_allclose(product.sum(axis=1), 0, atol=1e-13 * magnitude(logits, options) * logits.shape[1])


@with_any_instruction_set
def test_it_is_linear(logits, labels, options, rng):
    u, v = rng.standard_normal((2, *logits.shape))
    both, hu, hv = (sl.hessian_vector_product(logits, labels, d, **options) for d in (2 * u - v, u, v))
    np.testing.assert_allclose(both, 2 * hu - hv, rtol=0, atol=1e-13 * magnitude(logits, options) * 20)


@with_any_instruction_set
def test_it_is_the_derivative_of_our_gradient(logits, labels, options, rng):
    d, step = rng.standard_normal(logits.shape), 1e-4
    up, down = (sl.softmax_cross_entropy_and_grad(logits + side * step * d, labels, **options)[1] for side in (1, -1))
    product = sl.hessian_vector_product(logits, labels, d, **options)
    np.testing.assert_allclose(product, (up - down) / (2 * step), rtol=1e-4, atol=1e-4 * magnitude(logits, options))


def test_cross_entropy_is_convex():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((50, 9)) * 4, rng.integers(0, 9, 50)
    d = rng.standard_normal((50, 9))
    product = sl.hessian_vector_product(logits, labels, d, reduction="sum")
    assert np.all((d * product).sum(axis=1) > 0)
    p = sl.softmax(logits)
    np.testing.assert_allclose(product, p * (d - (p * d).sum(axis=1, keepdims=True)), rtol=1e-9, atol=1e-15)


# Reductions and degenerate rows


def test_reductions():
    rng = np.random.default_rng(0)
    logits, labels, d = rng.standard_normal((5, 4)), np.array([0, 3, -100, 2, 2]), rng.standard_normal((5, 4))
    weight, by_class = rng.random(5), rng.random(4)
    options = {"sample_weight": weight, "class_weight": by_class, "focal_gamma": 2.0}
    total = sl.hessian_vector_product(logits, labels, d, reduction="sum", **options)
    rows = sl.hessian_vector_product(logits, labels, d, reduction="none", **options)
    mean = sl.hessian_vector_product(logits, labels, d, **options)
    np.testing.assert_array_equal(rows, total)
    np.testing.assert_array_equal(rows[2], 0)
    kept = labels >= 0
    np.testing.assert_allclose(mean, total / (weight * by_class[labels % 4])[kept].sum(), rtol=1e-13)


def test_ignored_nan_and_weightless_rows():
    rng = np.random.default_rng(0)
    logits, d = rng.standard_normal((5, 6)), rng.standard_normal((5, 6))
    labels = np.array([0, -100, 2, 3, 4])
    clean = sl.hessian_vector_product(logits, labels, d, reduction="sum", temperature=2.0)
    logits[1], logits[2, 3], logits[3] = np.nan, np.inf, -np.inf
    product = sl.hessian_vector_product(logits, labels, d, reduction="sum", temperature=2.0)
    np.testing.assert_array_equal(product[1], 0)
    assert np.isnan(product[[2, 3]]).all()
    np.testing.assert_array_equal(product[[0, 4]], clean[[0, 4]])
    weighted = sl.hessian_vector_product(
        logits[[0, 4]], [0, 4], d[[0, 4]], reduction="sum", temperature=2.0, sample_weight=[0.0, 1.0]
    )
    np.testing.assert_array_equal(weighted[0], 0)
    np.testing.assert_allclose(weighted[1], clean[4], rtol=1e-13)


def test_a_nan_in_the_vector_touches_no_other_row():
    rng = np.random.default_rng(0)
    logits, d = rng.standard_normal((3, 6)), rng.standard_normal((3, 6))
    clean = sl.hessian_vector_product(logits, [0, 1, 2], d)
    d[1, 4] = np.nan
    product = sl.hessian_vector_product(logits, [0, 1, 2], d)
    assert np.isnan(product[1]).all()
    np.testing.assert_array_equal(product[[0, 2]], clean[[0, 2]])


def test_means_that_have_no_weight():
    ones = np.ones((2, 3))
    np.testing.assert_array_equal(sl.hessian_vector_product(ones, [-100, -100], ones, z_loss=0.1), 0)
    assert np.isnan(sl.hessian_vector_product(ones, [0, 1], ones, sample_weight=[0, 0])).all()


@pytest.mark.skipif(torch is None, reason="PyTorch is not installed")
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("focal_gamma", [0.0, 2.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.3])
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_agrees_with_pytorch(softcap, z_loss, focal_gamma, soft):
    rng = np.random.default_rng(0)
    logits, d = rng.standard_normal((2, 6, 5)) * 2
    labels = rng.dirichlet(np.ones(5), 6) if soft else rng.integers(0, 5, 6)
    focal_gamma = 0.0 if soft else focal_gamma

    def loss(z):
        v = z / 1.3 if softcap is None else softcap * torch.tanh(z / 1.3 / softcap)
        rows = torch.nn.functional.cross_entropy(v, torch.tensor(labels), reduction="none")
        rows = (1 - torch.exp(-rows)) ** focal_gamma * rows if focal_gamma else rows
        return (rows + z_loss * torch.logsumexp(v, 1) ** 2).mean()

    theirs = torch.autograd.functional.hvp(loss, torch.tensor(logits), torch.tensor(d))[1].numpy()
    product = sl.hessian_vector_product(
        logits, labels, d, temperature=1.3, softcap=softcap, z_loss=z_loss, focal_gamma=focal_gamma
    )
    np.testing.assert_allclose(product, theirs, rtol=1e-9, atol=1e-14)
