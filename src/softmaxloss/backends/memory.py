"""Where a gradient may be written: never over what is still to be read, but for the logits themselves."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from softmaxloss.options import is_masked


def check_out(out: Any, logits: NDArray[Any], dtype: np.dtype[Any], *others: Any) -> NDArray[Any]:
    """Return `out` if the gradient may be written there: right shape and dtype, and no input of the user's in the way.

    The one overlap allowed is `out` being the logits themselves, element for element. `others` are the other inputs as
    they were given: where a converted copy is read, what it was made from is no less the user's.
    """
    if not isinstance(out, np.ndarray) or is_masked(out):
        raise TypeError(f"out is a {type(out).__name__}; expected a NumPy array")
    if out.shape != logits.shape:
        raise ValueError(f"out has shape {out.shape}; expected the logits' {logits.shape}")
    if out.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"out has dtype {out.dtype}; the gradient of {logits.dtype} logits is {dtype}")
    flags = out.flags
    if not flags.writeable:
        raise ValueError("out is read-only; pass an array that may be written")
    if not flags.forc and _overlaps_itself(out):
        raise ValueError("several elements of out share memory; pass an array with its own memory for each")
    if out is not logits and _overlap(out, logits) and not same_memory(out, logits):
        raise ValueError("out overlaps the logits; pass the logits themselves (in place) or separate memory")
    if any(_overlap(out, other) for other in others if _may_be_memory(other)):
        raise ValueError("out overlaps the labels or weights, or logit_bias; pass separate memory")
    return out


def is_plain(out: Any, dtype: np.dtype[Any]) -> bool:
    """Tell, quickly, that an array may be written, element by element: the kernel of quick calls looks at the rest."""
    if type(out) is not np.ndarray or out.dtype != dtype:
        return False
    flags = out.flags
    return flags.forc and flags.writeable and flags.aligned


def same_memory(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Tell whether two arrays of one shape are the same elements in the same places."""
    steps_a, steps_b = (
        [stride for stride, size in zip(array.strides, array.shape, strict=True) if size > 1] for array in (a, b)
    )
    return a.dtype == b.dtype and steps_a == steps_b and a.ctypes.data == b.ctypes.data


def _may_be_memory(given: Any) -> bool:
    # NumPy looks behind whatever offers its memory, but would copy a list to find that it does not.
    return given is not None and not isinstance(given, list | tuple)


def _overlap(a: NDArray[Any], b: Any) -> bool:
    # The bounds are quick to compare. Arrays whose bounds overlap may still share no element: that answer is exact,
    # and for strided arrays of few axes quick as well.
    return np.may_share_memory(a, b) and bool(np.shares_memory(a, b))


def _overlaps_itself(array: NDArray[Any]) -> bool:
    extent = array.itemsize
    for stride, size in sorted((abs(stride), n) for stride, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride < extent:
            return True
        extent += stride * (size - 1)
    return False
