"""JAX's transformations of the loss and its pieces: derivatives of any order, `vmap`, loops, checkpoints, shards."""

import functools
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

import softmaxloss as sl

jax = pytest.importorskip("jax")
jnp = jax.numpy

from jax.test_util import check_grads  # noqa: E402  # needs JAX

from softmaxloss.backends.jax import ffi  # noqa: E402

kernels_serve = pytest.mark.skipif(not ffi.available, reason="built without XLA's headers")
TRANSFORM = {"temperature": 1.3, "softcap": 4.0, "z_loss": 0.3}
INDEX_ONLY = {"focal_gamma": 1.5, "poly_epsilon": 0.4}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=[pytest.param("kernels", marks=kernels_serve), "plain"])
def served(request, monkeypatch):
    """Run the test with the kernels, and with plain JAX."""
    monkeypatch.setattr(ffi, "available", request.param == "kernels")
    return request.param


# Of what takes long to compile: in plain JAX only where slow tests are asked for.
plain_is_slow = pytest.mark.parametrize(
    "served",
    [pytest.param("kernels", marks=kernels_serve), pytest.param("plain", marks=pytest.mark.slow)],
    indirect=True,
)


def draw(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def draw_labels(*shape, classes=5):
    return np.random.default_rng(0).integers(0, classes, shape)


def draw_weights(*shape):
    return np.random.default_rng(sum(shape)).random(shape) + 0.1


def problem(soft):
    """Return logits, labels, and every option allowed with such labels."""
    labels = np.random.default_rng(0).dirichlet(np.ones(5), 6) if soft else draw_labels(6)
    options = {
        **TRANSFORM,
        **({"label_smoothing": 0.1} if soft else INDEX_ONLY),
        "logit_bias": draw(5),
        "class_weight": draw_weights(5),
        "sample_weight": draw_weights(6),
    }
    return draw(6, 5), labels, options


# Derivatives by the logits


@plain_is_slow
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("soft", [False, True], ids=["index", "soft"])
def test_derivatives_of_two_orders_in_both_modes(soft, reduction, served):
    logits, labels, options = problem(soft)
    options["reduction"] = reduction
    vector = draw(7, 5)[:6]
    loss, expected = sl.softmax_cross_entropy_and_grad(logits, labels, **options)
    product = sl.hessian_vector_product(logits, labels, vector, **options)

    def f(z):
        return sl.softmax_cross_entropy(z, labels, **options)

    def total(z):
        return f(z).sum()

    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
    gradient = jax.grad(total)
    z, v = jnp.asarray(logits), jnp.asarray(vector)
    with jax.disable_jit():
        value, change = jax.jvp(f, (z,), (v,))
        close(value, loss)
        close(change, (expected * vector).sum(-1) if reduction == "none" else (expected * vector).sum())
        close(gradient(z), expected)
        close(jax.jvp(gradient, (z,), (v,))[1], product)  # forward over reverse
        close(jax.grad(lambda z: (gradient(z) * v).sum())(z), product)  # reverse over reverse
        close(jax.grad(lambda z: jax.jvp(total, (z,), (v,))[1])(z), product)  # reverse over forward
        close(jax.linearize(gradient, z)[1](v), product)
        close(sl.hessian_vector_product(z, labels, v, **options), product)
    hessian = jax.jit(jax.hessian(total))(z)
    close(jnp.einsum("ijkl,kl->ij", hessian, v), product)


@kernels_serve
def test_a_second_derivative_is_one_call_of_the_kernel():
    z, y = jnp.asarray(draw(6, 5)), jnp.asarray(draw_labels(6))

    def product(z, v):
        return jax.jvp(jax.grad(lambda z: sl.softmax_cross_entropy(z, y)), (z,), (v,))[1]

    compiled = jax.jit(product).lower(z, z).compile().as_text()
    assert compiled.count('custom_call_target="softmaxloss_loss"') == 1
    np.testing.assert_array_equal(jax.jit(product)(z, z), sl.hessian_vector_product(np.asarray(z), np.asarray(y), z))


@plain_is_slow
def test_a_third_derivative(served):
    z, y = jnp.asarray(draw(2, 3)), jnp.asarray(draw_labels(2, classes=3))

    def f(z):
        return sl.softmax_cross_entropy(z, y, focal_gamma=2.0, z_loss=0.1)

    with jax.disable_jit():
        check_grads(jax.grad(lambda z: (jax.grad(f)(z) ** 2).sum()), (z,), 1, modes=("rev",))


def test_derivatives_of_strange_rows(served):
    """NaN in rows without an answer, 0 in ignored ones and where a class is masked, and nothing else is touched."""
    logits = draw(6, 4)
    logits[0, 1], logits[1], logits[2, 2], logits[3, 0] = -np.inf, -np.inf, np.nan, np.inf
    labels = np.array([0, 1, 2, 3, -100, 2])
    logits[4] = np.nan
    vector = np.ones((6, 4))
    vector[:, 0] = 2.0
    for options in ({}, {"temperature": 1.5, "softcap": 3.0, "z_loss": 0.2, "focal_gamma": 0.5}):
        options = options | {"reduction": "none"}
        _, expected = sl.softmax_cross_entropy_and_grad(logits, labels, **options)
        product = sl.hessian_vector_product(logits, labels, vector, **options)
        gradient = jax.grad(lambda z, o=options: sl.softmax_cross_entropy(z, labels, **o).sum())
        with jax.disable_jit():
            np.testing.assert_allclose(gradient(jnp.asarray(logits)), expected, rtol=1e-9, atol=1e-12)
            found = jax.grad(lambda z, g=gradient: (g(z) * vector).sum())(jnp.asarray(logits))
        np.testing.assert_allclose(found, product, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_derivatives_of_certain_rows_are_numbers(gamma, served):
    logits = jnp.array([[200.0, 0.0], [30.0, 0.0], [0.0, 200.0]])

    def f(z):
        return sl.softmax_cross_entropy(z, [0, 0, 0], reduction="sum", focal_gamma=gamma)

    with jax.disable_jit():
        assert np.isfinite(jax.grad(f)(logits)).all()
        assert np.isfinite(jax.grad(lambda z: (jax.grad(f)(z) ** 2).sum())(logits)).all()


# Derivatives by everything else


@plain_is_slow
@pytest.mark.parametrize("soft", [False, True], ids=["index", "soft"])
def test_derivatives_by_labels_weights_and_bias(soft, served):
    logits, labels, options = problem(soft)
    names = ["logit_bias", "class_weight", "sample_weight"]
    fixed = {name: value for name, value in options.items() if name not in names}

    def f(z, q, *arrays):
        y = q / q.sum(-1, keepdims=True) if soft else labels
        return sl.softmax_cross_entropy(z, y, **fixed, **dict(zip(names, arrays, strict=True)))

    q = jnp.asarray(labels if soft else np.ones((6, 5)))
    arrays = [jnp.asarray(options[name]) for name in names]
    with jax.disable_jit():
        check_grads(f, (jnp.asarray(logits), q, *arrays), 2, modes=("rev",))
        check_grads(f, (jnp.asarray(logits), q, *arrays), 1, modes=("fwd",))


@kernels_serve
def test_no_gradient_of_the_logits_where_none_is_asked_for():
    z, y, w = jnp.asarray(draw(6, 5)), jnp.asarray(draw_labels(6)), jnp.asarray(draw_weights(6))
    by_weight = jax.make_jaxpr(jax.grad(lambda w: sl.softmax_cross_entropy(z, y, sample_weight=w)))(w)
    assert "loss_and_gradient" not in str(by_weight)


# Batches


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_vmap_of_any_arguments(reduction):
    arrays = draw(3, 6, 5), draw_labels(3, 6), draw_weights(3, 6), draw_weights(3, 5), draw(3, 5)

    def f(z, y, sample_weight, class_weight, bias):
        return sl.softmax_cross_entropy_and_grad(
            z,
            y,
            sample_weight=sample_weight,
            class_weight=class_weight,
            logit_bias=bias,
            reduction=reduction,
            z_loss=0.2,
        )

    for axes in itertools.product((0, None), repeat=5):
        if axes == (None,) * 5:
            continue
        arguments = [jnp.asarray(a if axis == 0 else a[0]) for axis, a in zip(axes, arrays, strict=True)]
        found = jax.vmap(f, axes)(*arguments)
        for i in range(3):
            expected = f(*(a[i] if axis == 0 else a[0] for axis, a in zip(axes, arrays, strict=True)))
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one[i], other, rtol=1e-14, atol=0)


@plain_is_slow
def test_vmap_of_derivatives(served):
    z, y = jnp.asarray(draw(2, 3, 4, 5)), jnp.asarray(draw_labels(3, 4))
    gradient = jax.grad(sl.softmax_cross_entropy)
    expected = np.stack([[gradient(z[i, j], y[j]) for j in range(3)] for i in range(2)])
    nested = jax.vmap(jax.vmap(gradient), (0, None))
    np.testing.assert_allclose(nested(z, y), expected, rtol=1e-14)
    np.testing.assert_allclose(jax.jit(nested)(z, y), expected, rtol=1e-14)
    other_axis = jax.vmap(jax.vmap(sl.softmax_cross_entropy, (1, 0)), (0, None))(z.swapaxes(1, 2), y)
    np.testing.assert_allclose(other_axis, nested_losses(z, y), rtol=1e-14)
    by_row = jax.vmap(sl.softmax_cross_entropy)(z[0, 0], y[0])
    np.testing.assert_allclose(by_row, sl.softmax_cross_entropy(z[0, 0], y[0], reduction="none"), rtol=1e-14)
    products = jax.vmap(sl.hessian_vector_product)(z[0], y, z[1])
    for i in range(3):
        np.testing.assert_allclose(products[i], sl.hessian_vector_product(z[0, i], y[i], z[1, i]), rtol=1e-12)
    # One vector for a batch of Hessians, forwards and transposed.
    batch, vector = z[0], z[1, 0]

    def along(batch):
        return jax.vmap(lambda z, y: jax.jvp(lambda z: gradient(z, y), (z,), (vector,))[1])(batch, y)

    by_transposing = jax.vmap(lambda z, y: jax.grad(lambda z: (gradient(z, y) * vector).sum())(z))(batch, y)
    np.testing.assert_allclose(along(batch), by_transposing, rtol=1e-9, atol=1e-12)


def nested_losses(z, y):
    return np.stack([[sl.softmax_cross_entropy(z[i, j], y[j]) for j in range(y.shape[0])] for i in range(z.shape[0])])


def test_many_small_batches_in_parallel(keep_num_threads):
    z, y = jnp.asarray(draw(5000, 2, 40)), jnp.asarray(draw_labels(5000, 2, classes=40))
    expected = sl.softmax_cross_entropy(z, y, reduction="none").mean(1)
    for threads in (1, 2):
        sl.set_num_threads(threads)
        np.testing.assert_allclose(jax.vmap(sl.softmax_cross_entropy)(z, y), expected, rtol=1e-13)


# Loops, checkpoints, shards


@plain_is_slow
def test_scan_and_checkpoint(served):
    xs, ys, weight = jnp.asarray(draw(3, 6, 4)), jnp.asarray(draw_labels(3, 6)), jnp.asarray(draw(4, 5))

    def one(weight, x, y):
        return sl.softmax_cross_entropy(x @ weight, y, label_smoothing=0.1)

    def in_a_loop(weight):
        return jax.lax.scan(lambda total, xy: (total + jax.checkpoint(one)(weight, *xy), None), 0.0, (xs, ys))[0]

    def unrolled(weight):
        return sum(one(weight, x, y) for x, y in zip(xs, ys, strict=True))

    np.testing.assert_allclose(jax.jit(in_a_loop)(weight), unrolled(weight), rtol=1e-14)
    np.testing.assert_allclose(jax.jit(jax.grad(in_a_loop))(weight), jax.grad(unrolled)(weight), rtol=1e-12)
    if served == "kernels":  # the loop's body is split, in which a rule that JAX drops would be missed
        check_grads(in_a_loop, (weight,), 2)

    def step(weight, xy):
        loss, gradient = jax.value_and_grad(one)(weight, *xy)
        return weight - 0.1 * gradient, loss

    assert jax.jit(lambda w: jax.lax.scan(step, w, (xs, ys)))(weight)[1].shape == (3,)


SHARDED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, jax.numpy as jnp, numpy as np, softmaxloss as sl
from functools import partial
from jax.sharding import NamedSharding, PartitionSpec as P
from softmaxloss.backends.jax import ffi
ffi.available &= %r
assert len(jax.devices()) == 4
mesh = jax.make_mesh((4,), ("rows",))
rng = np.random.default_rng(0)
logits, labels = rng.standard_normal((64, 9)).astype("f4"), rng.integers(0, 9, 64).astype("i4")
weight = rng.random(64).astype("f4")
loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, reduction="sum", sample_weight=weight)
z, y, w = (jax.device_put(a, NamedSharding(mesh, P("rows"))) for a in (logits, labels, weight))

def of_shard(z, y, w):
    return jax.lax.psum(sl.softmax_cross_entropy(z, y, reduction="sum", sample_weight=w), "rows")

sharded = jax.shard_map(of_shard, mesh=mesh, in_specs=P("rows"), out_specs=P())
found, found_grad = jax.jit(jax.value_and_grad(sharded))(z, y, w)
np.testing.assert_allclose(found, loss, rtol=1e-5)
np.testing.assert_allclose(found_grad, grad, rtol=1e-5, atol=1e-7)
assert found_grad.sharding.is_equivalent_to(z.sharding, 2)
by_weight = jax.jit(jax.grad(sharded, 2))(z, y, w)
rows = sl.softmax_cross_entropy(logits, labels, reduction="none")
np.testing.assert_allclose(by_weight, rows, rtol=1e-5)
product = jax.jit(lambda v: jax.jvp(jax.grad(lambda z: sharded(z, y, w)), (z,), (v,))[1])(z)
expected = sl.hessian_vector_product(logits, labels, logits, reduction="sum", sample_weight=weight)
np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-6)
pieces = jax.shard_map(partial(sl.row_statistics, axis=-1), mesh=mesh, in_specs=P("rows"), out_specs=P("rows"))
np.testing.assert_allclose(jax.jit(pieces)(z, y).loss, rows, rtol=1e-5)
# Sharded arrays without a shard_map: JAX brings them together.
found = sl.softmax_cross_entropy(z, y, reduction="sum", sample_weight=w)
np.testing.assert_allclose(found, loss, rtol=1e-5)
print("done")
"""


@pytest.mark.parametrize("kernels", [pytest.param(True, marks=kernels_serve), False])
def test_shards(kernels):
    result = subprocess.run(
        [sys.executable, "-c", SHARDED % kernels],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.stdout.strip() == "done", result.stderr


# The pieces


@pytest.mark.parametrize("function", [sl.softmax, sl.log_softmax, sl.logsumexp])
def test_derivatives_of_softmax_and_logsumexp(function, served):
    z = jnp.asarray(draw(3, 4))
    options = {} if function is sl.logsumexp else {"temperature": 1.7}
    with jax.disable_jit():
        for axis in (0, 1):
            check_grads(lambda z, a=axis: function(z, a, **options), (z,), 2, modes=("fwd", "rev"))
    masked = z.at[0, 1].set(-jnp.inf)
    jacobian = jax.jit(jax.jacrev(function))(masked)
    assert np.isfinite(jacobian).all()
    np.testing.assert_allclose(jax.vmap(function)(masked), function(masked), rtol=1e-14)
    np.testing.assert_allclose(jax.jit(function)(masked), function(np.asarray(masked)), rtol=1e-14)


def test_row_statistics(served):
    z, y, bias = jnp.asarray(draw(6, 5)), jnp.asarray(draw_labels(6)), jnp.asarray(draw(5))
    expected = sl.row_statistics(np.asarray(z), np.asarray(y), softcap=3.0, logit_bias=np.asarray(bias))
    found = jax.jit(lambda z, y: sl.row_statistics(z, y, softcap=3.0, logit_bias=bias))(z, y)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13)
    with jax.disable_jit():
        check_grads(lambda z, b: sl.row_statistics(z, y, softcap=3.0, logit_bias=b)[:3], (z, bias), 1)
    wrong = jax.jit(sl.row_statistics)(z, y.at[2].set(5))
    assert np.isnan(wrong.loss[2])
    assert wrong.rank[2] == -1
    assert jax.jit(sl.row_statistics)(z).loss is None
    with pytest.raises(ValueError, match="row_statistics takes class indices"):
        jax.jit(sl.row_statistics)(z, z)
    with pytest.raises(sl.LabelError, match=r"labels\[2\] is 5"):
        sl.row_statistics(z, y.at[2].set(5))


def test_cross_entropy_of_probabilities():
    p, y = np.random.default_rng(0).dirichlet(np.ones(5), 6), draw_labels(6)
    p[0] = 0.0, 0.5, 0.5, 0.0, 0.0
    y[1] = -100
    options = {"class_weight": draw_weights(5), "sample_weight": draw_weights(6)}
    for reduction, labels in itertools.product(["mean", "none"], [y, np.roll(p, 1, 0), p]):
        expected = sl.cross_entropy(p, labels, reduction=reduction, **options)
        call = functools.partial(sl.cross_entropy, reduction=reduction, **options)
        for found in (call(jnp.asarray(p), labels), jax.jit(call)(jnp.asarray(p), labels)):
            assert isinstance(found, jax.Array)
            np.testing.assert_allclose(found, expected, rtol=1e-12)
    with jax.disable_jit():
        check_grads(lambda p: sl.cross_entropy(p / p.sum(-1, keepdims=True), y), (jnp.asarray(p + 0.1),), 1)
    wrong = jax.jit(functools.partial(sl.cross_entropy, reduction="none"))(p * np.array([[1.0]] * 5 + [[2.0]]), y)
    np.testing.assert_array_equal(np.isnan(wrong), [0, 0, 0, 0, 0, 1])
    with pytest.raises(ValueError, match="for logits \\(raw scores\\) use softmax_cross_entropy"):
        sl.cross_entropy(jnp.asarray(p * 2), y)


def test_one_hot():
    labels = jnp.array([[1, 0, 2]])
    for axis in (-1, 0, 1):
        found = sl.one_hot(labels, 3, axis=axis, dtype=np.int8)
        assert isinstance(found, jax.Array)
        np.testing.assert_array_equal(found, sl.one_hot(np.asarray(labels), 3, axis=axis))
    assert found.dtype == jnp.int8
    np.testing.assert_array_equal(jax.jit(lambda y: sl.one_hot(y, 2))(labels)[0], [[0, 1], [1, 0], [0, 0]])
    with pytest.raises(sl.LabelError, match=r"labels\[0, 2\] is 2; with 2 classes"):
        sl.one_hot(labels, 2)
    with pytest.raises(ValueError, match="num_classes is 0"):
        sl.one_hot(labels, 0)
    with pytest.raises(ValueError, match="the result has 3 dimensions"):
        sl.one_hot(labels, 3, axis=3)
    with pytest.raises(TypeError, match="index labels have dtype"):
        jax.jit(lambda y: sl.one_hot(y, 2))(jnp.ones(2))
