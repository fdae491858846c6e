"""linear_cross_entropy of NumPy arrays: loss and gradients are those of the logits that are never all there."""

import json
import subprocess
import sys

import exact
import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from option_cases import (
    DTYPES,
    EVERY_DENSE,
    EVERY_INDEX,
    IGNORED,
    OPTION_SETS,
    REDUCTIONS,
    assert_within,
    computed_in,
    ids,
    label_kinds,
    make_case,
)

import softmaxloss as sl
from softmaxloss.backends import linear_products
from softmaxloss.backends.block_plan import DEFAULT_BLOCK_BYTES, plan_blocks, plan_loss_tiles

FINITE = ["ordinary", "confident", "offset", "constant"]


def layer(rng, n, classes, features, dtype="f8", scale=0.5):
    hidden = rng.standard_normal((n, features)).astype(dtype)
    weight = (rng.standard_normal((classes, features)) * scale).astype(dtype)
    return hidden, weight, rng.standard_normal(classes).astype(dtype)


def materialised(hidden, weight, labels, bias=None, **options):
    """Return loss and gradients by way of all logits, in float64."""
    hidden, weight = (np.asarray(x).astype(np.float64) for x in (hidden, weight))
    logits = hidden @ weight.T + (0.0 if bias is None else np.asarray(bias).astype(np.float64))
    loss, by_logits = sl.softmax_cross_entropy_and_grad(logits, labels, **options)
    flat = by_logits.reshape(-1, len(weight))
    rows = hidden.reshape(len(flat), hidden.shape[-1])
    return loss, sl.LinearGrad(by_logits @ weight, flat.T @ rows, flat.sum(axis=0))


def assert_close(ours, expected, tolerance=1e-12):
    ours, expected = np.asarray(ours, np.float64), np.asarray(expected, np.float64)
    assert ours.shape == expected.shape
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=1e-30)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * scale)


def check(hidden, weight, labels, bias=None, tolerance=1e-12, max_block_bytes=None, **options):
    expected, expected_grad = materialised(hidden, weight, labels, bias, **options)
    options = {"bias": bias, "max_block_bytes": max_block_bytes, **options}
    loss, grad = sl.linear_cross_entropy_and_grad(hidden, weight, labels, **options)
    assert_close(loss, expected, tolerance)
    assert_close(sl.linear_cross_entropy(hidden, weight, labels, **options), expected, tolerance)
    assert_close(grad.hidden, expected_grad.hidden, tolerance)
    assert_close(grad.weight, expected_grad.weight, tolerance)
    if bias is None:
        assert grad.bias is None
    else:
        assert_close(grad.bias, expected_grad.bias, tolerance)
    return loss, grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("names", OPTION_SETS, ids=ids)
def test_options(names, dtype):
    """The weight is the identity, so that logits and their gradient are those of the case, of whole rows in blocks."""
    seed = OPTION_SETS.index(names) * len(DTYPES) + DTYPES.index(dtype)
    rng = np.random.default_rng(seed)
    for kind in rng.choice(FINITE, 2, replace=False):
        classes = int(rng.choice([1, 2, 10, 37]))
        case = make_case(seed, names, dtype, kind, rng.choice(label_kinds(names)), classes, rng.choice(REDUCTIONS))
        reference, weight = case.reference, np.eye(classes).astype(dtype)
        rows = 4 if dtype.itemsize == 8 else int(rng.integers(1, 5))  # less than all makes blocks of classes too
        budget = rows * classes * computed_in(dtype).itemsize
        loss, grad = sl.linear_cross_entropy_and_grad(
            case.logits, weight, case.labels, bias=np.zeros(classes, dtype), max_block_bytes=budget, **case.options
        )
        largest = reference.largest if case.options["reduction"] == "none" else reference.largest.max(initial=0)
        assert_within(loss, reference.loss, reference.loss_scale, 16 + largest, computed_in(dtype), kind)
        by_row = 16 + reference.largest[:, None]
        assert_within(grad.hidden, reference.grad, reference.scale, by_row, dtype, kind)
        in_all = 16 + 2 * len(case.logits) + reference.largest.max(initial=0)
        rows = exact.as_mpf(case.logits)
        assert_within(grad.weight, reference.grad.T @ rows, reference.scale.T @ abs(rows), in_all, dtype, kind)
        assert_within(grad.bias, reference.grad.sum(axis=0), reference.scale.sum(axis=0), in_all, dtype, kind)


@pytest.mark.parametrize("names", [(), EVERY_INDEX, EVERY_DENSE], ids=ids)
@pytest.mark.parametrize("max_block_bytes", [8, 64, 200, 1000, 3000, 10**9])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_any_block(reduction, max_block_bytes, names):
    rng = np.random.default_rng(0)
    # A number at a time takes long.
    for n, classes, features in [
        (5, 1, 3),
        (1, 17, 1),
        (9, 11, 5) if max_block_bytes == 8 else (33, 41, 5),
        (40, 7, 64),
    ]:
        for kind in label_kinds(names):
            case = make_case(1, names, np.dtype("f8"), "ordinary", kind, classes, reduction, n)
            hidden, weight, bias = layer(rng, n, classes, features)
            options = {**case.options, "max_block_bytes": max_block_bytes}
            check(hidden, weight, case.labels, bias, **options)
            check(*(x.astype("f4") for x in (hidden, weight)), case.labels, tolerance=2e-5, **options)


@pytest.mark.parametrize("max_block_bytes", [None, 100])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (7,), (2, 3), (2, 0, 3), (2, 1, 3)])
def test_ranks(shape, max_block_bytes):
    rng = np.random.default_rng(0)
    for classes, features in [(9, 4), (1, 1), (3, 0)]:
        hidden = rng.standard_normal((*shape, features))
        _, weight, bias = layer(rng, 1, classes, features)
        distribution = rng.dirichlet(np.ones(classes), shape)
        for labels in (rng.integers(0, classes, shape), distribution):
            for reduction in REDUCTIONS:
                options = {"reduction": reduction, "sample_weight": rng.random(shape)}
                check(hidden, weight, labels, bias, max_block_bytes=max_block_bytes, **options)
        crooked = np.asfortranarray(distribution)
        check(np.asfortranarray(hidden), weight, crooked, bias, max_block_bytes=max_block_bytes)


LAYOUTS = {
    "fortran": np.asfortranarray,
    "reversed": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "strided": lambda x: np.repeat(np.repeat(x, 2, 0), 3, 1)[::2, ::3],
    "foreign": lambda x: x.astype(x.dtype.newbyteorder()),
    "list": lambda x: x.tolist(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("max_block_bytes", [None, 300])
def test_layouts(layout, max_block_bytes):
    rng = np.random.default_rng(0)
    place = LAYOUTS[layout]
    hidden, weight, bias = layer(rng, 12, 19, 8)
    labels = rng.integers(0, 19, 12)
    plain = check(hidden, weight, labels, bias, max_block_bytes=max_block_bytes)
    for x, w in [(place(hidden), weight), (hidden, place(weight)), (place(hidden), place(weight))]:
        loss, grad = check(x, w, labels, bias, max_block_bytes=max_block_bytes)
        assert_close(loss, plain[0])
        assert grad.hidden.dtype == grad.weight.dtype == np.float64
        assert grad.hidden.flags.c_contiguous


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("max_block_bytes", [None, 2000, 300])
def test_dtypes(dtype, max_block_bytes):
    rng = np.random.default_rng(0)
    hidden, weight, bias = layer(rng, 40, 30, 16, dtype)
    labels = rng.integers(0, 30, 40)
    tolerance = {2: 1e-2 if dtype.name == "bfloat16" else 1e-3, 4: 1e-5, 8: 1e-12}[dtype.itemsize]
    loss, grad = check(hidden, weight, labels, bias, tolerance, max_block_bytes)
    assert np.asarray(loss).dtype == computed_in(dtype)
    assert [x.dtype for x in grad] == [dtype] * 3
    # Products are of float32 and are added up in it; it is the answers that are rounded.
    in_32, grad_in_32 = sl.linear_cross_entropy_and_grad(
        *(x.astype(computed_in(dtype)) for x in (hidden, weight)), labels, bias=bias, max_block_bytes=max_block_bytes
    )
    np.testing.assert_allclose(loss, in_32, rtol=1e-6)
    half = 2.0**-8 if dtype.name == "bfloat16" else 2.0**-10
    np.testing.assert_allclose(grad.weight.astype("f8"), grad_in_32.weight, rtol=half, atol=1e-6)


def test_the_wider_dtype_is_computed_in():
    hidden, weight, _ = layer(np.random.default_rng(0), 5, 4, 3, "f4")
    labels = [0, 1, 2, 3, 0]
    loss, grad = check(hidden.astype("f8"), weight, labels, tolerance=1e-7)
    assert loss.dtype == np.float64
    assert [grad.hidden.dtype, grad.weight.dtype] == [np.float64, np.float32]
    loss, grad = check(np.ones((5, 3), int), weight.astype("f2"), labels, tolerance=1e-3)
    assert [loss.dtype, grad.hidden.dtype, grad.weight.dtype] == [np.float64, np.float64, np.float16]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_rows_loss_is_the_dense_loss_of_its_block_of_logits(monkeypatch, dtype):
    """To the last bit, and its gradients are the products of the dense gradient."""
    rng = np.random.default_rng(0)
    blocks = []
    compute = linear_products.DenseProducts.logits

    def record(self, rows, classes):
        logits = compute(self, rows, classes)
        blocks.append((rows, logits.copy()))
        return logits

    monkeypatch.setattr(linear_products.DenseProducts, "logits", record)
    hidden, weight, bias = layer(rng, 120, 70, 6, dtype)
    labels, weights = rng.integers(0, 70, 120), rng.random(120)
    options = {"reduction": "none", "softcap": 5.0, "z_loss": 0.1, "class_weight": rng.random(70)}
    budget = 50 * 70 * hidden.itemsize
    loss, grad = sl.linear_cross_entropy_and_grad(
        hidden, weight, labels, bias=bias, max_block_bytes=budget, sample_weight=weights, **options
    )
    assert len(blocks) == 3
    for rows, logits in blocks:
        dense, by_logits = sl.softmax_cross_entropy_and_grad(
            logits, labels[rows], sample_weight=weights[rows], **options
        )
        np.testing.assert_array_equal(loss[rows], dense)
        np.testing.assert_array_equal(grad.hidden[rows], by_logits @ weight)


def test_ignored_rows_take_no_part_whatever_they_hold():
    rng = np.random.default_rng(0)
    hidden, weight, bias = layer(rng, 10, 6, 4)
    labels = rng.integers(0, 6, 10)
    labels[[0, 3, 9]] = IGNORED
    expected, expected_grad = materialised(hidden, weight, labels, bias)
    hidden[[0, 3]] = np.nan
    hidden[9] = np.inf
    for max_block_bytes in (None, 100, 8):
        options = {"bias": bias, "max_block_bytes": max_block_bytes}
        loss, grad = sl.linear_cross_entropy_and_grad(hidden, weight, labels, **options)
        assert_close(loss, expected)
        for ours, theirs in zip(grad, expected_grad, strict=True):
            assert_close(ours, theirs)
        assert not grad.hidden[[0, 3, 9]].any()
        rows = sl.linear_cross_entropy(hidden, weight, labels, reduction="none", **options)
        assert not rows[[0, 3, 9]].any()
        assert rows[[1, 2]].all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_rows_ignored(reduction):
    hidden, weight, bias = layer(np.random.default_rng(0), 3, 6, 4)
    loss, grad = sl.linear_cross_entropy_and_grad(hidden, weight, [IGNORED] * 3, bias=bias, reduction=reduction)
    expected = sl.softmax_cross_entropy(np.zeros((3, 6)), [IGNORED] * 3, reduction=reduction)
    np.testing.assert_array_equal(loss, expected)
    assert not any(part.any() for part in grad)


def test_a_row_without_an_answer_is_nan_alone():
    hidden, weight, bias = layer(np.random.default_rng(0), 6, 8, 4)
    hidden[2, 1] = np.nan
    for max_block_bytes in (None, 64):
        loss, grad = sl.linear_cross_entropy_and_grad(
            hidden, weight, [0] * 6, bias=bias, reduction="none", max_block_bytes=max_block_bytes
        )
        np.testing.assert_array_equal(np.isnan(loss), np.arange(6) == 2)
        np.testing.assert_array_equal(np.isnan(grad.hidden).all(axis=1), np.arange(6) == 2)


def test_a_masked_class():
    hidden, weight, bias = layer(np.random.default_rng(0), 6, 8, 4)
    bias[3] = -np.inf
    for max_block_bytes in (None, 64, 8):
        loss, grad = sl.linear_cross_entropy_and_grad(
            hidden, weight, [0] * 6, bias=bias, max_block_bytes=max_block_bytes
        )
        others = np.arange(8) != 3
        expected, expected_grad = materialised(hidden, weight[others], [0] * 6, bias[others])
        assert_close(loss, expected)
        assert_close(grad.hidden, expected_grad.hidden)
        assert not grad.weight[3].any()


def test_inputs_are_left_alone_and_answers_share_no_memory():
    rng = np.random.default_rng(0)
    given = [*layer(rng, 20, 30, 64), rng.integers(0, 30, 20)]
    copies = [x.copy() for x in given]
    hidden, weight, bias, labels = given
    for max_block_bytes in (None, 2000, 64):
        _, grad = sl.linear_cross_entropy_and_grad(hidden, weight, labels, bias=bias, max_block_bytes=max_block_bytes)
        for before, after in zip(copies, given, strict=True):
            np.testing.assert_array_equal(before, after)
        assert not any(np.shares_memory(part, x) for part in grad for x in given)
        assert not any(np.shares_memory(a, b) for a, b in [(grad[0], grad[1]), (grad[1], grad[2])])


def test_a_first_block_where_the_gradient_will_be():
    """With many features the first block is larger than the buffer, and lies in the weight gradient's memory."""
    rng = np.random.default_rng(0)
    for n, features, classes in [(81, 160, 100), (200, 150, 333), (300, 256, 51), (90, 199, 1)]:
        hidden, weight, bias = layer(rng, n, classes, features)
        budget = 49 * classes * 8
        plan = plan_blocks(n, classes, 8, budget)
        given_layer = linear_products.Layer(hidden, weight, bias, hidden.dtype)
        assert linear_products.with_room_in_gradient(given_layer, plan).first_rows >= 75
        labels = rng.integers(0, classes, n)
        check(hidden, weight, labels, bias, max_block_bytes=budget)
        labels[5] = IGNORED
        check(hidden, weight, labels, bias, max_block_bytes=budget)
        check(hidden.astype("f2"), weight.astype("f2"), labels, bias, 2e-3, budget // 2)


@given(
    st.integers(0, 3000), st.integers(1, 3000), st.sampled_from([4, 8]), st.integers(8, 10**6), st.booleans(), st.data()
)
@settings(deadline=None, derandomize=True)
def test_a_plan_covers_everything_within_its_bytes(rows, classes, itemsize, budget, gradient, data):
    plan = plan_blocks(rows, classes, itemsize, budget, gradient=gradient)
    for each in (plan, plan_loss_tiles(rows, classes, itemsize, budget)):
        assert each.bytes <= budget
        for blocks, length in ((each.row_blocks(), rows), (each.class_blocks(), classes)):
            blocks = list(blocks)
            assert [i for b in blocks for i in range(b.start, b.stop)] == list(range(length))
    first = plan.with_first_block(data.draw(st.integers(0, 3000)))
    assert [i for b in first.row_blocks() for i in range(b.start, b.stop)] == list(range(rows))


def test_plans_of_the_usual_sizes():
    """Whole rows, enough of them at a time: three products."""
    for rows, classes, features in [(1024, 32000, 768), (2048, 30522, 384), (512, 128256, 1024), (4096, 50257, 256)]:
        plan = plan_blocks(rows, classes, 4)
        assert plan.holds_all_classes
        assert plan.bytes <= DEFAULT_BLOCK_BYTES
        assert plan.with_first_block(features // 2).row_blocks().__next__().stop >= 240


def sparse(rng, n, features, dtype):
    return scipy.sparse.random_array((n, features), density=0.2, rng=rng, dtype=dtype, format="csr")


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("max_block_bytes", [None, 500, 8])
def test_sparse_hidden(max_block_bytes, dtype):
    rng = np.random.default_rng(0)
    hidden = sparse(rng, 60, 50, dtype)
    _, weight, bias = layer(rng, 1, 12, 50, dtype)
    labels = rng.integers(0, 12, 60)
    labels[::7] = IGNORED
    options = {"class_weight": rng.random(12), "label_smoothing": 0.1}
    expected, expected_grad = materialised(hidden.toarray(), weight, labels, bias, **options)
    tolerance = 1e-12 if dtype == "f8" else 2e-5
    for form in (hidden, hidden.tocsc(), scipy.sparse.coo_matrix(hidden)):
        for gradient_filter in (0.0, 1e-9):
            loss, grad = sl.linear_cross_entropy_and_grad(
                form,
                weight,
                labels,
                bias=bias,
                max_block_bytes=max_block_bytes,
                gradient_filter=gradient_filter,
                **options,
            )
            assert_close(loss, expected, tolerance)
            assert_close(grad.weight, expected_grad.weight, tolerance)
            assert_close(grad.bias, expected_grad.bias, tolerance)
            assert grad.hidden is None
            assert grad.weight.dtype == dtype


def peaked(rng, n=300, classes=400, features=32):
    """Return what a trained model might: each row close to its label's weight."""
    weight = rng.standard_normal((classes, features))
    labels = rng.integers(0, classes // 4, n)
    return weight[labels] + 0.2 * rng.standard_normal((n, features)), weight * 0.6, labels


@pytest.mark.parametrize("max_block_bytes", [64 * 400 * 8, 20000])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_filters_error_is_within_its_bound(monkeypatch, weighted, reduction, max_block_bytes):
    rng = np.random.default_rng(0)
    hidden, weight, labels = peaked(rng)
    weights = np.where(np.arange(300) % 7 == 0, 0.0, rng.random(300) * 3) if weighted else np.ones(300)
    options = {"reduction": reduction, "sample_weight": weights if weighted else None}
    options |= {"bias": np.zeros(400), "max_block_bytes": max_block_bytes}
    left = []
    gather = linear_products.DenseProducts.add_gradients_of

    def count(self, rows, columns):
        left.append(len(columns))
        gather(self, rows, columns)

    monkeypatch.setattr(linear_products.DenseProducts, "add_gradients_of", count)
    exact_loss, whole = sl.linear_cross_entropy_and_grad(hidden, weight, labels, **options)
    assert not left
    differences = []
    for t in (2.0**-12, 2.0**-6, 10.0):
        loss, part = sl.linear_cross_entropy_and_grad(hidden, weight, labels, gradient_filter=t, **options)
        np.testing.assert_array_equal(loss, exact_loss)
        shares = weights / weights.sum() if reduction == "mean" else weights
        room = 1e-12
        assert (np.abs(part.hidden - whole.hidden) <= t * shares[:, None] * np.abs(weight).sum(axis=0) + room).all()
        assert (np.abs(part.weight - whole.weight) <= t * (shares @ np.abs(hidden)) + room).all()
        assert (np.abs(part.bias - whole.bias) <= t * shares.sum() + room).all()
        differences.append(np.abs(part.weight - whole.weight).max())
    assert 0 < differences[0] < differences[1] < differences[2]
    assert max(left) < 0.6 * 400  # some blocks took few classes
    assert min(left) == 0  # and at 10 none at all


def test_the_filter_keeps_a_row_without_an_answer():
    hidden, weight, labels = peaked(np.random.default_rng(0))
    hidden[7] = np.nan
    _, grad = sl.linear_cross_entropy_and_grad(hidden, weight, labels, gradient_filter=0.1)
    assert np.isnan(grad.hidden[7]).all()
    assert np.isnan(grad.weight).all()


GOOD = {"hidden": np.zeros((2, 3)), "weight": np.zeros((4, 3)), "labels": [0, 3]}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": [0, 4]}, sl.LabelError, r"labels\[1\] is 4; with 4 classes"),
        ({"labels": [0, 1, 2]}, ValueError, r"labels have shape \(3,\)"),
        ({"labels": [0.0, 1.0]}, TypeError, "index labels have dtype float64"),
        ({"labels": [[0.25] * 4, [0.2] * 4]}, ValueError, r"row \[1\] sums to 0.8"),
        ({"labels": [[0.25] * 4] * 2, "focal_gamma": 1.0}, ValueError, "focal_gamma is 1.*distributions"),
        ({"weight": np.zeros((4, 2))}, ValueError, r"hidden has shape \(2, 3\) and weight \(4, 2\)"),
        ({"weight": np.zeros((3, 4))}, ValueError, r"weight.T"),
        ({"weight": np.zeros((0, 3))}, ValueError, r"weight has shape \(0, 3\)"),
        ({"weight": np.zeros(3)}, ValueError, r"weight has shape \(3,\)"),
        ({"hidden": np.float64(1)}, ValueError, "hidden have 0 dimensions"),
        ({"hidden": np.zeros((2, 3), complex)}, TypeError, "hidden have dtype complex128"),
        ({"weight": np.zeros((4, 3), "M8[s]")}, TypeError, "weight have dtype"),
        ({"hidden": np.ma.masked_array(np.zeros((2, 3)))}, TypeError, "masked array"),
        ({"hidden": scipy.sparse.csr_array(np.zeros((2, 3), complex))}, TypeError, "hidden is sparse"),
        ({"bias": np.zeros(3)}, ValueError, r"bias has shape \(3,\); expected \(4,\)"),
        ({"bias": ["a"] * 4}, TypeError, "bias has dtype"),
        ({"reduction": "all"}, ValueError, "reduction is 'all'"),
        ({"temperature": 0.0}, ValueError, "temperature is 0"),
        ({"sample_weight": [1.0]}, ValueError, r"sample_weight has shape \(1,\)"),
        ({"gradient_filter": -1.0}, ValueError, "gradient_filter is -1"),
        ({"gradient_filter": np.nan}, ValueError, "gradient_filter is nan"),
        ({"gradient_filter": None}, TypeError, "gradient_filter is None"),
        ({"max_block_bytes": 7}, ValueError, "max_block_bytes is 7; expected 8 or more"),
        ({"max_block_bytes": 0}, ValueError, "max_block_bytes is 0"),
        ({"max_block_bytes": 1e6}, TypeError, "max_block_bytes is 1000000.0; expected an integer"),
    ],
)
@pytest.mark.parametrize("function", [sl.linear_cross_entropy, sl.linear_cross_entropy_and_grad])
def test_refused(function, change, error, message):
    with pytest.raises(error, match=message):
        function(**{**GOOD, **change})


def test_a_bad_distribution_is_named_by_its_index():
    labels = np.full((2, 3, 4), 0.25)
    labels[1, 2] = 0.5
    for max_block_bytes in (None, 40):
        with pytest.raises(ValueError, match=r"row \[1, 2\] sums to 2"):
            sl.linear_cross_entropy(np.zeros((2, 3, 5)), np.zeros((4, 5)), labels, max_block_bytes=max_block_bytes)


def test_options_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        sl.linear_cross_entropy(*GOOD.values(), np.zeros(4))


# A program: how many MiB a call raises the peak of resident memory by, beside its answers. Writing 5 sets the peak
# back: proc(5), /proc/pid/clear_refs. A small problem first imports and starts what is needed once.
MEASURE = """
import gc, json, sys
from pathlib import Path
import numpy as np
import softmaxloss as sl

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

def growth(rows, features, classes, gradient, options):
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((rows, features), dtype=np.float32)
    weight = rng.standard_normal((classes, features), dtype=np.float32)
    labels = rng.integers(0, classes, rows)
    function = sl.linear_cross_entropy_and_grad if gradient else sl.linear_cross_entropy
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    answer = function(hidden, weight, labels, **options)
    answers = hidden.nbytes + weight.nbytes if gradient else 0
    return (status("VmHWM") - before - answers) / 2**20

for gradient in (False, True):
    growth(64, 8, 16, gradient, {})
cases = json.loads(sys.argv[1])
print(json.dumps([growth(**case) for case in cases]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize(("rows", "features", "classes"), [(1024, 96, 32000), (256, 64, 128256)])
def test_memory_beside_the_gradients(rows, features, classes):
    """The logits would take 125 MiB; the block of them takes 48, and everything at most 64."""
    cases = [
        {"rows": rows, "features": features, "classes": classes, "gradient": gradient, "options": options}
        for gradient in (True, False)
        for options in ({}, {"max_block_bytes": 1 << 22})
    ]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(cases)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for case, found in zip(cases, json.loads(done.stdout), strict=True):
        assert found <= (16 if case["options"] else 64), (case, found)
