"""Evaluations as what strict JSON can hold: the averages, and the sums to go on with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from softmaxloss.measures.moments import Moments
from softmaxloss.measures.reliability import Reliability
from softmaxloss.totals import Totals

if TYPE_CHECKING:
    from softmaxloss.measures.evaluation import Evaluation

__all__ = ["evaluation_dict", "finite", "totals_from_state", "totals_state"]

# A dictionary holds the whole confusion matrix for so many classes, and so many of the most frequent confusions.
MOST_CLASSES_TOLD, MOST_CONFUSIONS_TOLD = 100, 20

_NUMBERS = (
    *("loss", "loss_standard_error", "perplexity", "bits", "baseline_loss", "pseudo_r2", "accuracy", "brier"),
    *("calibration_error", "adaptive_calibration_error"),
)
_ROWS = ("n_rows", "n_scored", "n_ignored", "n_nonfinite", "n_infinite_loss")
_OPTIONS = ("n_classes", "kind", "top_k", "ignore_index", "bins", "worst", "seed", "first_row", "only_loss")
_COUNTS = ("next_row", "n_ignored", "n_nonfinite", "n_infinite_loss", "exponent")


def evaluation_dict(found: Evaluation) -> dict[str, Any]:
    """Return an evaluation's averages and counts; what is not finite is None."""
    matrix = found.confusion_matrix if len(found.class_names) <= MOST_CLASSES_TOLD else None
    by_class = (found.class_loss.tolist(), found.class_accuracy.tolist(), found.class_count.tolist())
    return {
        **{name: finite(getattr(found, name)) for name in _NUMBERS},
        "loss_interval": [finite(end) for end in found.loss_interval],
        "accuracy_interval": [finite(end) for end in found.accuracy_interval],
        "top_k": {str(k): finite(value) for k, value in found.top_k.items()},
        **{name: getattr(found, name) for name in _ROWS},
        "classes": [
            {"name": name, "loss": finite(loss), "accuracy": finite(accuracy), "count": count}
            for name, loss, accuracy, count in zip(found.class_names, *by_class, strict=True)
        ],
        "reliability": _bins(found.reliability),
        "adaptive_reliability": _bins(found.adaptive_reliability),
        "confusion_matrix": None if matrix is None else matrix.tolist(),
        "top_confusions": [
            {"label": label, "prediction": other, "count": count}
            for label, other, count in found.top_confusions(MOST_CONFUSIONS_TOLD)
        ],
        "worst_rows": [{**row._asdict(), "loss": finite(row.loss)} for row in found.worst_rows],
    }


def finite(value: float) -> float | None:
    """Return a number as JSON can hold it, None for NaN and infinity."""
    return value if math.isfinite(value) else None


def totals_state(totals: Totals) -> dict[str, Any]:
    """Return totals as dictionaries, lists, strings and finite numbers, exactly: NaN and infinities as text."""
    codes, confused = totals.confusion.pairs()
    moments = totals.moments
    return {
        "options": {name: getattr(totals, name) for name in _OPTIONS},
        "state": {name: getattr(totals, name) for name in _COUNTS},
        "counts": {name: count.tolist() for name, count in totals.counts.items()},
        "sums": {name: _encoded(total) for name, total in totals.sums.items()},
        "moments": _encoded(np.array([moments.weight, moments.total, moments.scatter])),
        "confusion": {"codes": codes.tolist(), "counts": confused.tolist()},
        "worst_rows": {
            "values": _encoded(totals.worst_rows.values),
            "rows": totals.worst_rows.rows.ravel().tolist(),
        },
    }


def totals_from_state(state: dict[str, Any]) -> Totals:
    """Return the totals that `totals_state` told of.

    Raises
    ------
    ValueError
        It is not a state of totals.
    """
    try:
        totals = Totals(**{**state["options"], "top_k": tuple(state["options"]["top_k"])})
        for name in _COUNTS:
            setattr(totals, name, int(state["state"][name]))
        for name, count in totals.counts.items():
            count[:] = np.array(state["counts"][name], np.int64)
        for name, total in totals.sums.items():
            total.reshape(-1)[:] = _decoded(state["sums"][name])
        totals.moments = Moments(*_decoded(state["moments"]).tolist())
        confused = (np.array(state["confusion"][name], np.int64) for name in ("codes", "counts"))
        totals.confusion.add_pairs(*confused)
        rows = np.array(state["worst_rows"]["rows"], np.int64)
        totals.worst_rows.restore(_decoded(state["worst_rows"]["values"]), rows)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"this is not what to_json wrote: {error!r}") from None
    return totals


def _bins(found: Reliability) -> list[dict[str, float]]:
    columns = [column.tolist() for column in found]
    return [dict(zip(found._fields, row, strict=True)) for row in zip(*columns, strict=True)]


def _encoded(values: NDArray[np.float64]) -> list[float | str]:
    return [value if math.isfinite(value) else repr(value) for value in values.reshape(-1).tolist()]


def _decoded(values: list[float | str]) -> NDArray[np.float64]:
    return np.array([float(value) for value in values])
