"""For the tests of reports: evaluations of every kind, and names that a careless page would trip over."""

import numpy as np

import softmaxloss as sl

# A name for each of ten classes: markup, quotes, templates, Chinese, an emoji, nothing, twice the same.
NASTY = [
    "</script><script>alert(1)</script>",
    "<!-- <img src=x onerror=alert(2)>",
    "\"quotes\" & 'quotes'",
    "{{ 7 * 7 }} {0} {loss} %{x} ${y}",
    "交叉熵 · 混淆",
    "🐈‍⬛",
    "",
    "same",
    "same",
    "a\x00b\nc\u202egnp.exe\ud800 " + "long " * 60,
]


def drawn(n_rows, n_classes, seed=0):
    """Return logits, and labels drawn from their softmax."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(n_rows, n_classes))
    return logits, (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


def evaluated(n_rows=400, n_classes=10, scale=2, **options):
    logits, labels = drawn(n_rows, n_classes)
    return sl.evaluate(scale * logits, labels, **options)


def compared(n_rows=400, n_classes=10, **options):
    logits, labels = drawn(n_rows, n_classes)
    return sl.compare(2 * logits, logits, labels, **options)


def infinite():
    """Return an evaluation with rows of infinite loss, of no loss, and ignored ones, and a class of no row."""
    logits, labels = drawn(60, 4)
    labels[labels == 3] = 0
    logits[5, labels[5]] = -np.inf
    logits[6] = np.nan
    labels[7] = -100
    return sl.evaluate(logits, labels)
