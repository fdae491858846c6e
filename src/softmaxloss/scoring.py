"""Scores of fitted classifiers: scikit-learn's, and minus the softmax loss, which it calls "neg_log_loss"."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import get_scorer, make_scorer

from softmaxloss.loss import softmax_cross_entropy

Array = npt.NDArray[Any]


def negative_loss(y_true: Array, logits: Array, *, labels: Array, sample_weight: Any = None) -> float:
    """Return minus the mean softmax cross-entropy: scikit-learn's "neg_log_loss", but that no probability is cut off.

    Parameters
    ----------
    y_true : array of shape (rows,)
        Labels.
    logits : array of shape (rows, classes), or (rows,) for two classes
        As `decision_function` returns them.
    labels : array of shape (classes,)
        The classes, sorted.
    sample_weight : array of shape (rows,), optional
        Weights of the rows.

    Raises
    ------
    ValueError
        For a label that is no class.
    """
    y_true = np.asarray(y_true)
    codes = np.minimum(np.searchsorted(labels, y_true), len(labels) - 1)
    unknown = np.flatnonzero(labels[codes] != y_true)
    if len(unknown):
        raise ValueError(f"y holds {y_true[unknown[0]]!r}, which is none of the {len(labels)} classes")
    if logits.ndim == 1:
        logits = np.column_stack([np.zeros_like(logits), logits])
    return -float(softmax_cross_entropy(logits, codes, sample_weight=sample_weight))


def scorer_of(scoring: str | Callable[..., float] | None, classes: Array | None = None) -> Any:
    """Return scikit-learn's scorer of that name, or the one given; None is accuracy.

    With the classes, measures that want to know all of them (``labels``) are told, since rows to be scored may lack
    some.
    """
    if scoring == "neg_log_loss":
        scorer = make_scorer(negative_loss, response_method="decision_function")
    else:
        scorer = get_scorer("accuracy" if scoring is None else scoring)
    function = getattr(scorer, "_score_func", None)
    if classes is None or function is None or "labels" not in inspect.signature(function).parameters:
        return scorer
    told = copy.copy(scorer)
    told._kwargs = {"labels": classes, **scorer._kwargs}
    return told
