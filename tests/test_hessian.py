"""hessian_vector_product: every option against mpmath, PyTorch, and what a Hessian is."""

import dataclasses
import functools

import exact
import exact_hessian
import numpy as np
import pytest
from mpmath import mp, mpf
from option_cases import (
    CLASSES,
    DIGITS,
    DTYPES,
    EVERY_DENSE,
    EVERY_INDEX,
    KINDS,
    LAYOUTS,
    OPTION_SETS,
    REDUCTIONS,
    as_rows,
    assert_within,
    ids,
    label_kinds,
    make_case,
    unit,
)

import softmaxloss as sl


def bound_for(largest):
    """Units of rounding for each entry: a product has more terms than a gradient, and v enters each of them."""
    return 64 + 4 * largest


def run(case, vector, dtype, layout="last"):
    place = LAYOUTS[layout]
    logits, axis = place(case.logits.astype(dtype))
    rows_shape = np.moveaxis(logits, axis, -1).shape[:-1]
    options = dict(case.options)
    if "sample_weight" in options:
        options["sample_weight"] = options["sample_weight"].reshape(rows_shape)
    labels = case.labels.reshape(rows_shape) if case.labels.ndim == 1 else place(case.labels)[0]
    product = sl.hessian_vector_product(logits, labels, place(vector)[0], axis=axis, **options)
    assert product.shape == logits.shape
    return as_rows(product, axis)


@functools.cache  # the instruction sets share a case, and its costly reference
def make_problem(*arguments, vector_dtype="f8"):
    """Return the case of `make_case` with a vector and the exact product."""
    case = make_case(*arguments)
    # Numbers that every dtype the kernels compute in can hold: they round the vector to it.
    vector = np.random.default_rng(0).standard_normal(case.logits.shape).astype("f4").astype(vector_dtype)
    return (
        case,
        vector,
        exact_hessian.hessian_vector_product(case.logits, case.labels, vector, digits=DIGITS, **case.options),
    )


def assert_rounded(product, of_floats):
    """Assert that a product in 16 bits is one in float32, rounded; sums may be of another order."""
    little = 4 * np.spacing(np.abs(of_floats))
    with np.errstate(over="ignore"):
        least, most = (end.astype(product.dtype).astype(np.float32) for end in (of_floats - little, of_floats + little))
    between = np.clip(product.astype(np.float32), least, most)
    np.testing.assert_array_equal(product.astype(np.float32), between)


def check(case, vector, reference, *layouts):
    """Assert the bound, in each of the layouts."""
    dtype = case.logits.dtype
    for layout in layouts:
        product = run(case, vector, dtype, layout)
        assert_within(product, reference.product, reference.scale, bound_for(reference.largest)[:, None], dtype, layout)
        if dtype.itemsize == 2:
            assert_rounded(product, run(case, vector, np.dtype("f4"), layout))


# The reference itself


@pytest.mark.parametrize("names", OPTION_SETS, ids=ids)
def test_the_reference_is_the_derivative_of_the_loss(names):
    """Central differences in mpmath: of the loss for its gradient, of the gradient for the product."""
    case = make_case(OPTION_SETS.index(names), names, np.dtype("f8"), "ordinary", label_kinds(names)[-1], 4, "mean")
    options = {**case.options, "digits": 90}
    d = exact.as_mpf(np.random.default_rng(1).standard_normal(case.logits.shape))
    of_loss = exact.softmax_cross_entropy(case.logits, case.labels, **options)
    product = exact_hessian.hessian_vector_product(case.logits, case.labels, d, **options).product
    with mp.workdps(90):
        step = mpf(10) ** -25
        z = exact.as_mpf(case.logits)
        up, down = (exact.softmax_cross_entropy(z + side * step * d, case.labels, **options) for side in (1, -1))
        along = (up.loss - down.loss) / (2 * step)
        assert abs(along - mp.fsum((of_loss.grad * d).ravel())) < mpf(10) ** -40
        assert max(abs((up.grad - down.grad) / (2 * step) - product).ravel()) < mpf(10) ** -40


# Accuracy


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("names", OPTION_SETS, ids=ids)
def test_pairs_of_options(names, dtype):
    """What is no option (classes, layout, ...) is drawn, differently for each of the pairs."""
    seed = OPTION_SETS.index(names) * len(DTYPES) + DTYPES.index(dtype)
    rng = np.random.default_rng(seed)
    for kind in rng.choice(list(KINDS), 2, replace=False):
        classes = int(rng.choice(CLASSES[:-1]))
        label_kind, reduction = rng.choice(label_kinds(names)), rng.choice(REDUCTIONS)
        problem = make_problem(
            seed, names, dtype, kind, label_kind, classes, reduction, vector_dtype=rng.choice(["f4", "f8"])
        )
        check(*problem, rng.choice(list(LAYOUTS)))


@pytest.mark.parametrize("names", [(), EVERY_INDEX, EVERY_DENSE], ids=["none", "index", "dense"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
def test_shapes_and_layouts(classes, dtype, names, instruction_set):
    n = 2 if classes == 1000 else 4
    check(*make_problem(1, names, dtype, "ordinary", label_kinds(names)[-1], classes, "mean", n), *LAYOUTS)


@pytest.mark.parametrize("names", [(), ("softcap", "z_loss"), EVERY_INDEX, EVERY_DENSE], ids=ids)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_logits(kind, dtype, names):
    for label_kind in label_kinds(names):
        check(*make_problem(2, names, dtype, kind, label_kind, 13, "none"), "last", "first")


@pytest.mark.parametrize("layout", ["last", "first", "middle"])
@pytest.mark.parametrize("names", [(), EVERY_INDEX, EVERY_DENSE], ids=["none", "index", "dense"])
@pytest.mark.parametrize("classes", [3, 10, 37, 65])
def test_many_rows(classes, names, layout, instruction_set):
    rng = np.random.default_rng(classes)
    for n in (30, 64, 66, 1030):
        case = make_case(3, names, np.dtype("f4"), "ordinary", label_kinds(names)[-1], classes, "none", n)
        logits, vector = case.logits.copy(), rng.standard_normal((n, classes)).astype(np.float32)
        logits[[1, n - 2]] = np.nan
        case = dataclasses.replace(case, logits=logits)
        product, expected = run(case, vector, np.dtype("f4"), layout), run(case, vector, np.dtype("f8"))
        assert np.isnan(expected[[1, n - 2]]).all()
        assert np.isnan(expected).sum() == 2 * classes
        np.testing.assert_allclose(product, expected, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.75}, {"focal_gamma": 2.0}, {"label_smoothing": 0.1}], ids=str
)
@pytest.mark.parametrize("gap", [9, 15, 27])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_confident_row_keeps_its_digits(dtype, gap, options, instruction_set):
    """d_j - mu of the certain class is e^-gap, which a difference of two numbers near 1 would not hold."""
    rng = np.random.default_rng(0)
    logits = (rng.standard_normal((3, 40)) / 4).astype(dtype)
    logits[:, 7] += gap
    vector = rng.uniform(0, 0.5, (3, 40)).astype(dtype)
    vector[:, 7] = 1
    labels, options = [7, 7, 7], {"reduction": "sum", **options}
    reference = exact_hessian.hessian_vector_product(logits, labels, vector, **options)
    product = sl.hessian_vector_product(logits, labels, vector, **options)
    bound = bound_for(reference.largest)[:, None]
    assert_within(product, reference.product, reference.scale, bound, dtype)
    errors = exact.relative_error(product, reference.product) / unit(np.dtype(dtype))
    assert np.all(errors <= bound)


# Degenerate rows


@pytest.mark.parametrize("options", [{}, {"focal_gamma": 0.5}, {"focal_gamma": 3.0, "poly_epsilon": -1.0}], ids=str)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_certain_and_masked_rows(dtype, options, instruction_set):
    """No NaN where the formula's parts are 0 * inf: one class, one class left, a masked label."""
    for certain in ([3.0], [3.0, -np.inf, -np.inf], [1e4, 0, 0], [2e3, 0, 0]):
        logits = np.array([certain], dtype)
        product = sl.hessian_vector_product(logits, [0], np.ones_like(logits) * np.arange(len(certain)), **options)
        np.testing.assert_array_equal(product, 0)
    for gap in (40, 80, 300, 600, 740):
        logits, d = np.array([[gap, 0, 1]], dtype), np.array([[1.0, 2.0, -1.0]])
        reference = exact_hessian.hessian_vector_product(logits, [0], d, digits=400, **options)
        product = sl.hessian_vector_product(logits, [0], d, **options)
        assert_within(product, reference.product, reference.scale, bound_for(reference.largest)[:, None], dtype)
    logits, d = np.array([[0, -np.inf, 1]], dtype), np.array([[1.0, 2.0, -1.0]])
    reference = exact_hessian.hessian_vector_product(logits, [1], d, **options)
    product = sl.hessian_vector_product(logits, [1], d, **options)
    assert_within(product, reference.product, reference.scale, bound_for(reference.largest)[:, None], dtype)
    assert product[0, 1] == 0


# Arguments


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "?"])
@pytest.mark.parametrize("vector_dtype", ["f2", "f4", "f8", ">f8", "i8", "u1", "?", "list"])
def test_dtypes(dtype, vector_dtype):
    rng = np.random.default_rng(0)
    logits, d = rng.integers(0, 2, (6, 5)).astype(dtype), rng.integers(0, 2, (6, 5))
    expected = sl.hessian_vector_product(logits.astype(np.float64), np.arange(6) % 5, d.astype(np.float64))
    given_vector = d.tolist() if vector_dtype == "list" else d.astype(vector_dtype)
    product = sl.hessian_vector_product(logits, np.arange(6) % 5, given_vector)
    assert product.dtype == (np.float64 if dtype in ("i4", "?") else np.dtype(dtype))
    np.testing.assert_allclose(product, expected, rtol=1e-3 if dtype == "f2" else 1e-6, atol=1e-8)


def test_one_row_and_no_rows():
    product = sl.hessian_vector_product([1.0, 2.0, 3.0], 1, [1.0, 0.0, 0.0])
    p = sl.softmax([1.0, 2.0, 3.0])
    np.testing.assert_allclose(product, p * ([1, 0, 0] - p[0]), rtol=1e-13)
    assert sl.hessian_vector_product(np.zeros((0, 4)), np.zeros(0, int), np.zeros((0, 4))).shape == (0, 4)


def test_the_inputs_are_not_written():
    rng = np.random.default_rng(0)
    logits, d = rng.standard_normal((4, 70)), rng.standard_normal((4, 70))
    before = logits.tobytes(), d.tobytes()
    product = sl.hessian_vector_product(logits, np.arange(4), d, temperature=2.0, softcap=5.0, focal_gamma=2.0)
    assert (logits.tobytes(), d.tobytes()) == before
    np.testing.assert_array_equal(
        sl.hessian_vector_product(logits, np.arange(4), logits),
        sl.hessian_vector_product(logits, np.arange(4), logits.copy()),
    )
    assert not np.shares_memory(product, d)


@pytest.mark.parametrize(
    ("vector", "error", "message"),
    [
        (np.zeros((2, 4)), ValueError, r"vector has shape \(2, 4\); expected the logits' \(2, 3\)"),
        (np.zeros(3), ValueError, r"vector has shape \(3,\)"),
        (np.zeros((2, 3), complex), TypeError, "vector has dtype complex128"),
        ([["a"] * 3] * 2, TypeError, "vector has dtype"),
    ],
)
def test_bad_vectors(vector, error, message):
    with pytest.raises(error, match=message):
        sl.hessian_vector_product(np.zeros((2, 3)), [0, 1], vector)


def test_bad_labels():
    zeros = np.zeros((2, 3))
    with pytest.raises(sl.LabelError, match=r"labels\[1\] is 3"):
        sl.hessian_vector_product(zeros, [0, 3], zeros)
    with pytest.raises(ValueError, match=r"row \[1\] sums to 2"):
        sl.hessian_vector_product(zeros, [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], zeros)
