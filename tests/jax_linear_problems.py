"""Problems for the tests of the linear cross-entropy of JAX arrays, and the dense loss that it is compared with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import softmaxloss as sl

MIB = 1 << 20
INDEX_OPTIONS = {"focal_gamma": 1.5, "poly_epsilon": 0.4}
REDUCTIONS = ["mean", "sum", "none"]
SMALL = {"max_block_bytes": 600}  # a few rows of the problems below


def problem(rows=11, features=4, classes=9, *, soft=False, seed=0):
    """Return hidden, weight, bias, labels, and every option allowed with such labels, in float64."""
    rng = np.random.default_rng(seed)
    head = rng.standard_normal((rows, features)), rng.standard_normal((classes, features)), rng.standard_normal(classes)
    labels = rng.dirichlet(np.ones(classes), rows) if soft else rng.integers(0, classes, rows)
    if not soft:
        labels[[2, rows - 1]] = -100
    options = {
        "temperature": 1.3,
        "softcap": 4.0,
        "z_loss": 0.3,
        "logit_bias": rng.standard_normal(classes),
        "class_weight": rng.random(classes) + 0.1,
        "sample_weight": rng.random(rows) + 0.1,
        **({"label_smoothing": 0.1} if soft else INDEX_OPTIONS),
    }
    return tuple(map(jnp.asarray, head)), labels, options


def linear(labels, **options):
    """Return the loss as a function of hidden, weight and bias."""
    return lambda hidden, weight, bias=None: sl.linear_cross_entropy(hidden, weight, labels, bias=bias, **options)


def dense(labels, **options):
    """Return the same of logits that are there."""

    def loss(hidden, weight, bias=None):
        logits = hidden @ weight.T
        return sl.softmax_cross_entropy(logits if bias is None else logits + bias, labels, **options)

    return loss


def close(found, expected, rtol=1e-9, atol=1e-11):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol), found, expected)


def tangents_like(arrays, seed=1):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(a.shape), a.dtype) for a in arrays)


def weighed(loss, reduction, rows=11):
    """Return a number: a loss times one, or the losses of rows each times its own, of either sign."""
    factor = np.linspace(-1.0, 2.0, rows) if reduction == "none" else 1.7
    return lambda *arguments: (loss(*arguments) * factor).sum()
