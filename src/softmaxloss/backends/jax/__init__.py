"""JAX arrays: the functions of backends/numpy.py, under every transformation of JAX's.

On CPUs the kernels compute, called by XLA (ffi.py, native/xla.cpp), where softmaxloss was built with XLA's headers;
plain JAX (composed.py, pieces.py) does everywhere else. derivatives.py differentiates both, arguments.py is the door.
linear.py is the door of the linear cross-entropy, which uses all of that block by block (linear_sweeps.py) and has
derivatives of its own (linear_derivatives.py).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from softmaxloss.backends.jax import derivatives
from softmaxloss.backends.jax.arguments import Rows, loss_problem, serving, statistics_problem
from softmaxloss.backends.jax.linear import linear_cross_entropy, linear_cross_entropy_and_grad
from softmaxloss.backends.jax.probabilities import cross_entropy, one_hot
from softmaxloss.backends.jax.problem import computed_in
from softmaxloss.options import GivenOptions, GivenTransform

__all__ = [
    "cross_entropy",
    "hessian_vector_product",
    "linear_cross_entropy",
    "linear_cross_entropy_and_grad",
    "logsumexp",
    "one_hot",
    "row_statistics",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_and_grad",
]

# Compiled once for each plan and set of shapes, so that eager calls are one call each, to the bits of traced ones.
_loss = partial(jax.jit, static_argnums=0)(derivatives.loss)
_loss_and_gradient = partial(jax.jit, static_argnums=0)(derivatives.loss_and_gradient)
_hessian_vector_product = partial(jax.jit, static_argnums=0)(derivatives.hessian_vector_product)
_row_statistics = partial(jax.jit, static_argnums=0)(derivatives.row_statistics)
_softmax = partial(jax.jit, static_argnums=(0, 1, 2))(derivatives.softmax)
_logsumexp = partial(jax.jit, static_argnums=0)(derivatives.logsumexp)


def softmax_cross_entropy(logits: Any, labels: Any, axis: int, options: GivenOptions) -> Any:
    """Return the loss."""
    rows, plan, operands = loss_problem(logits, labels, axis, options)
    return _reduced(rows, plan.reduction, _loss(plan, operands))


def softmax_cross_entropy_and_grad(
    logits: Any, labels: Any, axis: int, options: GivenOptions, out: Any
) -> tuple[Any, Any]:
    """Return the loss and its gradient."""
    if out is not None:
        raise TypeError(
            "out is given and the logits are a JAX array; JAX arrays are never written to: leave out=None, and under "
            "jax.jit donate the logits (donate_argnums) where their memory is to be used again"
        )
    rows, plan, operands = loss_problem(logits, labels, axis, options)
    loss, gradient = _loss_and_gradient(plan, operands)
    return _reduced(rows, plan.reduction, loss), rows.unfolded(gradient)


def hessian_vector_product(logits: Any, labels: Any, vector: Any, axis: int, options: GivenOptions) -> Any:
    """Return the product of the loss's Hessian with `vector`, in the logits' dtype."""
    rows, plan, operands = loss_problem(logits, labels, axis, options)
    direction = jnp.asarray(vector)
    if not (jnp.issubdtype(direction.dtype, jnp.number) or direction.dtype == jnp.bool_) or jnp.iscomplexobj(direction):
        raise TypeError(f"vector has dtype {direction.dtype}; expected real numbers")
    if direction.shape != rows.shape:
        raise ValueError(f"vector has shape {direction.shape}; expected the logits' {rows.shape}")
    direction = rows.folded(direction.astype(computed_in(rows.array.dtype)))
    return rows.unfolded(_hessian_vector_product(plan, operands, direction))


def row_statistics(logits: Any, labels: Any, axis: int, transform: GivenTransform) -> tuple[Any, Any, Any, Any, Any]:
    """Return each row's loss, logsumexp, log-probability, prediction and rank; those of labels None without them."""
    rows, capped, operands = statistics_problem(logits, labels, axis, transform)
    loss, lse, prediction, rank = map(rows.of_rows, _row_statistics(capped, operands))
    prediction, rank = (x.astype(jnp.result_type(int)) for x in (prediction, rank))
    if labels is None:
        return None, lse, None, prediction, None
    return loss, lse, 0.0 - loss, prediction, rank  # the logarithm of 1 is 0, not -0


def softmax(logits: Any, *, axis: int, temperature: float, logarithm: bool) -> Any:
    """Return softmax or its logarithm, of the logits' shape and dtype."""
    rows = Rows(logits, axis)
    dtype = rows.array.dtype
    values = rows.logits.astype(computed_in(dtype))
    return rows.unfolded(_softmax(serving(values), temperature, logarithm, values).astype(dtype))


def logsumexp(logits: Any, *, axis: int, keepdims: bool) -> Any:
    """Return the logsumexp of each row, in the logits' dtype."""
    rows = Rows(logits, axis)
    dtype = rows.array.dtype
    values = rows.logits.astype(computed_in(dtype))
    value = rows.of_rows(_logsumexp(serving(values), values).astype(dtype))
    return jnp.expand_dims(value, rows.axis) if keepdims else value


def _reduced(rows: Rows, reduction: str, loss: Any) -> Any:
    return rows.of_rows(loss) if reduction == "none" else loss
