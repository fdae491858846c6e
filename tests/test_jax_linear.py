"""The linear cross-entropy of JAX arrays: exact, in blocks of any size, of any dtype, and what is wrong or filtered."""

import exact
import numpy as np
import pytest
from option_cases import KINDS, assert_within, make_case

import softmaxloss as sl

jax = pytest.importorskip("jax")
jnp = jax.numpy

from jax_linear_problems import REDUCTIONS, SMALL, close, dense, linear, problem  # noqa: E402  # needs JAX

from softmaxloss.backends.jax import ffi  # noqa: E402

kernels_serve = pytest.mark.skipif(not ffi.available, reason="built without XLA's headers")


@pytest.fixture(params=[pytest.param("kernels", marks=kernels_serve), pytest.param("plain", marks=pytest.mark.slow)])
def served(request, monkeypatch):
    """Run the test with the kernels, and with plain JAX."""
    monkeypatch.setattr(ffi, "available", request.param == "kernels")
    return request.param


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


# Exactness: with the identity as the weight, a product makes no rounding errors.


@pytest.mark.parametrize(
    "names", [(), ("softcap", "z_loss", "class_weight", "label_smoothing")], ids=["plain", "options"]
)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_exact_answers(kind, names, served):
    for reduction in ("none", "mean"):
        case = make_case(3, names, np.dtype("f4"), kind, "index", 13, reduction)
        if not np.isfinite(case.logits).all():
            continue  # what is infinite or NaN meets the identity's zeros in the product
        options = {k: jnp.asarray(v) if isinstance(v, np.ndarray) else v for k, v in case.options.items()}
        loss, grad = jax.jit(
            lambda h, o=options, y=case.labels: sl.linear_cross_entropy_and_grad(
                h, jnp.eye(13), jnp.asarray(y), max_block_bytes=60, **o
            )
        )(jnp.asarray(case.logits))
        reference = case.reference
        bound = 4 * (16 + 13) + 4 * reference.largest
        of_loss = bound if reduction == "none" else bound.max()
        assert_within(loss, reference.loss, reference.loss_scale, of_loss, np.dtype("f4"), "loss")
        assert_within(grad.hidden, reference.grad, reference.scale, bound[:, None], np.dtype("f4"), "gradient")
        z, of_logits = np.asarray(case.logits, np.float64), exact.as_float(reference.grad)
        scale = np.abs(exact.as_float(reference.scale).T) @ np.abs(z)
        assert (np.abs(grad.weight - of_logits.T @ z) <= 1e-4 * scale + 1e-30).all()


def test_a_certain_row_keeps_its_digits(served):
    loss, grad = sl.linear_cross_entropy_and_grad(jnp.array([[20.0, 1.0]]), jnp.array([[1.0, 0], [0, 0], [0, 0]]), [0])
    np.testing.assert_allclose(loss, 4.1223072e-09, rtol=1e-6)
    np.testing.assert_allclose(grad.weight[:, 1], [-4.1223072e-09, 2.0611537e-09, 2.0611537e-09], rtol=1e-6)


@kernels_serve
def test_rows_have_the_bits_of_the_dense_loss_of_their_block():
    head, labels, _ = problem(24, 5, 33)
    h, w = (x.astype(jnp.float32) for x in head[:2])
    blocks = jax.jit(lambda h, w: h @ w.T)
    rows = [sl.softmax_cross_entropy(blocks(h[i : i + 8], w), labels[i : i + 8], reduction="none") for i in (0, 8, 16)]
    found = sl.linear_cross_entropy(h, w, labels, reduction="none", max_block_bytes=8 * 33 * 4)
    np.testing.assert_allclose(found, jnp.concatenate(rows), rtol=1e-6)


# Blocks


@pytest.mark.parametrize("rows", [0, 1, 8, 31])
@pytest.mark.parametrize("bytes_of_block", [1, 300, 2400, None])
def test_any_number_of_rows_and_size_of_blocks(rows, bytes_of_block, x64):
    """No row is counted twice, nor any that is not there; and the parts of the weight's gradient cover all classes."""
    rng = np.random.default_rng(rows)
    h, w, b = (jnp.asarray(rng.standard_normal(shape)) for shape in ((rows, 3), (37, 3), 37))
    labels, weight = rng.integers(0, 37, rows), rng.random(rows)
    options = {"sample_weight": weight, "z_loss": 0.1}
    if bytes_of_block == 1:
        with pytest.raises(ValueError, match="max_block_bytes is 1; expected 8 or more"):
            sl.linear_cross_entropy(h, w, labels, max_block_bytes=1)
        return
    for reduction in ("mean", "none"):
        ours = linear(labels, reduction=reduction, max_block_bytes=bytes_of_block, **options)
        theirs = dense(labels, reduction=reduction, **options)
        close(ours(h, w, b), theirs(h, w, b))
        if rows or reduction != "mean":
            found, expected = (
                jax.jit(jax.grad(lambda *x, f=f: f(*x).sum(), (0, 1, 2)))(h, w, b) for f in (ours, theirs)
            )
            close(found, expected)


@pytest.mark.parametrize("part_bytes", [1, 900, 101 * 16 * 8 - 1, 101 * 16 * 8])
def test_products_by_parts_of_the_classes(monkeypatch, x64, part_bytes):
    from softmaxloss.backends.jax import linear_problem

    monkeypatch.setattr(linear_problem, "_PART_BYTES", part_bytes)
    head, labels, options = problem(40, 16, 101)
    for size in (900, 7000, 40000):
        for asked in ((0,), (1,), (2,), (0, 1, 2)):
            plan = [linear(labels, **options, max_block_bytes=size), dense(labels, **options)]
            found, expected = (jax.jit(jax.grad(f, asked))(*head) for f in plan)
            close(found, expected)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_a_row_without_answer_changes_no_other(reduction, soft):
    """Inside a compiled program such a row is NaN; the gradient of rows before it may be where their logits were."""
    rng = np.random.default_rng(0)
    hidden, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((40, 4), (6, 4)))
    labels = rng.dirichlet(np.ones(6), 40).astype(np.float32) if soft else rng.integers(0, 6, 40)
    spoiled = labels.copy()
    spoiled[30] = 3.0 * labels[30] if soft else 77

    @jax.jit
    def both(h, w, y):
        loss, grad = sl.linear_cross_entropy_and_grad(h, w, y, reduction=reduction)
        return loss, grad.hidden

    (expected, by_hidden), (found, spoiled_by_hidden) = both(hidden, weight, labels), both(hidden, weight, spoiled)
    others = np.arange(40) != 30
    close(spoiled_by_hidden[others], by_hidden[others])
    if reduction == "none":
        assert np.isnan(found[30])
        close(found[others], expected[others])
    else:
        assert np.isnan(found)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_mixed_second_derivatives_in_16_bits(reduction, dtype):
    rng = np.random.default_rng(1)
    hidden, weight = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((40, 4), (6, 4)))
    labels, factor = rng.integers(0, 6, 40), jnp.asarray(rng.standard_normal(40), jnp.float32)

    def curvature(loss):
        def by_hidden(h, w):
            return jax.grad(lambda h: (loss(h, w) * factor).sum().astype(jnp.float32))(h).astype(jnp.float32)

        return lambda h, w: jax.grad(lambda w: (by_hidden(h, w) ** 2).sum())(w)

    found = curvature(lambda h, w: sl.linear_cross_entropy(h, w, labels, reduction=reduction))(hidden, weight)
    wide = hidden.astype(jnp.float32), weight.astype(jnp.float32)
    expected = curvature(lambda h, w: sl.softmax_cross_entropy(h @ w.T, labels, reduction=reduction))(*wide)
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=0, atol=0.03 * scale)


def test_rows_of_any_shape(x64):
    head, labels, _ = problem(12, 3, 5)
    h, y = head[0].reshape(2, 3, 2, 3), labels.reshape(2, 3, 2)
    rows = sl.linear_cross_entropy(h, head[1], y, reduction="none", **SMALL)
    close(rows, dense(y, reduction="none")(h, head[1]))
    _, grad = sl.linear_cross_entropy_and_grad(h, head[1], y)
    assert (grad.hidden.shape, grad.weight.shape, grad.bias) == (h.shape, (5, 3), None)
    one = sl.linear_cross_entropy(h[0, 0, 0], head[1], 2, reduction="none")
    assert one.shape == ()
    one_hot = jnp.eye(5)[jnp.asarray(y) % 5]
    close(sl.linear_cross_entropy(h, head[1], one_hot), dense(jnp.asarray(y) % 5)(h, head[1]))


# Dtypes


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=["f2", "bf16"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_16_bits_are_added_up_in_float32(dtype, reduction):
    """Of many equal rows, in many blocks: a sum of 16 bits would stop growing; and a mean's small factors stay."""
    rng = np.random.default_rng(0)
    rows, classes = 4096, 50
    h = jnp.asarray(np.tile(rng.standard_normal((1, 8)), (rows, 1)), dtype)
    w, b = jnp.asarray(rng.standard_normal((classes, 8)), dtype), jnp.asarray(rng.standard_normal(classes), dtype)
    labels = np.full(rows, 3)
    scale = 2.0**-12 if reduction == "none" else 1.0
    f = linear(labels, reduction=reduction, max_block_bytes=16 * classes * 4)
    grad = jax.jit(jax.grad(lambda *head: (f(*head) * scale).sum(), (0, 1, 2)))(h, w, b)
    assert [g.dtype for g in grad] == [dtype] * 3
    wide = [x.astype(jnp.float32) for x in (h, w, b)]
    expected = jax.grad(lambda *head: (dense(labels, reduction=reduction)(*head) * scale).sum(), (0, 1, 2))(*wide)
    for found, right in zip(grad, expected, strict=True):
        error = np.abs(np.asarray(found, np.float32) - right)
        bound = (2.0**-8 if dtype == jnp.float16 else 2.0**-6) * np.abs(right).max(-1, keepdims=True)
        assert (error <= bound + 2.0**-25).all()  # half of float16's least number
    loss = sl.linear_cross_entropy(h, w, labels, bias=b)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, dense(labels)(*wide), rtol=1e-5)


def test_dtypes_that_differ_and_integers():
    h, y = jnp.array([[1, 2], [0, 3]]), jnp.array([1, 0])
    w = jnp.array([[0.5, 1.0], [1.0, 0.0], [0.25, 1.0]], jnp.bfloat16)
    loss, grad = sl.linear_cross_entropy_and_grad(h, w, y)
    assert (loss.dtype, grad.hidden.dtype, grad.weight.dtype) == (jnp.float32, jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(loss, dense(y)(h.astype(jnp.float32), w.astype(jnp.float32)), rtol=1e-6)
    loss, grad = sl.linear_cross_entropy_and_grad(h.astype(jnp.float16), w, y)
    assert (loss.dtype, grad.hidden.dtype, grad.weight.dtype) == (jnp.float32, jnp.float16, jnp.bfloat16)
    with jax.enable_x64(True):
        loss, grad = sl.linear_cross_entropy_and_grad(h.astype(jnp.float32), w.astype(jnp.float64), y)
        assert (loss.dtype, grad.hidden.dtype, grad.weight.dtype) == (jnp.float64, jnp.float32, jnp.float64)
    product = jax.jvp(jax.grad(lambda w: sl.linear_cross_entropy(h, w, y)), (w,), (w,))[1]
    assert product.dtype == jnp.bfloat16


# Strange rows and labels


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored_rows_count_nowhere_whatever_they_hold(reduction, served, x64):
    head, labels, options = problem()
    h = np.array(head[0])
    h[labels == -100] = np.nan
    kept = labels != -100
    options["sample_weight"] = np.where(kept, options["sample_weight"], np.nan)
    arrays = {name: jnp.asarray(x) for name, x in options.items() if isinstance(x, np.ndarray)}
    others = {name: x for name, x in options.items() if name not in arrays}

    def total(h, w, b, arrays):
        loss = sl.linear_cross_entropy(h, w, labels, bias=b, reduction=reduction, **others, **arrays, **SMALL)
        return loss.sum(), loss

    grad, loss = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(jnp.asarray(h), *head[1:], arrays)
    options["sample_weight"] = options["sample_weight"][kept]
    theirs = dense(labels[kept], reduction=reduction, **options)
    expected = jax.grad(lambda *head: theirs(*head).sum(), (0, 1, 2))(head[0][kept], *head[1:])
    of_kept = np.zeros_like(h)
    of_kept[kept] = expected[0]
    close(loss[kept] if reduction == "none" else loss, theirs(head[0][kept], *head[1:]))
    close(grad, (of_kept, *expected[1:]))


@pytest.mark.parametrize("label", [9, -1, -101, np.iinfo(np.int32).max])
def test_labels_that_are_none(label, served):
    """An error where they can be looked at; else a NaN row, and the others as if it were ignored."""
    head, labels, _ = problem()
    h, w, b = (x.astype(jnp.float32) for x in head)
    wrong, without = labels.copy(), labels.copy()
    wrong[4], without[4] = label, -100
    for f in (sl.linear_cross_entropy, sl.linear_cross_entropy_and_grad):
        with pytest.raises(sl.LabelError, match=rf"labels\[4\] is {label}; with 9 classes a label is from 0 to 8"):
            f(h, w, wrong)
    for reduction in REDUCTIONS:

        def total(h, y, reduction=reduction):
            loss = sl.linear_cross_entropy(h, w, y, bias=b, reduction=reduction, **SMALL)
            return loss.sum(), loss

        grad, loss = jax.jit(jax.grad(total, has_aux=True))(h, jnp.asarray(wrong))
        expected, rest = jax.grad(total, has_aux=True)(h, jnp.asarray(without))
        assert np.isnan(grad[4]).all()
        others = np.arange(11) != 4
        close(grad[others], expected[others], 1e-5, 1e-7)
        if reduction == "none":
            assert np.isnan(loss[4])
            close(loss[others], rest[others], 1e-5)
        else:
            assert np.isnan(loss)


def test_means_over_nothing():
    head, labels, _ = problem()
    h, w = (x.astype(jnp.float32) for x in head[:2])
    loss, grad = sl.linear_cross_entropy_and_grad(h, w, np.full(11, -100))
    assert np.isnan(loss)
    assert not np.asarray(grad.hidden).any()
    assert not np.asarray(grad.weight).any()
    for options in ({"sample_weight": np.zeros(11)}, {"class_weight": np.zeros(9), "z_loss": 0.1}):
        loss, grad = sl.linear_cross_entropy_and_grad(h, w, labels, **options)
        assert np.isnan(loss)
        assert (np.isnan(grad.hidden).all(1) == (labels != -100)).all()


def test_infinite_losses_of_no_weight(x64):
    """A masked label whose row has no weight: zero, and not NaN."""
    head, labels, _ = problem()
    bias = np.zeros(9)
    bias[labels[0]] = -np.inf
    options = {"logit_bias": bias, "sample_weight": (labels != labels[0]).astype(float)}
    ours, theirs = linear(labels, **options, **SMALL), dense(labels, **options)
    assert np.isfinite(ours(*head))
    close(jax.value_and_grad(ours, (0, 1, 2))(*head), jax.value_and_grad(theirs, (0, 1, 2))(*head))


def test_errors():
    h, w, y = jnp.ones((3, 2)), jnp.ones((4, 2)), np.array([0, 1, 2])
    cases = [
        (ValueError, r"hidden has shape \(3, 2\) and weight \(2, 4\); .*weight.T", {"weight": w.T}),
        (ValueError, r"weight has shape \(2,\); expected \(classes, features\)", {"weight": w[0]}),
        (ValueError, r"weight has shape \(0, 2\); expected \(classes, features\)", {"weight": w[:0]}),
        (ValueError, r"hidden has no dimensions", {"hidden": jnp.ones(())}),
        (ValueError, r"bias has shape \(3,\); expected \(4,\): one number a class", {"bias": jnp.ones(3)}),
        (ValueError, r"labels have shape \(2,\)", {"labels": y[:2]}),
        (ValueError, r"sample_weight has shape \(2,\)", {"sample_weight": jnp.ones(2)}),
        (ValueError, r"gradient_filter is -1.0; it must be at least 0", {"gradient_filter": -1.0}),
        (ValueError, r"max_block_bytes is 3; expected 4 or more", {"max_block_bytes": 3}),
        (TypeError, r"max_block_bytes is 1.5", {"max_block_bytes": 1.5}),
        (TypeError, r"weight have dtype complex64", {"weight": w.astype(jnp.complex64)}),
        (ValueError, r"reduction is 'avg'", {"reduction": "avg"}),
    ]
    for kind, message, change in cases:
        given = {"hidden": h, "weight": w, "labels": y} | change
        for f in (sl.linear_cross_entropy, sl.linear_cross_entropy_and_grad):
            with pytest.raises(kind, match=message):
                f(**given)


# The gradient filter


def peaked(rows=64, features=16, classes=3000, seed=0):
    """Return hidden states near their classes' weights, as a trained model's are."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((classes, features))
    labels = rng.integers(0, classes, rows)
    return jnp.asarray(w[labels] * 4 + rng.standard_normal((rows, features)) * 0.1), jnp.asarray(w), labels


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("threshold", [2.0**-12, 2.0**-5])
def test_a_filter_errs_within_its_bound(threshold, reduction, served, x64):
    h, w, labels = peaked()
    weight = np.random.default_rng(1).random(len(labels)) * 3
    weight[5] = 0.0
    factor = np.linspace(-1, 1, len(labels)) if reduction == "none" else 1.0
    options = {"reduction": reduction, "sample_weight": weight, "max_block_bytes": 16 * 3000 * 8}

    def gradients(gradient_filter):
        f = linear(labels, gradient_filter=gradient_filter, **options)
        return jax.jit(jax.value_and_grad(lambda h, w, b: (f(h, w, b) * factor).sum(), (0, 1, 2)))(
            h, w, jnp.zeros(3000)
        )

    loss, right = gradients(0.0)
    filtered_loss, filtered = gradients(threshold)
    np.testing.assert_allclose(filtered_loss, loss, rtol=1e-12)
    share = np.abs(weight * factor if reduction == "none" else weight / weight.sum())
    p = np.asarray(jax.nn.softmax(h @ w.T))
    of_logits = np.abs(p - np.eye(3000)[labels])
    # The blocks' rows are not said: what may be left out are entries below the threshold.
    small = of_logits < threshold
    bounds = (
        threshold * share[:, None] * (small @ np.abs(w)),
        threshold * small.T @ (share[:, None] * np.abs(h)),
        threshold * small.T @ share,
    )
    for found, expected, bound in zip(filtered, right, bounds, strict=True):
        assert (np.abs(found - expected) <= bound + 1e-12).all()
    error = np.abs(filtered[1] - right[1]).max()
    assert error > 0  # something was left out
    left_out = ~np.asarray(filtered[1]).any(1)
    assert left_out.mean() > 0.3


def test_a_filter_of_zero_and_a_tiny_one_are_exact(x64):
    head, labels, options = problem()
    exactly = jax.grad(linear(labels, **options), (0, 1, 2))(*head)
    close(jax.grad(linear(labels, gradient_filter=1e-300, **options, **SMALL), (0, 1, 2))(*head), exactly)
    text = str(jax.make_jaxpr(jax.grad(linear(labels, gradient_filter=0.0), (0, 1)))(*head[:2]))
    assert "gather" not in text  # with none there is nothing to look for


def test_a_filter_keeps_nan_rows_and_second_derivatives(x64):
    h, w, labels = peaked(16)
    h = h.at[3].set(jnp.nan)
    grad = jax.grad(linear(labels, gradient_filter=0.01, max_block_bytes=4 * 3000 * 8))(h, w)
    assert np.isnan(grad[3]).all()
    assert np.isfinite(np.delete(np.asarray(grad), 3, 0)).all()
    h, w = h[4:], w[:200]
    labels = labels[4:] % 200

    def product(gradient_filter):
        f = linear(labels, gradient_filter=gradient_filter)
        return jax.jvp(jax.grad(f, (0, 1)), (h, w), (h, w))[1]

    close(product(0.01), product(0.0))
