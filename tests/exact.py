"""The loss and its gradient by the formula of the docs, in mpmath: slow, and exact to as many digits as asked.

Beside each answer stands its scale, the sum of its terms' magnitudes: what an error is measured against.
`exact_hessian` goes on from here to second derivatives.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from mpmath import mp, mpf

# Enough for float32: probabilities down to e^-104 beside 1, and 20 digits more.
FLOAT32_DIGITS = 70
FLOAT64_DIGITS = 350


def as_mpf(values) -> np.ndarray:
    """Return numbers, or mpf themselves, as an object array of mpf, each the same number."""
    values = np.asarray(values)
    numbers = values.ravel() if values.dtype == object else values.ravel().astype(np.float64).tolist()
    converted = np.empty(values.shape, dtype=object)
    converted.reshape(-1)[:] = [mpf(number) for number in numbers]
    return converted


@dataclass
class Exact:
    """Object arrays of mpf: `rows` of the rows' shape, `grad` of the logits', with the class axis last."""

    loss: Any
    rows: np.ndarray
    grad: np.ndarray
    scale: np.ndarray  # (|a| p_j + |b| class_weight_j q'_j) dv_j/dz_j: what grad's error is measured against
    row_scale: np.ndarray  # one dimension; the sum of the magnitudes of the terms of each row's loss
    loss_scale: Any  # the same for `loss`
    largest: np.ndarray  # M = max |v_j| of each row over the classes not masked, float64, of the rows' shape


@dataclass
class Statistics:
    """Arrays of the rows' shape: of mpf, but for `prediction` and `rank`."""

    loss: np.ndarray
    logsumexp: np.ndarray
    log_probability: np.ndarray
    prediction: np.ndarray
    rank: np.ndarray
    largest: np.ndarray


@dataclass
class Transform:
    """How a row's logits z become v, with the first two derivatives of v_j by z_j."""

    temperature: mpf
    softcap: mpf | None
    bias: list | None

    def __call__(self, z):
        if self.temperature == 1 and self.softcap is None and self.bias is None:
            return list(z), [mpf(1)] * len(z), [mpf(0)] * len(z)
        v, first, second = zip(*(self._one(x) for x in z), strict=True)
        if self.bias is not None:
            v = [x + b for x, b in zip(v, self.bias, strict=True)]
        return list(v), list(first), list(second)

    def _one(self, z):
        u = z / self.temperature
        if self.softcap is None or mp.isinf(u):  # a mask stays a mask, and +inf makes a NaN row
            return u, 1 / self.temperature, mpf(0)
        x = u / self.softcap
        if abs(x) > 10**6:  # sech(x)^2 is 4 e^(-2 |x|) there, and has more digits than mpmath can print
            return self.softcap * mp.sign(x), mpf(0), mpf(0)
        tanh, sech_squared = mp.tanh(x), mp.sech(x) ** 2
        return (
            self.softcap * tanh,
            sech_squared / self.temperature,
            -2 * tanh * sech_squared / (self.softcap * self.temperature**2),
        )


@dataclass
class Softmax:
    """What a row's v say: probabilities p_j, surprisals -log p_j and logsumexp."""

    p: list
    surprisal: list
    lse: mpf
    largest: mpf

    @classmethod
    def of(cls, v):
        """Return None for a NaN row."""
        if any(mp.isnan(x) or x == mp.inf for x in v) or all(x == -mp.inf for x in v):
            return None
        top = v.index(max(v))
        e = [mp.exp(x - v[top]) for x in v]
        log_total = mp.log1p(mp.fsum(e[:top] + e[top + 1 :]))  # of a certain class, every digit
        total = mp.fsum(e)
        largest = max(abs(x) for x in v if x != -mp.inf)
        return cls([x / total for x in e], [v[top] - x + log_total for x in v], v[top] + log_total, largest)

    def all_but(self, j):
        """Return 1 - p_j with every digit."""
        return mp.fsum(self.p[:j] + self.p[j + 1 :])


@dataclass
class Row:
    """The cross-entropy part of a row's loss and its gradient by v, b * (target's sum * p_j - target_j)."""

    ce: mpf
    ce_scale: mpf
    a: mpf
    b: mpf
    b_scale: mpf


@dataclass
class Problem:
    """The arguments, checked by nobody, as mpf; one row of `z` and one entry of each list for every row of logits."""

    rows_shape: tuple
    z: np.ndarray
    targets: list  # class_weight_j * q'_j, or None for a row that is ignored
    labels: list  # None where labels are distributions
    weights: list
    transform: Transform
    z_loss: mpf
    gamma: mpf
    poly: mpf
    ce_divisor: mpf
    lse_divisor: mpf


def problem(
    logits,
    labels,
    *,
    axis=-1,
    reduction="mean",
    sample_weight=None,
    class_weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    temperature=1.0,
    softcap=None,
    logit_bias=None,
    z_loss=0.0,
    focal_gamma=0.0,
    poly_epsilon=0.0,
) -> Problem:
    z = np.moveaxis(np.asarray(logits), axis, -1)
    rows_shape, classes = z.shape[:-1], z.shape[-1]
    n = math.prod(rows_shape)
    y = np.asarray(labels)
    by_index = y.ndim == z.ndim - 1
    y = [int(i) for i in y.ravel()] if by_index else as_mpf(np.moveaxis(y, axis, -1).reshape(n, classes))
    cw = [mpf(1)] * classes if class_weight is None else list(as_mpf(class_weight))
    sw = [mpf(1)] * n if sample_weight is None else list(as_mpf(np.ravel(sample_weight)))
    eps = mpf(float(label_smoothing))

    def target(i):
        if by_index and y[i] == ignore_index:
            return None
        q = [mpf(int(j == y[i])) for j in range(classes)] if by_index else y[i]
        return [c * ((1 - eps) * qj + eps / classes) for c, qj in zip(cw, q, strict=True)]

    targets = [target(i) for i in range(n)]
    ce_divisor = lse_divisor = mpf(1)
    if reduction == "mean":
        kept = [i for i in range(n) if targets[i] is not None]
        lse_divisor = mp.fsum(sw[i] for i in kept)
        ce_divisor = mp.fsum(sw[i] * cw[y[i]] for i in kept) if by_index else lse_divisor
    return Problem(
        rows_shape=rows_shape,
        z=as_mpf(z.reshape(n, classes)),
        targets=targets,
        labels=y if by_index else [None] * n,
        weights=sw,
        transform=transform(temperature, softcap, logit_bias),
        z_loss=mpf(float(z_loss)),
        gamma=mpf(float(focal_gamma)),
        poly=mpf(float(poly_epsilon)),
        ce_divisor=ce_divisor,
        lse_divisor=lse_divisor,
    )


def transform(temperature, softcap, logit_bias) -> Transform:
    return Transform(
        mpf(float(temperature)),
        None if softcap is None else mpf(float(softcap)),
        None if logit_bias is None else list(as_mpf(logit_bias)),
    )


def times(weight: mpf, value: mpf) -> mpf:
    return mpf(0) if weight == 0 and mp.isinf(value) else weight * value


def over(value: mpf, divisor: mpf) -> mpf:
    return value / divisor if divisor else mp.nan


def at_least_one(lse: mpf) -> mpf:
    """Return what an error of lse is measured against: its argument has a relative error, so lse an absolute one."""
    return max(abs(lse), mpf(1))


def cross_entropy(softmax: Softmax, target, label, gamma, poly) -> Row:
    """Return what one row's targets make of its softmax.

    With m = 1 - p_y and L = -log p_y, focal and poly make m^gamma L + poly m^(gamma + 1) of L, whose derivative by L
    is m^gamma (1 + gamma p L / m + poly (gamma + 1) p).
    """
    ce = mp.fsum(times(t, s) for t, s in zip(target, softmax.surprisal, strict=True))
    mass = mp.fsum(target)
    if gamma == 0 and poly == 0:
        return Row(ce, ce, mass, mpf(1), mpf(1))
    m, surprisal, p = softmax.all_but(label), softmax.surprisal[label], softmax.p[label]
    slope = p if m == 0 else times(p, surprisal / m)  # p L / m, which tends to 1 and to 0 at its ends
    factor = m**gamma
    b_terms = [factor, factor * gamma * slope, factor * poly * (gamma + 1) * p]
    b = mp.fsum(b_terms)
    ce_terms = [times(mass, times(factor, surprisal)), mass * poly * factor * m]
    return Row(mp.fsum(ce_terms), mp.fsum(ce_terms, absolute=True), b * mass, b, mp.fsum(b_terms, absolute=True))


def softmax_cross_entropy(logits, labels, *, digits=FLOAT32_DIGITS, **options) -> Exact:
    """Return the loss of `problem`'s arguments, and its gradient."""
    with mp.workdps(digits):
        given = problem(logits, labels, **options)
        n, classes = given.z.shape
        ce, lse = np.full((2, n), mpf(0), dtype=object)  # the two parts of each row's loss, and their scales
        ce_scale, lse_scale = np.full((2, n), mpf(0), dtype=object)
        grad, scale = np.full((2, n, classes), mpf(0), dtype=object)
        largest = np.zeros(n)
        for i, target in enumerate(given.targets):
            if target is None:
                continue
            v, slope, _ = given.transform(given.z[i])
            softmax = Softmax.of(v)
            if softmax is None:
                ce[i] = ce_scale[i] = mp.nan
                grad[i] = scale[i] = [mp.nan] * classes
                continue
            row = cross_entropy(softmax, target, given.labels[i], given.gamma, given.poly)
            largest[i] = float(softmax.largest)
            weight = given.weights[i]
            ce[i], ce_scale[i] = times(weight, row.ce), times(weight, row.ce_scale)
            lse[i] = weight * given.z_loss * softmax.lse**2
            lse_scale[i] = weight * given.z_loss * abs(softmax.lse) * at_least_one(softmax.lse)
            of_ce, of_lse = over(weight, given.ce_divisor), over(2 * weight * given.z_loss, given.lse_divisor)
            b_scale = of_ce * row.b_scale
            a_scale = b_scale * mp.fsum(target) + of_lse * at_least_one(softmax.lse)
            a = of_ce * row.a + of_lse * softmax.lse
            b = of_ce * row.b
            triples = list(zip(softmax.p, target, slope, strict=True))
            grad[i] = [(a * p - b * t) * s for p, t, s in triples]
            scale[i] = [(a_scale * p + b_scale * t) * s for p, t, s in triples]
        rows = (ce + lse).reshape(given.rows_shape)
        row_scale = ce_scale + lse_scale
        if options.get("reduction", "mean") == "none":
            loss, loss_scale = rows, row_scale.reshape(given.rows_shape)
        else:
            loss, loss_scale = (
                over(sum(by_ce, mpf(0)), given.ce_divisor) + over(sum(by_lse, mpf(0)), given.lse_divisor)
                for by_ce, by_lse in ((ce, lse), (ce_scale, lse_scale))
            )
        shape = (*given.rows_shape, classes)
        return Exact(
            loss=loss,
            rows=rows,
            grad=grad.reshape(shape),
            scale=scale.reshape(shape),
            row_scale=row_scale,
            loss_scale=loss_scale,
            largest=largest.reshape(given.rows_shape),
        )


def row_statistics(
    logits, labels, *, axis=-1, temperature=1.0, softcap=None, logit_bias=None, digits=FLOAT32_DIGITS
) -> Statistics:
    """Return the statistics of each row; of one without an answer, the prediction is numpy.argmax's."""
    with mp.workdps(digits):
        z = np.moveaxis(np.asarray(logits), axis, -1)
        rows_shape = z.shape[:-1]
        z = as_mpf(z.reshape(-1, z.shape[-1]))
        to_v = transform(temperature, softcap, logit_bias)
        rows = [_statistics(to_v(row)[0], int(label)) for row, label in zip(z, np.ravel(labels), strict=True)]
        columns = zip(*rows, strict=True)
        dtypes = (object, object, object, np.int64, np.int64, np.float64)
        return Statistics(*(np.array(c, d).reshape(rows_shape) for c, d in zip(columns, dtypes, strict=True)))


def _statistics(v, label):
    rank = sum(bool(x > v[label]) for x in v)
    softmax = Softmax.of(v)
    if softmax is None:
        return mp.nan, mp.nan, mp.nan, int(np.argmax([float(x) for x in v])), rank, 0.0
    surprisal = softmax.surprisal[label]
    return surprisal, softmax.lse, -surprisal, v.index(max(v)), rank, float(softmax.largest)


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
