"""Rows in the chunks of a Dask collection: sums over them are taken where they lie, and only sums travel.

What is done with one chunk is in dask_parts.py; here are the graphs.
"""

import hashlib
import itertools
import json
import math
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from numbers import Real
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import scipy.sparse
from dask.base import compute, get_scheduler, is_dask_collection, persist
from dask.delayed import delayed
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from softmaxloss import dask_parts
from softmaxloss.dask_parts import Call, Survey
from softmaxloss.rows import Rows, Sums, spread
from softmaxloss.sources import Learnable

Array = npt.NDArray[Any]
Vector = npt.NDArray[np.float64]

# Sums of so many chunks, or of sums, are added in one task: the same tree for the same number of chunks, whoever does
# it and in whatever order, so that they have the same bits.
_FAN_IN = 8

# The fingerprint reads so many chunks, evenly spaced, and of each the runs of rows that `LocalRows.identity` does.
_CHUNKS_READ = 64

# Coefficients of more than 10 MB are no mistake: Dask's warning of large graphs is for data that should be elsewhere.
_LARGE_GRAPH = {"distributed.admin.large-graph-warning-threshold": "16GiB"}


class DaskRows:
    """A `RowSource` over Dask's chunks.

    Coefficients are one object in the graph of each sum: a cluster's scheduler sends it to a worker, workers pass it
    on to each other, and it is sent anew if it is lost with one. (Scattered data would be lost for good.)

    Parameters
    ----------
    chunks : sequence of dask.delayed.Delayed
        The `Rows` of each chunk, at least one.
    lengths : sequence of int
        How many rows each has.
    n_features : int
        Number of features.
    dtype : numpy.dtype
        Theirs.
    is_sparse : bool
        Whether they are sparse matrices.
    """

    def __init__(
        self, chunks: Sequence[Any], lengths: Sequence[int], n_features: int, dtype: np.dtype[Any], is_sparse: bool
    ) -> None:
        self._chunks = list(chunks)
        self._lengths = list(lengths)
        self.n_rows = sum(lengths)
        self.n_features = n_features
        self.dtype = dtype
        self.is_sparse = is_sparse

    def total(self, function: Callable[..., Sums], *arguments: Any) -> Sums:
        """See `RowSource`."""
        call = delayed(Call(function, arguments), traverse=False)
        of_chunk = delayed(dask_parts.sums, pure=False)
        sums: Sums = _compute(_tree([of_chunk(call, rows) for rows in self._chunks], dask_parts.added))
        return sums

    def sample(self, count: int) -> Rows:
        """See `RowSource`: the same rows as of one array, whatever the chunks."""
        if count >= self.n_rows:
            return dask_parts.joined(_compute(self._chunks))
        lengths = self._weighty
        ends = np.cumsum(lengths)
        numbers = spread(ends[-1], count) if count < ends[-1] else np.arange(ends[-1])
        of_chunk = delayed(dask_parts.chosen, pure=False)
        parts = [of_chunk(self._chunks[0], numbers[:0])]
        for rows, start, end in zip(self._chunks, ends - lengths, ends, strict=True):
            first, last = np.searchsorted(numbers, (start, end))
            if first < last:
                parts.append(of_chunk(rows, numbers[first:last] - start))
        return dask_parts.joined(_compute(parts))

    @cached_property
    def _weighty(self) -> list[int]:
        """How many rows of each chunk weigh something."""
        of_chunk = delayed(dask_parts.weighty, pure=False)
        counts: list[int] = _compute([of_chunk(rows) for rows in self._chunks])
        return counts

    def first_row(self) -> Vector:
        """See `RowSource`."""
        of_chunk = delayed(dask_parts.first_weighted, pure=False)
        found = (_compute(of_chunk(rows)) for rows in self._chunks)  # nearly always in the first chunk
        return next(row for row in found if row is not None)

    def identity(self) -> dict[str, Any]:
        """See `RowSource`: shape, dtype, chunks, total weight, and a hash of some rows of some chunks."""
        count = len(self._chunks)
        read = sorted({count * k // _CHUNKS_READ for k in range(_CHUNKS_READ)})
        of_chunk = delayed(dask_parts.digest, pure=False)
        digests = _compute([of_chunk(self._chunks[k]) for k in read])
        (weight,) = self.total(dask_parts.total_weight)
        lengths = hashlib.sha256(json.dumps(self._lengths).encode()).hexdigest()
        return {
            "shape of X": [self.n_rows, self.n_features],
            "dtype of X": str(self.dtype),
            "chunks of X": [count, lengths],
            "total weight": float(weight),
            "rows": hashlib.sha256("".join(digests).encode()).hexdigest(),
        }


def rows_of_dask(estimator: Any, X: Any, y: Any, sample_weight: Any) -> Learnable:
    """Return what `fit` learns from, and give the estimator its `n_features_in_` and `feature_names_in_`."""
    n_features = _columns(X)[0]
    like = np.empty((0, n_features)) if isinstance(X, da.Array) else X._meta
    validate_data(estimator, like, skip_check_array=True)
    return learn_from(X, y, sample_weight, estimator.class_weight)


def learn_from(X: Any, y: Any, sample_weight: Any, class_weight: Any) -> Learnable:
    """Return the classes, the rows with weights of mean 1, and the sum of the weights as they were given.

    With a cluster the rows are persisted: each worker keeps its chunks, and they are computed anew if it dies. Dask's
    schedulers on one machine would pull all into this process's memory, so there only labels and weights are kept, and
    features come from where they are in each pass; persist X yourself where it fits.

    Parameters
    ----------
    X : dask.array.Array or dask.dataframe.DataFrame of shape (rows, features)
        In chunks of whole rows; NumPy arrays, SciPy's CSR matrices or numeric columns. Lengths may be unknown.
    y : dask.array.Array, dask.dataframe.Series or array of shape (rows,)
        Class labels.
    sample_weight : the same of weights, number, or None
        Weight of each row.
    class_weight : dict, "balanced" or None
        As `SoftmaxClassifier` takes it.

    Raises
    ------
    ValueError
        X is not in whole rows or numeric columns, or holds NaN or infinity; y or sample_weight are not of its rows; y
        has one class only; or weights are negative or all zero.
    """
    n_features, dtype, is_sparse = _columns(X)
    blocks, lengths = _blocks(X)
    labels_of, features_of = delayed(dask_parts.labels, pure=False), delayed(dask_parts.features, pure=False)
    given = [
        labels_of(of_y, of_weight)
        for of_y, of_weight in zip(
            _along(y, "y", len(blocks), lengths, X), _weights_along(sample_weight, len(blocks), lengths, X), strict=True
        )
    ]
    features = [features_of(block, dtype, check=True) for block in blocks]
    on_cluster = _is_cluster()
    given = _persisted(given)
    if on_cluster:
        features = _persisted(features)
    found = _survey(features, given)
    classes = _classes(found)
    of_classes, weight = _class_weights(class_weight, classes, found)

    n_rows = sum(found.lengths)
    encoded_of, assembled_of = delayed(dask_parts.encoded, pure=False), delayed(dask_parts.assembled)
    scale = delayed((classes, of_classes * (n_rows / weight)), traverse=False)
    encoded = _persisted([encoded_of(labels, scale) for labels in given])
    if not on_cluster:  # these were checked while surveyed
        features = [features_of(block, dtype, check=False) for block in blocks]
    chunks = [assembled_of(X_part, labels, pure=False) for X_part, labels in zip(features, encoded, strict=True)]
    if on_cluster:
        chunks = _persisted(chunks)
    return Learnable(classes, DaskRows(chunks, found.lengths, n_features, dtype, is_sparse), weight)


def _columns(X: Any) -> tuple[int, np.dtype[Any], bool]:
    """Return the number of features, their dtype and whether they are sparse, of an array or a table."""
    if isinstance(X, da.Array):
        if X.ndim != 2:
            raise ValueError(f"X has {X.ndim} dimensions: give an array of shape (rows, features)")
        n_features, dtypes, is_sparse = X.shape[1], [X.dtype], scipy.sparse.issparse(X._meta)
        if math.isnan(n_features):
            raise ValueError("X has an unknown number of features: call X.compute_chunk_sizes() first")
        if X.numblocks[1] > 1:
            raise ValueError(
                f"the features of X are in {X.numblocks[1]} chunks: each chunk must hold whole rows, as "
                "X.rechunk({1: -1}) has them"
            )
    else:
        n_features, dtypes, is_sparse = len(X.columns), list(X.dtypes), False
        strange = [str(name) for name, dtype in X.dtypes.items() if getattr(dtype, "kind", "O") not in "biuf"]
        if strange:
            raise ValueError(
                f"column {strange[0]!r} of X holds {X.dtypes[strange[0]]} and no numbers: encode it first, or leave it "
                "out"
            )
    if n_features == 0:
        raise ValueError("X has no features: SoftmaxClassifier needs at least one")
    dtype = np.dtype(np.float32 if all(dtype == np.float32 for dtype in dtypes) else np.float64)
    return int(n_features), dtype, is_sparse


def _blocks(collection: Any) -> tuple[list[Any], tuple[float, ...]]:
    """Return the chunks or partitions of a collection as delayed objects, and their lengths, NaN where unknown."""
    if isinstance(collection, da.Array):
        return list(collection.to_delayed().ravel()), collection.chunks[0]
    blocks = collection.to_delayed()
    return list(blocks), (math.nan,) * len(blocks)


def _along(values: Any, name: str, count: int, lengths: tuple[float, ...], X: Any) -> list[Any]:
    """Return the parts of y or sample_weight that go with the chunks of X."""
    if not is_dask_collection(values):
        return _cut(np.asarray(values), name, lengths, X)
    if isinstance(values, da.Array):
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1:
            raise ValueError(f"{name} has shape {values.shape}: give one value for each row of X, shape (rows,)")
        known = [n for n in (*lengths, *values.chunks[0]) if not math.isnan(n)]
        if len(known) == len(lengths) + values.numblocks[0]:
            if sum(lengths) != values.shape[0]:
                raise _other_length(name, values.shape[0], int(sum(lengths)))
            values = values.rechunk({0: lengths})
    blocks, _ = _blocks(values)
    if len(blocks) != count:
        raise ValueError(
            f"{name} is in {len(blocks)} chunks and X in {count}, of unknown length: give both the same partitions, or "
            "call compute_chunk_sizes() on both arrays first"
        )
    return blocks


def _cut(values: Array, name: str, lengths: tuple[float, ...], X: Any) -> list[Any]:
    """Return the parts of an array in memory; lengths of chunks are computed where they are not known."""
    if any(math.isnan(length) for length in lengths):
        length_of = delayed(len, pure=False)
        lengths = tuple(_compute([length_of(block) for block in _blocks(X)[0]]))
    if len(values) != sum(lengths):
        raise _other_length(name, len(values), int(sum(lengths)))
    ends = np.cumsum([0, *lengths]).astype(int)
    return [delayed(values[a:b], traverse=False) for a, b in itertools.pairwise(ends)]


def _weights_along(values: Any, count: int, lengths: tuple[float, ...], X: Any) -> list[Any]:
    """Return the parts of sample_weight, or the one number for every chunk."""
    if values is None or isinstance(values, Real):
        return [1.0 if values is None else float(values)] * count
    return _along(values, "sample_weight", count, lengths, X)


def _other_length(name: str, given: int, expected: int) -> ValueError:
    return ValueError(f"{name} has {given} rows and X {expected}: give one value for each row of X")


def _survey(features: Sequence[Any], given: Sequence[Any]) -> Survey:
    """Return the survey of all chunks."""
    survey_of = delayed(dask_parts.survey, pure=False)
    surveys = [survey_of(X_part, labels) for X_part, labels in zip(features, given, strict=True)]
    found: Survey = _compute(_tree(surveys, dask_parts.merged))
    return found


def _classes(found: Survey) -> Array:
    """Return the labels, if they are those of classes."""
    if not sum(found.lengths):
        raise ValueError("X has no rows: SoftmaxClassifier needs rows of at least two classes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # each label is here once, which scikit-learn finds unusual
        check_classification_targets(found.labels)
    if len(found.labels) < 2:
        raise ValueError(
            f"y holds one class only, {found.labels.tolist()[0]!r}: SoftmaxClassifier needs rows of at least two "
            "classes"
        )
    return found.labels


def _class_weights(class_weight: Any, classes: Array, found: Survey) -> tuple[Vector, float]:
    """Return the weight of each class, and the sum of all rows' weights times those."""
    if isinstance(class_weight, str) and class_weight == "balanced":
        totals = found.totals
        of_classes = totals.sum() / (len(classes) * np.where(totals > 0, totals, 1.0))
    else:
        of_classes = compute_class_weight(class_weight, classes=classes, y=classes)
    weight = float(found.totals @ of_classes)
    lowest = min(found.lowest, of_classes.min())
    if lowest < 0 or not 0 < weight < np.inf:
        raise ValueError(
            "sample_weight and class_weight must not be below zero, nor the weight of every row zero: the lowest "
            f"is {lowest:g}, and sample_weight * class_weight[y] adds up to {weight:g}"
        )
    return of_classes, weight


def _tree(parts: Sequence[Any], combine: Callable[[Sequence[Any]], Any]) -> Any:
    """Return the combination of delayed parts, a few in a task, in their order."""
    combined = delayed(combine, pure=False)
    while len(parts) > 1:
        parts = [combined(list(parts[k : k + _FAN_IN])) for k in range(0, len(parts), _FAN_IN)]
    return parts[0]


def _compute(values: Any) -> Any:
    """Compute one delayed object or a list of them, by the scheduler that Dask has here."""
    with dask.config.set(_LARGE_GRAPH):
        return compute(values)[0]


def _persisted(values: Sequence[Any]) -> list[Any]:
    """Return delayed objects whose results are kept where they are computed."""
    with dask.config.set(_LARGE_GRAPH):
        return list(persist(*values))


def _is_cluster() -> bool:
    """Tell whether the scheduler that Dask has here is a distributed one."""
    get = get_scheduler() or da.Array.__dask_scheduler__
    return hasattr(getattr(get, "__self__", None), "scheduler_info")
