"""Losses and gradients of rows whose logits come a block of classes at a time, with their logsumexp known only at last.

The formula is that of native/row.hpp, relative to one class of the row, the pivot k: the label, or where other classes
have a target as well the largest. Its exponential is kept out of the sum of the others', so that a row that is certain
keeps its digits:

    ratio = sum_{j != k} exp(v_j - v_k)        -log p_k = log1p(ratio)        lse = v_k - log p_k
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from softmaxloss import _native
from softmaxloss.backends.kernel import distribution_in
from softmaxloss.backends.layout import converted, kernel_reads, storage_of
from softmaxloss.backends.linear_rows import LinearRows

Vector = NDArray[np.float64]

_FLOAT64 = np.dtype(np.float64)
_CHUNK_BYTES = 1 << 20  # of float64 copies, where a block has to be transformed, or has targets to be subtracted
_LARGEST_GAP = 600.0  # exp(600) is far from a double's limits
_SINGLE_RANGE = (2.0**-120, 2.0**120)  # of factors that float32 holds, with room for what they multiply


class _Gradient(NamedTuple):
    """What the gradient of each row is made of: a p_j - b t_j, but for the pivot's."""

    lse: Vector
    a: Vector
    b: Vector
    at_pivot: Vector


class _Terms(NamedTuple):
    """What is known of each row: see RowTerms in native/row.hpp; all but `total`, the targets' sum, is of the pivot."""

    cross_entropy: Vector
    total: Vector
    share: Vector
    rest_share: Vector
    minus_log_p: Vector
    lse: Vector


class LossOfTiles:
    """The losses of `rows`, by way of `take` for each block of rows and classes, and after `finish` their gradients."""

    def __init__(self, rows: LinearRows) -> None:
        self._rows, self._labels = rows, rows.labels.indices
        self._by_label = self._labels is not None and rows.targets.dense is None
        # Of the pivot, as far as it is known, class and v; of the other classes log(rest) = reference + log(sum).
        self._pivot = self._labels if self._labels is not None and self._by_label else np.full(rows.count, -1)
        self._pivot_v = np.full(rows.count, -np.inf)
        self._reference = np.full(rows.count, -np.inf)
        self._sum = np.zeros(rows.count)
        # Of the targets t_j taken: their sum, that of t_j (v_pivot - v_j), and the pivot's own.
        self._target_sum, self._target_dot, self._pivot_target = (np.zeros(rows.count) for _ in range(3))
        self._gradient: _Gradient | None = None

        for block in _row_chunks(rows):
            q = rows.distribution(block)
            if q is not None:
                rows.check_distribution((block,), q)

    def take(self, rows: slice, classes: slice, logits: NDArray[Any]) -> None:
        """Take a block of logits into account; they may be written over."""
        for part, v, _ in self._transformed(rows, classes, logits):
            if self._by_label:
                self._take_by_label(part, classes, v)
            else:
                self._take_by_largest(part, classes, v)

    def finish(self) -> None:
        """Fill the rows' losses, once all blocks have been taken."""
        with np.errstate(all="ignore"):
            self._finish()

    def gradient(self, rows: slice, classes: slice, logits: NDArray[Any]) -> None:
        """Put the gradient of a block in the place of its logits."""
        known = self._gradient
        assert known is not None  # `finish` has been called
        for part, v, slopes in self._transformed(rows, classes, logits):
            tile_lse = _logsumexp(v)
            _native.softmax(v, _storage(v), v, None, 1.0, False)
            lse, a, b, at_pivot = (each[part] for each in known)
            with np.errstate(all="ignore"):
                _scale_rows(v, np.where(tile_lse == -np.inf, 0.0, a * np.exp(tile_lse - lse)))
                v[tile_lse == -np.inf] = 0.0  # where every class of the block is masked its softmax is NaN
                self._subtract_targets(part, classes, v, b)
                _put(v, self._pivot[part], classes, at_pivot)
                v[np.isnan(lse)] = np.nan
                if slopes is not None:
                    v *= slopes
                own = logits[part.start - rows.start : part.stop - rows.start]
                if not np.may_share_memory(v, own):
                    own[...] = v

    def _transformed(
        self, rows: slice, classes: slice, logits: NDArray[Any]
    ) -> Iterator[tuple[slice, NDArray[Any], Vector | None]]:
        """Yield pieces of a block: which rows, v (the block itself where it can be), and sech^2 of the softcap."""
        temperature, softcap, bias = self._rows.options.transform
        if temperature == 1.0 and softcap is None and bias is None:
            plain = kernel_reads(logits, self._rows.dtype)
            step = len(logits) if plain and self._by_label else self._chunk_rows(logits)
        else:
            plain, step = False, self._chunk_rows(logits)
        for start in range(0, len(logits), step):
            stop = min(start + step, len(logits))
            part, z = slice(rows.start + start, rows.start + stop), logits[start:stop]
            if plain:
                yield part, z, None
                continue
            v, slopes = converted(z, _FLOAT64), None
            with np.errstate(all="ignore"):
                v /= temperature
                if softcap is not None:
                    v, slopes = _softcapped(v, softcap)
                if bias is not None:
                    v += bias[classes]
            yield part, v, slopes

    def _targets(self, rows: slice, classes: slice) -> NDArray[np.float64]:
        """Return the targets t_j of some rows and classes."""
        targets, q = self._rows.targets, self._rows.distribution(rows)
        if q is not None:
            mass = distribution_in(self._rows.dtype, q[:, classes]).astype(np.float64)
            if targets.scale is not None and targets.shift is not None:
                mass = mass * targets.scale[classes] + targets.shift[classes]
            return mass
        assert self._labels is not None
        assert targets.dense is not None
        labels = self._labels[rows]
        mass = np.tile(targets.dense[classes].astype(np.float64), (len(labels), 1))
        numbers, columns = _inside(labels, classes)
        mass[numbers, columns] += 1.0 if targets.spike is None else targets.spike[labels[numbers]]
        return mass

    def _subtract_targets(self, rows: slice, classes: slice, gradient: NDArray[Any], b: Vector) -> None:
        """Subtract b t_j, but where the pivots are the only classes with a target."""
        if not self._by_label:
            targets = self._targets(rows, classes)
            np.subtract(gradient, b[:, np.newaxis] * targets, out=gradient, casting="same_kind")

    def _finish(self) -> None:
        rows, options = self._rows, self._rows.options
        gap = self._reference - self._pivot_v
        ratio = self._sum * np.exp(np.minimum(gap, _LARGEST_GAP))
        minus_log_p = np.where(gap < _LARGEST_GAP, np.log1p(ratio), np.log(self._sum) + gap)
        minus_log_p = np.where(self._pivot_v == np.inf, np.nan, minus_log_p)
        lse = np.where(self._pivot_v == -np.inf, self._reference + np.log(self._sum), self._pivot_v + minus_log_p)
        lse = np.where(np.isnan(minus_log_p), np.nan, lse)
        share = np.where(gap < _LARGEST_GAP, 1.0 / (1.0 + ratio), 0.0)
        rest_share = np.where(gap < _LARGEST_GAP, ratio / (1.0 + ratio), 1.0)
        if self._by_label:
            spike = rows.targets.spike
            total = np.ones(rows.count) if spike is None else spike[self._pivot]
            at_pivot, cross_entropy = total, _weighted(total, minus_log_p)
        else:
            total, at_pivot = self._target_sum, self._pivot_target
            cross_entropy = self._target_dot + _weighted(total, minus_log_p)
        terms = _Terms(cross_entropy, total, share, rest_share, minus_log_p, lse)
        value, b, c = _row_scalars(terms, rows.z_loss, options.focal_gamma, options.poly_epsilon)
        weight = np.ones(rows.count) if options.sample_weight is None else options.sample_weight
        rows.row_loss[:] = _weighted(weight, value)
        rows.totals[:] = rows.row_loss.tolist()
        scale = rows.gradient_scale * weight / options.transform.temperature
        b, c = scale * b, scale * c
        # Where nearly all is the pivot's, what is left of it and of its target is subtracted.
        difference = np.where(share < 0.5, total * share - at_pivot, (total - at_pivot) - total * rest_share)
        self._gradient = _Gradient(lse, b * total + c, b, b * difference + c * share)

    def _chunk_rows(self, logits: NDArray[Any]) -> int:
        return max(1, _CHUNK_BYTES // (int(logits.shape[1]) * 8))

    def _take_by_label(self, rows: slice, classes: slice, v: NDArray[Any]) -> None:
        numbers, columns = _inside(self._pivot[rows], classes)
        self._pivot_v[rows][numbers] = v[numbers, columns]
        v[numbers, columns] = -np.inf
        with np.errstate(all="ignore"):
            self._merge(rows, _logsumexp(v))

    def _merge(self, rows: slice, lse: Vector) -> None:
        """Add exp(lse) to the sum of the classes that are no pivots."""
        reference = self._reference[rows]
        higher = np.maximum(reference, lse)
        origin = np.where(higher == -np.inf, 0.0, higher)
        self._sum[rows] = self._sum[rows] * np.exp(reference - origin) + np.exp(lse - origin)
        self._reference[rows] = higher

    def _take_by_largest(self, rows: slice, classes: slice, v: NDArray[Any]) -> None:
        top, rest = _largest_and_rest(v)
        top_v = v[np.arange(len(v)), top].astype(np.float64)
        targets = self._targets(rows, classes)
        with np.errstate(all="ignore"):
            pivot_v = self._pivot_v[rows]
            is_new = ~(top_v <= pivot_v) | (self._pivot[rows] < 0)  # a NaN becomes the pivot, and stays it
            higher = np.where(is_new, top_v, pivot_v)
            lower = np.where(is_new, pivot_v, top_v)
            # All but the higher of both pivots is rest.
            self._merge(rows, rest)
            self._merge(rows, lower)
            risen = np.where(higher == pivot_v, 0.0, higher - pivot_v)
            self._target_dot[rows] += _weighted(self._target_sum[rows], risen)
            origin = np.where(higher == -np.inf, 0.0, higher)[:, np.newaxis]
            self._target_dot[rows] += _weighted(targets, origin - v).sum(axis=1)
            self._target_sum[rows] += targets.sum(axis=1)
            self._pivot_target[rows] = np.where(is_new, targets[np.arange(len(v)), top], self._pivot_target[rows])
            self._pivot[rows] = np.where(is_new, top + classes.start, self._pivot[rows])
            self._pivot_v[rows] = higher


def _row_scalars(terms: _Terms, z_loss: float, gamma: float, poly: float) -> tuple[Vector, Vector, Vector]:
    """Return the rows' values, and b and c of their gradients b (p_j sum(t) - t_j) + c p_j, as native/row.hpp does."""
    value, b, c = terms.cross_entropy, np.ones(len(terms.lse)), np.zeros(len(terms.lse))
    if gamma or poly:
        m, p = terms.rest_share, terms.share
        slope = np.where(m > 0.0, _weighted(p, terms.minus_log_p / m), p)  # p L / m, to its limit
        modulation = m**gamma
        value = modulation * (value + terms.total * poly * m)
        b = modulation * (1.0 + gamma * slope + poly * (gamma + 1.0) * p)
    if z_loss:
        value = value + z_loss * terms.lse * terms.lse
        c = 2.0 * z_loss * terms.lse
    return value, b, c


def _weighted(weight: NDArray[Any], value: NDArray[Any]) -> NDArray[Any]:
    """Multiply, but that 0 times infinity is 0; NaN stays."""
    product: NDArray[Any] = np.where((weight == 0.0) & np.isinf(value), 0.0, weight * value)
    return product


def _storage(v: NDArray[Any]) -> int:
    storage = storage_of(v.dtype)
    assert storage is not None  # float32 or float64
    return storage


def _logsumexp(v: NDArray[Any]) -> Vector:
    """Return the logsumexp of each row, -inf for nothing but -inf."""
    result = np.empty(len(v))
    _native.softmax(v, _storage(v), None, result, 1.0, False)
    return result


def _largest_and_rest(v: NDArray[Any]) -> tuple[NDArray[np.int64], Vector]:
    """Return each row's largest class, the first NaN if there is one, and the logsumexp of the others."""
    loss, lse = np.empty(len(v)), np.empty(len(v))
    largest, rank = np.empty(len(v), np.int64), np.empty(len(v), np.int64)
    _native.row_statistics(v, _storage(v), None, 1.0, 0.0, None, None, lse, largest, None)
    # As labels: then their loss has the digits that the difference of lse and a logit that dominates has not.
    _native.row_statistics(v, _storage(v), largest, 1.0, 0.0, None, loss, lse, largest.copy(), rank)
    with np.errstate(all="ignore"):
        rest = np.log(np.expm1(loss)) + v[np.arange(len(v)), largest]
        return largest, np.where(np.isneginf(v[np.arange(len(v)), largest]), -np.inf, rest)


def _softcapped(u: NDArray[np.float64], softcap: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return softcap * tanh(u / softcap), infinite where u is, and its derivative, which keeps its digits near 0."""
    x = u / softcap
    e = np.exp(-2.0 * np.abs(x))
    unmoved = np.isinf(u)  # a mask stays a mask, whatever its label has to say
    slopes = np.where(unmoved, 1.0, 4.0 * e / np.square(1.0 + e))
    return np.where(unmoved, u, softcap * np.tanh(x)), slopes


def _inside(labels: NDArray[np.int64], classes: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return which rows' labels are among some classes, and where among them."""
    numbers = np.flatnonzero((labels >= classes.start) & (labels < classes.stop))
    return numbers, labels[numbers] - classes.start


def _put(gradient: NDArray[Any], pivot: NDArray[np.int64], classes: slice, at_pivot: Vector) -> None:
    numbers, columns = _inside(pivot, classes)
    gradient[numbers, columns] = at_pivot[numbers]


def _scale_rows(v: NDArray[Any], factors: Vector) -> None:
    """Multiply each row by its factor, which its products may fit better than it fits itself."""
    magnitudes = np.abs(factors)
    fit = (magnitudes == 0.0) | ((magnitudes >= _SINGLE_RANGE[0]) & (magnitudes <= _SINGLE_RANGE[1]))
    column = factors[:, np.newaxis]
    np.multiply(v, column.astype(v.dtype) if fit.all() else column, out=v, casting="same_kind")


def _row_chunks(rows: LinearRows) -> Iterator[slice]:
    step = max(1, _CHUNK_BYTES // (rows.classes * 8))
    for start in range(0, rows.count, step):
        yield slice(start, min(start + step, rows.count))
