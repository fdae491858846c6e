"""Rows to learn from: features, class indices and weights, and sums over them by several threads."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import scipy.sparse
from threadpoolctl import ThreadpoolController

from softmaxloss import _native, sparse
from softmaxloss.runtime import get_num_threads

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]
Sums = tuple[Any, ...]
_Item = TypeVar("_Item")
_T = TypeVar("_T")

# Rows are taken in blocks of so many bytes at most, so that the loss finds the logits in a cache, and the second
# product the features. Fewer rows make poor matrix products (measured).
_LOGITS_BYTES, _FEATURES_BYTES = 1 << 22, 1 << 21
_ENOUGH_ROWS = 512

# Distances from an origin are taken so many bytes at a time.
_DISTANCES_BYTES = 1 << 20

# Of sparse rows a block has so many numbers for each feature: its sums by feature take as long as it does otherwise.
_NUMBERS_PER_FEATURE = 64

# With less to multiply than this, one thread is done before others are awake.
_WORTH_THREADS = 1 << 22
_PRODUCTS_PER_NUMBER = 16  # in matrices, which need no more than their products
_PARTS_PER_THREAD = 4  # so that one which the system holds up leaves its rows to the others

# Rows are told from others by so many runs of so many, evenly spaced: reading all of them would take as long as an
# iteration, or far longer where they are larger than memory.
_RUNS, _RUN_ROWS = 64, 64

# Of the choice of rows for a sample.
_SEED = 20260101


class Rows(NamedTuple):
    """Some rows: features (dense, memory-mapped or CSR), class indices and weights."""

    X: Any
    codes: npt.NDArray[np.integer[Any]]
    weights: Vector

    def blocks(self, n_classes: int) -> Iterator["Rows"]:
        """Yield them in blocks whose logits and features are not too many, nor too few."""
        count = len(self.codes)
        if self.is_sparse:
            step = count * self.X.shape[1] * _NUMBERS_PER_FEATURE // max(self.X.nnz, 1)
        else:
            of_logits, of_features = n_classes * self.X.dtype.itemsize, max(1, self.X.shape[1]) * self.X.dtype.itemsize
            step = min(_LOGITS_BYTES // of_logits, _FEATURES_BYTES // of_features)
        step = max(step, _ENOUGH_ROWS)
        for start in range(0, count, step):
            yield self.part(slice(start, min(start + step, count)))

    def part(self, rows: slice) -> "Rows":
        """Return adjacent ones."""
        start, stop, _ = rows.indices(len(self.codes))
        X = sparse.some_rows(self.X, start, max(start, stop)) if self.is_sparse else self.X[rows]
        return Rows(X, self.codes[rows], self.weights[rows])

    def sample(self, count: int) -> "Rows":
        """Return so many of those that weigh something, or all, chosen evenly from everywhere; always the same."""
        if count >= len(self.codes):
            return self
        return self.at(sampled(self.weights, count))

    def at(self, numbers: npt.NDArray[np.intp]) -> "Rows":
        """Return the rows of these numbers."""
        return Rows(self.X[numbers], self.codes[numbers], self.weights[numbers])

    @property
    def is_sparse(self) -> bool:
        """Whether the features are a sparse matrix."""
        return scipy.sparse.issparse(self.X)

    @property
    def dense(self) -> Array:
        """The features as an ordinary array."""
        features: Array = self.X.toarray() if self.is_sparse else self.X
        return features


class RowSource(Protocol):
    """Where all rows are, and how sums over them are taken."""

    n_rows: int
    n_features: int
    dtype: np.dtype[Any]
    is_sparse: bool

    def total(self, function: Callable[..., Sums], *arguments: Any) -> Sums:
        """Return the sums of what ``function(rows, *arguments)`` returns for parts of the rows."""

    def sample(self, count: int) -> Rows:
        """Return so many rows, or all of them, chosen evenly from everywhere; always the same.

        Those that weigh nothing may be left out.
        """

    def first_row(self) -> Vector:
        """Return the features of a row that weighs something."""

    def identity(self) -> dict[str, Any]:
        """Return what tells these rows from others, as JSON holds it."""


class LocalRows:
    """A `RowSource` in this process: in memory or mapped into it.

    Each thread takes a part of the rows at a time, with matrix products and kernels of one thread, and they wait for
    each other at the end only.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.n_rows, self.n_features = rows.X.shape
        self.dtype: np.dtype[Any] = rows.X.dtype
        self.is_sparse = rows.is_sparse

    def total(self, function: Callable[..., Sums], *arguments: Any) -> Sums:
        """See `RowSource`."""
        threads = min(threads_for(self.stored), self.n_rows)
        if threads <= 1:
            return function(self.rows, *arguments)
        parts = threads if self.is_sparse else threads * _PARTS_PER_THREAD

        def of_part(part: slice) -> Sums:
            return function(self.rows.part(part), *arguments)

        with blas.on_one_thread(), LoneThreads(threads) as pool:
            return add(pool.map(of_part, slices(self.n_rows, parts)))

    @property
    def use_threads(self) -> bool:
        """Whether there is enough to multiply for several threads."""
        return self.stored >= _WORTH_THREADS

    @property
    def stored(self) -> int:
        """How many numbers the features are."""
        stored: int = self.rows.X.nnz if self.is_sparse else self.n_rows * self.n_features
        return stored

    def part(self, chosen: npt.NDArray[np.intp]) -> tuple["LocalRows", float]:
        """Return the rows of these numbers, with weights whose mean is 1 again, and what they weigh here together."""
        X, codes, weights = self.rows.at(chosen)
        weight = float(weights.sum())
        return LocalRows(Rows(X, codes, weights * (len(weights) / weight if weight > 0 else 1.0))), weight

    def sample(self, count: int) -> Rows:
        """See `RowSource`."""
        return self.rows.sample(count)

    def first_row(self) -> Vector:
        """See `RowSource`."""
        first = int(np.argmax(self.rows.weights > 0))
        row: Vector = self.rows.part(slice(first, first + 1)).dense[0].astype(np.float64)
        return row

    def identity(self) -> dict[str, Any]:
        """See `RowSource`: shape, dtype, total weight, and a hash of some runs of rows, their labels and weights."""
        digest = hashlib.sha256()
        for start in sorted({self.n_rows * run // _RUNS for run in range(_RUNS)}):
            X, codes, weights = self.rows.part(slice(start, start + _RUN_ROWS))
            features = (X.data, X.indices, X.indptr) if self.is_sparse else (X,)
            for array in (*features, codes.astype(np.int64), weights):
                digest.update(np.ascontiguousarray(array).tobytes())
        return {
            "shape of X": [self.n_rows, self.n_features],
            "dtype of X": str(self.dtype),
            "total weight": float(self.rows.weights.sum()),
            "rows": digest.hexdigest(),
        }


class LoneThreads(ThreadPoolExecutor):
    """Threads whose kernels, and sums over rows, start no others."""

    _here = threading.local()

    def __init__(self, count: int) -> None:
        super().__init__(count, initializer=self._begin)

    @classmethod
    def has_this_one(cls) -> bool:
        """Tell whether the calling thread is of such a pool."""
        return getattr(cls._here, "is_lone", False)

    def _begin(self) -> None:
        self._here.is_lone = True
        _native.work_alone()


def threads_for(numbers: int) -> int:
    """Return how many threads multiply so many numbers: one where these are few, and in one of several threads."""
    return 1 if LoneThreads.has_this_one() or numbers < _WORTH_THREADS else get_num_threads()


def in_threads(function: Callable[[_Item], _T], items: list[_Item], threads: int) -> list[_T]:
    """Return what a function makes of each item, in order."""
    if threads == 1:
        return [function(item) for item in items]
    with LoneThreads(threads) as pool:
        return list(pool.map(function, items))


def product(a: Array, b: Array) -> Array:
    """Return the product of two matrices: by all threads, as the last bits may tell, where worth their start."""
    threads = threads_for(a.size * b.shape[1] // _PRODUCTS_PER_NUMBER)
    if threads == 1:
        whole: Array = a @ b
        return whole
    out = np.empty((len(a), b.shape[1]), np.result_type(a, b))
    in_threads(lambda part: np.matmul(a[part], b, out=out[part]), slices(len(a), threads), threads)
    return out


class _Blas:
    """The BLAS libraries of this process, found when first needed: one thread each while anybody wants that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._limits: Any = None

    @contextmanager
    def on_one_thread(self) -> Iterator[None]:
        """Limit them for the block; fits may run side by side, and the last to leave gives the threads back."""
        with self._lock:
            if self._users == 0:
                self._limits = self._controller.limit(limits=1, user_api="blas")
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._limits.restore_original_limits()

    @cached_property
    def _controller(self) -> ThreadpoolController:
        return ThreadpoolController()


blas = _Blas()


def slices(n_rows: int, parts: int) -> list[slice]:
    """Return so many parts of the rows, of about equally many."""
    return [slice(*bounds) for bounds in pairwise(n_rows * k // parts for k in range(parts + 1))]


def sampled(weights: Vector, count: int) -> npt.NDArray[np.intp]:
    """Return the numbers of so many of the rows that weigh something, or of all of these, spread evenly.

    Those of all rows where no more are there.
    """
    if count >= len(weights):
        return np.arange(len(weights))
    weighty = np.flatnonzero(weights > 0)
    return weighty[spread(len(weighty), count)] if count < len(weighty) else weighty


def spread(n_rows: int, count: int) -> npt.NDArray[np.intp]:
    """Return the numbers of `count` rows in ascending order: one at random from each stretch of equal length."""
    bounds = np.arange(count + 1) * n_rows // count
    offsets = np.random.default_rng(_SEED).random(count)
    return (bounds[:-1] + offsets * np.diff(bounds)).astype(np.intp)


def add(parts: Any) -> Sums:
    """Return the sums of tuples, entry by entry, in order."""
    total: Sums = ()
    for part in parts:
        total = tuple(a + b for a, b in zip(total, part, strict=True)) if total else part
    return total


def weighted_sum(rows: Rows, origin: Vector, power: Literal[1, 2]) -> Sums:
    """Return the weighted sum of the distances of the features from an origin, or of their squares."""
    with np.errstate(over="ignore", invalid="ignore"):  # whoever asks looks for what overflowed
        if rows.is_sparse:
            return (sparse.sum_of_distances(rows.X, rows.weights, origin, power),)
        return (_dense_sum(rows, origin, power),)


def _dense_sum(rows: Rows, origin: Vector, power: Literal[1, 2]) -> Vector:
    total = np.zeros(len(origin))
    step = max(1, _DISTANCES_BYTES // max(1, 8 * len(origin)))
    for start in range(0, len(rows.codes), step):
        block = rows.part(slice(start, start + step))
        distances = block.X - origin
        total += block.weights @ (distances if power == 1 else np.square(distances))
    return total
