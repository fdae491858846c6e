"""The linear cross-entropy of JAX arrays: what it is given, checked, with its rows along one axis."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from softmaxloss.backends.block_plan import plan_blocks
from softmaxloss.backends.jax import linear_derivatives
from softmaxloss.backends.jax.arguments import Layout, as_floats, problem_of_rows, serving
from softmaxloss.backends.jax.linear_problem import Head, LinearOperands, LinearPlan
from softmaxloss.options import GivenOptions, scalar

# Compiled once for each plan and set of shapes, as the functions of dense logits are.
_loss = partial(jax.jit, static_argnums=0)(linear_derivatives.loss)
_loss_and_gradients = partial(jax.jit, static_argnums=(0, 1))(linear_derivatives.loss_and_gradients)


def linear_cross_entropy(
    hidden: Any,
    weight: Any,
    labels: Any,
    bias: Any,
    options: GivenOptions,
    gradient_filter: float,
    max_block_bytes: int | None,
) -> Any:
    """Return the loss."""
    rows_shape, plan, operands = _problem(hidden, weight, labels, bias, options, gradient_filter, max_block_bytes)
    loss = _loss(plan, operands)
    return loss.reshape(rows_shape) if plan.of_rows.reduction == "none" else loss


def linear_cross_entropy_and_grad(
    hidden: Any,
    weight: Any,
    labels: Any,
    bias: Any,
    options: GivenOptions,
    gradient_filter: float,
    max_block_bytes: int | None,
) -> tuple[Any, tuple[Any, Any, Any]]:
    """Return the loss and its gradients by hidden, weight and bias, the last None without one."""
    rows_shape, plan, operands = _problem(hidden, weight, labels, bias, options, gradient_filter, max_block_bytes)
    loss, gradients = _loss_and_gradients(plan, (True, True, bias is not None), operands)
    loss = loss.reshape(rows_shape) if plan.of_rows.reduction == "none" else loss
    features = operands.head.weight.shape[1]
    gradients = gradients._replace(hidden=gradients.hidden.reshape(*rows_shape, features))
    of_hidden, of_weight, of_bias = (
        None if x is None else x.astype(given.dtype) for x, given in zip(gradients, operands.head, strict=True)
    )
    return loss, (of_hidden, of_weight, of_bias)


def _problem(
    hidden: Any,
    weight: Any,
    labels: Any,
    bias: Any,
    options: GivenOptions,
    gradient_filter: float,
    max_block_bytes: int | None,
) -> tuple[tuple[int, ...], LinearPlan, LinearOperands]:
    """Return the shape of the rows, and what the loss is made of with its rows along one axis."""
    head = _checked_head(hidden, weight, bias)
    *rows_shape, features = head.hidden.shape
    classes = head.weight.shape[0]
    operands = LinearOperands(head._replace(hidden=head.hidden.reshape(-1, features)), None)
    layout = Layout((*rows_shape, classes), -1, operands.computed_in)
    of_rows, dense = problem_of_rows(layout, None, labels, options)
    rows = layout.before
    labels = dense.labels.reshape((rows, classes) if of_rows.soft else (rows,))
    sample_weight = None if dense.sample_weight is None else dense.sample_weight.reshape(rows)
    operands = operands._replace(
        labels=labels, sample_weight=sample_weight, class_weight=dense.class_weight, logit_bias=dense.logit_bias
    )
    if max_block_bytes is not None:
        plan_blocks(rows, classes, jnp.dtype(operands.computed_in).itemsize, max_block_bytes)  # which checks it
        max_block_bytes = int(max_block_bytes)
    least = scalar("gradient_filter", gradient_filter, at_least=0.0)
    of_rows = of_rows._replace(serving=serving(*jax.tree.leaves(operands)))
    operands = jax.tree.map(_brought_together, operands)
    return tuple(rows_shape), LinearPlan(of_rows, least, max_block_bytes), operands


def _checked_head(hidden: Any, weight: Any, bias: Any) -> Head:
    hidden, weight = as_floats(hidden, "hidden"), as_floats(weight, "weight")
    if hidden.ndim < 1:
        raise ValueError("hidden has no dimensions; expected (..., D): one row of features or more")
    if weight.ndim != 2 or not len(weight):
        raise ValueError(f"weight has shape {weight.shape}; expected (classes, features), with one class or more")
    if weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"hidden has shape {hidden.shape} and weight {weight.shape}; the last axis of both is the features', of "
            "one length (pass a weight of shape (features, classes) as weight.T)"
        )
    if bias is not None:
        bias = as_floats(bias, "bias")
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias has shape {bias.shape}; expected {weight.shape[:1]}: one number a class")
    return Head(hidden, weight, bias)


def _brought_together(array: Any) -> Any:
    """Return an array that devices have parts of, by its type, as one that all have: blocks are cut across these parts.

    Inside `jax.shard_map`, where each device has rows of its own, there is nothing to be done.
    """
    sharding = getattr(jax.typeof(array), "sharding", None)
    if sharding is None or all(axes is None for axes in sharding.spec):
        return array
    return jax.reshard(array, NamedSharding(sharding.mesh, PartitionSpec()))
