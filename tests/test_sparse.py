"""Products of sparse matrices: against NumPy in float64, on every instruction set and number of threads."""

import numpy as np
import pytest
import scipy.sparse

import softmaxloss as sl
from softmaxloss import SoftmaxClassifier, _native, sparse

TOLERANCE = {np.float32: 2e-6, np.float64: 1e-14}

# Around the sizes of vectors of every instruction set and type, and of pieces of four of them.
CLASSES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 20, 31, 33, 63, 64, 65, 129, 200]


def matrix_of(n_rows, n_columns, dtype=np.float64, index=np.int32, seed=0):
    """Return a matrix with rows and columns without a number, one row full, and rows of very different lengths."""
    rng = np.random.default_rng(seed)
    shares = rng.random(n_rows) ** 3
    X = rng.standard_normal((n_rows, n_columns)) * (rng.random((n_rows, n_columns)) < shares[:, np.newaxis])
    X[: n_rows // 2, : n_columns // 3] = 0.0
    X[n_rows // 2 :][:1] = 1.0
    X[n_rows // 3 :][:1] = 0.0
    matrix = scipy.sparse.csr_array(X.astype(dtype))
    matrix.indptr, matrix.indices = matrix.indptr.astype(index), matrix.indices.astype(index)
    return matrix


def dense_of(n_rows, n_classes, dtype, seed=1):
    return np.random.default_rng(seed).standard_normal((n_rows, n_classes)).astype(dtype)


def assert_near(ours, exact, terms, dtype):
    """Compare with what was computed in float64, within rounding of the sum of the terms' magnitudes."""
    assert ours.dtype == dtype
    assert np.all(np.abs(ours - exact) <= TOLERANCE[dtype] * (terms + np.abs(exact)) + np.finfo(dtype).tiny)


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_products(instruction_set, n_classes, dtype, index):
    matrix, dense = matrix_of(50, 70, dtype, index), dense_of(70, n_classes, dtype)
    whole = matrix.toarray().astype(np.float64)

    ours = sparse.product(matrix, dense)

    assert_near(ours, whole @ dense.astype(np.float64), np.abs(whole) @ np.abs(dense), dtype)
    np.testing.assert_array_equal(ours, sparse.product(matrix, np.asfortranarray(dense)))


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_less_an_outer_product(instruction_set, n_classes, dtype):
    matrix, dense = matrix_of(50, 70, dtype), dense_of(70, n_classes, dtype)
    times, less = dense_of(50, 1, dtype)[:, 0], dense_of(1, n_classes, dtype)[0]
    whole, out = matrix.toarray().astype(np.float64), np.full((50, n_classes), np.nan, dtype)

    ours = sparse.product(matrix, dense, less=(times, less), out=out)

    assert ours is out
    outer = np.outer(times.astype(np.float64), less)
    assert_near(ours, whole @ dense - outer, np.abs(whole) @ np.abs(dense) + np.abs(outer), dtype)


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_transposed_products(instruction_set, n_classes, dtype, index):
    matrix, dense = matrix_of(50, 70, dtype, index), dense_of(50, n_classes, dtype)
    whole, out = matrix.toarray().astype(np.float64), np.full((70, n_classes), np.nan, dtype)

    ours = sparse.transposed_product(matrix, dense, out)

    assert ours is out
    assert_near(ours, whole.T @ dense.astype(np.float64), np.abs(whole).T @ np.abs(dense), dtype)


@pytest.mark.parametrize(("n_rows", "n_columns"), [(0, 4), (1, 1), (3, 5000), (2000, 40)])
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_no_bit(threads, n_rows, n_columns, keep_num_threads):
    """A row is one thread's, whatever else there is."""
    sl.set_num_threads(threads)
    matrix, dense = matrix_of(n_rows, n_columns), dense_of(n_columns, 33, np.float64)

    ours = sparse.product(matrix, dense)

    assert ours.shape == (n_rows, 33)
    for i in range(0, n_rows, 100):
        np.testing.assert_array_equal(ours[i], sparse.product(sparse.some_rows(matrix, i, i + 1), dense)[0])


def test_no_class_or_no_column():
    assert sparse.product(matrix_of(5, 7), np.zeros((7, 0))).shape == (5, 0)
    empty = scipy.sparse.csr_array((5, 0))
    np.testing.assert_array_equal(sparse.product(empty, np.zeros((0, 3))), np.zeros((5, 3)))


def test_infinities_and_nan_reach_the_rows_that_meet_them():
    matrix = scipy.sparse.csr_array(np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, -1.0]]))
    dense = np.array([[np.nan, 1.0], [np.inf, 2.0], [np.inf, 3.0]])
    np.testing.assert_array_equal(sparse.product(matrix, dense), [[np.nan, 1.0], [np.inf, 4.0], [-np.inf, -3.0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [1, 3, 20])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_largest_derivative(instruction_set, threads, n_classes, dtype, keep_num_threads):
    sl.set_num_threads(threads)
    centred = dense_of(4000, n_classes, dtype)
    scale, mean = np.abs(dense_of(4000, 1, dtype, 2)[:, 0]), dense_of(4000, 1, dtype, 3)[:, 0]
    last = dense_of(1, n_classes, dtype, 4)[0]

    def largest():
        return np.max([np.abs(centred * scale[:, None]).max(), np.abs(centred + mean[:, None] * last).max()])

    assert _native.largest_derivative(centred, scale, mean, last) == pytest.approx(largest(), rel=1e-6)
    scale[-1] = 1e6
    assert _native.largest_derivative(centred, scale, mean, last) == pytest.approx(largest(), rel=1e-6)
    for row in (0, 1999, 3999):
        spoilt = centred.copy()
        spoilt[row, -1] = np.nan
        assert np.isnan(_native.largest_derivative(spoilt, scale, mean, last))


@pytest.mark.parametrize("power", [1, 2])
def test_sums_of_distances(power):
    matrix = matrix_of(60, 40)
    rng = np.random.default_rng(0)
    weights, origin = rng.uniform(0, 2, 60), rng.standard_normal(40)
    exact = weights @ (matrix.toarray() - origin) ** power
    np.testing.assert_allclose(sparse.sum_of_distances(matrix, weights, origin, power), exact, rtol=1e-12, atol=1e-12)


def test_a_full_constant_column_has_no_distance_left():
    """Not even what rounding leaves of weights that are added up and taken away."""
    matrix = scipy.sparse.csr_array(np.full((50, 2), 0.1))
    weights = np.random.default_rng(0).uniform(0, 1, 50)
    np.testing.assert_array_equal(sparse.sum_of_distances(matrix, weights, np.full(2, 0.1), 2), [0.0, 0.0])


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (2, 9), (9, 10), (5, 5), (4, 10)])
def test_some_rows_are_a_view(start, stop):
    matrix = matrix_of(10, 30)
    rows = sparse.some_rows(matrix, start, stop)
    np.testing.assert_array_equal(rows.toarray(), matrix.toarray()[start:stop])
    assert rows.nnz == 0 or np.shares_memory(rows.data, matrix.data)
    assert rows.nnz == 0 or np.shares_memory(rows.indices, matrix.indices)


@pytest.mark.parametrize("kind", [scipy.sparse.csr_array, scipy.sparse.csr_matrix])
def test_numbers_that_do_not_lie_one_after_another(kind):
    matrix = kind(matrix_of(10, 30))
    dense = dense_of(30, 3, np.float64)
    wanted = matrix @ dense
    matrix.data, matrix.indices = np.repeat(matrix.data, 2)[::2], np.repeat(matrix.indices, 2)[::2]
    np.testing.assert_allclose(sparse.product(sparse.checked(matrix), dense), wanted, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_divided(dtype):
    matrix = matrix_of(10, 30, dtype)
    small = sparse.divided(matrix, 1e40)
    quotient = sparse.divided(sparse.divided(matrix, 1e20), 1e-20)
    np.testing.assert_allclose(quotient.toarray(), matrix.toarray(), rtol=1e-6)
    assert np.shares_memory(small.indices, matrix.indices)
    assert small.dtype == dtype
    denormal = scipy.sparse.csr_array(np.full((2, 2), 1e-40).astype(dtype))
    np.testing.assert_allclose(sparse.divided(denormal, 1e-40).toarray(), 1.0, rtol=1e-4)


def test_several_numbers_of_one_place_count_as_their_sum():
    matrix = scipy.sparse.csr_array((np.ones(5), np.array([1, 0, 0, 1, 1]), np.array([0, 2, 3, 5])), shape=(3, 2))
    checked = sparse.checked(matrix)
    assert checked.has_canonical_format
    assert len(matrix.data) == 5  # the one given is as it was
    np.testing.assert_array_equal(checked.toarray(), [[1, 1], [1, 0], [0, 2]])
    y, weights = [0, 1, 1], np.array([1.0, 2.0, 0.5])
    model = SoftmaxClassifier(tol=1e-8).fit(matrix, y, weights)
    dense = SoftmaxClassifier(tol=1e-8).fit(checked.toarray(), y, weights)
    np.testing.assert_allclose(model.coef_, dense.coef_, atol=1e-6)


def test_rows_without_weight_are_no_distance_away():
    matrix = scipy.sparse.csr_array(np.vstack([np.full((9, 1), 1e8) + np.arange(9)[:, np.newaxis], [[0.0]]]))
    weights = np.append(np.random.default_rng(0).uniform(0.1, 1, 9), 0.0)
    origin = np.array([1e8 + 4])
    exact = weights[:9] @ (np.arange(9) - 4.0) ** 2
    np.testing.assert_allclose(sparse.sum_of_distances(matrix, weights, origin, 2), exact, rtol=1e-12)


def test_coefficients_of_other_features_are_refused():
    """As SciPy refuses them: nothing is read past their end."""
    X, y = matrix_of(10, 30), np.arange(10) % 3
    model = SoftmaxClassifier().fit(X, y)
    model.coef_ = model.coef_[:, :2].copy()
    with pytest.raises(ValueError, match="do not go together"):
        model.decision_function(X)
    with pytest.raises(ValueError, match="do not go together"):
        sparse.transposed_product(X, np.ones((10, 2)), np.empty((29, 2)))
    with pytest.raises(ValueError, match="do not go together"):
        sparse.sum_of_distances(X, np.ones(10), np.zeros(29), 1)


@pytest.mark.parametrize("column", [-1, 30, 1 << 30])
def test_a_column_that_there_is_not_is_refused(column):
    X, y = matrix_of(10, 30), np.arange(10) % 3
    classifier = SoftmaxClassifier().fit(X, y)
    X.indices[4] = column
    with pytest.raises(ValueError, match="no valid sparse matrix"):
        SoftmaxClassifier().fit(X, y)
    with pytest.raises(ValueError, match="no valid sparse matrix"):
        classifier.predict(X)


def test_arrays_that_do_not_go_together_are_refused():
    starts, columns, values = np.array([0, 1, 2]), np.array([0, 1]), np.ones(2)
    dense, out = np.ones((2, 3)), np.empty((2, 3))
    _native.sparse_product(starts, columns, values, dense, out)
    for wrong in (
        (starts[:2], columns, values, dense, out),
        (np.array([0, 1, 3]), columns, values, dense, out),
        (np.array([-1, 1, 2]), columns, values, dense, out),
        (starts, columns[:1], values, dense, out),
        (starts, columns, values, dense[:, :2].copy(), out),
        (starts, columns, values, dense, out, np.ones(2), None),
        (starts, columns, values, dense, out, np.ones(1), np.ones(3)),
    ):
        with pytest.raises(ValueError, match=r"fit each other|too short"):
            _native.sparse_product(*wrong)
    with pytest.raises(ValueError, match="fit each other"):
        _native.add_transposed_product(starts, columns, values, np.ones((3, 3)), out)
    with pytest.raises(TypeError):
        _native.sparse_product(starts, columns, values, dense, out.T)
