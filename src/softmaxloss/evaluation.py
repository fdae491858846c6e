"""Evaluation of scores against labels: the loss, accuracy and calibration, overall and by class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from softmaxloss.backends import is_dask
from softmaxloss.measures.evaluation import Evaluation, WorstRow, checked_names
from softmaxloss.measures.reliability import Reliability
from softmaxloss.totals import Kind, Totals

__all__ = ["Evaluation", "Reliability", "Totals", "WorstRow", "evaluate"]


def evaluate(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    kind: Kind = "logits",
    top_k: int | Iterable[int] = (1, 5),
    bins: int = 15,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    class_names: Sequence[object] | None = None,
    groups: ArrayLike | None = None,
    worst: int = 10,
    seed: int = 0,
    first_row: int = 0,
    only_loss: bool = False,
) -> Evaluation:
    """Measure how well scores predict labels: loss, accuracy and calibration, with their uncertainty and by class.

    The scores are read once, in blocks of rows of about 4 MB, so a memory map larger than memory will do. Dask arrays
    are evaluated at once, each chunk where it lies, by the scheduler that is active; the answer is the same in memory.

    With row losses ``l_i``, probabilities ``p_i`` and weights ``w_i`` (1 unless given), over the n rows scored::

        loss                = sum_i w_i l_i / sum_i w_i
        loss_standard_error = sqrt(n / (n - 1) * sum_i w_i^2 (l_i - loss)^2) / sum_i w_i
        perplexity          = exp(loss)
        bits                = loss / log(2)
        baseline_loss       = the loss of predicting for every row the labels' own frequencies, their entropy
        pseudo_r2           = 1 - loss / baseline_loss
        accuracy            = weighted fraction of rows whose label has the largest score
        brier               = weighted mean of sum_j (p_ij - [j = label_i])^2, from 0 to 2

    Without weights the standard error is the sample's standard deviation over sqrt(n). With weights it is
    that of a weighted mean of independent rows: a row of weight 2 is one row that counts double, not two
    rows. The intervals come from a bootstrap of the rows, or of `groups` of them.

    Parameters
    ----------
    scores : array of shape (N, C)
        One row of C classes for each label: float16, bfloat16, float32, float64, or integers, which count as
        float64. Anything `numpy.asarray` takes, or a Dask array; the rest may then be Dask arrays too.
    labels : integer array of shape (N,)
        Class indices in [0, C), or `ignore_index`.
    kind : {"logits", "log_probabilities", "probabilities"}
        What the scores are. Rows of probabilities must be non-negative and sum to 1 within 1e-3 (2^-7 for
        16-bit dtypes); so must the exponentials of log-probabilities.
    top_k : int, or iterable of int
        The k for which to give the weighted fraction of rows whose label is among the k largest scores. Of
        equal scores the lowest class index comes first, so that k = 1 gives the accuracy (scikit-learn's
        ``top_k_accuracy_score`` takes the highest first). A k of C or more gives 1.0, as it does there,
        without the warning.
    bins : int
        Into how many bins to sort predictions by their confidence.
    sample_weight : array of shape (N,), optional
        Finite weights of at least 0, of any magnitude: only their ratios matter. A row of weight 0 is ignored.
    ignore_index : int
        The label of rows to leave out, whatever their scores hold.
    class_names : sequence of C names, optional
        What to call the classes, instead of 0 to C - 1.
    groups : array of shape (N,) of integers or text, optional
        Which rows belong together (sentences of a document, images of a patient): the bootstrap then draws whole
        groups. `loss_standard_error` takes rows to be independent all the same.
    worst : int
        How many of the rows with the largest loss to keep.
    seed : int
        Of the bootstrap: the same seed gives the same intervals.
    first_row : int
        The number of the first row, where these rows follow others: `Evaluation` says what for.
    only_loss : bool
        Stop at the loss, and what follows from it by class and against the baseline. All else is NaN or empty.

    Returns
    -------
    Evaluation
        Prints as a short text, and with rich as tables. Evaluations of parts of the rows add up with ``+``.

    Raises
    ------
    LabelError
        A label is neither a class index nor `ignore_index`; the message names its row.
    ValueError
        The shapes do not fit, an option or a weight is out of range, or a row of probabilities is not a
        distribution.
    TypeError
        The labels are not integers, the scores not real numbers, or the groups neither integers nor text.

    Notes
    -----
    A row whose scores hold NaN or +inf, or are all -inf, has no loss: it is counted in ``n_nonfinite``, left out of
    every average, and reported. A row that gives its label probability 0 has an infinite loss and is not left out:
    the mean loss is then infinite, and ``n_infinite_loss`` says how many such rows there are.

    References
    ----------
    The standard error with weights is the linearised one of a ratio of sums: W. G. Cochran, Sampling
    Techniques, 3rd edition (1977), chapter 6. The pseudo-R^2 is McFadden's (1974), the Brier score Brier's of 1950,
    ``sklearn.metrics.brier_score_loss(..., scale_by_half=False)``.

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
    >>> worst = evaluation.worst_rows[0]
    >>> worst.row, round(worst.loss, 6), worst.label, worst.prediction
    (3, 1.407606, 2, 1)

    Probabilities need to say so:

    >>> evaluate([[0.9, 0.1], [0.2, 0.8]], [0, 1], kind="probabilities").accuracy
    1.0
    """
    given: Any = scores if is_dask(scores) else np.asarray(scores)
    if given.ndim != 2:
        raise ValueError(f"scores have shape {given.shape}; expected (rows, classes): reshape them to two dimensions")
    ks = tuple(top_k) if isinstance(top_k, Iterable) else (top_k,)
    totals = Totals(
        given.shape[1],
        kind=kind,
        top_k=ks,
        ignore_index=ignore_index,
        bins=bins,
        worst=worst,
        seed=seed,
        first_row=first_row,
        only_loss=only_loss,
    )
    if is_dask(given):
        from softmaxloss.dask_evaluation import add_chunks

        add_chunks(totals, given, labels, sample_weight, groups)
    else:
        totals.add(given, labels, sample_weight, groups)
    return Evaluation(totals, checked_names(class_names, totals.n_classes))
