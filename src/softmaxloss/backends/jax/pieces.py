"""Softmax, its logarithm, logsumexp and the statistics of rows in plain JAX: what composed.py is to the loss."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from softmaxloss.backends.jax.composed import CLASSES, by_class, over_classes, softmax_of, transform
from softmaxloss.backends.jax.problem import Capped, Operands, computed_in


def softmax(logits: Any, temperature: float, logarithm: bool) -> Any:
    """Return probabilities or their logarithms of logits (before, classes, after) in float32 or float64."""
    transformed = transform(Capped(temperature), logits, None)
    if logarithm:
        return jnp.where(transformed.masked, -jnp.inf, 0.0 - softmax_of(transformed).surprisal)
    shown = jnp.where(transformed.masked, -jnp.inf, transformed.v)
    e = jnp.exp(shown - shown.max(CLASSES, keepdims=True))
    return e / e.sum(CLASSES, keepdims=True)


def logsumexp(logits: Any) -> Any:
    """Return the logsumexp of the same, in the shape (before, after)."""
    return jax.scipy.special.logsumexp(logits, axis=CLASSES)


def row_statistics(capped: Capped, operands: Operands) -> tuple[Any, Any, Any, Any]:
    """Return each row's loss, logsumexp, prediction and rank; the first and the last mean nothing without labels."""
    dtype = computed_in(operands.logits.dtype)
    logits, labels, bias = operands.logits.astype(dtype), operands.labels, operands.logit_bias
    transformed = transform(capped, logits, bias)
    surprisal, lse, _ = softmax_of(transformed)
    surprisal = jnp.where(transformed.masked, jnp.inf, surprisal)
    v = logits / capped.temperature
    if capped.softcap:
        v = jnp.where(jnp.isinf(v), v, capped.softcap * jnp.tanh(v / capped.softcap))
    if bias is not None:
        v = v + by_class(bias, v)
    prediction, logsumexps = jnp.argmax(v, CLASSES).astype(jnp.int32), jnp.squeeze(lse, CLASSES)
    if labels is None:
        return jnp.zeros_like(logsumexps), logsumexps, prediction, jnp.zeros_like(prediction)
    at_label = lax.broadcasted_iota(labels.dtype, v.shape, CLASSES) == over_classes(labels)
    valid = at_label.any(CLASSES)
    loss = jnp.where(at_label, surprisal, 0.0).sum(CLASSES)
    larger = v > jnp.where(at_label, v, 0.0).sum(CLASSES, keepdims=True)
    return (
        jnp.where(valid, loss, jnp.nan),
        logsumexps,
        prediction,
        jnp.where(valid, larger.sum(CLASSES, dtype=jnp.int32), -1),
    )
