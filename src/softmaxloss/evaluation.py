"""Evaluation of scores against labels: the loss and the accuracy, overall and by class, and their print."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softmaxloss.totals import Kind, Totals

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

__all__ = ["Evaluation", "Totals", "evaluate"]

# More classes than this do not fit a screen: the table then shows the worst ones only.
MOST_CLASSES_SHOWN = 30
WORST_CLASSES_SHOWN = 15


def evaluate(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    kind: Kind = "logits",
    top_k: int | Iterable[int] = (1, 5),
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    class_names: Sequence[object] | None = None,
) -> Evaluation:
    """Measure how well scores predict labels: mean loss with its standard error, accuracy, and both by class.

    The scores are read once, in blocks of rows of about 4 MB, so a memory map larger than memory will do.

    With row losses ``l_i`` and weights ``w_i`` (1 unless given), over the n rows that are scored::

        loss                = sum_i w_i l_i / sum_i w_i
        loss_standard_error = sqrt(n / (n - 1) * sum_i w_i^2 (l_i - loss)^2) / sum_i w_i
        perplexity          = exp(loss)
        accuracy            = weighted fraction of rows whose label has the largest score

    Without weights the standard error is the sample's standard deviation over sqrt(n). With weights it is
    that of a weighted mean of independent rows: a row of weight 2 is one row that counts double, not two
    rows.

    Parameters
    ----------
    scores : array of shape (N, C)
        Logits or probabilities, one row of C classes for each label: float16, bfloat16, float32, float64, or
        integers, which count as float64. Anything `numpy.asarray` takes.
    labels : integer array of shape (N,)
        Class indices in [0, C), or `ignore_index`.
    kind : {"logits", "probabilities"}
        What the scores are. Rows of probabilities must be non-negative and sum to 1 within 1e-3 (2^-7 for
        16-bit dtypes).
    top_k : int, or iterable of int
        The k for which to give the weighted fraction of rows whose label is among the k largest scores. Of
        equal scores the lowest class index comes first, so that k = 1 gives the accuracy (scikit-learn's
        ``top_k_accuracy_score`` takes the highest first). A k of C or more gives 1.0, as it does there,
        without the warning.
    sample_weight : array of shape (N,), optional
        Finite weights of at least 0, of any magnitude: only their ratios matter. A row of weight 0 is ignored.
    ignore_index : int
        The label of rows to leave out, whatever their scores hold.
    class_names : sequence of C names, optional
        What to call the classes, instead of 0 to C - 1.

    Returns
    -------
    Evaluation
        Prints as a short text, and with rich as a table.

    Raises
    ------
    LabelError
        A label is neither a class index nor `ignore_index`; the message names its row.
    ValueError
        The shapes do not fit, an option or a weight is out of range, or a row of probabilities is not a
        distribution.
    TypeError
        The labels are not integers, or the scores not real numbers.

    Notes
    -----
    A row whose scores hold NaN or +inf, or are all -inf, has no loss: it is counted in ``n_nonfinite``, left out of
    every average, and reported. A row that gives its label probability 0 has an infinite loss and is not left out:
    the mean loss is then infinite, and ``n_infinite_loss`` says how many such rows there are.

    The standard error with weights is the linearised one of a ratio of sums: W. G. Cochran, Sampling
    Techniques, 3rd edition (1977), chapter 6.

    Examples
    --------
    >>> from softmaxloss import evaluate
    >>> logits = [[2.0, 1.0, 0.0], [0.0, 3.0, 0.0], [1.0, 0.0, 2.0], [0.0, 2.0, 1.0]]
    >>> evaluation = evaluate(logits, [0, 1, 2, 2], top_k=(1, 2))
    >>> print(evaluation)
    loss            0.579435 (standard error 0.285726)
    perplexity      1.78503
    accuracy        75.00 %
    top-2 accuracy  100.00 %
    rows            4
    >>> evaluation.class_count
    array([1, 1, 2])

    Probabilities need to say so:

    >>> evaluate([[0.9, 0.1], [0.2, 0.8]], [0, 1], kind="probabilities").accuracy
    1.0
    """
    scores = np.asarray(scores)
    if scores.ndim != 2:
        raise ValueError(f"scores have shape {scores.shape}; expected (rows, classes): reshape them to two dimensions")
    ks = tuple(top_k) if isinstance(top_k, Iterable) else (top_k,)
    totals = Totals(scores.shape[1], kind=kind, top_k=ks, ignore_index=ignore_index)
    totals.add(scores, labels, sample_weight)
    return Evaluation.of(totals, class_names)


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """What `evaluate` found: the averages over the scored rows, and how many rows were not scored.

    Attributes
    ----------
    loss, loss_standard_error, perplexity, accuracy : float
        As `evaluate` defines them. NaN where there is nothing to average; the standard error also for fewer
        than two rows and for an infinite loss.
    top_k : dict of int to float
        For each k asked for, the fraction of rows whose label is among the k largest scores.
    class_names : tuple of C str
        The names given, or "0", "1" and so on.
    class_loss, class_accuracy : float64 arrays of shape (C,)
        The averages over the rows of each class, NaN for a class without any.
    class_count : int64 array of shape (C,)
        How many scored rows each class has.
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
    """

    loss: float
    loss_standard_error: float
    perplexity: float
    accuracy: float
    top_k: dict[int, float]
    class_names: tuple[str, ...]
    class_loss: NDArray[np.float64]
    class_accuracy: NDArray[np.float64]
    class_count: NDArray[np.int64]
    n_rows: int
    n_scored: int
    n_ignored: int
    n_nonfinite: int
    n_infinite_loss: int

    @classmethod
    def of(cls, totals: Totals, class_names: Sequence[object] | None = None) -> Evaluation:
        """Take the averages of running totals.

        Raises
        ------
        ValueError
            There are not as many names as classes.
        """
        names = tuple(map(str, range(totals.n_classes) if class_names is None else class_names))
        if len(names) != totals.n_classes:
            raise ValueError(f"class_names has {len(names)} names; expected {totals.n_classes}, one for each class")
        with np.errstate(over="ignore"):  # exp(loss) is infinite for a loss above 709
            perplexity = float(np.exp(totals.loss))
        return cls(
            loss=totals.loss,
            loss_standard_error=totals.loss_standard_error,
            perplexity=perplexity,
            accuracy=totals.average(float(totals.class_hits.sum())),
            top_k={k: totals.average(float(h)) for k, h in zip(totals.top_k, totals.top_k_hits, strict=True)},
            class_names=names,
            class_loss=totals.class_average(totals.class_loss_sum),
            class_accuracy=totals.class_average(totals.class_hits),
            class_count=totals.class_count.copy(),
            n_rows=totals.n_rows,
            n_scored=totals.n_scored,
            n_ignored=totals.n_ignored,
            n_nonfinite=totals.n_nonfinite,
            n_infinite_loss=totals.n_infinite_loss,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the same in lists, strings and numbers that strict JSON can hold.

        JSON has neither NaN nor infinity: both become None. The counts tell which it was: an average is NaN
        where no row was scored, and otherwise infinite.

        Examples
        --------
        >>> from softmaxloss import evaluate
        >>> found = evaluate([[0.0, 0.0]], [1], top_k=(1,)).to_dict()
        >>> found["accuracy"], found["loss_standard_error"], found["classes"][1]["count"]
        (0.0, None, 1)
        """
        return {
            "loss": _finite(self.loss),
            "loss_standard_error": _finite(self.loss_standard_error),
            "perplexity": _finite(self.perplexity),
            "accuracy": _finite(self.accuracy),
            "top_k": {str(k): _finite(value) for k, value in self.top_k.items()},
            "n_rows": self.n_rows,
            "n_scored": self.n_scored,
            "n_ignored": self.n_ignored,
            "n_nonfinite": self.n_nonfinite,
            "n_infinite_loss": self.n_infinite_loss,
            "classes": [
                {"name": name, "loss": _finite(loss), "accuracy": _finite(accuracy), "count": count}
                for name, loss, accuracy, count in zip(
                    self.class_names,
                    self.class_loss.tolist(),
                    self.class_accuracy.tolist(),
                    self.class_count.tolist(),
                    strict=True,
                )
            ],
        }

    def __repr__(self) -> str:
        """Name the two numbers most asked for; `print` shows more."""
        return f"Evaluation(loss={self.loss:.6g}, accuracy={self.accuracy:.6g}, n_rows={self.n_rows})"

    def __str__(self) -> str:
        """Write the headline numbers and warnings as lines of text."""
        headline = self._headline()
        width = max(len(name) for name, _ in headline)
        lines = [f"{name:{width}}  {value}" for name, value in headline]
        return "\n".join(lines + [f"warning: {warning}" for warning in self._warnings()])

    def __rich__(self) -> Group:
        """Lay out as a rich table: the headline numbers, warnings, and the classes or the worst of them."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        headline = Table(show_header=False)
        headline.add_column(style="bold")
        headline.add_column(justify="right")
        for name, value in self._headline():
            headline.add_row(name, value)
        warnings = [Text(f"warning: {warning}", style="bold yellow") for warning in self._warnings()]
        n_classes, shown = len(self.class_names), self._classes_shown()
        heading = "Classes:"
        if len(shown) < n_classes:
            heading = f"The {len(shown)} classes of the highest loss, out of {n_classes:,}:"
        return Group(headline, *warnings, Text(heading), self._class_table(shown))

    def _headline(self) -> list[tuple[str, str]]:
        rows = [
            ("loss", f"{self.loss:.6g} (standard error {self.loss_standard_error:.6g})"),
            ("perplexity", f"{self.perplexity:.6g}"),
            ("accuracy", _percent(self.accuracy)),
        ]
        # Top-1 is the accuracy, and a k of all classes says nothing.
        telling = {k: value for k, value in self.top_k.items() if 1 < k < len(self.class_names)}
        rows += [(f"top-{k} accuracy", _percent(value)) for k, value in telling.items()]
        left_out = [
            f"{count:,} {what}"
            for count, what in ((self.n_ignored, "ignored"), (self.n_nonfinite, "not finite"))
            if count
        ]
        return [*rows, ("rows", f"{self.n_rows:,}" + (f" ({', '.join(left_out)})" if left_out else ""))]

    def _warnings(self) -> list[str]:
        warnings = []
        if self.n_nonfinite:
            warnings.append(
                f"left out: {self.n_nonfinite:,} of {self.n_rows:,} rows, "
                "whose scores hold NaN or +inf, or nothing but -inf"
            )
        if self.n_infinite_loss:
            warnings.append(
                f"infinite mean loss: {self.n_infinite_loss:,} of {self.n_rows:,} rows give their label probability 0"
            )
        return warnings

    def _classes_shown(self) -> Sequence[int]:
        if len(self.class_names) <= MOST_CLASSES_SHOWN:
            return range(len(self.class_names))
        seen = np.flatnonzero(self.class_count)
        worst_first: list[int] = seen[np.argsort(-self.class_loss[seen], kind="stable")].tolist()
        return worst_first[:WORST_CLASSES_SHOWN]

    def _class_table(self, shown: Sequence[int]) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table()
        table.add_column("class", overflow="fold")
        for heading in ("loss", "accuracy", "rows"):
            table.add_column(heading, justify="right")
        for c in shown:
            loss, accuracy = f"{self.class_loss[c]:.4g}", _percent(self.class_accuracy[c])
            # A name is text: its brackets are no markup.
            table.add_row(Text(self.class_names[c]), loss, accuracy, f"{self.class_count[c]:,}")
        return table


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"
