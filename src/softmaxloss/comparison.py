"""Comparison of two models' scores on the same rows: by how much their losses differ, and whether by chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softmaxloss.backends.layout import as_logits, kernel_dtype, rows_a_block
from softmaxloss.measures.bootstrap import (
    CELLS,
    as_groups,
    bootstrap_means,
    cells_of_groups,
    cells_of_rows,
    percentile_interval,
)
from softmaxloss.measures.evaluation import checked_names
from softmaxloss.measures.inputs import Rows, as_weights, check_arrays, refuse_dask, rows_that_count, weight_unit
from softmaxloss.measures.moments import Moments
from softmaxloss.measures.rows import KINDS, Kind, RowMeasures, measure_rows
from softmaxloss.measures.state import finite
from softmaxloss.measures.worst import LargestRows

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["ComparedRow", "Comparison", "compare"]


def compare(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    labels: ArrayLike,
    *,
    kind: Kind | tuple[Kind, Kind] = "logits",
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    class_names: Sequence[object] | None = None,
    groups: ArrayLike | None = None,
    worst: int = 10,
    level: float = 0.95,
    replicates: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare two models on the same rows: the mean difference of their losses, and what chance has to do with it.

    Both give a loss for each row, and these are subtracted row by row, so that what makes a row hard for both drops
    out: far smaller differences show than in the two means with their own errors. The scores are read once, in
    blocks, so memory maps larger than memory will do.

    Parameters
    ----------
    scores_a, scores_b : arrays of shape (N, C)
        The scores of the two models, as in `evaluate`. Their dtypes may differ.
    labels, sample_weight, ignore_index, class_names, groups
        As in `evaluate`.
    kind : {"logits", "log_probabilities", "probabilities"}, or two of them
        What the scores are, or those of A and those of B.
    worst : int
        How many of the rows that differ most to keep.
    level : float
        The probability with which the interval is to hold the true difference.
    replicates, seed : int
        How many replicates the bootstrap draws, and which.

    Returns
    -------
    Comparison
        Prints as a short text, and with rich as tables.

    Raises
    ------
    LabelError, ValueError, TypeError
        As `evaluate`; also where the two scores have different shapes.
    ModuleNotFoundError
        SciPy, which has the distributions of the tests, is not installed.

    Notes
    -----
    A row whose scores in A or in B have no loss is left out of both, and counted in ``n_nonfinite``. Where both give a
    label probability 0 the row's difference is 0.

    References
    ----------
    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages" (1947), in
    its exact form. T. G. Dietterich, "Approximate statistical tests for comparing supervised classification learning
    algorithms" (1998). B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap (1993).

    Examples
    --------
    >>> import numpy as np
    >>> import softmaxloss as sl
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 3, 500)
    >>> logits = rng.normal(size=(500, 3)) + 2 * np.eye(3)[labels]
    >>> noisier = logits + rng.normal(size=(500, 3))
    >>> found = sl.compare(logits, noisier, labels)
    >>> found.difference < 0, found.p_value < 0.01  # A has the smaller loss, and not by chance
    (True, True)
    """
    refuse_dask("compare", scores_a=scores_a, scores_b=scores_b)
    a, b = as_logits(scores_a, "scores_a"), as_logits(scores_b, "scores_b")
    for name, scores in (("scores_a", a), ("scores_b", b)):
        if scores.ndim != 2 or scores.shape[1] == 0:
            raise ValueError(f"{name} have shape {scores.shape}; expected (rows, classes), at least one class")
    if a.shape != b.shape:
        raise ValueError(f"scores_b have shape {b.shape}; expected {a.shape}, that of scores_a: the same rows, classes")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; expected a fraction above 0 and below 1, such as 0.95")
    for option, value, least in (("replicates", replicates, 1), ("seed", seed, 0), ("worst", worst, 0)):
        if value < least:
            raise ValueError(f"{option} is {value}; expected at least {least}")
    names = checked_names(class_names, a.shape[1])
    given, weights = np.asarray(labels), as_weights(sample_weight)
    check_arrays(a, given, weights, a.shape[1], "scores_a")
    paired = _Paired(a.shape[1], _kinds(kind), ignore_index, worst, seed)
    paired.add(a, b, given, weights, None if groups is None else as_groups(groups, len(given)))
    return paired.comparison(names, level, replicates)


class ComparedRow(NamedTuple):
    """A row in which the losses of two models differ.

    Parameters
    ----------
    row : int
        Its index.
    loss_a, loss_b : float
        Its losses, without its weight.
    label : int
        Its class.
    """

    row: int
    loss_a: float
    loss_b: float
    label: int


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What `compare` found of models A and B.

    Attributes
    ----------
    difference : float
        Weighted mean of each row's loss in A less that in B: above 0 where B is the better.
    interval : tuple of two floats
        Its confidence interval, quantiles of a bootstrap of rows, or of groups where they were given.
    level : float
        The probability with which that interval is to hold the true difference.
    p_value : float
        Of the same bootstrap: twice the fraction of replicates on the other side of 0, at most 1. It cannot fall
        below 2 / (replicates + 1).
    standard_error, t_statistic, t_p_value : float
        Standard error of the difference as in `evaluate`, their ratio, and how often Student's t with n - 1 degrees
        of freedom is as far from 0. They take rows to be independent, whatever the groups.
    loss_a, loss_b, accuracy_a, accuracy_b : float
        Weighted means over the rows compared.
    only_a_right, only_b_right : int
        How many rows only A, or only B, predicts right.
    mcnemar_p : float
        McNemar's exact test of whether these two numbers differ by chance; weights do not count here.
    class_names : tuple of C str
        The names given, or "0", "1" and so on.
    class_difference : float64 array of shape (C,)
        The difference over the rows of each class, NaN for a class without any.
    class_count : int64 array of shape (C,)
        How many rows of each class were compared.
    rows : list of ComparedRow
        Those that differ most, the largest difference first.
    n_rows, n_scored, n_ignored, n_nonfinite : int
        All rows; those compared; those labelled `ignore_index` or of weight 0; those without a loss in A or B.
    n_infinite_loss : int
        Rows compared whose label has probability 0 in A or in B.

    Examples
    --------
    >>> import softmaxloss as sl
    >>> found = sl.compare([[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 3.0]], [0, 1])
    >>> round(found.difference, 4), round(found.loss_a, 4), round(found.loss_b, 4)
    (0.0392, 0.2201, 0.1809)
    >>> found.rows[0].row, found.rows[0].label
    (1, 1)
    """

    difference: float
    interval: tuple[float, float]
    level: float
    p_value: float
    standard_error: float
    t_statistic: float
    t_p_value: float
    loss_a: float
    loss_b: float
    accuracy_a: float
    accuracy_b: float
    only_a_right: int
    only_b_right: int
    mcnemar_p: float
    class_names: tuple[str, ...]
    class_difference: NDArray[np.float64]
    class_count: NDArray[np.int64]
    rows: list[ComparedRow]
    n_rows: int
    n_scored: int
    n_ignored: int
    n_nonfinite: int
    n_infinite_loss: int

    def to_dict(self) -> dict[str, Any]:
        """Return the same in lists, strings and numbers that strict JSON can hold, None for NaN and infinity.

        Examples
        --------
        >>> import softmaxloss as sl
        >>> found = sl.compare([[1.0, 0.0]], [[0.0, 1.0]], [0]).to_dict()
        >>> found["only_a_right"], found["only_b_right"], found["t_p_value"]
        (1, 0, None)
        """
        told: dict[str, Any] = asdict(self)
        names, differences, counts = (told.pop(f"class_{name}") for name in ("names", "difference", "count"))
        told = {name: finite(value) if isinstance(value, float) else value for name, value in told.items()}
        told["interval"] = [finite(end) for end in self.interval]
        told["classes"] = [
            {"name": name, "difference": finite(difference), "count": count}
            for name, difference, count in zip(names, differences.tolist(), counts.tolist(), strict=True)
        ]
        told["rows"] = [
            {**row._asdict(), "loss_a": finite(row.loss_a), "loss_b": finite(row.loss_b)} for row in self.rows
        ]
        return told

    def __repr__(self) -> str:
        """Name the difference and how surprising it is; `print` shows more."""
        return f"Comparison(difference={self.difference:.6g}, p_value={self.p_value:.4g}, n_rows={self.n_rows})"

    def __str__(self) -> str:
        """Write the headline numbers and warnings as lines of text."""
        from softmaxloss.measures.display import comparison_text

        return comparison_text(self)

    def __rich__(self) -> Group:
        """Lay out as rich tables: the headline numbers, warnings, and where the two differ most."""
        from softmaxloss.measures.display import comparison_tables

        return comparison_tables(self)


def _kinds(kind: Kind | tuple[Kind, Kind]) -> tuple[Kind, Kind]:
    kinds = (kind, kind) if isinstance(kind, str) else tuple(kind)
    if len(kinds) != 2 or not all(k in KINDS for k in kinds):
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(map(repr, KINDS))}, or two in a tuple")
    return kinds[0], kinds[1]


class _Paired:
    """Running totals of the rows of two models."""

    def __init__(self, n_classes: int, kinds: tuple[Kind, Kind], ignore_index: int, worst: int, seed: int) -> None:
        self.n_classes, self.kinds, self.ignore_index, self.seed = n_classes, kinds, ignore_index, seed
        self.n_rows = self.n_ignored = self.n_nonfinite = self.n_infinite_loss = 0
        self.only_right = np.zeros(2, np.int64)
        self.class_count = np.zeros(n_classes, np.int64)
        self.class_weight, self.class_difference = np.zeros((2, n_classes))
        self.cell_weight, self.cell_difference = np.zeros((2, CELLS))
        # Losses of A and B, accuracies of A and B.
        self.sums = np.zeros(4)
        self.moments = Moments()
        self.rows = LargestRows(worst, columns=3)

    def add(
        self,
        a: NDArray[Any],
        b: NDArray[Any],
        labels: NDArray[Any],
        weights: NDArray[Any] | None,
        groups: NDArray[Any] | None,
    ) -> None:
        """Add all rows, a block at a time."""
        wider = max((kernel_dtype(scores.dtype) for scores in (a, b)), key=lambda dtype: dtype.itemsize)
        step = rows_a_block(self.n_classes, wider)
        unit = weight_unit(weights)
        for start in range(0, len(labels), step):
            block = slice(start, start + step)
            part = None if weights is None else weights[block]
            rows = rows_that_count(labels[block], part, start, self.n_classes, self.ignore_index)
            if rows.weights is not None:
                rows = rows._replace(weights=np.ldexp(rows.weights, -unit))
            self.n_rows += len(labels[block])
            self.n_ignored += len(labels[block]) - len(rows.labels)
            kept = slice(None) if rows.kept is None else rows.kept
            self._add_block(a[block][kept], b[block][kept], rows, None if groups is None else groups[block][kept])

    def _add_block(self, a: NDArray[Any], b: NDArray[Any], rows: Rows, groups: NDArray[Any] | None) -> None:
        of_a = measure_rows(a, rows.labels, rows.numbers, self.kinds[0], "scores_a")
        of_b = measure_rows(b, rows.labels, rows.numbers, self.kinds[1], "scores_b")
        in_a, in_b = (_scored(measured, len(rows.labels)) for measured in (of_a, of_b))
        both = in_a & in_b
        loss_a, loss_b = of_a.loss[both[in_a]], of_b.loss[both[in_b]]
        labels, numbers = rows.labels[both], rows.numbers[both]
        self.n_nonfinite += len(both) - len(labels)
        if not len(labels):
            return
        right_a, right_b = (of_a.rank == 0)[both[in_a]], (of_b.rank == 0)[both[in_b]]
        weights = np.ones(len(labels)) if rows.weights is None else rows.weights[both]
        with np.errstate(invalid="ignore"):  # inf - inf
            difference = np.where(np.isinf(loss_a) & np.isinf(loss_b), 0.0, loss_a - loss_b)
        self.n_infinite_loss += int(np.count_nonzero(np.isinf(loss_a) | np.isinf(loss_b)))
        self.only_right += [np.count_nonzero(right_a & ~right_b), np.count_nonzero(right_b & ~right_a)]
        self.sums += [(weights * values).sum() for values in (loss_a, loss_b, right_a, right_b)]
        np.add.at(self.class_count, labels, 1)
        np.add.at(self.class_weight, labels, weights)
        cells = cells_of_rows(numbers, self.seed) if groups is None else cells_of_groups(groups[both], self.seed)
        np.add.at(self.cell_weight, cells, weights)
        with np.errstate(invalid="ignore"):
            np.add.at(self.class_difference, labels, weights * difference)
            np.add.at(self.cell_difference, cells, weights * difference)
        self.moments = self.moments.merge(Moments.of(difference, weights * weights))
        # The losses travel as the integers of the same bits.
        bits = (loss.view(np.int64) for loss in (loss_a, loss_b))
        self.rows.add(np.abs(difference), numbers, *bits, labels)

    def comparison(self, names: tuple[str, ...], level: float, replicates: int) -> Comparison:
        """Put the averages and tests together."""
        from scipy import stats

        n, weight = int(self.class_count.sum()), float(self.class_weight.sum())
        with np.errstate(invalid="ignore"):  # 0 / 0, and inf - inf over classes
            difference = float(self.class_difference.sum()) / weight if weight else math.nan
            class_difference = self.class_difference / self.class_weight
            loss_a, loss_b, accuracy_a, accuracy_b = (self.sums / weight if weight else self.sums * math.nan).tolist()
        means = bootstrap_means(self.cell_weight, self.cell_difference, replicates, self.seed)
        error = self.moments.standard_error(n, difference, weight)
        t = difference / error if error else (math.copysign(math.inf, difference) if difference else 0.0)
        # Equal losses in every row are as likely as can be.
        t_p = 2 * float(stats.t.sf(abs(t), n - 1)) if error else (1.0 if difference == 0 else 0.0)
        a, b = self.only_right.tolist()
        return Comparison(
            difference=difference,
            interval=percentile_interval(means, level),
            level=level,
            p_value=_two_sided(means),
            standard_error=error,
            t_statistic=t,
            t_p_value=t_p,
            loss_a=loss_a,
            loss_b=loss_b,
            accuracy_a=accuracy_a,
            accuracy_b=accuracy_b,
            only_a_right=a,
            only_b_right=b,
            mcnemar_p=float(stats.binomtest(a, a + b).pvalue) if a + b else (1.0 if n else math.nan),
            class_names=names,
            class_difference=class_difference,
            class_count=self.class_count,
            rows=self._largest(),
            n_rows=self.n_rows,
            n_scored=n,
            n_ignored=self.n_ignored,
            n_nonfinite=self.n_nonfinite,
            n_infinite_loss=self.n_infinite_loss,
        )

    def _largest(self) -> list[ComparedRow]:
        rows = self.rows.rows[self.rows.values > 0]
        losses = rows[:, 1:3].copy().view(np.float64)
        return [
            ComparedRow(row, loss_a, loss_b, label)
            for (row, _, _, label), (loss_a, loss_b) in zip(rows.tolist(), losses.tolist(), strict=True)
        ]


def _scored(measured: RowMeasures, n: int) -> NDArray[np.bool_]:
    return np.ones(n, np.bool_) if measured.scored is None else measured.scored


def _two_sided(means: NDArray[np.float64]) -> float:
    """Return twice the smaller fraction of means that reach 0 from above or from below, at most 1."""
    if not len(means):
        return math.nan
    less = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    # The data themselves are one more draw: no finite number of them shows a probability of 0.
    return float(min(1.0, 2 * (less + 1) / (len(means) + 1)))
