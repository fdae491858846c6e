"""JAX arrays: the kernels' bits, optax's answers, the plain formula within its bound, and what is wrong under `jit`."""

import functools

import numpy as np
import pytest
from option_cases import (
    EVERY_DENSE,
    EVERY_INDEX,
    KINDS,
    OPTION_SETS,
    REDUCTIONS,
    assert_within,
    ids,
    label_kinds,
    make_case,
)

import softmaxloss as sl

jax = pytest.importorskip("jax")
jnp = jax.numpy

from softmaxloss.backends.jax import ffi  # noqa: E402  # needs JAX

kernels_serve = pytest.mark.skipif(not ffi.available, reason="built without XLA's headers")


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


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def value_and_grad(logits, labels, **options):
    """Return the loss and, by JAX's reverse mode under jit, its gradient."""

    def total(logits, labels, arrays):
        loss = sl.softmax_cross_entropy(logits, labels, **options | arrays)
        return loss.sum(), loss

    arrays = {name: options.pop(name) for name in list(options) if isinstance(options[name], jax.Array)}
    grad, loss = jax.jit(jax.grad(total, has_aux=True))(logits, labels, arrays)
    return loss, grad


def in_jax(options):
    return {name: jnp.asarray(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}


# The kernels' bits


@kernels_serve
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("names", [(), EVERY_INDEX, EVERY_DENSE], ids=ids)
def test_bits_of_eager_and_compiled_calls(names, dtype, instruction_set, x64):
    case = make_case(1, names, np.dtype(dtype), "ordinary", label_kinds(names)[-1], 37, "mean", 10)
    for rows, axis in (((10,), -1), ((10,), 0), ((2, 5), 1)):

        def placed(array, rows=rows, axis=axis):
            return np.ascontiguousarray(np.moveaxis(array.reshape(*rows, 37), -1, axis))

        logits, options = placed(case.logits), dict(case.options)
        labels = case.labels.reshape(rows) if case.labels.ndim == 1 else placed(case.labels)
        if "sample_weight" in options:
            options["sample_weight"] = options["sample_weight"].reshape(rows)
        loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, axis=axis, **options)
        eager = sl.softmax_cross_entropy_and_grad(
            jnp.asarray(logits), jnp.asarray(labels), axis=axis, **in_jax(options)
        )
        compiled = value_and_grad(jnp.asarray(logits), jnp.asarray(labels), axis=axis, **in_jax(options))
        for found, found_grad in (eager, compiled):
            assert found.dtype == loss.dtype
            np.testing.assert_array_equal(found, loss)
            np.testing.assert_array_equal(found_grad, grad)


@kernels_serve
@pytest.mark.parametrize("threads", [1, 2])
def test_subnormal_numbers_and_threads(threads, keep_num_threads):
    """XLA's threads flush them to 0; the kernels and their threads do not, then or afterwards."""
    sl.set_num_threads(threads)
    logits = np.zeros((3000, 40), np.float32)
    logits[:, 0] = np.linspace(85, 103, 3000)
    labels = np.zeros(3000, np.int32)
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, reduction="sum")
    assert ((grad > 0) & (grad < np.finfo(np.float32).tiny)).any()
    found, found_grad = value_and_grad(jnp.asarray(logits), jnp.asarray(labels), reduction="sum")
    np.testing.assert_array_equal(found, loss)
    np.testing.assert_array_equal(np.asarray(found_grad).view(np.uint32), grad.view(np.uint32))
    again = sl.softmax_cross_entropy_and_grad(logits, labels, reduction="sum")[1]
    np.testing.assert_array_equal(again.view(np.uint32), grad.view(np.uint32))


@kernels_serve
def test_one_pass_for_loss_and_gradient_and_none_for_the_gradient_alone():
    logits, labels = jnp.zeros((8, 16)), jnp.zeros(8, jnp.int32)
    compiled = jax.jit(jax.value_and_grad(sl.softmax_cross_entropy)).lower(logits, labels).compile().as_text()
    assert compiled.count('custom_call_target="softmaxloss_loss"') == 1
    assert compiled.count(" = f32[8,16]") <= 3  # the logits, the gradient, and a view of it: nothing multiplied
    alone = jax.jit(sl.softmax_cross_entropy).lower(logits, labels).compile().as_text()
    assert alone.count('custom_call_target="softmaxloss_loss"') == 1
    assert "(f32[], f32[8,16,1]" not in alone


@kernels_serve
def test_one_program_for_any_platform():
    """Exported for several platforms, it has the kernel on CPUs and none elsewhere."""
    function = jax.jit(jax.value_and_grad(sl.softmax_cross_entropy))
    shapes = jax.ShapeDtypeStruct((6, 5), jnp.float32), jax.ShapeDtypeStruct((6,), jnp.int32)
    trusted = [jax.export.DisabledSafetyCheck.custom_call("softmaxloss_loss")]
    both = jax.export.export(function, platforms=["cpu", "cuda"], disabled_checks=trusted)(*shapes)
    cuda = jax.export.export(function, platforms=["cuda"])(*shapes)
    assert "softmaxloss_loss" in both.mlir_module()
    assert "softmaxloss_loss" not in cuda.mlir_module()
    rng = np.random.default_rng(0)
    arguments = jnp.asarray(rng.standard_normal((6, 5)), jnp.float32), jnp.asarray(rng.integers(0, 5, 6))
    for found, expected in zip(both.call(*arguments), function(*arguments), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_show_config_tells_of_the_call():
    assert sl.show_config("dicts")["jax_ffi"] == ffi.available


# The plain formula


def check_plain(case):
    """Assert that plain JAX is within four times the kernels' bound of the exact answer, loss and gradient."""
    reference, dtype = case.reference, case.logits.dtype
    loss, grad = value_and_grad(jnp.asarray(case.logits), jnp.asarray(case.labels), **in_jax(case.options))
    largest = reference.largest if case.options["reduction"] == "none" else reference.largest.max(initial=0)
    bound = 4 * (16 + case.logits.shape[1])
    assert_within(loss, reference.loss, reference.loss_scale, bound + 4 * largest, dtype, "loss")
    assert_within(grad, reference.grad, reference.scale, bound + 4 * reference.largest[:, None], dtype, "gradient")


@pytest.mark.parametrize("names", OPTION_SETS, ids=ids)
def test_the_plain_formula_is_exact(names, monkeypatch, x64):
    """Operation by operation, and for the sets that hold every option compiled as well, which takes longer."""
    monkeypatch.setattr(ffi, "available", False)
    cases = [
        make_case(number, names, np.dtype("f8"), "ordinary", label_kind, 10, REDUCTIONS[number])
        for number, label_kind in enumerate(label_kinds(names))
    ]
    with jax.disable_jit():
        for case in cases:
            check_plain(case)
    if len(names) > 2:
        check_plain(cases[-1])


@pytest.mark.parametrize("names", [(), ("softcap", "z_loss"), EVERY_INDEX, EVERY_DENSE], ids=ids)
@pytest.mark.parametrize("kind", KINDS)
def test_the_plain_formula_of_strange_logits(kind, names, monkeypatch, x64):
    monkeypatch.setattr(ffi, "available", False)
    with jax.disable_jit():
        for label_kind in label_kinds(names):
            check_plain(make_case(2, names, np.dtype("f4"), kind, label_kind, 13, "none"))


def test_a_certain_row_keeps_its_digits(served):
    loss, grad = value_and_grad(jnp.array([[20.0, 0.0, 0.0]]), jnp.array([0]))
    np.testing.assert_allclose(loss, 4.1223072e-09, rtol=1e-6)
    np.testing.assert_allclose(grad, [[-4.1223072e-09, 2.0611537e-09, 2.0611537e-09]], rtol=1e-6)


# optax, on the inputs of its own tests


YS = np.array([[10.0, 1.0, -2.0], [1.0, 4.0, 0.2]], np.float32)
TS = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], np.float32)
SAFE_YS = np.array([*YS, [-np.inf, 0, 0], [-np.inf, 0, 0], [-np.inf, 0, -np.inf]], np.float32)
SAFE_TS = np.array([*TS, [0, 0.5, 0.5], [0.4, 0.3, 0.3], [0, 1, 0]], np.float32)
POLY = [
    ([0.14, 1.456, 2.356, -0.124, -2.47], 2),
    ([[4.0, 2.0, 1.0], [0.0, 5.0, 1.0]], [0, 1]),
    ([[4.0, 2.0, 1.0, 0.134, 1.3515], [0.0, 5.0, 1.0, 0.5215, 5.616]], [1, 4]),
    ([1.89, 2.39], 0),
    ([0.314], 0),
]


def assert_like_optax(ours, theirs, logits, *arguments):
    """Compare losses, and gradients where theirs is a number."""
    logits = jnp.asarray(logits, jnp.float32)
    with jax.disable_jit():  # there is much to compile and little to compute
        np.testing.assert_allclose(ours(logits, *arguments), theirs(logits, *arguments), rtol=2e-6, atol=1e-6)
        grad, their_grad = (jax.grad(lambda z, f=f: f(z, *arguments).sum())(logits) for f in (ours, theirs))
    known = np.isfinite(their_grad)
    np.testing.assert_allclose(np.asarray(grad)[known], np.asarray(their_grad)[known], rtol=1e-5, atol=1e-6)
    assert np.isfinite(grad).all()


@plain_is_slow
def test_agrees_with_optax(served):
    optax = pytest.importorskip("optax")

    def ours(logits, labels, **options):
        return sl.softmax_cross_entropy(logits, labels, reduction="none", **options)

    for rows in (slice(None), 0, 1):
        assert_like_optax(ours, optax.softmax_cross_entropy, YS[rows], TS[rows])
        indices = jnp.array([1, 0])[rows]
        assert_like_optax(ours, optax.softmax_cross_entropy_with_integer_labels, YS[rows], indices)
    assert_like_optax(ours, optax.safe_softmax_cross_entropy, SAFE_YS, SAFE_TS)
    np.testing.assert_allclose(
        ours(jnp.asarray(SAFE_YS), SAFE_TS), [9.00013, 3.0696733, 0.693147, np.inf, 0], atol=1e-5
    )


@plain_is_slow
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_agrees_with_optax_along_any_axis(axis, served):
    optax = pytest.importorskip("optax")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 5, 6))
    shape = np.delete(logits.shape, axis)
    labels = rng.integers(0, logits.shape[axis], shape)
    one_hot = jax.nn.one_hot(labels, logits.shape[axis], axis=axis)
    for theirs, y in (
        (optax.softmax_cross_entropy_with_integer_labels, labels),
        (optax.softmax_cross_entropy, one_hot),
    ):
        ours = functools.partial(sl.softmax_cross_entropy, axis=axis, reduction="none")
        assert_like_optax(ours, functools.partial(theirs, axis=axis), logits, y)


@plain_is_slow
@pytest.mark.parametrize("epsilon", [-2.0, 0.0, 0.15, 2.0])
def test_agrees_with_optax_poly_loss(epsilon, served):
    optax = pytest.importorskip("optax")
    for logits, labels in POLY:
        one_hot = jax.nn.one_hot(jnp.array(labels), np.shape(logits)[-1])
        assert_like_optax(
            lambda z, y: sl.softmax_cross_entropy(z, y, reduction="none", poly_epsilon=epsilon),
            lambda z, _, q=one_hot: optax.losses.poly_loss_cross_entropy(z, q, epsilon=epsilon),
            logits,
            jnp.array(labels),
        )


# Labels and weights that are wrong


def test_errors_where_values_are_at_hand():
    logits, jitted = jnp.zeros((3, 4)), jax.jit(lambda z: sl.softmax_cross_entropy(z, np.array([0, 4, 1])))
    for call in (
        lambda: sl.softmax_cross_entropy(logits, jnp.array([0, 4, 1])),
        lambda: sl.softmax_cross_entropy(logits, [0, 4, 1]),
        lambda: jax.grad(sl.softmax_cross_entropy)(logits, jnp.array([0, 4, 1])),
        lambda: jitted(logits),
    ):
        with pytest.raises(sl.LabelError, match=r"labels\[1\] is 4; with 4 classes a label is from 0 to 3"):
            call()
    with pytest.raises(ValueError, match=r"row \[1\] sums to 0.5, not 1"):
        sl.softmax_cross_entropy(logits, jnp.eye(3, 4).at[1].multiply(0.5))
    with pytest.raises(ValueError, match=r"sample_weight\[2\] is -1.0; weights must be finite"):
        sl.softmax_cross_entropy(logits, [0, 1, 2], sample_weight=jnp.array([0.0, 1.0, -1.0]))
    with pytest.raises(sl.LabelError, match=r"labels\[1\] is 4294967295"):
        sl.softmax_cross_entropy(logits, jnp.array([0, 2**32 - 1, 1], jnp.uint32))
    with pytest.raises(TypeError, match="out is given and the logits are a JAX array"):
        sl.softmax_cross_entropy_and_grad(logits, [0, 1, 2], out=np.zeros((3, 4), np.float32))
    for traced in ({}, {"reduction": "none"}):
        with pytest.raises(TypeError, match=r"temperature is .*; expected a number"):
            jax.jit(lambda t, o=traced: sl.softmax_cross_entropy(logits, [0, 1, 2], temperature=t, **o))(1.0)
    with pytest.raises(ValueError, match="labels have shape"):
        jax.jit(sl.softmax_cross_entropy)(logits, jnp.zeros(2, jnp.int32))
    with pytest.raises(TypeError, match="index labels have dtype"):
        jax.jit(sl.softmax_cross_entropy)(logits, jnp.zeros(3))
    with pytest.raises(ValueError, match=r"sample_weight has shape \(2,\)"):
        jax.jit(lambda w: sl.softmax_cross_entropy(logits, [0, 1, 2], sample_weight=w))(jnp.ones(2))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label", [4, -1, -101, np.iinfo(np.int32).max])
def test_a_label_that_is_none_makes_its_row_nan(label, reduction, served):
    """And the others are as if it were ignored."""
    rng = np.random.default_rng(0)
    logits, weight = rng.standard_normal((5, 4)).astype(np.float32), rng.random(5).astype(np.float32)
    labels, without = np.array([0, label, 2, -100, 3]), np.array([0, -100, 2, -100, 3])
    loss, grad = value_and_grad(
        jnp.asarray(logits), jnp.asarray(labels), reduction=reduction, sample_weight=jnp.asarray(weight)
    )
    rest, rest_grad = sl.softmax_cross_entropy_and_grad(logits, without, reduction=reduction, sample_weight=weight)
    if reduction == "none":
        rest[1] = np.nan
    else:
        rest = np.nan
    rest_grad[1] = np.nan
    np.testing.assert_allclose(loss, rest, rtol=1e-5)
    np.testing.assert_allclose(grad, rest_grad, rtol=1e-5, atol=1e-7)


def test_rows_that_are_no_distributions_are_nan(served):
    rng = np.random.default_rng(0)
    logits, q = rng.standard_normal((600, 3)).astype(np.float32), rng.dirichlet(np.ones(3), 600).astype(np.float32)
    bad = np.array([3, 4, 300, 599])
    wrong = q.copy()
    wrong[bad[:2]] *= 1.01
    wrong[bad[2:]] += np.float32([-1, 1, 0])
    logits[5] = np.nan
    loss, grad = value_and_grad(jnp.asarray(logits), jnp.asarray(wrong), reduction="none", label_smoothing=0.1)
    rest, rest_grad = sl.softmax_cross_entropy_and_grad(logits, q, reduction="none", label_smoothing=0.1)
    rest[bad], rest_grad[bad] = np.nan, np.nan
    np.testing.assert_allclose(loss, rest, rtol=1e-5)
    np.testing.assert_allclose(grad, rest_grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("by_index", [True, False])
def test_weights_and_biases_that_are_none_make_nan(by_index, served):
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)), jnp.float32)
    labels = jnp.array([0, 1, 2, 0]) if by_index else jnp.eye(3)[jnp.array([0, 1, 2, 0])]
    for value in (-1.0, jnp.nan, jnp.inf):
        weight = jnp.ones(4).at[2].set(value)
        loss, grad = value_and_grad(logits, labels, reduction="none", sample_weight=weight)
        np.testing.assert_array_equal(np.isnan(loss), [0, 0, 1, 0])
        np.testing.assert_array_equal(np.isnan(grad).all(1), [0, 0, 1, 0])
        for name in ("class_weight", "logit_bias"):
            if (name, value) != ("logit_bias", -1.0):
                loss, grad = value_and_grad(logits, labels, **{name: jnp.ones(3).at[1].set(value)})
                assert np.isnan(loss)
                assert np.isnan(grad).all()


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i8"])
def test_traced_labels_are_compared_by_value(dtype, served, x64):
    top = np.iinfo(dtype).max
    labels = np.array([1, top if dtype[0] == "u" else -1, 2], dtype)
    loss, _ = value_and_grad(jnp.zeros((3, 3)), jnp.asarray(labels), reduction="none", ignore_index=-1)
    expected = np.log(3) * np.ones(3)
    expected[1] = np.nan if dtype[0] == "u" else 0
    np.testing.assert_allclose(loss, expected)


def test_an_index_to_ignore_that_is_beyond_32_bits(served):
    logits, ignored = jnp.zeros((3, 3)), 2**40
    loss = sl.softmax_cross_entropy(logits, np.array([0, ignored, 2]), reduction="none", ignore_index=ignored)
    np.testing.assert_allclose(loss, [np.log(3), 0, np.log(3)], rtol=1e-6)
    loss, _ = value_and_grad(logits, jnp.array([0, -100, 2]), reduction="none", ignore_index=ignored)
    np.testing.assert_array_equal(np.isnan(loss), [0, 1, 0])


# dtypes


def test_dtypes_without_x64(served):
    labels = jnp.array([1])
    for logits in (jnp.array([[1, 2, 3]]), jnp.array([[True, False, True]]), jnp.ones((1, 3), jnp.bfloat16)):
        loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels)
        assert loss.dtype == jnp.float32
        assert grad.dtype == (jnp.bfloat16 if logits.dtype == jnp.bfloat16 else jnp.float32)
        statistics = sl.row_statistics(logits, labels)
        assert (statistics.prediction.dtype, statistics.rank.dtype) == (jnp.int32, jnp.int32)
    with pytest.raises(TypeError, match="logits have dtype complex64"):
        sl.softmax_cross_entropy(jnp.ones((1, 3), jnp.complex64), labels)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16], ids=["f2", "bf16"])
def test_gradients_of_16_bits_are_rounded_once(dtype, served):
    """After what comes from above: a scaled loss, as for gradients that would underflow, keeps them."""
    rng = np.random.default_rng(0)
    logits, labels = jnp.asarray(rng.standard_normal((64, 1000)), dtype), jnp.asarray(rng.integers(0, 1000, 64))
    scale = 2.0**15
    grad = jax.jit(jax.grad(lambda z: scale * sl.softmax_cross_entropy(z, labels)))(logits)
    _, exact_grad = sl.softmax_cross_entropy_and_grad(np.asarray(logits.astype(jnp.float32)), np.asarray(labels))
    assert grad.dtype == dtype
    error = np.abs(np.asarray(grad, np.float64) - scale * exact_grad)
    assert (error <= (2.0**-10 if dtype == jnp.float16 else 2.0**-7) * np.abs(scale * exact_grad)).all()
