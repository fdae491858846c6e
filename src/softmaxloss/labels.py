"""What labels mean: class indices or distributions, told apart by their number of dimensions alone."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softmaxloss.options import as_array, contiguous, is_real, position

_INT64 = np.dtype(np.int64)


class LabelError(ValueError, IndexError):
    """A label outside ``[0, C)``: the message names the value, where it is, and the range.

    Both a `ValueError` and an `IndexError`, since the libraries it stands in for raise one or the other.

    Examples
    --------
    >>> import softmaxloss as sl
    >>> sl.softmax_cross_entropy([[1.0, 2.0, 3.0]], [3])
    Traceback (most recent call last):
        ...
    softmaxloss.labels.LabelError: labels[0] is 3; with 3 classes a label is from 0 to 2, or ignore_index = -100
    """


class Labels(NamedTuple):
    """Labels of one kind or the other, the class axis of a distribution moved last."""

    indices: NDArray[np.int64] | None  # contiguous, of the rows' shape; values not yet checked
    distribution: NDArray[Any] | None
    tolerance: float  # how far from 1 a row of the distribution may sum


def resolve_labels(labels: ArrayLike, logits_shape: tuple[int, ...], axis: int) -> Labels:
    """Tell distributions (as many dimensions as the logits) from class indices (one less); else raise.

    `logits_shape` has the class axis where the user put it, at `axis`.
    """
    array = as_array("labels", labels)
    class_axis = axis % len(logits_shape)
    rows_shape = logits_shape[:class_axis] + logits_shape[class_axis + 1 :]
    if array.shape == logits_shape:
        if not is_real(array.dtype):
            raise TypeError(f"label distributions have dtype {array.dtype}; expected real numbers")
        return Labels(None, np.moveaxis(array, axis, -1), tolerance_of(array.dtype))
    if array.shape == rows_shape:
        return Labels(label_indices(labels), None, 0.0)
    raise ValueError(
        f"labels have shape {array.shape}; logits of shape {logits_shape} with the class axis at {axis} take class "
        f"indices of shape {rows_shape} or distributions of shape {logits_shape}"
    )


def label_indices(labels: ArrayLike) -> NDArray[np.int64]:
    """Return index labels of any integer dtype as contiguous int64, the same values; `LabelError` if one cannot be."""
    array = as_array("labels", labels)
    if array.size == 0 and not isinstance(labels, np.ndarray):
        array = array.astype(np.int64)  # an empty list holds no numbers of any kind
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"index labels have dtype {array.dtype}; expected integers (labels.astype(int)), or distributions "
            "with the logits' number of dimensions"
        )
    if array.dtype.kind == "u" and array.dtype.itemsize == 8:
        too_large = array > np.iinfo(np.int64).max
        if too_large.any():
            where = np.unravel_index(int(too_large.argmax()), array.shape)
            raise LabelError(f"labels{position(where)} is {array[where]}; no array has so many classes")
    return contiguous(array, _INT64)


def label_error(labels: NDArray[np.int64], bad_row: int, classes: int, ignore_index: int | None) -> LabelError:
    """Return the error for the label at flat position `bad_row`."""
    where = np.unravel_index(bad_row, labels.shape)
    ignored = "" if ignore_index is None else f", or ignore_index = {ignore_index}"
    return LabelError(
        f"labels{position(where)} is {labels[where]}; with {classes} {'class' if classes == 1 else 'classes'} "
        f"a label is from 0 to {classes - 1}{ignored}"
    )


def tolerance_of(dtype: np.dtype[Any]) -> float:
    """Return how far from 1 a distribution may sum: more where 16 bits hold it."""
    return 2.0**-7 if dtype.itemsize == 2 and dtype.kind not in "iu" else 1e-3


def not_a_distribution(where: tuple[int, ...], total: float, least: float, complaint: str) -> ValueError:
    """Return the error for a row, at index `where` among the rows, that has this sum and least entry."""
    row = f"row {position(where)}" if where else "the row"
    fault = f"has a negative entry, {least:.6g}" if least < 0 else f"sums to {total:.6g}, not 1"
    return ValueError(f"{row} {fault}: it is not {complaint}")
