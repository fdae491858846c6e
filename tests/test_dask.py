"""Dask arrays: NumPy's answers for any chunks, later and not before, and NaN where a lazy value is impossible."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from option_cases import BFLOAT16, DRAWS, OPTION_SETS, REDUCTIONS, draw_labels, ids, label_kinds, ordinary

import softmaxloss as sl

da = pytest.importorskip("dask.array")
import dask  # noqa: E402

DTYPES = [np.dtype("f4"), np.dtype("f8"), np.dtype("f2"), *BFLOAT16, np.dtype("i4")]
CASES = [(names, kind) for names in OPTION_SETS if len(names) != 2 for kind in label_kinds(names)]
ROWS, CLASSES = 300, 5
CHUNKS = [(-1, -1), (100, -1), ((64, 0, 136, 100), (2, 3))]
# Of these few classes, fewer than 64 rows may take another way through the kernels, whose last bit may differ.


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def problem(names, label_kind, dtype, seed=0):
    rng = np.random.default_rng(seed)
    logits = (3 * ordinary(rng, ROWS, CLASSES)).astype(dtype)
    labels = draw_labels(rng, label_kind, ROWS, CLASSES, np.dtype("f4") if dtype.kind == "i" else dtype)
    return logits, labels, {name: DRAWS[name](rng, ROWS, CLASSES) for name in names}


def lazy(array, chunks):
    return da.from_array(array, chunks=chunks[: array.ndim])


def lazily(options, chunks):
    """Make each array among the options a Dask array, class weights among them."""
    given = {}
    for name, value in options.items():
        if isinstance(value, np.ndarray):
            value = lazy(value, (77,) if len(value) == ROWS else (3,))
        given[name] = value
    return given


def raising(shape, dtype, chunks):
    """Return a Dask array that cannot be computed."""

    def never(_):
        raise AssertionError("computed")

    return da.zeros(shape, dtype=dtype, chunks=chunks).map_blocks(never, dtype=dtype, meta=np.empty((0,) * len(shape)))


def assert_same(found, expected):
    assert isinstance(found, da.Array)
    computed = np.asarray(found.compute())
    assert found.dtype == computed.dtype == np.asarray(expected).dtype
    assert found.shape == computed.shape == np.shape(expected)
    np.testing.assert_array_equal(computed.astype("f8"), np.asarray(expected).astype("f8"))


def assert_near(found, expected):
    computed = np.asarray(found.compute())
    assert found.dtype == computed.dtype == np.asarray(expected).dtype
    rtol = 1e-13 if computed.dtype == np.float64 else 3e-7
    np.testing.assert_allclose(computed, expected, rtol=rtol)


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize(("names", "label_kind"), CASES, ids=ids)
def test_options(names, label_kind, chunks):
    for dtype, reduction in zip(DTYPES[:3], REDUCTIONS, strict=True):
        logits, labels, options = problem(names, label_kind, dtype)
        z, y, given = lazy(logits, chunks), lazy(labels, (130, 2)), lazily(options, chunks)
        loss, gradient = sl.softmax_cross_entropy_and_grad(logits, labels, reduction=reduction, **options)
        found, found_gradient = sl.softmax_cross_entropy_and_grad(z, y, reduction=reduction, **given)
        assert found_gradient.chunks == z.chunks
        (assert_same if reduction == "none" else assert_near)(found, loss)
        if reduction == "mean":  # whose divisor is summed in another order
            np.testing.assert_allclose(found_gradient.compute(), gradient, rtol=1e-6)
        else:
            assert_same(found_gradient, gradient)
        alone = sl.softmax_cross_entropy(z, y, reduction=reduction, **given)
        np.testing.assert_array_equal(alone.compute(), found.compute())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_every_function(dtype, axis, reduction):
    logits, labels, options = problem(["temperature", "sample_weight"], "index", dtype)
    labels = np.where(labels < 0, 0, labels)  # the statistics of rows ignore none
    logits = logits if axis == 1 else np.ascontiguousarray(logits.T)
    z, y, given = lazy(logits, (120, 3)), lazy(labels, (90,)), lazily(options, None)
    for function in (sl.softmax, sl.log_softmax):
        assert_same(function(z, axis, temperature=2.0), function(logits, axis, temperature=2.0))
        assert function(z, axis).chunks == z.chunks
    for keepdims in (False, True):
        assert_same(sl.logsumexp(z, axis, keepdims=keepdims), sl.logsumexp(logits, axis, keepdims=keepdims))
    for one, other in zip(
        sl.row_statistics(z, y, axis=axis), sl.row_statistics(logits, labels, axis=axis), strict=True
    ):
        assert_same(one, other)
    found, expected = sl.row_statistics(z, axis=axis), sl.row_statistics(logits, axis=axis)
    assert found.loss is None
    assert_same(found.prediction, expected.prediction)
    assert_same(sl.one_hot(y, CLASSES, axis=axis, dtype="i2"), sl.one_hot(labels, CLASSES, axis=axis, dtype="i2"))
    p, q = (sl.softmax(array, axis) for array in (logits, z))
    weight = {"sample_weight": options["sample_weight"], "reduction": reduction}
    expected = sl.cross_entropy(p, labels, axis=axis, **weight)
    found = sl.cross_entropy(q, y, axis=axis, **{**weight, "sample_weight": given["sample_weight"]})
    assert_near(found, expected)
    vector = np.random.default_rng(1).normal(size=logits.shape)
    product = sl.hessian_vector_product(logits, labels, vector, axis=axis, reduction=reduction, **options)
    found = sl.hessian_vector_product(z, y, lazy(vector, (50, 1)), axis=axis, reduction=reduction, **given)
    assert found.dtype == product.dtype
    tolerance = {2: 1e-2, 4: 1e-5, 8: 1e-11}[product.dtype.itemsize]
    np.testing.assert_allclose(
        found.compute().astype("f8"), product.astype("f8"), rtol=tolerance, atol=tolerance * 1e-2
    )


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.integers(64, 90), min_size=1, max_size=4),
    classes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    other=st.integers(1, 300),
    reduction=st.sampled_from(REDUCTIONS),
)
def test_any_chunks_give_numpy_s_answer(rows, classes, other, reduction):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(sum(rows), sum(classes)))
    labels, weight = rng.integers(0, sum(classes), sum(rows)), rng.random(sum(rows))
    z, y, w = lazy(logits, (tuple(rows), tuple(classes))), lazy(labels, (other,)), lazy(weight, (other,))
    found = sl.softmax_cross_entropy(z, y, reduction=reduction, sample_weight=w, z_loss=0.1)
    expected = sl.softmax_cross_entropy(logits, labels, reduction=reduction, sample_weight=weight, z_loss=0.1)
    np.testing.assert_allclose(found.compute(), expected, rtol=1e-13)


def test_nothing_is_computed_before_it_is_asked_for():
    z, y = raising((8, 3), "f4", (4, 2)), raising((8,), "i8", 4)
    answers = [
        *sl.softmax_cross_entropy_and_grad(z, y, sample_weight=raising((8,), "f8", 3), class_weight=np.ones(3)),
        sl.softmax(z),
        sl.logsumexp(z),
        sl.one_hot(y, 3),
        sl.cross_entropy(z, y),
        sl.hessian_vector_product(z, y, z),
        *sl.row_statistics(z, y),
    ]
    assert all(isinstance(answer, da.Array) for answer in answers)
    for answer in answers:
        with pytest.raises(AssertionError, match="computed"):
            answer.compute()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_an_invalid_row_is_nan_and_touches_no_other(reduction, soft):
    rng = np.random.default_rng(0)
    logits, labels, weight = rng.normal(size=(9, 4)), rng.integers(0, 4, 9), rng.random(9) + 0.1
    labels[6] = -100  # ignored, whatever its weight, where labels are indices
    weight[6] = 0.5 if soft else -1.0
    bad, bad_weight = (sl.one_hot(np.maximum(labels, 0), 4) if soft else labels.copy()), weight.copy()
    bad[2] = 7
    bad_weight[4] = np.nan
    kept = np.setdiff1d(np.arange(9), [2, 4] if soft else [2, 4, 6])
    loss, gradient = sl.softmax_cross_entropy_and_grad(
        logits[kept], bad[kept], sample_weight=weight[kept], reduction=reduction
    )
    z, y, w = (lazy(array, (4, 4)) for array in (logits, bad, bad_weight))
    found, found_gradient = dask.compute(*sl.softmax_cross_entropy_and_grad(z, y, sample_weight=w, reduction=reduction))
    assert np.isnan(found_gradient[[2, 4]]).all()
    np.testing.assert_allclose(found_gradient[kept], gradient, rtol=1e-12)
    if not soft:
        assert (found_gradient[6] == 0).all()
    if reduction == "none":
        assert np.isnan(found[[2, 4]]).all()
        np.testing.assert_allclose(found[kept], loss, rtol=1e-12)
    else:
        assert np.isnan(found)
    product = sl.hessian_vector_product(z, y, z, sample_weight=w, reduction=reduction).compute()
    assert np.isnan(product[[2, 4]]).all()
    assert np.isfinite(product[kept]).all()


def test_other_impossible_values():
    z, y = da.zeros((6, 3), chunks=(2, 3)), da.from_array(np.array([0, 1, 2, 9, -1, 2], np.int16), chunks=4)
    statistics = sl.row_statistics(z, y)
    assert np.isnan(statistics.loss.compute()).tolist() == [False, False, False, True, True, False]
    assert statistics.rank.compute().tolist() == [0, 0, 0, -1, -1, 0]
    assert sl.one_hot(y, 3).compute().sum(axis=1).tolist() == [1, 1, 1, 0, 0, 1]
    p = da.from_array(np.array([[0.5, 0.5], [0.5, 0.9], [np.nan, 0.0]]), chunks=2)
    losses = sl.cross_entropy(p, np.array([0, 0, 1]), reduction="none").compute()
    assert np.isnan(losses).tolist() == [False, True, True]
    minus = da.from_array(np.array([1.0, -1.0, 1.0]), chunks=3)
    assert np.isnan(sl.softmax_cross_entropy(z, np.zeros(6, int), class_weight=minus, reduction="none").compute()).all()
    nan = da.from_array(np.array([0.0, np.nan, 0.0]), chunks=3)
    assert np.isnan(sl.row_statistics(z, logit_bias=nan).logsumexp.compute()).all()
    large = da.from_array(np.array([2**63 + 1, 0, 1], np.uint64), chunks=3)
    assert np.isnan(sl.softmax_cross_entropy(z[:3], large, reduction="none").compute()).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("reduction", "scale"), [("mean", 1e300), ("mean", 1e-300), ("sum", 1e-250), ("none", 1e250)], ids=str
)
def test_weights_of_any_magnitude(reduction, scale):
    rng = np.random.default_rng(0)
    logits, labels, weight = rng.normal(size=(200, 3)), rng.integers(0, 3, 200), rng.random(200) * scale
    options = {"reduction": reduction, "z_loss": 0.1, "class_weight": np.array([1.0, 2.0, 3.0])}
    expected = sl.softmax_cross_entropy(logits, labels, sample_weight=weight, **options)
    found = sl.softmax_cross_entropy(lazy(logits, (70, 3)), labels, sample_weight=lazy(weight, (99,)), **options)
    np.testing.assert_allclose(found.compute(), expected, rtol=1e-12)


def test_no_rows_one_row_and_one_class():
    labels = np.array([-100, -100])
    loss, gradient = sl.softmax_cross_entropy_and_grad(da.zeros((2, 3), chunks=1), labels)
    assert np.isnan(loss.compute())
    assert (gradient.compute() == 0).all()
    none = da.zeros((0, 3), chunks=(0, 3))
    assert np.isnan(sl.softmax_cross_entropy(none, np.zeros(0, int)).compute())
    assert sl.softmax_cross_entropy(none, np.zeros(0, int), reduction="sum").compute() == 0
    assert sl.softmax(none).compute().shape == (0, 3)
    assert (
        (sl.softmax_cross_entropy(da.zeros((4, 1), chunks=2), np.zeros(4, int), reduction="none") == 0).all().compute()
    )
    row = da.from_array(np.array([1.0, 2.0, 3.0]), chunks=2)
    for label in (np.array([0, 1, 0]), 1, da.from_array(np.array(1))):
        assert sl.softmax_cross_entropy(row, label).compute() == pytest.approx(1.4076059644443804, rel=1e-15)


def test_chunks_of_unknown_length():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(300, 4)), rng.integers(0, 4, 300)
    keep = da.from_array(rng.random(300) < 0.7, chunks=100)
    z, y = lazy(logits, (100, 4))[keep], lazy(labels, (100,))[keep]
    kept = keep.compute()
    loss, gradient = dask.compute(*sl.softmax_cross_entropy_and_grad(z, y))
    expected, expected_gradient = sl.softmax_cross_entropy_and_grad(logits[kept], labels[kept])
    np.testing.assert_allclose(loss, expected, rtol=1e-13)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12)
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        sl.softmax_cross_entropy(z, labels[kept])
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        sl.softmax_cross_entropy(z, da.zeros(10, dtype=int, chunks=5))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda z: sl.softmax_cross_entropy(z, da.zeros(5, dtype=int)), ValueError, "labels have shape"),
        (lambda z: sl.softmax_cross_entropy(z, da.zeros(6)), TypeError, "expected integers"),
        (lambda z: sl.softmax_cross_entropy(z, [0, 1, 2, 3, 0, 0]), sl.LabelError, "labels\\[3\\] is 3"),
        (lambda z: sl.softmax_cross_entropy(z, np.ones((6, 3))), ValueError, "sums to 3"),
        (
            lambda z: sl.softmax_cross_entropy(z, np.zeros(6, int), sample_weight=da.ones(5)),
            ValueError,
            "sample_weight",
        ),
        (lambda z: sl.softmax_cross_entropy(z, np.zeros(6, int), sample_weight=-np.ones(6)), ValueError, "negative"),
        (lambda z: sl.softmax_cross_entropy(z, np.zeros(6, int), class_weight=da.ones(2)), ValueError, "class_weight"),
        (lambda z: sl.softmax_cross_entropy(z, np.zeros(6, int), temperature=0), ValueError, "temperature"),
        (lambda z: sl.softmax_cross_entropy(z, da.ones((6, 3)), focal_gamma=1), ValueError, "focal_gamma"),
        (lambda z: sl.softmax_cross_entropy(z.astype(complex), np.zeros(6, int)), TypeError, "dtype complex"),
        (lambda z: sl.softmax_cross_entropy_and_grad(z, np.zeros(6, int), out=z), TypeError, "out is given"),
        (lambda z: sl.softmax_cross_entropy(z, np.zeros(6, int), axis=2), ValueError, "axis 2"),
        (lambda z: sl.softmax(z[:, :0]), ValueError, "length 0"),
        (lambda z: sl.softmax(dask.delayed(1)), TypeError, "Delayed"),
        (lambda z: sl.linear_cross_entropy(z, np.ones((2, 3)), np.zeros(6, int)), TypeError, "softmax_cross_entropy"),
        (lambda z: sl.row_statistics(z, da.ones((6, 3))), ValueError, "row_statistics takes class indices"),
        (lambda z: sl.one_hot(z, 3), TypeError, "integers"),
        (lambda z: sl.hessian_vector_product(z, np.zeros(6, int), z[:3]), ValueError, "vector has shape"),
    ],
)
def test_what_needs_no_values_is_refused_at_once(call, error, message):
    with pytest.raises(error, match=message):
        call(raising((6, 3), "f8", (4, 2)))


def test_threads_of_a_pool_and_the_same_bits():
    rng = np.random.default_rng(0)
    z, y = lazy(rng.normal(size=(4000, 50)), (500, 20)), rng.integers(0, 50, 4000)
    loss, gradient = sl.softmax_cross_entropy_and_grad(z, y)
    with dask.config.set(scheduler="threads"):
        first, second = dask.compute(loss, gradient), dask.compute(loss, gradient)
    alone = dask.compute(loss, gradient)
    for other in (second, alone):
        np.testing.assert_array_equal(first[0], other[0])
        np.testing.assert_array_equal(first[1], other[1])
    assert sl.get_num_threads() >= 1
