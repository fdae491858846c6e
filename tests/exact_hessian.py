"""The Hessian of the loss times a vector, by differentiating the gradient of exact.py once more by hand, in mpmath."""

from dataclasses import dataclass

import numpy as np
from exact import FLOAT32_DIGITS, Softmax, at_least_one, cross_entropy, over, problem, times
from mpmath import mp, mpf


@dataclass
class ExactProduct:
    """Object arrays of mpf of the logits' shape with the class axis last, and M of each row (float64)."""

    product: np.ndarray
    scale: np.ndarray  # the sum of the magnitudes of each entry's terms
    largest: np.ndarray


def hessian_vector_product(logits, labels, vector, *, axis=-1, digits=FLOAT32_DIGITS, **options) -> ExactProduct:
    """Return the derivative of the gradient along `vector`.

    With d the vector, D = dv/dz d, mu = sum_k p_k D_k and the gradient by v of one row

        g_j = w_ce b (mass p_j - t_j) + 2 w_lse z_loss lse p_j

    what changes along d is p_j, by p_j (D_j - mu); lse, by mu; and b, by db/dlog p_y (D_y - mu). Then

        (H d)_j = dv_j/dz_j dg_j + d2v_j/dz_j2 d_j g_j
    """
    with mp.workdps(digits):
        given = problem(logits, labels, axis=axis, **options)
        vectors = np.moveaxis(np.asarray(vector), axis, -1).reshape(given.z.shape)
        product, scale = np.full((2, *given.z.shape), mpf(0), dtype=object)
        largest = np.zeros(len(given.z))
        for i, target in enumerate(given.targets):
            if target is None:
                continue
            product[i], scale[i], largest[i] = _row(given, i, [mpf(float(x)) for x in vectors[i]])
        shape = (*given.rows_shape, given.z.shape[1])
        return ExactProduct(product.reshape(shape), scale.reshape(shape), largest.reshape(given.rows_shape))


def _row(given, i, d):
    v, slope, curvature = given.transform(given.z[i])
    softmax = Softmax.of(v)
    if softmax is None:
        return mp.nan, mp.nan, 0.0
    target, label = given.targets[i], given.labels[i]
    mass = mp.fsum(target)
    row = cross_entropy(softmax, target, label, given.gamma, given.poly)
    of_ce, of_lse = (
        over(given.weights[i], given.ce_divisor),
        over(2 * given.weights[i] * given.z_loss, given.lse_divisor),
    )
    p, lse = softmax.p, softmax.lse
    direction = [s * x for s, x in zip(slope, d, strict=True)]
    mean, mean_scale = (mp.fsum((a * b for a, b in zip(p, direction, strict=True)), absolute=m) for m in (False, True))
    deviation, spread = _deviation(p, direction, mean), _spread(p, direction)
    change, change_scale = mpf(0), mpf(0)  # of b
    if given.gamma != 0 or given.poly != 0:
        terms = _b_slope_terms(softmax, label, given.gamma, given.poly)
        change = mp.fsum(terms) * deviation[label]
        change_scale = mp.fsum(terms, absolute=True) * spread[label]

    product, scale = [], []
    for j, (s, c, x) in enumerate(zip(slope, curvature, d, strict=True)):
        residual = mass * p[j] - target[j]
        if j == label:  # every digit of 1 - p_y, which is no difference here
            residual = -target[j] * softmax.all_but(j) if mass == target[j] else residual
        gradient = of_ce * row.b * residual + of_lse * lse * p[j]
        gradient_scale = of_ce * row.b_scale * (mass * p[j] + target[j]) + of_lse * at_least_one(lse) * p[j]
        along = (of_ce * row.b * mass + of_lse * lse) * p[j] * deviation[j]
        along_scale = (of_ce * row.b_scale * mass + of_lse * at_least_one(lse)) * p[j] * spread[j]
        product.append(s * (of_ce * change * residual + along + of_lse * mean * p[j]) + c * x * gradient)
        of_scalars = of_ce * change_scale * abs(residual) + of_lse * mean_scale * p[j]
        scale.append(s * (of_scalars + along_scale) + abs(c * x) * gradient_scale)
    return product, scale, float(softmax.largest)


def _b_slope_terms(softmax, label, gamma, poly):
    """Return the terms of the derivative by log p of b = m^g + g p m^(g - 1) L + poly (g + 1) p m^g."""
    p, surprisal, m = softmax.p[label], softmax.surprisal[label], softmax.all_but(label)
    if m == 0 or p == 0:  # b has come to its limit, and what multiplies its slope is 0 or counts for nothing
        return [mpf(0)]
    return [
        gamma * times(p, surprisal) * m ** (gamma - 1),
        -2 * gamma * p * m ** (gamma - 1),
        -gamma * (gamma - 1) * p**2 * m ** (gamma - 2) * surprisal,
        poly * (gamma + 1) * p * m**gamma,
        -poly * (gamma + 1) * gamma * p**2 * m ** (gamma - 1),
    ]


def _deviation(p, direction, mean):
    """Return D_j - mu; where one class is all but certain, from its D, which mu is close to."""
    top = p.index(max(p))
    from_top = mp.fsum(q * (x - direction[top]) for q, x in zip(p, direction, strict=True))
    return [(x - direction[top]) - from_top for x in direction]


def _spread(p, direction):
    """Return sum_k p_k |D_j - D_k|, the magnitude of D_j - mu where no digit is lost to a common shift of D."""
    weights, values = np.array([float(q) for q in p]), np.array([float(x) for x in direction])
    return [mpf(x) for x in np.abs(values[:, None] - values) @ weights]
