"""What an evaluation found: averages of running totals, their intervals, and how they add up and are written."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from softmaxloss.measures.bootstrap import bootstrap_means, percentile_interval
from softmaxloss.measures.reliability import Reliability, calibration_error, reliability
from softmaxloss.totals import Totals

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["Evaluation", "WorstRow", "checked_names"]

FORMAT = "softmaxloss.Evaluation/1"


def checked_names(class_names: Sequence[object] | None, n_classes: int) -> tuple[str, ...]:
    """Return a name for each class, its index where none are given."""
    names = tuple(map(str, range(n_classes) if class_names is None else class_names))
    if len(names) != n_classes:
        raise ValueError(f"class_names has {len(names)} names; expected {n_classes}, one for each class")
    return names


class WorstRow(NamedTuple):
    """A row of a large loss.

    Parameters
    ----------
    row : int
        Its number, from `first_row` on.
    loss : float
        Its loss, without its weight.
    label, prediction : int
        Its class, and the one of the largest score.
    """

    row: int
    loss: float
    label: int
    prediction: int


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """What `evaluate` found: the averages over the scored rows, and how many rows were not scored.

    ``a + b`` is the evaluation of the rows of both. Where `b` was made with ``first_row=len(rows of a)``, it equals the
    evaluation of all the rows at once: counts exactly, averages and intervals to rounding. Without it the rows of
    both are numbered from 0, which the worst rows show; and the bootstrap, which goes by these numbers, draws other
    replicates, as good as the first. With `groups` the numbers do not matter to it.

    Attributes
    ----------
    loss, loss_standard_error, perplexity, bits, baseline_loss, pseudo_r2 : float
        As `evaluate` defines them. NaN where there is nothing to average; the standard error also for fewer
        than two rows and for an infinite loss.
    accuracy, brier : float
        Likewise.
    loss_interval, accuracy_interval : tuple of two floats
        Their 95 % confidence intervals; `interval` has other levels.
    top_k : dict of int to float
        For each k asked for, the fraction of rows whose label is among the k largest scores.
    calibration_error : float
        The expected calibration error: over bins of confidence of equal width, the mean distance of confidence and
        accuracy.
    adaptive_calibration_error : float
        The same over bins that hold equal weights of rows, as nearly as 4096 cells or so of confidence allow.
    reliability, adaptive_reliability : Reliability
        These bins.
    class_names : tuple of C str
        The names given, or "0", "1" and so on.
    class_loss, class_accuracy : float64 arrays of shape (C,)
        The averages over the rows of each class, NaN for a class without any.
    class_count : int64 array of shape (C,)
        How many scored rows each class has.
    confusion_matrix : int64 array of shape (C, C), or None for more than 1024 classes
        How many rows of each label (first axis) have each prediction; weights do not count here.
        `top_confusions` is there for any number of classes.
    worst_rows : list of WorstRow
        The rows of the largest loss, the largest first.
    n_rows : int
        All rows: ``n_scored + n_ignored + n_nonfinite``.
    n_scored : int
        Rows that count in the averages.
    n_ignored : int
        Rows labelled `ignore_index` or of weight 0.
    n_nonfinite : int
        Rows left out because their scores hold NaN or +inf, or are all -inf.
    n_infinite_loss : int
        Scored rows whose label has probability 0.

    Examples
    --------
    >>> import softmaxloss as sl
    >>> found = sl.evaluate([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]], [0, 1, -100])
    >>> found
    Evaluation(loss=0.180925, accuracy=1, n_rows=3)
    >>> found.n_scored, found.n_ignored
    (2, 1)
    >>> more = sl.evaluate([[0.0, 1.0]], [0], first_row=3)
    >>> found + more
    Evaluation(loss=0.55837, accuracy=0.666667, n_rows=4)
    """

    totals: Totals
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, totals: Totals, class_names: Sequence[object] | None = None) -> Evaluation:
        """Take the averages of running totals, as they are now.

        Raises
        ------
        ValueError
            There are not as many names as classes.
        """
        return cls(copy.deepcopy(totals), checked_names(class_names, totals.n_classes))

    def __add__(self, other: object) -> Evaluation:
        """Return the evaluation of the rows of both.

        Raises
        ------
        ValueError
            The other has other classes or options.
        """
        if not isinstance(other, Evaluation):
            return NotImplemented
        if self.class_names != other.class_names:
            raise ValueError("the other evaluation has other class_names; expected the same, in the same order")
        totals = copy.deepcopy(self.totals)
        totals.merge(other.totals)
        return Evaluation(totals, self.class_names)

    @property
    def loss(self) -> float:
        """Mean loss."""
        return self.totals.loss

    @property
    def loss_standard_error(self) -> float:
        """Standard error of the mean loss, of independent rows."""
        return self.totals.loss_standard_error

    @cached_property
    def loss_interval(self) -> tuple[float, float]:
        """95 % confidence interval of the mean loss."""
        return self.interval("loss")

    @property
    def perplexity(self) -> float:
        """The exponential of the loss."""
        with np.errstate(over="ignore"):  # exp(loss) is infinite for a loss above 709
            return float(np.exp(self.loss))

    @property
    def bits(self) -> float:
        """Mean loss in bits."""
        return self.loss / math.log(2)

    @property
    def baseline_loss(self) -> float:
        """Loss of predicting the labels' own frequencies for every row."""
        if not self.totals.weight:
            return math.nan
        share = self.totals.sums["class_weight"] / self.totals.weight
        share = share[share > 0]
        return float(0.0 - (share * np.log(share)).sum())

    @property
    def pseudo_r2(self) -> float:
        """Fraction of the baseline's loss that the scores save."""
        baseline = self.baseline_loss
        return 1 - self.loss / baseline if baseline else math.nan

    @property
    def accuracy(self) -> float:
        """Fraction of rows whose prediction is right."""
        return self._detail("class_hits")

    @cached_property
    def accuracy_interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy."""
        return self.interval("accuracy")

    @property
    def top_k(self) -> dict[int, float]:
        """Fraction of rows whose label is among the k largest scores, for each k."""
        totals = self.totals
        measured = totals.weight and not totals.only_loss
        hits = totals.sums["top_k_hits"]
        return {k: float(h) / totals.weight if measured else math.nan for k, h in zip(totals.top_k, hits, strict=True)}

    @property
    def brier(self) -> float:
        """Brier score."""
        return self._detail("brier")

    @property
    def calibration_error(self) -> float:
        """Expected calibration error."""
        return calibration_error(self.reliability)

    @property
    def adaptive_calibration_error(self) -> float:
        """Calibration error over bins of equal weight."""
        return calibration_error(self.adaptive_reliability)

    @cached_property
    def reliability(self) -> Reliability:
        """Bins of confidence, of equal width."""
        return self._reliability(adaptive=False)

    @cached_property
    def adaptive_reliability(self) -> Reliability:
        """Bins of confidence, of equal weight."""
        return self._reliability(adaptive=True)

    @property
    def class_loss(self) -> NDArray[np.float64]:
        """Mean loss of each class."""
        return self.totals.class_average("class_loss")

    @property
    def class_accuracy(self) -> NDArray[np.float64]:
        """Accuracy of each class."""
        if self.totals.only_loss:
            return np.full(self.totals.n_classes, math.nan)
        return self.totals.class_average("class_hits")

    @property
    def class_count(self) -> NDArray[np.int64]:
        """Scored rows of each class."""
        return self.totals.class_count.copy()

    @property
    def confusion_matrix(self) -> NDArray[np.int64] | None:
        """Rows of each label and prediction."""
        return None if self.totals.only_loss else self.totals.confusion.matrix()

    @property
    def worst_rows(self) -> list[WorstRow]:
        """The rows of the largest loss."""
        found = self.totals.worst_rows
        return [
            WorstRow(row, loss, label, prediction)
            for loss, (row, label, prediction) in zip(found.values.tolist(), found.rows.tolist(), strict=True)
        ]

    @property
    def n_rows(self) -> int:
        """All rows."""
        return self.totals.n_rows

    @property
    def n_scored(self) -> int:
        """Rows that count in the averages."""
        return self.totals.n_scored

    @property
    def n_ignored(self) -> int:
        """Rows labelled `ignore_index` or of weight 0."""
        return self.totals.n_ignored

    @property
    def n_nonfinite(self) -> int:
        """Rows without a loss."""
        return self.totals.n_nonfinite

    @property
    def n_infinite_loss(self) -> int:
        """Scored rows whose label has probability 0."""
        return self.totals.n_infinite_loss

    def interval(
        self, measure: Literal["loss", "accuracy"] = "loss", *, level: float = 0.95, replicates: int = 1000
    ) -> tuple[float, float]:
        """Return a confidence interval from a bootstrap: quantiles of the means of rows, or groups, drawn again.

        The rows or groups are first put in 1024 lots by a hash, and these are drawn: one pass over the rows serves any
        number of replicates. With more than 1024 rows the interval's width is within a few percent of what rows
        drawn one by one would give.

        Parameters
        ----------
        measure : {"loss", "accuracy"}
            What to give the interval of.
        level : float
            The probability with which the interval is to hold the true mean, above 0 and below 1.
        replicates : int
            How many means to draw.

        Returns
        -------
        tuple of two floats
            NaN for fewer than two rows or groups, and for an infinite loss.

        References
        ----------
        B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13: the percentile interval.

        Examples
        --------
        >>> import softmaxloss as sl
        >>> found = sl.evaluate([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [0.0, 2.0]] * 20, [0, 1, 1, 1] * 20)
        >>> low, high = found.interval("accuracy", level=0.9)
        >>> low < found.accuracy == 0.75 < high
        True
        """
        if measure not in ("loss", "accuracy"):
            raise ValueError(f"measure is {measure!r}; expected 'loss' or 'accuracy'")
        if replicates < 1:
            raise ValueError(f"replicates is {replicates}; expected at least 1")
        weights, losses, hits = self.totals.sums["cells"]
        values = losses if measure == "loss" else hits
        return percentile_interval(bootstrap_means(weights, values, replicates, self.totals.seed), level)

    def top_confusions(self, n: int = 10) -> list[tuple[str, str, int]]:
        """Return the n most frequent mistakes as (class, other class predicted, rows), the most frequent first.

        Examples
        --------
        >>> import softmaxloss as sl
        >>> scores = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
        >>> sl.evaluate(scores, [0, 0, 0], class_names=["cat", "dog"]).top_confusions()
        [('cat', 'dog', 2)]
        """
        names = self.class_names
        return [(names[label], names[other], count) for label, other, count in self.totals.confusion.top(n)]

    def to_dict(self) -> dict[str, Any]:
        """Return the same in lists, strings and numbers that strict JSON can hold.

        JSON has neither NaN nor infinity: both become None. The counts tell which it was: an average is NaN
        where no row was scored, and otherwise infinite. The confusion matrix is there for at most 100 classes, and
        the 20 most frequent confusions for any number.

        Examples
        --------
        >>> from softmaxloss import evaluate
        >>> found = evaluate([[0.0, 0.0]], [1], top_k=(1,)).to_dict()
        >>> found["accuracy"], found["loss_standard_error"], found["classes"][1]["count"]
        (0.0, None, 1)
        """
        from softmaxloss.measures.state import evaluation_dict

        return evaluation_dict(self)

    def to_json(self) -> str:
        """Return `to_dict` and the sums it comes from as JSON, exactly: `from_json` has the same evaluation again.

        Examples
        --------
        >>> import softmaxloss as sl
        >>> found = sl.evaluate([[2.0, 1.0], [0.0, 3.0]], [0, 1])
        >>> again = sl.Evaluation.from_json(found.to_json())
        >>> again.loss == found.loss
        True
        """
        from softmaxloss.measures.state import totals_state

        return json.dumps({"format": FORMAT, **self.to_dict(), "totals": totals_state(self.totals)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Return the evaluation that `to_json` wrote; it adds up with others as it did.

        Raises
        ------
        ValueError
            The text is not what `to_json` wrote.
        """
        from softmaxloss.measures.state import totals_from_state

        told = json.loads(text)
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            raise ValueError(f"this is not an evaluation in JSON; expected what to_json wrote, with format {FORMAT!r}")
        totals = totals_from_state(told["totals"])
        return cls(totals, checked_names([entry["name"] for entry in told["classes"]], totals.n_classes))

    def __repr__(self) -> str:
        """Name the two numbers most asked for; `print` shows more."""
        return f"Evaluation(loss={self.loss:.6g}, accuracy={self.accuracy:.6g}, n_rows={self.n_rows})"

    def __str__(self) -> str:
        """Write the headline numbers and warnings as lines of text."""
        from softmaxloss.measures.display import evaluation_text

        return evaluation_text(self)

    def __rich__(self) -> Group:
        """Lay out as rich tables: the headline numbers, warnings, calibration, mistakes, and the classes."""
        from softmaxloss.measures.display import evaluation_tables

        return evaluation_tables(self)

    def _detail(self, name: str) -> float:
        return math.nan if self.totals.only_loss else self.totals.average(name)

    def _reliability(self, *, adaptive: bool) -> Reliability:
        totals = self.totals
        return reliability(totals.counts["reliability"], totals.sums["reliability"], totals.bins, adaptive=adaptive)
