"""Evaluation of Dask arrays: the totals of each chunk of rows where it lies, merged by a tree."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import accumulate
from typing import Any

from dask.base import compute
from dask.delayed import delayed

from softmaxloss.backends.dask.arrays import Rows
from softmaxloss.backends.dask.chunks import work_alone_in_pools
from softmaxloss.measures.inputs import check_arrays
from softmaxloss.totals import Totals

__all__ = ["add_chunks"]

# How many totals one task merges: few, for each holds its confusions and bins.
_MERGED_AT_ONCE = 8


def add_chunks(totals: Totals, scores: Any, labels: Any, sample_weight: Any, groups: Any) -> None:
    """Add the rows of Dask arrays to totals that have none yet, by the scheduler that is active.

    The rows are numbered as in one array, so that the bootstrap draws the same for any chunks. Labels, weights and
    groups may be Dask arrays in any chunks, or arrays in memory.

    Raises
    ------
    ValueError
        The length of a chunk is unknown: then so is the number of each row after it.
    """
    rows = Rows(scores, 1, "scores")
    beside = {"labels": labels, "sample_weight": sample_weight, "groups": groups}
    if any(map(math.isnan, rows.rows_shape)):
        raise ValueError(
            "the chunks of the scores are of unknown length, and rows are told apart by their numbers; call "
            "compute_chunk_sizes() on the scores first (of a dataframe, pass to_dask_array(lengths=True))"
        )
    aligned: dict[str, Any] = {
        name: None if values is None else rows.along(values, name, rows.rows_shape, f"one of the {name} a row")
        for name, values in beside.items()
    }
    check_arrays(rows.given, aligned["labels"], aligned["sample_weight"], totals.n_classes)
    lengths = rows.rows_chunks[0]
    parts = [
        [None] * len(lengths) if array is None else array.to_delayed().reshape(-1).tolist()
        for array in (rows.array, *aligned.values())
    ]
    found = [
        delayed(_totals_of, pure=False)(totals, totals.first_row + first, *blocks)
        for first, *blocks in zip(accumulate(lengths[:-1], initial=0), *parts, strict=True)
    ]
    while len(found) > 1:
        found = [
            delayed(_merged, pure=False)(found[at : at + _MERGED_AT_ONCE])
            for at in range(0, len(found), _MERGED_AT_ONCE)
        ]
    (whole,) = compute(found[0])
    totals.merge(whole)


def _totals_of(empty: Totals, first_row: int, *blocks: Any) -> Totals:
    """Return the totals of one chunk, whose first row has this number, with the options of others."""
    work_alone_in_pools()
    totals = replace(empty, first_row=first_row)  # which has its options and no rows
    totals.add(*blocks)
    return totals


def _merged(parts: list[Totals]) -> Totals:
    """Return the totals of all these, which stay as they are: a scheduler may need them again."""
    totals = replace(parts[0])
    for part in parts:
        totals.merge(part)
    return totals
