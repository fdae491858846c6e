"""The loss and its gradient by the contract's formula, in mpmath: slow, and exact to as many digits as asked."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpmath import mp, mpf

# Enough for float32: probabilities down to e^-104 beside 1, and 20 digits more.
FLOAT32_DIGITS = 70
FLOAT64_DIGITS = 350

_mpf = np.frompyfunc(lambda x: mpf(float(x)), 1, 1)
_exp = np.frompyfunc(mp.exp, 1, 1)


@dataclass
class Exact:
    """Object arrays of mpf: `rows` of the rows' shape, `grad` of the logits', with the class axis last."""

    loss: Any
    rows: np.ndarray
    grad: np.ndarray
    scale: np.ndarray  # |a| p_j + |b| class_weight_j q'_j: what the contract measures the gradient's error against
    row_scale: np.ndarray  # the sum of the loss's terms' magnitudes


def _times(weight: mpf, value: mpf) -> mpf:
    return mpf(0) if weight == 0 and mp.isinf(value) else weight * value


def _row(z, target, weight):
    """Return loss, gradient, its scale and the loss's scale of one row; `target` is class_weight_j * q'_j."""
    classes = len(z)
    nan = [mp.nan] * classes
    if any(mp.isnan(x) or x == mp.inf for x in z) or all(x == -mp.inf for x in z):
        return mp.nan, nan, nan, mp.nan
    top = max(z)
    e = _exp(z - top)
    total = sum(e)
    log_total = mp.log(total)
    terms = [_times(t, log_total - (x - top)) for t, x in zip(target, z, strict=True)]
    mass = sum(target)
    grad = [weight * (mass * x / total - t) for x, t in zip(e, target, strict=True)]
    scale = [abs(weight) * (mass * x / total + t) for x, t in zip(e, target, strict=True)]
    loss = _times(weight, sum(terms))
    return loss, grad, scale, loss


def softmax_cross_entropy(
    logits,
    labels,
    *,
    axis=-1,
    reduction="mean",
    sample_weight=None,
    class_weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    digits=FLOAT32_DIGITS,
) -> Exact:
    with mp.workdps(digits):
        z = np.moveaxis(np.asarray(logits), axis, -1)
        rows_shape, classes = z.shape[:-1], z.shape[-1]
        n = math.prod(rows_shape)
        z = _mpf(z.reshape(n, classes))
        y = np.asarray(labels)
        by_index = y.ndim == np.ndim(logits) - 1
        y = y.reshape(n) if by_index else _mpf(np.moveaxis(y, axis, -1).reshape(n, classes))
        cw = [mpf(1)] * classes if class_weight is None else [mpf(float(w)) for w in class_weight]
        sw = [mpf(1)] * n if sample_weight is None else [mpf(float(w)) for w in np.ravel(sample_weight)]
        eps = mpf(float(label_smoothing))

        kept = [not by_index or int(y[i]) != ignore_index for i in range(n)]
        divisor = mpf(1)
        if reduction == "mean":
            divisor = sum((sw[i] * (cw[int(y[i])] if by_index else 1) for i in range(n) if kept[i]), mpf(0))
        rows = np.full(n, mpf(0), dtype=object)
        row_scale = rows.copy()
        grad = np.full((n, classes), mpf(0), dtype=object)
        scale = grad.copy()
        for i in range(n):
            if not kept[i]:
                continue
            q = [mpf(int(j == int(y[i]))) for j in range(classes)] if by_index else list(y[i])
            target = [c * ((1 - eps) * qj + eps / classes) for c, qj in zip(cw, q, strict=True)]
            rows[i], grad[i], scale[i], row_scale[i] = _row(z[i], target, sw[i])
            if divisor != 1:
                grad[i] = [g / divisor if divisor else mp.nan for g in grad[i]]
                scale[i] = [s / divisor if divisor else mp.nan for s in scale[i]]
        total = sum(rows, mpf(0))
        loss = {
            "none": rows.reshape(rows_shape),
            "sum": total,
            "mean": total / divisor if divisor else mp.nan,
        }[reduction]
        shape = (*rows_shape, classes)
        return Exact(loss, rows.reshape(rows_shape), grad.reshape(shape), scale.reshape(shape), row_scale)


def as_float(values) -> np.ndarray:
    """Return an object array of mpf as float64."""
    values = np.asarray(values, dtype=object)
    return np.array([float(value) for value in values.ravel()]).reshape(values.shape)


def relative_error(ours, exact, scale=None) -> np.ndarray:
    """Return |ours - exact| / |scale| (the exact value unless given), elementwise, 0 where both are equal."""

    def one(a, b, s):
        a = mpf(float(a))
        if a == b or (mp.isnan(a) and mp.isnan(b)):
            return 0.0
        return float(abs(a - b) / abs(s)) if s else math.inf

    ours, exact = np.asarray(ours), np.asarray(exact, dtype=object)
    scale = exact if scale is None else np.asarray(scale, dtype=object)
    errors = [one(*values) for values in zip(ours.ravel(), exact.ravel(), scale.ravel(), strict=True)]
    return np.array(errors, dtype=np.float64).reshape(ours.shape)
