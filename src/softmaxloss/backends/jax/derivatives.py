"""What the public functions differentiate: the kernels or plain JAX, whichever serves, and the derivatives of both.

Each rule gives a tangent that is linear in the inputs' tangents: so JAX has forward mode from it, reverse mode by
transposing it, and any order of either by going on. The kernels give values, the gradient by which the logits' tangents
are multiplied, and its change, the Hessian times them. Third derivatives, and those by weights, soft labels and the
bias, are the composed formula's.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from softmaxloss.backends.jax import composed, ffi, pieces
from softmaxloss.backends.jax.problem import Capped, Operands, Plan, Serving, computed_in
from softmaxloss.backends.jax.whole import whole


def loss(plan: Plan, operands: Operands) -> Any:
    """Return the loss: one number, or one a row in the shape (before, after)."""
    return whole(partial(_loss, plan), operands)


def loss_and_gradient(plan: Plan, operands: Operands) -> tuple[Any, Any]:
    """Return the loss and its gradient by the logits, of the sum for "none"."""
    answer: tuple[Any, Any] = whole(partial(_loss_and_gradient, plan), operands)
    return answer


def hessian_vector_product(plan: Plan, operands: Operands, vector: Any) -> Any:
    """Return the Hessian by the logits times a vector of the dtype computed in, in the logits' dtype."""
    linear = operands.logits.dtype == vector.dtype
    return whole(partial(_hessian_vector_product, plan), operands, vector, linear=linear)


def softmax(serving: Serving, temperature: float, logarithm: bool, logits: Any) -> Any:
    """Return softmax or its logarithm, of logits (before, classes, after) in float32 or float64."""
    return whole(partial(_softmax, serving, temperature, logarithm), logits)


def logsumexp(serving: Serving, logits: Any) -> Any:
    """Return the logsumexp of such logits, in the shape (before, after)."""
    return whole(partial(_logsumexp, serving), logits)


def row_statistics(capped: Capped, operands: Operands) -> tuple[Any, Any, Any, Any]:
    """Return each row's loss, logsumexp, prediction and rank; the first and the last mean nothing without labels."""
    answer: tuple[Any, Any, Any, Any] = whole(partial(_row_statistics, capped), operands)
    return answer


def _served(serving: Serving, by_kernel: Any, by_jax: Any, *arguments: Any) -> Any:
    """Return the kernel's answer or plain JAX's; where the platform is not known yet, the program holds both."""
    if serving == "either":
        return lax.platform_dependent(*arguments, cpu=by_kernel, default=by_jax)
    return (by_kernel if serving == "kernels" else by_jax)(*arguments)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss(plan: Plan, operands: Operands) -> Any:
    return _served(plan.serving, partial(ffi.loss, plan), partial(composed.loss, plan), operands)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss_and_gradient(plan: Plan, operands: Operands) -> Any:
    by_kernel, by_jax = (partial(x.loss_and_gradient, plan) for x in (ffi, composed))
    return _served(plan.serving, by_kernel, by_jax, operands)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _hessian_vector_product(plan: Plan, operands: Operands, vector: Any) -> Any:
    by_kernel, by_jax = (partial(x.hessian_vector_product, plan) for x in (ffi, composed))
    return _served(plan.serving, by_kernel, by_jax, operands, vector)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _softmax(serving: Serving, temperature: float, logarithm: bool, logits: Any) -> Any:
    by_kernel, by_jax = (partial(x.softmax, temperature=temperature, logarithm=logarithm) for x in (ffi, pieces))
    return _served(serving, by_kernel, by_jax, logits)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _logsumexp(serving: Serving, logits: Any) -> Any:
    return _served(serving, ffi.logsumexp, pieces.logsumexp, logits)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _row_statistics(capped: Capped, operands: Operands) -> Any:
    by_kernel, by_jax = (partial(x.row_statistics, capped) for x in (ffi, pieces))
    return _served(capped.serving, by_kernel, by_jax, operands)


@partial(_loss.defjvp, symbolic_zeros=True)
def _loss_jvp(plan: Plan, primals: tuple[Operands], tangents: tuple[Operands]) -> tuple[Any, Any]:
    (operands,), (directions,) = primals, tangents
    if is_zero(directions.logits):
        value = loss(plan, operands)
        return value, _change_by_others(plan, operands, directions, value)
    # A gradient rounded to 16 bits, and then multiplied by what comes from above, would have lost small numbers.
    wide, directions = _widened(operands), _widened(directions)
    value, gradient = loss_and_gradient(plan, wide)
    return value, _change(plan, wide, directions, value, gradient)


@partial(_loss_and_gradient.defjvp, symbolic_zeros=True)
def _loss_and_gradient_jvp(plan: Plan, primals: tuple[Operands], tangents: tuple[Operands]) -> tuple[Any, Any]:
    (operands,), (directions,) = primals, tangents
    plan = plan._replace(consumes=False)
    answer = loss_and_gradient(plan, operands)
    wide, directions = _widened(operands), _widened(directions)
    gradient = answer[1] if wide is operands else loss_and_gradient(plan, wide)[1]
    change = _change(plan, wide, directions, answer[0], gradient)
    others = directions._replace(logits=None)
    bent = jnp.zeros_like(gradient)
    if not is_zero(directions.logits):
        bent += hessian_vector_product(plan, wide, directions.logits)
    if not all(map(is_zero, others)):

        def by_others(others: Operands) -> Any:
            return composed.gradient(plan, others._replace(logits=wide.logits))

        bent += _composed_jvp(by_others, (wide._replace(logits=None),), (others,))[1]
    return answer, (change, bent.astype(operands.logits.dtype))


@partial(_hessian_vector_product.defjvp, symbolic_zeros=True)
def _hessian_vector_product_jvp(plan: Plan, primals: Any, tangents: Any) -> tuple[Any, Any]:
    _, change = _composed_jvp(partial(composed.hessian_vector_product, plan), primals, tangents)
    return hessian_vector_product(plan, *primals), change


@_softmax.defjvp
def _softmax_jvp(serving: Serving, temperature: float, logarithm: bool, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (logits,), (direction,) = primals, tangents
    value = softmax(serving, temperature, logarithm, logits)
    p = softmax(serving, temperature, False, logits) if logarithm else value
    along = (p * direction).sum(composed.CLASSES, keepdims=True)
    change = direction - along if logarithm else p * (direction - along)
    return value, change / temperature


@_logsumexp.defjvp
def _logsumexp_jvp(serving: Serving, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (logits,), (direction,) = primals, tangents
    p = softmax(serving, 1.0, False, logits)
    return logsumexp(serving, logits), (p * direction).sum(composed.CLASSES)


@partial(_row_statistics.defjvp, symbolic_zeros=True)
def _row_statistics_jvp(capped: Capped, primals: Any, tangents: Any) -> tuple[Any, Any]:
    _, changes = _composed_jvp(partial(pieces.row_statistics, capped), primals, tangents)
    return row_statistics(capped, *primals), changes


def _change(plan: Plan, operands: Operands, directions: Operands, value: Any, gradient: Any) -> Any:
    """Return the loss's tangent, of all inputs' tangents."""
    change = _change_by_others(plan, operands, directions, value)
    if is_zero(directions.logits):
        return change
    return change + (gradient * directions.logits).sum(composed.CLASSES if plan.reduction == "none" else None)


def _change_by_others(plan: Plan, operands: Operands, directions: Operands, value: Any) -> Any:
    """Return the loss's tangent, of the tangents of all inputs but the logits."""
    others, changes = operands[1:], directions[1:]
    if all(map(is_zero, changes)):
        return jnp.zeros_like(value)
    return _composed_jvp(lambda *others: composed.loss(plan, Operands(operands.logits, *others)), others, changes)[1]


def _widened(operands: Operands) -> Operands:
    """Return operands, or tangents of them, with the logits in the dtype computed in."""
    logits = operands.logits
    if is_zero(logits) or logits.dtype == computed_in(logits.dtype):
        return operands
    return operands._replace(logits=logits.astype(computed_in(logits.dtype)))


def _composed_jvp(function: Any, primals: Any, tangents: Any) -> Any:
    return jax.jvp(function, tuple(primals), tuple(_zeros(tangents)))


def is_zero(tangent: Any) -> bool:
    """Tell whether this is known to be zero while tracing; so are tangents of integers, and of absent arrays."""
    return tangent is None or isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _zeros(tangents: Any) -> Any:
    """Return tangents with zeros in place of what is known to be zero."""

    def known(tangent: Any) -> Any:
        if tangent is None or not is_zero(tangent):
            return tangent
        zeros = np.zeros if tangent.dtype == jax.dtypes.float0 else jnp.zeros
        return zeros(tangent.shape, tangent.dtype)

    return jax.tree.map(known, tangents, is_leaf=is_zero)
