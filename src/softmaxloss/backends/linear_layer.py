"""A linear layer and its input, as NumPy and SciPy hold them."""

import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softmaxloss.backends.layout import as_logits, kernel_dtype
from softmaxloss.options import as_array, is_real

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


class Layer(NamedTuple):
    """What makes the logits, as it was given.

    Parameters
    ----------
    hidden : ndarray of shape (..., features), or scipy.sparse CSR of shape (rows, features)
        The hidden states.
    weight : ndarray of shape (classes, features)
        The weight.
    bias : ndarray of shape (classes,), or None
        The bias.
    dtype : numpy.dtype
        What they are multiplied in: float64 where hidden or weight are float64 or integers, else float32.
    """

    hidden: Any
    weight: NDArray[Any]
    bias: NDArray[Any] | None
    dtype: np.dtype[Any]

    @property
    def is_sparse(self) -> bool:
        """Whether the hidden states are sparse."""
        return not isinstance(self.hidden, np.ndarray)


def layer_of(hidden: Any, weight: ArrayLike, bias: ArrayLike | None) -> Layer:
    """Return a layer, checked; `ValueError` or `TypeError` tell what is wrong."""
    x = _sparse_rows(hidden) if _is_sparse(hidden) else as_logits(hidden, "hidden")
    w = as_logits(weight, "weight")
    if w.ndim != 2 or not len(w):
        raise ValueError(f"weight has shape {w.shape}; expected (classes, features), with one class or more")
    if x.shape[-1] != w.shape[1]:
        raise ValueError(
            f"hidden has shape {tuple(x.shape)} and weight {w.shape}; the last axis of both is the features', of one "
            "length (pass a weight of shape (features, classes) as weight.T)"
        )
    b = None if bias is None else as_array("bias", bias)
    if b is not None and not is_real(b.dtype):
        raise TypeError(f"bias has dtype {b.dtype}; expected real numbers")
    if b is not None and b.shape != (len(w),):
        raise ValueError(f"bias has shape {b.shape}; expected {(len(w),)}: one number a class")
    wide = _FLOAT64 in (kernel_dtype(np.dtype(x.dtype)), kernel_dtype(w.dtype))
    return Layer(x, w, b, _FLOAT64 if wide else _FLOAT32)


def _is_sparse(hidden: Any) -> bool:
    module = sys.modules.get("scipy.sparse")  # not imported: where nobody has, there are none
    return module is not None and bool(module.issparse(hidden))


def _sparse_rows(hidden: Any) -> Any:
    if hidden.ndim != 2 or not is_real(hidden.dtype):
        raise TypeError(
            f"hidden is sparse, of shape {hidden.shape} and dtype {hidden.dtype}; expected two axes and real numbers"
        )
    return hidden.tocsr()
