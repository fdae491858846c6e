"""One-hot labels, and the cross-entropy of probabilities: what functional.py does for NumPy arrays."""

from typing import Any

import jax
import jax.numpy as jnp

from softmaxloss.backends.jax.arguments import Rows, checked_indices, loss_problem, on_host
from softmaxloss.backends.jax.composed import CLASSES, reduced, target_of
from softmaxloss.backends.jax.problem import Operands, Plan, computed_in
from softmaxloss.labels import tolerance_of
from softmaxloss.options import GivenOptions, integer


def one_hot(labels: Any, num_classes: int, *, axis: int, dtype: Any) -> Any:
    """Return one-hot vectors; where labels are traced, zeros for one that is no class."""
    classes, axis = integer("num_classes", num_classes), integer("axis", axis)
    if classes < 1:
        raise ValueError(f"num_classes is {classes}; expected at least 1")
    indices = checked_indices(labels, classes)
    if not -indices.ndim - 1 <= axis <= indices.ndim:
        raise ValueError(f"axis is {axis}; the result has {indices.ndim + 1} dimensions")
    return jax.nn.one_hot(indices, classes, dtype=dtype, axis=axis)


def cross_entropy(probabilities: Any, labels: Any, axis: int, options: GivenOptions) -> Any:
    """Return the cross-entropy of probabilities, by NumPy's backend where all values are at hand."""
    given = {"probabilities": probabilities, "labels": labels, **options._asdict()}
    at_hand = {name: on_host(value) for name, value in given.items()}
    if all(at_hand[name] is not None or value is None for name, value in given.items()):
        return _by_numpy(at_hand, axis, Rows(probabilities, axis, "probabilities"))
    rows, plan, operands = loss_problem(probabilities, labels, axis, options, "probabilities")
    value = _composed(plan, tolerance_of(jnp.asarray(probabilities).dtype), operands)
    return rows.of_rows(value) if plan.reduction == "none" else value


def _by_numpy(at_hand: dict[str, Any], axis: int, rows: Rows) -> Any:
    from softmaxloss import functional  # which has imported the package of this module

    names = ("reduction", "sample_weight", "class_weight", "ignore_index")
    keywords = {name: at_hand[name] for name in names}
    loss = functional.cross_entropy(at_hand["probabilities"], at_hand["labels"], axis=axis, **keywords)
    return jnp.asarray(loss, computed_in(rows.array.dtype))


def _composed(plan: Plan, tolerance: float, operands: Operands) -> Any:
    """Return the loss: one number, or one a row in the shape (before, after); NaN rows as in composed.py."""
    dtype = computed_in(operands.logits.dtype)
    p, labels, *weights = operands
    operands = Operands(p.astype(dtype), labels, *(None if w is None else w.astype(dtype) for w in weights))
    p, target = operands.logits, target_of(plan, operands)
    fits = (jnp.abs(p.sum(CLASSES) - 1.0) <= tolerance) & (p.min(CLASSES) >= 0.0)
    target = target._replace(counted=target.counted & (fits | jnp.isnan(p).any(CLASSES)))
    looked_at = jnp.expand_dims(target.kept, CLASSES) & ((target.mass > 0.0) | (p > 0.0) | jnp.isnan(p))
    surprisal = 0.0 - jnp.log(jnp.where(looked_at, p, 1.0))
    rows = (target.mass * surprisal).sum(CLASSES) * jnp.where(target.kept & ~target.counted, jnp.nan, 1.0).astype(dtype)
    weight = operands.sample_weight
    if weight is not None:
        rows = weight * jnp.where((weight == 0.0) & jnp.isinf(rows), 0.0, rows)
    rows = jnp.where(target.kept, rows, 0.0)
    return reduced(plan, weight, target, rows, jnp.zeros_like(rows))
