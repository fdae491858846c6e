"""Problems for the tests of options: logits of several kinds and layouts, options in combination, and the bound.

What is asserted of every answer is the bound of docs/accuracy.md: an error of at most (16 + M) units of 2^-24 (float64:
2^-53) times the sum of the magnitudes of the answer's terms, M the row's largest |v|. Answers of 16 bits are such a
value, rounded once.
"""

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import exact
import numpy as np

import softmaxloss as sl

try:
    import ml_dtypes

    BFLOAT16 = [np.dtype(ml_dtypes.bfloat16)]
except ImportError:
    BFLOAT16 = []

DTYPES = [np.dtype("f4"), np.dtype("f8"), np.dtype("f2"), *BFLOAT16]
CLASSES = [1, 2, 3, 10, 37, 64, 65, 1000]
IGNORED = -100

# Scales stand beside every answer, so that digits lost where terms cancel are no loss: a few more than float64 has.
DIGITS = 40


def computed_in(dtype: np.dtype) -> np.dtype:
    return np.dtype("f8" if dtype.itemsize == 8 else "f4")


def unit(dtype: np.dtype) -> float:
    return 2.0**-53 if dtype.itemsize == 8 else 2.0**-24


def assert_within(ours, value, scale, bound, dtype, what="") -> None:
    """Assert |ours - value| <= bound * scale for each element; `bound`, in units, broadcasts.

    Below the smallest normal number an answer may be anything that small; beyond the largest it is infinite.
    """
    dtype, work = np.dtype(dtype), computed_in(np.dtype(dtype))
    assert np.asarray(ours).dtype == dtype
    assert np.shape(ours) == np.shape(value) == np.shape(scale), what
    ours, value, scale = (np.atleast_1d(x) for x in (ours, value, scale))
    ours, scale, bound = ours.astype(np.float64), exact.as_float(scale), np.broadcast_to(bound, ours.shape)
    close = exact.as_float(value)
    rest = exact.as_float(value - exact.as_mpf(close)) if work == np.float64 else 0.0  # what float64 cannot hold of it
    with np.errstate(all="ignore"):
        allowance = bound * unit(dtype) * scale + np.where(scale < np.finfo(work).tiny, np.finfo(work).tiny, 0)
        low, high = ((close + side * allowance).astype(dtype).astype(np.float64) for side in (-1, 1))
        error = np.abs((ours - close) - rest)
        rounded_within = (low <= ours) & (ours <= high)
        right = error <= allowance if dtype == work else rounded_within
        right |= (ours == close) | (np.isinf(ours) & rounded_within) | (np.isnan(ours) & np.isnan(close))
        units = error / scale / unit(dtype)
    wrong = [
        f"{ours[i]:.9g} in place of {close[i]:.9g}, off by {units[i]:.6g} units where {bound[i]:.6g} may be, at {i}"
        for i in map(tuple, np.argwhere(~right).tolist())
    ]
    assert not wrong, (what, len(wrong), wrong[:5])


# Logits: rows x classes, float64, then rounded to the dtype.


def ordinary(rng, n, classes):
    return rng.standard_normal((n, classes)) * 3


def confident(rng, n, classes):
    z = rng.standard_normal((n, classes))
    z[np.arange(n), rng.integers(0, classes, n)] += rng.uniform(8, 30, n)
    return z


def masked(rng, n, classes):
    z = ordinary(rng, n, classes)
    mask = rng.random((n, classes)) < 0.4
    mask[np.arange(n), rng.integers(0, classes, n)] = False
    z[mask] = -np.inf
    return z


def offset(rng, n, classes):
    return rng.choice([-1e4, 1e4], (n, 1)) + ordinary(rng, n, classes) * 20


def with_nan_rows(rng, n, classes):
    z = ordinary(rng, n, classes)
    z[0, rng.integers(classes)] = rng.choice([np.nan, np.inf])
    z[-1] = -np.inf
    return z


def constant(rng, n, classes):
    return np.full((n, classes), rng.standard_normal())


KINDS = {f.__name__: f for f in (ordinary, confident, masked, offset, with_nan_rows, constant)}

# Options: each draws one value.
DRAWS = {
    "temperature": lambda rng, n, classes: float(rng.choice([0.37, 0.8, 2.5])),
    "softcap": lambda rng, n, classes: float(rng.choice([3.0, 20.0, 50.0])),
    "logit_bias": lambda rng, n, classes: rng.standard_normal(classes).astype(np.float32),
    "z_loss": lambda rng, n, classes: float(rng.choice([1e-4, 0.05, 1.0])),
    "focal_gamma": lambda rng, n, classes: float(rng.choice([0.5, 1.0, 2.0, 5.0])),
    "poly_epsilon": lambda rng, n, classes: float(rng.choice([-0.5, 1.0, 2.5])),
    "label_smoothing": lambda rng, n, classes: float(rng.choice([0.1, 0.6, 1.0])),
    "class_weight": lambda rng, n, classes: np.where(rng.random(classes) < 0.2, 0.0, rng.random(classes) + 0.1),
    "sample_weight": lambda rng, n, classes: np.where(np.arange(n) == n - 1, 0.0, rng.random(n) + 0.1),
}
INDEX_ONLY = {"focal_gamma", "poly_epsilon"}


REDUCTIONS = ["mean", "sum", "none"]


def allowed(names) -> bool:
    return not (INDEX_ONLY & set(names) and "label_smoothing" in names)


def label_kinds(names):
    return ["index"] if INDEX_ONLY & set(names) else ["index", "one-hot", "soft"]


def ids(value):
    return "+".join(value) or "none" if isinstance(value, tuple) else str(value)


EVERY_INDEX = ("temperature", "softcap", "logit_bias", "z_loss", "focal_gamma", "poly_epsilon", "class_weight")
EVERY_DENSE = ("temperature", "softcap", "logit_bias", "z_loss", "label_smoothing", "class_weight", "sample_weight")
OPTION_SETS = [
    (),
    *((name,) for name in DRAWS),
    *(pair for pair in itertools.combinations(DRAWS, 2) if allowed(pair)),
    EVERY_INDEX,
    (*EVERY_INDEX, "sample_weight"),
    EVERY_DENSE,
]


@dataclass(frozen=True)
class Case:
    """A problem as rows x classes, and its exact answer."""

    logits: np.ndarray
    labels: np.ndarray
    options: dict[str, Any]

    @functools.cached_property
    def reference(self) -> exact.Exact:
        return exact.softmax_cross_entropy(self.logits, self.labels, digits=DIGITS, **self.options)


def draw_labels(rng, kind, n, classes, dtype):
    index = rng.integers(0, classes, n)
    if kind == "index":
        index[n // 2] = IGNORED
        return index.astype(rng.choice(["i2", "i4", "i8"]))
    if kind == "one-hot":
        return np.eye(classes, dtype=rng.choice(["i1", "f4", "f8"]))[index]
    soft = rng.dirichlet(np.ones(classes), n)
    return soft.astype(rng.choice([computed_in(dtype), np.dtype("f8")]))


@functools.cache  # the instruction sets share a case, and its costly reference
def make_case(seed, names, dtype, kind, label_kind, classes, reduction, n=4) -> Case:
    rng = np.random.default_rng(seed)
    with np.errstate(over="ignore"):
        logits = KINDS[kind](rng, n, classes).astype(dtype)
    options = {name: DRAWS[name](rng, n, classes) for name in names}
    return Case(logits, draw_labels(rng, label_kind, n, classes, dtype), {**options, "reduction": reduction})


# Layouts: from rows x classes to an array in memory, and the class axis there.


def last(rows):
    return rows.copy(), -1


def first(rows):
    return np.ascontiguousarray(rows.T), 0


def middle(rows):
    n, classes = rows.shape
    return np.ascontiguousarray(np.moveaxis(rows.reshape(2, 1, n // 2, classes), -1, 1)), 1


def odd_strides(rows):
    n, classes = rows.shape
    wide = np.full((n + 1, 3 * classes + 5), 77, rows.dtype)
    view = wide[1:, 2 : 2 + 3 * classes : 3]
    view[...] = rows
    return view, -1


def negative_strides(rows):
    return np.ascontiguousarray(rows[::-1, ::-1])[::-1, ::-1], 1


def negative_and_first(rows):
    return np.ascontiguousarray(rows.T[::-1, ::-1])[::-1, ::-1], 0


LAYOUTS = {f.__name__: f for f in (last, first, middle, odd_strides, negative_strides, negative_and_first)}
DESTINATIONS = ["fresh", "out", "in place"]


def as_rows(array, axis):
    """Undo a layout."""
    array = np.moveaxis(array, axis, -1)
    return array.reshape(-1, array.shape[-1])


def run(case, dtype, layout="last", destination="fresh"):
    """Return our loss, its gradient as rows x classes, for the case's logits in this dtype, layout and destination."""
    place = LAYOUTS[layout]
    logits, axis = place(case.logits.astype(dtype))
    rows_shape = np.moveaxis(logits, axis, -1).shape[:-1]
    options = dict(case.options)
    if "sample_weight" in options:
        options["sample_weight"] = options["sample_weight"].reshape(rows_shape)
    labels = case.labels.reshape(rows_shape) if case.labels.ndim == 1 else place(case.labels)[0]
    before = logits.tobytes()
    out = {"fresh": None, "out": place(np.full_like(case.logits, np.nan, dtype=dtype))[0], "in place": logits}[
        destination
    ]
    alone = sl.softmax_cross_entropy(logits, labels, axis=axis, **options)
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, axis=axis, out=out, **options)
    assert out is None or grad is out
    if destination != "in place":
        assert logits.tobytes() == before
    np.testing.assert_array_equal(alone, loss)
    assert np.shape(loss) == (rows_shape if options["reduction"] == "none" else ())
    return np.ravel(loss) if np.ndim(loss) else loss, as_rows(grad, axis)


def check(case, layout="last", destination="fresh") -> None:
    """Assert that our answer is within that bound of the exact one."""
    dtype, reference = case.logits.dtype, case.reference
    loss, grad = run(case, dtype, layout, destination)
    assert grad.dtype == dtype
    largest = reference.largest if case.options["reduction"] == "none" else reference.largest.max(initial=0)
    where = (layout, destination)
    assert_within(loss, reference.loss, reference.loss_scale, 16 + largest, computed_in(dtype), ("loss", *where))
    assert_within(grad, reference.grad, reference.scale, 16 + reference.largest[:, None], dtype, ("gradient", *where))
    if dtype.itemsize == 2:
        loss_of_32, grad_of_32 = run(case, np.dtype("f4"), layout, destination)
        np.testing.assert_array_equal(loss, loss_of_32)
        with np.errstate(over="ignore"):
            rounded = grad_of_32.astype(dtype)
        np.testing.assert_array_equal(grad.astype(np.float32), rounded.astype(np.float32))


def assert_exact(logits, labels, **options):
    """The promised bound, whatever the digits that the reference needs for such numbers."""
    options = {"reduction": "none", **options}
    reference = exact.softmax_cross_entropy(logits, labels, digits=120, **options)
    loss, grad = sl.softmax_cross_entropy_and_grad(logits, labels, **options)
    bound = 16 + (reference.largest if np.ndim(loss) else reference.largest.max(initial=0))
    assert_within(loss, reference.loss, reference.loss_scale, bound, loss.dtype, "loss")
    assert_within(grad, reference.grad, reference.scale, 16 + reference.largest[..., None], logits.dtype, "gradient")
    return loss, grad
