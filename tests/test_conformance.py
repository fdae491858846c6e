"""One body over NumPy, PyTorch and JAX: the same numbers in, the same bits out, in kind, with the same errors."""

import contextlib
import functools
import importlib.util

import numpy as np
import pytest
from option_cases import BFLOAT16, DRAWS, OPTION_SETS, REDUCTIONS, draw_labels, ids, label_kinds, ordinary

import softmaxloss as sl

DTYPES = [np.dtype("f4"), np.dtype("f8"), np.dtype("f2"), *BFLOAT16]


class NumPy:
    """A kind of arrays: there, back, and what its results are."""

    default_float = np.dtype("f8")

    def __init__(self):
        self.array_types = (np.ndarray, np.generic)

    def there(self, array):
        return array

    def back(self, result):
        return result

    def working(self):
        return contextlib.nullcontext()


class PyTorch(NumPy):
    default_float = np.dtype("f4")

    def __init__(self):
        import torch

        self.torch, self.array_types = torch, torch.Tensor

    def there(self, array):
        array = np.asarray(array)
        if array.dtype.name == "bfloat16":
            return self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(array)

    def back(self, result):
        if result.dtype == self.torch.bfloat16:
            return result.view(self.torch.int16).numpy().view(BFLOAT16[0])
        return result.numpy()


class JAX(NumPy):
    def __init__(self):
        import jax

        self.jax, self.array_types = jax, jax.Array

    def there(self, array):
        return self.jax.numpy.asarray(array)

    def back(self, result):
        return np.asarray(result)

    def working(self):
        return self.jax.enable_x64(True)


PACKAGES = {"numpy": NumPy, "torch": PyTorch, "jax": JAX}
OTHERS = [name for name in PACKAGES if name != "numpy"]


@functools.cache
def kind_named(name):
    return PACKAGES[name]()


def kinds(names):
    """Run a test once with each of these kinds of array that is installed."""
    skip = [
        pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed") for name in names
    ]
    return pytest.mark.parametrize("kind", [pytest.param(n, marks=m) for n, m in zip(names, skip, strict=True)])


def kernel_serves(kind):
    """Tell whether this kind's eager calls reach the kernels, whose bits are the same everywhere."""
    return kind != "jax" or sl.show_config("dicts").get("jax_ffi", False)


def assert_conforms(kind, function, *arrays, kernel=True, **options):
    """Assert that a function answers in kind, and with NumPy's numbers: its bits, where a `kernel` serves."""
    of_kind = kind_named(kind)
    expected = function(*arrays, **options)
    with of_kind.working():
        there = {
            name: of_kind.there(value) if isinstance(value, np.ndarray) else value for name, value in options.items()
        }
        found = function(*(None if array is None else of_kind.there(array) for array in arrays), **there)
        assert type(found) is type(expected) or not isinstance(expected, tuple)
        several = isinstance(expected, tuple)
        for one, other in zip(found if several else [found], expected if several else [expected], strict=True):
            if other is None:
                assert one is None
                continue
            assert isinstance(one, of_kind.array_types), type(one)
            back = of_kind.back(one)
            assert back.dtype == np.asarray(other).dtype
            assert back.shape == np.shape(other)
            if kernel and kernel_serves(kind):
                np.testing.assert_array_equal(as_bits(back), as_bits(other))
            else:
                tolerance = {8: 1e-12, 4: 3e-5, 2: 2e-2}[back.dtype.itemsize]
                back, other = (np.asarray(array).astype(np.float64) for array in (back, other))
                np.testing.assert_allclose(back, other, rtol=tolerance, atol=tolerance * 1e-2)


def as_bits(array):
    """Return the integers of the same bits, but one NaN is as good as another and -0 is not 0."""
    array = np.atleast_1d(array)
    if array.dtype.kind in "iu":
        return array
    array = np.where(np.isnan(array.astype(np.float64)), np.array(np.nan, array.dtype), array)
    return array.view(f"u{array.dtype.itemsize}")


def problem(names, label_kind, dtype, shape=(6, 5), axis=-1, seed=0):
    """Return (logits, labels, options) in NumPy, with the classes at `axis`."""
    rng = np.random.default_rng(seed)
    rows, classes = shape
    logits = ordinary(rng, rows, classes).astype(dtype)
    labels = draw_labels(rng, label_kind, rows, classes, dtype)
    options = {name: DRAWS[name](rng, rows, classes) for name in names}
    if axis in (-1, 1):
        return logits, labels, options
    return np.ascontiguousarray(logits.T), labels if labels.ndim == 1 else np.ascontiguousarray(labels.T), options


CASES = [(names, label_kind) for names in OPTION_SETS for label_kind in label_kinds(names)]
# JAX compiles whatever has another shape, dtype or option: it gets every option alone, and all together.
FEWER = [(names, kind) for names, kind in CASES if len(names) != 2 and (len(names) != 1 or kind == "index")]
SETTINGS = [(dtype, reduction) for dtype in DTYPES[:2] for reduction in REDUCTIONS]
SIZES = [(1, 1), (70, 3), (3, 2), (5, 64), (4, 1000)]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@kinds(OTHERS)
@pytest.mark.parametrize(("names", "label_kind"), CASES, ids=ids)
def test_losses_gradients_and_hessians(kind, names, label_kind):
    settings = list(enumerate(SETTINGS))
    if kind == "jax":
        if (names, label_kind) not in FEWER:
            pytest.skip("it would be compiled for long")
        settings = settings[FEWER.index((names, label_kind)) % len(SETTINGS) :][:1]
    for number, (dtype, reduction) in settings:
        axis = (-1, 0)[number % 2]
        logits, labels, options = problem(names, label_kind, dtype, axis=axis, seed=number)
        options |= {"axis": axis, "reduction": reduction}
        assert_conforms(kind, sl.softmax_cross_entropy, logits, labels, **options)
        assert_conforms(kind, sl.softmax_cross_entropy_and_grad, logits, labels, **options)
        vector = np.random.default_rng(number).standard_normal(logits.shape).astype(dtype)
        assert_conforms(kind, sl.hessian_vector_product, logits, labels, vector, **options)


@kinds(OTHERS)
@by_dtype
@pytest.mark.parametrize(("names", "label_kind"), [((), "index"), ((), "soft"), (OPTION_SETS[-2], "index")], ids=ids)
def test_every_dtype_and_size(kind, dtype, names, label_kind):
    for shape in SIZES[1:2] if kind == "jax" else SIZES:
        logits, labels, options = problem(names, label_kind, dtype, shape)
        assert_conforms(kind, sl.softmax_cross_entropy_and_grad, logits, labels, **options)


@kinds(OTHERS)
@by_dtype
def test_pieces(kind, dtype):
    logits, labels, _ = problem((), "index", dtype, (7, 9))
    logits[2, 3], logits[4], logits[5, 1] = -np.inf, -np.inf, np.nan
    for axis in (-1, 0):
        assert_conforms(kind, sl.softmax, logits, axis)
        assert_conforms(kind, sl.log_softmax, logits, axis, temperature=2.5)
        for keepdims in (False, True):
            assert_conforms(kind, sl.logsumexp, logits, axis, keepdims=keepdims)
    labels = np.abs(labels) % 9
    for names in ((), ("temperature",), ("softcap",), ("logit_bias",)):
        rng = np.random.default_rng(0)
        transform = {name: DRAWS[name](rng, 7, 9) for name in names}
        assert_conforms(kind, sl.row_statistics, logits, labels, **transform)
        assert_conforms(kind, sl.row_statistics, logits, None, **transform)
    assert_conforms(kind, sl.row_statistics, np.ascontiguousarray(logits.T), labels, axis=0)


@kinds(OTHERS)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_strange_rows(kind, dtype):
    """Masks, infinities and NaN, and labels that are masked."""
    logits, labels, _ = problem((), "index", dtype, (6, 4))
    logits[0, 0], logits[1], logits[2, 1], logits[3, 2] = -np.inf, -np.inf, np.inf, np.nan
    labels = np.array([0, 1, 2, 3, 0, -100])
    for reduction in REDUCTIONS:
        assert_conforms(kind, sl.softmax_cross_entropy_and_grad, logits, labels, reduction=reduction)
    assert_conforms(kind, sl.softmax_cross_entropy_and_grad, logits[4:], np.array([-100, -100]))
    assert_conforms(kind, sl.softmax_cross_entropy_and_grad, logits[:0], labels[:0])


@kinds(OTHERS)
def test_one_row_and_many_dimensions(kind):
    rng = np.random.default_rng(0)
    assert_conforms(kind, sl.softmax_cross_entropy_and_grad, rng.standard_normal(5), np.array(3))
    assert_conforms(kind, sl.row_statistics, rng.standard_normal(5), np.array(3))
    logits, labels = rng.standard_normal((2, 3, 4, 5)).astype("f4"), rng.integers(0, 3, (2, 4, 5))
    assert_conforms(kind, sl.softmax_cross_entropy_and_grad, logits, labels, axis=1)
    assert_conforms(kind, sl.softmax, logits, 1)


@kinds(OTHERS)
@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", "u4", "i8"])
def test_labels_of_any_integer_dtype(kind, dtype):
    logits, _, _ = problem((), "index", "f4")
    assert_conforms(kind, sl.softmax_cross_entropy_and_grad, logits, np.array([0, 4, 2, 1, 3, 3], dtype))


@kinds(OTHERS)
def test_pieces_for_probabilities(kind):
    p, labels = np.random.default_rng(0).dirichlet(np.ones(5), 6), np.array([0, 4, 2, 1, 3, 3])
    assert_conforms(kind, sl.cross_entropy, p, labels, kernel=False)
    assert_conforms(kind, sl.cross_entropy, p, labels, kernel=False, reduction="none", class_weight=np.arange(5.0))
    assert_conforms(kind, sl.one_hot, labels, num_classes=5)


@kinds(PACKAGES)
def test_integer_logits_become_the_default_float(kind):
    of_kind = kind_named(kind)
    with of_kind.working():
        logits, labels = of_kind.there(np.array([[1, 2, 3]])), of_kind.there(np.array([1]))
        for result in (sl.softmax_cross_entropy(logits, labels), sl.softmax(logits), sl.logsumexp(logits)):
            assert of_kind.back(result).dtype == of_kind.default_float


@kinds(PACKAGES)
def test_the_loss_of_16_bits_is_float32(kind):
    of_kind = kind_named(kind)
    logits, labels, _ = problem((), "index", "f2")
    loss, gradient = sl.softmax_cross_entropy_and_grad(of_kind.there(logits), of_kind.there(labels))
    assert (of_kind.back(loss).dtype, of_kind.back(gradient).dtype) == (np.float32, np.float16)


GOOD = np.zeros((4, 3)), np.array([0, 1, 2, 0])
FUNCTIONS = [sl.softmax_cross_entropy, sl.softmax_cross_entropy_and_grad]
ERRORS = {
    "a label too large": (sl.LabelError, GOOD[0], np.array([0, 1, 3, 0]), {}),
    "a label below 0": (sl.LabelError, GOOD[0], np.array([0, -1, 2, 0]), {}),
    "labels of another shape": (ValueError, GOOD[0], np.array([0, 1, 2]), {}),
    "no distribution": (ValueError, GOOD[0], np.full((4, 3), 0.5), {}),
    "a distribution below 0": (ValueError, GOOD[0], np.tile([1.5, -0.5, 0.0], (4, 1)), {}),
    "floating labels": (TypeError, GOOD[0], np.array([0.0, 1.0, 2.0, 0.0]), {}),
    "no dimensions": (ValueError, np.array(1.0), np.array(0), {}),
    "no classes": (ValueError, np.zeros((4, 0)), GOOD[1], {}),
    "complex logits": (TypeError, GOOD[0].astype("c8"), GOOD[1], {}),
    "no such axis": (ValueError, *GOOD, {"axis": 2}),
    "no such reduction": (ValueError, *GOOD, {"reduction": "average"}),
    "weights of another length": (ValueError, *GOOD, {"class_weight": np.ones(4)}),
    "a weight below 0": (ValueError, *GOOD, {"class_weight": np.array([1.0, -1.0, 1.0])}),
    "row weights of another length": (ValueError, *GOOD, {"sample_weight": np.ones(3)}),
    "a bias of another length": (ValueError, *GOOD, {"logit_bias": np.ones(4)}),
    "temperature 0": (ValueError, *GOOD, {"temperature": 0.0}),
    "smoothing above 1": (ValueError, *GOOD, {"label_smoothing": 1.5}),
    "focal with smoothing": (ValueError, *GOOD, {"focal_gamma": 1.0, "label_smoothing": 0.1}),
    "focal with distributions": (ValueError, GOOD[0], np.full((4, 3), 1 / 3), {"focal_gamma": 1.0}),
    "an option that is no number": (TypeError, *GOOD, {"z_loss": "a"}),
    "a fraction to ignore": (TypeError, *GOOD, {"ignore_index": 0.5}),
}


@kinds(PACKAGES)
@pytest.mark.parametrize(("error", "logits", "labels", "options"), ERRORS.values(), ids=ERRORS)
def test_errors(kind, error, logits, labels, options):
    of_kind = kind_named(kind)
    with of_kind.working():
        options = {name: of_kind.there(v) if isinstance(v, np.ndarray) else v for name, v in options.items()}
        for function in FUNCTIONS:
            with pytest.raises(error) as raised:
                function(of_kind.there(logits), of_kind.there(labels), **options)
            if error is sl.LabelError:
                assert "with 3 classes a label is from 0 to 2, or ignore_index = -100" in str(raised.value)


@kinds(PACKAGES)
def test_out(kind):
    """NumPy and PyTorch write where they are told; JAX's arrays cannot be written."""
    of_kind = kind_named(kind)
    logits, labels, _ = problem((), "index", np.dtype("f4"))
    expected = sl.softmax_cross_entropy_and_grad(logits, labels)[1]
    given, y = of_kind.there(logits.copy()), of_kind.there(labels)
    if kind == "jax":
        with pytest.raises((TypeError, ValueError), match="out"):
            sl.softmax_cross_entropy_and_grad(given, y, out=given)
        return
    out = of_kind.there(np.full_like(logits, 7))
    for target in (out, given):
        assert sl.softmax_cross_entropy_and_grad(given, y, out=target)[1] is target
        np.testing.assert_array_equal(of_kind.back(target), expected)
    for wrong in (of_kind.there(np.zeros((5, 5), "f4")), of_kind.there(np.zeros_like(expected, "f8"))):
        with pytest.raises((TypeError, ValueError), match="out"):
            sl.softmax_cross_entropy_and_grad(given, y, out=wrong)


@kinds(PACKAGES)
@pytest.mark.parametrize(("shape", "axis"), [((4, 3), 1), ((40, 3), 1), ((3, 40), 0), ((2, 3, 4, 5), 1), ((9, 100), 1)])
def test_an_ignored_class(kind, shape, axis):
    """An ignore_index that is a class, as padding often is, in every loop of the kernels."""
    of_kind, rng = kind_named(kind), np.random.default_rng(0)
    logits = rng.standard_normal(shape)
    labels = rng.integers(0, 3, np.delete(shape, axis))
    with of_kind.working():
        for options in ({}, {"label_smoothing": 0.1}, {"focal_gamma": 2.0}, {"class_weight": np.ones(shape[axis])}):
            options = {k: of_kind.there(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
            given = (of_kind.there(logits), of_kind.there(labels))
            more = {"axis": axis, "ignore_index": 1, **options}
            rows, gradient = sl.softmax_cross_entropy_and_grad(*given, reduction="none", **more)
            mean = float(sl.softmax_cross_entropy(*given, **more))
            rows, gradient = of_kind.back(rows), np.moveaxis(of_kind.back(gradient), axis, -1)
            assert ((rows == 0) == (labels == 1)).all()
            assert ((gradient == 0).all(-1) == (labels == 1)).all()
            assert mean == pytest.approx(rows[labels != 1].mean(), rel=1e-12)
            product = sl.hessian_vector_product(*given, given[0], **more)
            assert ((np.moveaxis(of_kind.back(product), axis, -1) == 0).all(-1) == (labels == 1)).all()
