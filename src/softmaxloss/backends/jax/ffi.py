"""The kernels as XLA calls them on a CPU: see native/xla.cpp. Nothing here has a derivative."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from softmaxloss.backends.jax.problem import Capped, Operands, Plan, computed_in, rows_shape

_REDUCTIONS = {"none": 0, "sum": 1, "mean": 2}  # native/requests.hpp's Reduction


def _register() -> bool:
    """Tell XLA of the handlers, and whether there are any that it takes."""
    try:
        from softmaxloss import _xla
    except ImportError:  # built without XLA's headers
        return False
    try:
        for name, handler in _xla.handlers.items():
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    except Exception:  # XLA's own classes: it refuses handlers built for another version of its interface
        return False
    return True


available = _register()


def loss(plan: Plan, operands: Operands) -> Any:
    """Return the loss: one number, or one a row in the shape (before, after)."""
    (value,) = _call("softmaxloss_loss", [_loss_of(plan, operands)], _arguments(operands), _attributes(plan))
    return value


def loss_and_gradient(plan: Plan, operands: Operands) -> tuple[Any, Any]:
    """Return the loss, and its gradient in the logits' dtype; in their place where the plan consumes them."""
    if plan.consumes:
        return _loss_and_gradient_in_place(plan, operands)
    results = [_loss_of(plan, operands), _like(operands.logits)]
    value, gradient = _call("softmaxloss_loss", results, _arguments(operands), _attributes(plan))
    return value, gradient


def _loss_and_gradient_in_place(plan: Plan, operands: Operands) -> tuple[Any, Any]:
    """Return the same of logits (rows, classes, 1).

    Given without their last axis: of logits that are a matrix seen with another axis XLA makes a copy, even where the
    matrix is needed no longer.
    """
    rows, classes, _ = operands.logits.shape
    of_rows = (rows,) if plan.reduction == "none" else ()
    labels = operands.labels.reshape((rows, classes) if plan.soft else (rows,))
    weight = operands.sample_weight
    matrix = operands._replace(
        logits=operands.logits.reshape(rows, classes),
        labels=labels,
        sample_weight=None if weight is None else weight.reshape(rows),
    )
    results = [jax.ShapeDtypeStruct(of_rows, computed_in(matrix.logits.dtype)), _like(matrix.logits)]
    value, gradient = _call("softmaxloss_loss", results, _arguments(matrix), _attributes(plan, axes=2), aliases={0: 1})
    return value.reshape(_loss_of(plan, operands).shape), gradient.reshape(operands.logits.shape)


def hessian_vector_product(plan: Plan, operands: Operands, vector: Any) -> Any:
    """Return the Hessian times a vector of the dtype computed in, in the logits' dtype."""
    arguments = [*_arguments(operands), vector]
    (product,) = _call("softmaxloss_loss", [_like(operands.logits)], arguments, _attributes(plan))
    return product


def row_statistics(capped: Capped, operands: Operands) -> tuple[Any, Any, Any, Any]:
    """Return each row's loss, logsumexp, prediction and rank; the first and the last mean nothing without labels."""
    dtype, shape = computed_in(operands.logits.dtype), rows_shape(operands)
    results = [jax.ShapeDtypeStruct(shape, d) for d in (dtype, dtype, jnp.int32, jnp.int32)]
    logits, labels, _, _, bias = operands
    arguments = [logits, _absent(jnp.int32) if labels is None else labels, _or_absent(bias)]
    attributes = {"temperature": np.float64(capped.temperature), "softcap": np.float64(capped.softcap)}
    losses, logsumexps, prediction, rank = _call("softmaxloss_statistics", results, arguments, attributes)
    return losses, logsumexps, prediction, rank


def softmax(logits: Any, temperature: float, logarithm: bool) -> Any:
    """Return softmax or its logarithm, of logits (before, classes, after) in float32 or float64."""
    (result,) = _call(
        "softmaxloss_softmax", [_like(logits)], [logits], _softmax_attributes(temperature, logarithm, False)
    )
    return result


def logsumexp(logits: Any) -> Any:
    """Return the logsumexp of the same, in the shape (before, after)."""
    result = jax.ShapeDtypeStruct((logits.shape[0], logits.shape[2]), logits.dtype)
    (value,) = _call("softmaxloss_softmax", [result], [logits], _softmax_attributes(1.0, False, True))
    return value


def _call(
    target: str,
    results: list[jax.ShapeDtypeStruct],
    arguments: list[Any],
    attributes: dict[str, Any],
    aliases: dict[int, int] | None = None,
) -> Any:
    if jax.sharding.get_abstract_mesh().manual_axes:
        results = [_varying_like(arguments, result) for result in results]
    call = jax.ffi.ffi_call(target, results, vmap_method="expand_dims", input_output_aliases=aliases)
    return call(*arguments, **attributes)


def _varying_like(arguments: list[Any], result: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Return a type that inside `jax.shard_map` varies along all mesh axes along which any of the arguments does."""

    def of_all(*arguments: Any) -> Any:
        return jnp.broadcast_to(sum(x.sum().astype(result.dtype) for x in arguments), result.shape)

    typed: jax.ShapeDtypeStruct = jax.eval_shape(of_all, *arguments)
    return typed


def _like(logits: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(logits.shape, logits.dtype)


def _loss_of(plan: Plan, operands: Operands) -> jax.ShapeDtypeStruct:
    shape = rows_shape(operands) if plan.reduction == "none" else ()
    return jax.ShapeDtypeStruct(shape, computed_in(operands.logits.dtype))


def _arguments(operands: Operands) -> list[Any]:
    logits, labels, *others = operands
    return [logits, labels, *(_or_absent(x) for x in others)]


def _absent(dtype: Any) -> Any:
    return jnp.zeros((0,), dtype)


def _or_absent(values: Any) -> Any:
    return _absent(jnp.float32) if values is None else values


def _attributes(plan: Plan, axes: int = 3) -> dict[str, Any]:
    numbers = ("label_smoothing", "temperature", "softcap", "z_loss", "focal_gamma", "poly_epsilon", "tolerance")
    return {
        "axes": np.int64(axes),
        "reduction": np.int64(_REDUCTIONS[plan.reduction]),
        "soft": plan.soft,
        "ignore_index": np.int64(plan.ignore_index),
        **{name: np.float64(getattr(plan, name)) for name in numbers},
    }


def _softmax_attributes(temperature: float, logarithm: bool, only_logsumexp: bool) -> dict[str, Any]:
    return {"temperature": np.float64(temperature), "logarithm": logarithm, "only_logsumexp": only_logsumexp}
