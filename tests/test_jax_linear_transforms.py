"""JAX's transformations of the linear cross-entropy: derivatives, batches, loops, shards; and the memory they take."""

import functools
import os
import subprocess
import sys

import numpy as np
import pytest

import softmaxloss as sl

jax = pytest.importorskip("jax")
jnp = jax.numpy

from jax_linear_problems import MIB, REDUCTIONS, SMALL, close, dense, linear, problem, tangents_like, weighed  # noqa: E402  # needs JAX

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


# Derivatives


@pytest.mark.slow
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("soft", [False, True], ids=["index", "soft"])
def test_every_option_and_derivatives_of_two_orders(soft, reduction, served, x64):
    if served == "plain" and soft != (reduction == "none"):
        pytest.skip("plain JAX is the slow one, and its formula has been tested")
    head, labels, options = problem(soft=soft)
    options["reduction"] = reduction
    ours, theirs = linear(labels, **options, **SMALL), dense(labels, **options)
    directions = tangents_like(head)
    both = [weighed(f, reduction) for f in (ours, theirs)]

    def forward_over_reverse(f):
        return lambda *head: jax.jvp(jax.grad(f, (0, 1, 2)), head, directions)[1]

    def reverse_over_reverse(f):
        def along(*head):
            return sum((g * d).sum() for g, d in zip(jax.grad(f, (0, 1, 2))(*head), directions, strict=True))

        return jax.grad(along, (0, 1, 2))

    def reverse_over_forward(f):
        return jax.grad(lambda *head: jax.jvp(f, head, directions)[1], (0, 1, 2))

    close(ours(*head), theirs(*head))
    for way in (
        lambda f: jax.value_and_grad(f, (0, 1, 2)),
        lambda f: lambda *head: jax.jvp(f, head, directions),
        forward_over_reverse,
        reverse_over_reverse,
        reverse_over_forward,
    ):
        with jax.disable_jit(served == "plain"):  # of which there is much to compile and little to compute
            found, expected = (jax.jit(way(f))(*head) for f in both)
        close(found, expected)
    loss, grad = sl.linear_cross_entropy_and_grad(*head[:2], labels, bias=head[2], **options, **SMALL)
    assert isinstance(grad, sl.LinearGrad)
    close(loss, theirs(*head))
    close(tuple(grad), jax.grad(lambda *head: theirs(*head).sum(), (0, 1, 2))(*head))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_hessians_and_mixed_derivatives(reduction, x64):
    """Of what is differentiated by different things, one after the other."""
    head, labels, options = problem(6, 2, 4)
    options["reduction"] = reduction
    ours, theirs = (weighed(f, reduction, 6) for f in (linear(labels, **options, **SMALL), dense(labels, **options)))
    close(jax.hessian(ours, (0, 2))(*head), jax.hessian(theirs, (0, 2))(*head))
    for first, second in ((0, 1), (1, 2), (2, 0)):
        found, expected = (jax.jit(jax.jacfwd(jax.grad(f, first), second))(*head) for f in (ours, theirs))
        close(found, expected)
        found = jax.jit(jax.jacrev(jax.grad(ours, first), second))(*head)
        close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("soft", [False, True], ids=["index", "soft"])
def test_derivatives_by_labels_and_weights(soft, reduction, x64):
    head, labels, options = problem(soft=soft)
    options["reduction"] = reduction
    names = ["logit_bias", "class_weight", "sample_weight"]
    arrays = [jnp.asarray(options.pop(name)) for name in names]

    def by_others(loss):
        def total(q, *arrays):
            y = q / q.sum(-1, keepdims=True) if soft else labels
            return weighed(loss(y, **options, **dict(zip(names, arrays, strict=True))), reduction)(*head)

        return total

    q = jnp.asarray(labels if soft else np.ones((11, 9)))
    ours, theirs = by_others(functools.partial(linear, **SMALL)), by_others(dense)
    for way in (
        lambda f: jax.grad(f, (0, 1, 2, 3)),
        lambda f: lambda *given: jax.jvp(f, given, tangents_like(given))[1],
    ):
        found, expected = (jax.jit(way(f))(q, *arrays) for f in (ours, theirs))
        close(found, expected)

    def of_gradient(loss):
        """Return a derivative by a weight of what is a derivative by hidden states."""

        def norm(weight):
            f = loss(labels, **options, sample_weight=weight)
            return (jax.grad(lambda hidden: weighed(f, reduction)(hidden, *head[1:]))(head[0]) ** 2).sum()

        with jax.disable_jit():
            return jax.grad(norm)(arrays[2])

    close(of_gradient(functools.partial(linear, **SMALL)), of_gradient(dense))


def count_products(function, *arguments):
    return jax.jit(function).lower(*arguments).as_text().count("stablehlo.dot_general")


def test_number_of_products():
    """One for the loss, three with its gradients, four where each row's upstream comes later; fewer where frozen."""
    h, w, y = jnp.ones((64, 128)), jnp.ones((256, 128)), jnp.zeros(64, jnp.int32)

    def loss(h, w, reduction="mean"):
        return (sl.linear_cross_entropy(h, w, y, reduction=reduction) * 2.0).sum()

    assert count_products(loss, h, w) == 1
    for reduction, both, one in (("mean", 3, 2), ("sum", 3, 2), ("none", 4, 3)):
        f = functools.partial(loss, reduction=reduction)
        assert count_products(jax.value_and_grad(f, (0, 1)), h, w) == both
        assert count_products(jax.value_and_grad(f, 0), h, w) == one  # the weight is frozen
        assert count_products(jax.value_and_grad(f, 1), h, w) == one
    assert count_products(lambda h, w: sl.linear_cross_entropy_and_grad(h, w, y, reduction="none"), h, w) == 3


# Memory


SHAPES = [(1024, 768, 32000), (512, 64, 30000), (512, 1024, 128256), (4096, 256, 50257), (65536, 64, 131072)]


def lowered(function, rows, features, classes, dtype=jnp.float32):
    shapes = ((rows, features), dtype), ((classes, features), dtype), ((rows,), jnp.int32)
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(*s) for s in shapes)).compile()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_memory_beside_the_gradients(shape, served):
    """At most 64 MiB, for the loss and for its gradients, where all logits would take up to 34 GB."""
    if served == "plain" and shape not in SHAPES[::4]:
        pytest.skip("plain JAX takes long to compile")

    def by_row(h, w, y):
        return (sl.linear_cross_entropy(h, w, y, reduction="none") ** 2).sum()

    for function in (
        sl.linear_cross_entropy,
        *(jax.value_and_grad(f, (0, 1)) for f in (sl.linear_cross_entropy, by_row)),
    ):
        compiled = lowered(function, *shape)
        assert compiled.memory_analysis().temp_size_in_bytes <= 64 * MIB
        assert f"[{shape[0]},{shape[2]}]" not in compiled.as_text()


def test_one_block_of_logits_at_a_time():
    """The kernel's gradient takes the logits' place, and a block's are gone before there are those of the next."""

    def loss(h, w, y):
        return sl.linear_cross_entropy(h, w, y, max_block_bytes=16 * MIB)

    for function, others in ((loss, MIB), (jax.value_and_grad(loss, (0, 1)), 10 * MIB)):
        compiled = lowered(function, 2048, 64, 32000)
        assert compiled.memory_analysis().temp_size_in_bytes <= 16 * MIB + others


def test_memory_of_16_bits():
    """The weight's gradient is added up in float32, which is half of what there is beside the answer."""
    rows, features, classes = 1024, 768, 32000
    compiled = lowered(jax.value_and_grad(sl.linear_cross_entropy, (0, 1)), rows, features, classes, jnp.bfloat16)
    accumulator = 4 * features * (rows + classes)
    assert compiled.memory_analysis().temp_size_in_bytes <= accumulator + 64 * MIB


def test_second_derivatives_keep_no_blocks():
    """A loop that ran backwards would keep all of them."""
    rows, features, classes = 2048, 16, 8192

    def loss(h, w, y):
        return sl.linear_cross_entropy(h, w, y, max_block_bytes=MIB)

    def along(h, w, y):
        return sum((g * x).sum() for g, x in zip(jax.grad(loss, (0, 1))(h, w, y), (h, w), strict=True))

    compiled = lowered(jax.grad(along, (0, 1)), rows, features, classes)
    assert compiled.memory_analysis().temp_size_in_bytes < rows * classes * 4 / 4
    by_weight = lowered(
        lambda h, w, y: jax.grad(lambda c: sl.linear_cross_entropy(h, w, y, class_weight=c, max_block_bytes=MIB))(
            w[:, 0] ** 2
        ),
        rows,
        features,
        classes,
    )
    assert by_weight.memory_analysis().temp_size_in_bytes < rows * classes * 4 / 2


# Batches


@pytest.mark.slow
@pytest.mark.parametrize(("reduction", "class_weights"), [("mean", False), ("mean", True), ("none", True)])
def test_vmap_of_any_arguments(reduction, class_weights, x64):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((3, 6, 4)), rng.standard_normal((3, 5, 4)), rng.standard_normal((3, 5))]
    arrays += [rng.integers(0, 5, (3, 6)), rng.random((3, 6)) + 0.1]
    options = {"reduction": reduction, "z_loss": 0.2}
    if class_weights:
        options["class_weight"] = rng.random(5)

    def call(way):
        def of_one(h, w, b, y, weight):
            f = way(y, sample_weight=weight, **options)
            return jax.value_and_grad(weighed(f, reduction, 6), (0, 1, 2))(h, w, b), f(h, w, b)

        return of_one

    for axes in (
        (0, None, None, 0, 0),
        (0, None, None, 0, None),
        (None, 0, None, None, None),
        (0, 0, 0, 0, 0),
        (1, None, 0, None, 0),
    ):
        given = [
            jnp.asarray(a[0] if axis is None else np.moveaxis(a, 0, axis)) for a, axis in zip(arrays, axes, strict=True)
        ]
        ours = jax.jit(jax.vmap(call(functools.partial(linear, max_block_bytes=100)), axes))(*given)
        theirs = jax.vmap(call(dense), axes)(*given)
        close(ours, theirs)

        def total(*given, way, axes=axes):
            losses = jax.vmap(lambda h, w, b, y, weight: way(y, sample_weight=weight, **options)(h, w, b), axes)(*given)
            return (losses * jnp.arange(1.0, losses.size + 1).reshape(losses.shape)).sum()

        found, expected = (
            jax.jit(jax.grad(functools.partial(total, way=way), (0, 1, 2)))(*given) for way in (linear, dense)
        )
        close(found, expected)


def test_a_batch_with_one_weight_is_so_many_more_rows():
    """No gradient of the weight is held for each element, and products take all rows of the batch."""
    batch, rows, features, classes = 50, 4, 8, 300

    def mean(h, w, y):
        return jax.vmap(sl.linear_cross_entropy, (0, None, 0))(h, w, y).mean()

    shapes = ((batch, rows, features), jnp.float32), ((classes, features), jnp.float32), ((batch, rows), jnp.int32)
    compiled = jax.jit(jax.grad(mean, (0, 1))).lower(*(jax.ShapeDtypeStruct(*s) for s in shapes)).compile().as_text()
    assert f"[{batch},{classes},{features}]" not in compiled
    assert f"[{batch * rows},{classes}" in compiled


def test_vmap_of_derivatives(x64):
    head, labels, _ = problem(6, 3, 4)
    h = jnp.stack([head[0], head[0] * 2])
    directions = tangents_like(head[:2])

    def products(f):
        return jax.vmap(lambda h: jax.jvp(jax.grad(f, (0, 1)), (h, head[1]), directions)[1])(h)

    def transposed(f):
        def along(h, w):
            return sum((g * d).sum() for g, d in zip(jax.grad(f, (0, 1))(h, w), directions, strict=True))

        return jax.vmap(jax.grad(along, (0, 1)), (0, None))(h, head[1])

    for way in (products, transposed):
        close(way(linear(labels, **SMALL)), way(dense(labels)))


# Loops, checkpoints, shards


def test_scan_and_checkpoint(x64):
    rng = np.random.default_rng(0)
    xs, ys = jnp.asarray(rng.standard_normal((3, 6, 4))), jnp.asarray(rng.integers(0, 5, (3, 6)))
    weight = jnp.asarray(rng.standard_normal((5, 4)))

    def in_a_loop(way, weight):
        def step(total, xy):
            return total + jax.checkpoint(lambda w, x, y: way(y)(jnp.tanh(x), w))(weight, *xy), None

        return jax.lax.scan(step, 0.0, (xs, ys))[0]

    ours, theirs = (functools.partial(in_a_loop, way) for way in (functools.partial(linear, **SMALL), dense))
    for order in (jax.value_and_grad, jax.hessian):
        close(jax.jit(order(ours))(weight), jax.jit(order(theirs))(weight))

    def step(weight, xy):
        loss, gradient = jax.value_and_grad(lambda w: linear(xy[1], **SMALL)(xy[0], w))(weight)
        return weight - 0.5 * gradient, loss

    losses = jax.jit(lambda w: jax.lax.scan(step, w, (xs, ys)))(weight)[1]
    assert losses.shape == (3,)


SHARDED = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
import jax, jax.numpy as jnp, numpy as np, softmaxloss as sl
from jax.sharding import NamedSharding, PartitionSpec as P
from softmaxloss.backends.jax import ffi
ffi.available &= %r
assert len(jax.devices()) == 4
mesh = jax.make_mesh((4,), ("rows",))
rng = np.random.default_rng(0)
hidden, weight = rng.standard_normal((64, 5)).astype("f4"), rng.standard_normal((9, 5)).astype("f4")
bias, labels = rng.standard_normal(9).astype("f4"), rng.integers(0, 9, 64).astype("i4")
rows = [jax.device_put(a, NamedSharding(mesh, P("rows"))) for a in (hidden, labels)]
shared = [jax.device_put(a, NamedSharding(mesh, P())) for a in (weight, bias)]

def sharded(reduction, gradient_filter):
    def of_shard(h, w, b, y):
        loss = sl.linear_cross_entropy(h, w, y, bias=b, reduction=reduction, max_block_bytes=200,
                                       gradient_filter=gradient_filter)
        return jax.lax.psum((loss ** 2).sum() if reduction == "none" else loss, "rows")
    return jax.shard_map(of_shard, mesh=mesh, in_specs=(P("rows"), P(), P(), P("rows")), out_specs=P())

def whole(reduction):
    def f(h, w, b, y):
        loss = sl.softmax_cross_entropy(h @ w.T + b, y, reduction=reduction)
        return (loss ** 2).sum() if reduction == "none" else loss
    return f

def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5), a, b)

arguments = (rows[0], *shared, rows[1])
for reduction in ("sum", "none"):
    expected = jax.jit(jax.value_and_grad(whole(reduction), (0, 1, 2)))(hidden, weight, bias, labels)
    for gradient_filter in (0.0, 1e-9):
        found = jax.jit(jax.value_and_grad(sharded(reduction, gradient_filter), (0, 1, 2)))(*arguments)
        close(found, expected)
    assert found[1][0].sharding.is_equivalent_to(rows[0].sharding, 2)

    def along(f):
        def product(h, w, b, y):
            grads = jax.grad(f, (0, 1, 2))(h, w, b, y)
            return sum((g * x).sum() for g, x in zip(grads, (h, w, b)))
        return jax.jit(jax.grad(product, (0, 1, 2)))
    close(along(sharded(reduction, 0.0))(*arguments), along(whole(reduction))(hidden, weight, bias, labels))
# Sharded arrays without a shard_map: JAX brings together what it has to.
found = jax.jit(jax.grad(lambda h, w, y: sl.linear_cross_entropy(h, w, y, max_block_bytes=200), (0, 1)))
expected = jax.grad(lambda h, w: sl.softmax_cross_entropy(h @ w.T, labels), (0, 1))(hidden, weight)
close(found(rows[0], shared[0], rows[1]), expected)
print("done")
"""


@pytest.mark.parametrize(
    "kernels", [pytest.param(True, marks=kernels_serve), pytest.param(False, marks=pytest.mark.slow)]
)
def test_shards(kernels):
    result = subprocess.run(
        [sys.executable, "-c", SHARDED % kernels],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert result.stdout.strip() == "done", result.stderr
