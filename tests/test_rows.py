"""Sums over rows by several threads: the answer of one, and the process's threads as they were."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import scipy.sparse
from threadpoolctl import threadpool_info, threadpool_limits

import softmaxloss as sl
from softmaxloss import rows
from softmaxloss.objective import logits_of, loss_and_gradient
from softmaxloss.rows import LocalRows, Rows, spread


def some_rows(kind=np.asarray, dtype=np.float64, count=3000):
    random = np.random.default_rng(0)
    X = random.standard_normal((count, 7)).astype(dtype)
    return Rows(kind(X), random.integers(5, size=count), random.uniform(0, 2, count))


def layer(dtype=np.float64):
    random = np.random.default_rng(1)
    return random.standard_normal((5, 7)).astype(dtype), random.standard_normal(5).astype(dtype)


@pytest.fixture
def many_threads(monkeypatch):
    """Three threads even for a few rows."""
    before = sl.get_num_threads()
    sl.set_num_threads(3)
    monkeypatch.setattr(rows, "_WORTH_THREADS", 1)
    yield
    sl.set_num_threads(before)


def blas_threads():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_threads_give_the_sums_of_one_call(kind, dtype, rtol, many_threads):
    part = some_rows(kind, dtype)

    sums = LocalRows(part).total(loss_and_gradient, *layer(dtype), 0.1)

    for ours, whole in zip(sums, loss_and_gradient(part, *layer(dtype), 0.1), strict=True):
        np.testing.assert_allclose(ours, whole, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("kind", [scipy.sparse.csr_array, scipy.sparse.csr_matrix])
def test_sparse_rows_in_blocks_give_the_sums_of_one(kind, monkeypatch):
    monkeypatch.setattr(rows, "_ENOUGH_ROWS", 7)
    part = some_rows(kind)
    assert len(list(part.blocks(5))) > 10

    sums = loss_and_gradient(part, *layer(), 0.1)

    for ours, dense in zip(sums, loss_and_gradient(some_rows(), *layer(), 0.1), strict=True):
        np.testing.assert_allclose(ours, dense, rtol=1e-12, atol=1e-12)


def test_the_same_bits_every_time(many_threads):
    source = LocalRows(some_rows(dtype=np.float32))

    first = source.total(loss_and_gradient, *layer(np.float32), 0.0)

    for _ in range(5):
        for a, b in zip(first, source.total(loss_and_gradient, *layer(np.float32), 0.0), strict=True):
            np.testing.assert_array_equal(a, b)


def test_sums_side_by_side_leave_blas_its_threads(many_threads):
    together = Barrier(2, timeout=30)
    source = LocalRows(some_rows())

    def wait_for_the_other(part):
        together.wait()
        return (len(part.codes),)

    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        with ThreadPoolExecutor(2) as pool:
            counts = [pool.submit(source.total, wait_for_the_other) for _ in range(2)]
            assert [count.result() for count in counts] == [(3000,), (3000,)]
        assert blas_threads() == before


def test_an_error_in_a_thread_is_the_callers_and_leaves_blas_its_threads(many_threads):
    def fail(part):
        raise MemoryError("none left")

    before = blas_threads()
    with pytest.raises(MemoryError, match="none left"):
        LocalRows(some_rows()).total(fail)

    assert blas_threads() == before


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 5, 9), (2, 9, 1), (70, 30, 40), (301, 20, 17)])
def test_matrices_are_multiplied_by_all_threads(shape, dtype, many_threads):
    n, k, m = shape
    random = np.random.default_rng(0)
    a, b = random.standard_normal((k, n)).astype(dtype).T, random.standard_normal((k, m + 1)).astype(dtype)[:, 1:]

    made = rows.product(a, b)

    assert made.dtype == dtype
    np.testing.assert_allclose(
        made, a.astype(np.float64) @ b.astype(np.float64), atol=1e-4 if dtype == np.float32 else 1e-12
    )


def test_zero_coefficients_are_not_multiplied():
    """All logits are the intercepts, where every fit begins."""
    for kind in (np.asarray, scipy.sparse.csr_array):
        block, (coef, intercept) = some_rows(kind), layer()
        never_read = block._replace(X=kind(np.full(block.X.shape, np.nan)))
        made = logits_of(never_read, np.zeros_like(coef), intercept)
        np.testing.assert_array_equal(made, np.broadcast_to(intercept, made.shape))
        coef[-1, 0] = 0.0
        np.testing.assert_allclose(logits_of(block, coef, intercept), block.X @ coef.T + intercept)


def test_a_sample_is_spread_over_all_rows():
    chosen = spread(1000, 30)

    assert len(chosen) == 30
    assert np.all(np.diff(chosen) > 0)
    assert np.histogram(chosen, 10, (0, 1000))[0].tolist() == [3] * 10
    np.testing.assert_array_equal(chosen, spread(1000, 30))


@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array], ids=["dense", "sparse"])
def test_a_sample_is_of_rows_that_weigh_something(kind):
    some = some_rows(kind)
    weights = np.where(np.arange(3000) % 10 == 3, some.weights, 0.0)
    source = LocalRows(some._replace(weights=weights))

    for count in (100, 299, 300, 2999):
        sample = source.sample(count)
        assert len(sample.codes) == min(count, 300) == np.count_nonzero(sample.weights)
    assert source.sample(3000) is source.rows


@pytest.mark.parametrize("kind", [np.asarray, scipy.sparse.csr_array], ids=["dense", "sparse"])
def test_a_sample_keeps_what_belongs_together(kind):
    part = some_rows(kind)

    sampled = LocalRows(part).sample(100)

    chosen = spread(3000, 100)
    for ours, theirs in zip(sampled[1:], part[1:], strict=True):
        np.testing.assert_array_equal(ours, theirs[chosen])
    dense = [X.toarray() if scipy.sparse.issparse(X) else X for X in (sampled.X, part.X)]
    np.testing.assert_array_equal(dense[0], dense[1][chosen])
    assert LocalRows(part).sample(3000) is part
