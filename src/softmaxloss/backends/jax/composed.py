"""The formula of the loss in plain JAX, written so that JAX's derivatives of it, of any order, keep their digits.

It serves GPUs and TPUs, CPUs where the kernels were not built, and wherever no kernel has the derivative asked for.

Two habits run through it. Where a number is not to be looked at (a masked class, an ignored row), another one takes its
place before the arithmetic, lest a derivative be 0 times infinity. And a row that has no answer is multiplied by NaN
once, at the start: the loss, the gradient and every further derivative of that row are then NaN, and of no other row.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from softmaxloss.backends.jax.problem import Operands, Plan, computed_in

CLASSES = 1  # the class axis


class Softmax(NamedTuple):
    """What rows of v say, class axis kept with length 1 in all but `surprisal` and `at_top`."""

    surprisal: Any  # -log p_j; of a masked class a finite number
    logsumexp: Any
    at_top: Any  # where the first of the largest is


class Transformed(NamedTuple):
    """Rows of v, where they are masked, and what rows without an answer have been multiplied by.

    A masked v is a finite number, with the derivatives of one.
    """

    v: Any
    masked: Any
    answer: Any  # NaN for a row without one, else 1


class Target(NamedTuple):
    """The labels as masses by class, and which rows count."""

    mass: Any  # class_weight_j * q'_j
    at_label: Any  # where the label is, for indices
    kept: Any  # rows that are not ignored
    counted: Any  # of these, rows that are valid
    share: Any  # what a row counts in the mean's divisor beside its sample weight


@jax.custom_jvp
def unmasked(values: Any) -> Any:
    """Return 0 in place of -inf, with the derivative of what stood there."""
    return jnp.where(values == -jnp.inf, 0.0, values)


@unmasked.defjvp
def _unmasked_jvp(primals: Any, tangents: Any) -> Any:
    return unmasked(*primals), tangents[0]


@jax.custom_jvp
def tanh(x: Any) -> Any:
    """Return tanh, whose derivative keeps its digits where tanh is nearly 1: not as 1 - tanh^2."""
    return jnp.tanh(x)


@tanh.defjvp
def _tanh_jvp(primals: Any, tangents: Any) -> Any:
    e = jnp.exp(-2.0 * jnp.abs(primals[0]))
    return tanh(*primals), tangents[0] * (4.0 * e / (1.0 + e) ** 2)


def by_class(values: Any, like: Any) -> Any:
    """Return one number a class in a shape that goes with (before, classes, after) or (before, classes)."""
    return values.astype(like.dtype).reshape((-1,) + (1,) * (like.ndim - 2))


def over_classes(values: Any) -> Any:
    """Return one number a row in a shape that goes with the logits."""
    return jnp.expand_dims(values, CLASSES)


def transform(plan: Any, logits: Any, bias: Any, target: Target | None = None) -> Transformed:
    """Return v = softcap * tanh(z / temperature / softcap) + bias; of zeros in rows that are ignored."""
    masked = logits == -jnp.inf
    broken = jnp.isnan(logits) | (logits == jnp.inf)
    if bias is not None:
        of_class = by_class(bias, logits)
        masked |= of_class == -jnp.inf
        broken |= jnp.isnan(of_class) | (of_class == jnp.inf)
    nan_row = broken.any(CLASSES, keepdims=True) | masked.all(CLASSES, keepdims=True)
    z, masked = unmasked(logits), masked & ~nan_row
    if target is not None:
        kept, counted = over_classes(target.kept), over_classes(target.counted)
        masked, nan_row, z = masked & kept, (nan_row | ~counted) & kept, jnp.where(kept, z, 0.0)
    answer = jnp.where(nan_row, jnp.nan, 1.0).astype(z.dtype)
    z = z * answer
    v = z / plan.temperature if plan.temperature != 1.0 else z
    if plan.softcap:
        v = plan.softcap * tanh(v / plan.softcap)
    return Transformed(v if bias is None else v + unmasked(of_class), masked, answer)


def softmax_of(transformed: Transformed) -> Softmax:
    """Return surprisals and logsumexps that keep their digits, and whose derivatives do.

    The surprisal of the top class is log1p of the others' sum, and its derivative by the top's own v minus the others'
    probability: both small where the class is all but certain. The derivative of the logsumexp is the top's
    probability. These two are each other's rest, and neither is found by subtracting the other from 1.
    """
    v, masked, _ = transformed
    top = jnp.argmax(jnp.where(masked, -jnp.inf, v), axis=CLASSES, keepdims=True)
    at_top = lax.broadcasted_iota(jnp.int32, v.shape, CLASSES) == top
    v_top = jnp.where(at_top, v, 0.0).sum(CLASSES, keepdims=True)
    level = lax.stop_gradient(v_top)
    others = ~(masked | at_top)

    def log1p_sum(origin: Any, rest: Any) -> Any:
        e = jnp.where(others, jnp.exp(jnp.where(others, v - origin, 0.0)), 0.0)
        return jnp.log1p(e.sum(CLASSES, keepdims=True) + rest)

    of_top = log1p_sum(v_top, 0.0)
    above_level = log1p_sum(level, jnp.expm1(v_top - level))
    surprisal = jnp.where(at_top, of_top, above_level + (level - v))
    return Softmax(surprisal, level + above_level, at_top)


def target_of(plan: Plan, operands: Operands) -> Target:
    """Return the labels of logits (before, classes, after) or (before, classes) as masses."""
    logits, labels, _, class_weight, bias = operands
    classes, dtype = logits.shape[CLASSES], logits.dtype
    weight = jnp.ones((), dtype) if class_weight is None else by_class(class_weight, logits)
    if plan.soft:
        q, at_label = labels, None
        total = q.sum(CLASSES)
        counted = (jnp.abs(total - 1.0) <= plan.tolerance) & (q.min(CLASSES) >= 0.0)
        kept, share = jnp.ones(counted.shape, bool), jnp.ones(counted.shape, dtype)
    else:
        limits = np.iinfo(labels.dtype)
        kept = jnp.ones(labels.shape, bool)
        if limits.min <= plan.ignore_index <= limits.max:
            kept = labels != plan.ignore_index
        counted = kept & (labels >= 0) & (labels < classes)
        at_label = lax.broadcasted_iota(labels.dtype, logits.shape, CLASSES) == over_classes(labels)
        at_label &= over_classes(counted)
        q = at_label.astype(dtype)
        share = jnp.where(at_label, weight, 0.0).sum(CLASSES)
    if plan.label_smoothing:
        q = (1.0 - plan.label_smoothing) * q + plan.label_smoothing / classes
    for values in (operands.sample_weight, class_weight):
        if values is not None:
            valid = (values >= 0.0) & (values < jnp.inf)
            counted &= valid if values is operands.sample_weight else valid.all()
    if bias is not None:
        counted &= (bias < jnp.inf).all()
    return Target(weight * q, at_label, kept, counted, share)


def loss(plan: Plan, operands: Operands) -> Any:
    """Return the loss: one number, or one a row in the shape (before, after)."""
    operands = _in_computed_dtype(operands)
    shape = (operands.logits.shape[0], operands.logits.shape[2])
    operands = _without_degenerate_axis(operands)
    target = target_of(plan, operands)
    value = reduced(plan, operands.sample_weight, target, *_terms(plan, operands, target))
    return value.reshape(shape) if plan.reduction == "none" else value


def reduced(plan: Plan, sample_weight: Any, target: Target, cross_entropy: Any, square: Any) -> Any:
    """Return the loss of rows' cross-entropies and squared logsumexps, both times the rows' weights."""
    if plan.reduction == "mean":
        weight = jnp.ones_like(cross_entropy) if sample_weight is None else sample_weight
        mean = _mean(cross_entropy, target.counted, weight * target.share)
        return mean + plan.z_loss * _mean(square, target.counted, weight) if plan.z_loss else mean
    rows = cross_entropy + plan.z_loss * square if plan.z_loss else cross_entropy
    return rows.sum() if plan.reduction == "sum" else rows


def gradient(plan: Plan, operands: Operands) -> Any:
    """Return the gradient by the logits, of the sum for "none", in the logits' dtype."""

    def total(logits: Any) -> Any:
        return loss(plan, operands._replace(logits=logits)).sum()

    return jax.grad(total)(operands.logits)


def loss_and_gradient(plan: Plan, operands: Operands) -> tuple[Any, Any]:
    """Return the loss and its gradient."""

    def total(logits: Any) -> Any:
        value = loss(plan, operands._replace(logits=logits))
        return value.sum(), value

    (_, value), grad = jax.value_and_grad(total, has_aux=True)(operands.logits)
    return value, grad


def hessian_vector_product(plan: Plan, operands: Operands, vector: Any) -> Any:
    """Return the Hessian times a vector, in the logits' dtype."""

    def gradient_at(logits: Any) -> Any:
        return gradient(plan, operands._replace(logits=logits))

    return jax.jvp(gradient_at, (operands.logits,), (vector.astype(operands.logits.dtype),))[1]


def _in_computed_dtype(operands: Operands) -> Operands:
    dtype = computed_in(operands.logits.dtype)
    logits, labels, *others = operands
    return Operands(logits.astype(dtype), labels, *(None if x is None else x.astype(dtype) for x in others))


def _without_degenerate_axis(operands: Operands) -> Operands:
    """Drop the axis after the classes where it has length 1, which accelerators lay out better."""
    logits, labels, sample_weight, *of_classes = operands
    if logits.shape[-1] != 1:
        return operands
    return Operands(
        logits[..., 0], labels[..., 0], None if sample_weight is None else sample_weight[..., 0], *of_classes
    )


def _terms(plan: Plan, operands: Operands, target: Target) -> tuple[Any, Any]:
    """Return each row's cross-entropy, with its focal and poly terms, and squared logsumexp, both times its weight."""
    transformed = transform(plan, operands.logits, operands.logit_bias, target)
    masked, mass = transformed.masked, target.mass
    softmax = softmax_of(transformed)
    met = masked & (mass > 0.0)  # masked, and yet the label's: an infinite loss
    surprisal = jnp.where(masked & ~met, 0.0, softmax.surprisal)
    row = (mass * surprisal).sum(CLASSES) * jnp.squeeze(transformed.answer, CLASSES)  # where no class has any mass, too
    if plan.focal_gamma or plan.poly_epsilon:
        assert target.at_label is not None  # refused at the door for distributions
        row = _modulated(plan, row, jnp.where(target.at_label, softmax.surprisal, 0.0).sum(CLASSES), target, met)
    weight = operands.sample_weight
    square = jnp.squeeze(softmax.logsumexp, CLASSES) ** 2
    infinite = met.any(CLASSES)
    if weight is not None:
        # Multiplied last, and the weights of ignored rows, whatever they are, not at all.
        weight = jnp.where(target.kept, weight, 0.0)
        row, square, infinite = weight * row, weight * square, infinite & (weight > 0.0)
    row = jnp.where(target.kept, row + jnp.where(infinite, jnp.inf, 0.0), 0.0)
    return row, jnp.where(target.kept, square, 0.0)


def _modulated(plan: Plan, row: Any, surprisal: Any, target: Target, met: Any) -> Any:
    """Return (1 - p)^gamma * CE + w * epsilon * (1 - p)^(gamma + 1)."""
    weight = jnp.where(target.at_label, target.mass, 0.0).sum(CLASSES)
    missing = jnp.where(met.any(CLASSES), 1.0, -jnp.expm1(-surprisal))
    if plan.focal_gamma == 0.0:
        return row + weight * plan.poly_epsilon * missing
    # Where nothing is missing, nor is any loss; the powers' derivatives there may be infinite.
    certain = missing == 0.0
    power = jnp.where(certain, 1.0, missing) ** plan.focal_gamma
    return jnp.where(certain, 0.0, power * (row + weight * plan.poly_epsilon * missing))


def _mean(rows: Any, counted: Any, weight: Any) -> Any:
    """Return the mean; NaN over no rows, whose gradient is 0 in ignored rows since they are looked at nowhere."""
    divisor = jnp.where(counted, weight, 0.0).sum()
    return rows.sum() * jnp.where(divisor == 0.0, jnp.nan, 1.0 / divisor)
