"""Whether contenders agree: a time says nothing where the answer is another one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import Case

# Another contender's answer may differ from ours by this much, relative to each entry; a wrong formula is off by far
# more. Rounding explains 1e-5 of a float32 entry: peers subtract the row's logsumexp, rounded, from the logit. PyTorch
# does so in 16 bits too, where log-probabilities between 8 and 16 are 2^-4 apart in bfloat16 and 2^-7 in float16.
TOLERANCE = {"float32": 1e-4, "float64": 1e-11, "float16": 3e-2, "bfloat16": 0.2}

# Against zero a difference counts in units of the smallest normal number.
_SMALLEST_NORMAL = {"float32": 2.0**-126, "float64": 2.0**-1022, "float16": 2.0**-14, "bfloat16": 2.0**-126}

# Where a gradient is the difference of a probability and a target that may be equal.
_CANCELLING = ("soft_labels", "label_smoothing")


def smallest_share(case: Case) -> float:
    """Give what a gradient entry's difference is relative to at least: what the formula subtracts, where it cancels."""
    return 1 / (case.classes * np.prod(case.rows_shape)) if case.variant in _CANCELLING else 0.0


def relative_difference(found: NDArray[Any], expected: NDArray[Any], floor: float = 0.0) -> float:
    """Give the largest difference of an entry, relative to it or to `floor`; infinity where shapes differ, and for NaN.

    The dtypes may differ: PyTorch's loss of bfloat16 logits is bfloat16, ours is float32.
    """
    if found.shape != expected.shape:
        return float("inf")
    floor = max(floor, _SMALLEST_NORMAL[expected.dtype.name])
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    largest = float((np.abs(found - expected) / np.maximum(np.abs(expected), floor)).max())
    return largest if largest == largest else float("inf")


def as_numpy(array: Any) -> NDArray[Any]:
    """Return any contender's array as NumPy's, bfloat16 tensors too, which NumPy's own conversion refuses."""
    if str(getattr(array, "dtype", "")) == "torch.bfloat16":
        import ml_dtypes
        import torch

        return array.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(array)
