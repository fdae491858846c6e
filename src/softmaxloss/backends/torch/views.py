"""Tensors on the host as NumPy arrays of the same memory, and memory for new ones."""

from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from softmaxloss.backends.torch.spare import LARGE_BYTES, large_like

try:
    from ml_dtypes import bfloat16
except ImportError:  # then the kernels have no name for it, and PyTorch's operations serve
    bfloat16 = None

_KERNELS_TAKE = {torch.float32, torch.float64, torch.float16, *([] if bfloat16 is None else [torch.bfloat16])}


def kernels_take(dtype: torch.dtype) -> bool:
    """Tell whether there is a kernel for logits of this dtype."""
    return dtype in _KERNELS_TAKE


@overload
def view(tensor: Tensor) -> NDArray[Any]: ...
@overload
def view(tensor: None) -> None: ...
def view(tensor: Tensor | None) -> NDArray[Any] | None:
    """Return an array of the tensor's memory (a copy of numbers whose sign is only noted, which PyTorch has too)."""
    if tensor is None:
        return None
    tensor = tensor.detach().resolve_neg()
    if tensor.dtype == torch.bfloat16:
        if bfloat16 is None:
            return np.asarray(tensor.float().numpy())
        return np.asarray(tensor.view(torch.uint16).numpy().view(bfloat16))
    return np.asarray(tensor.numpy())


def new_like(tensor: Tensor) -> Tensor:
    """Return a new tensor of the same shape, dtype, device and order of axes, with nothing written yet."""
    if not tensor.is_cpu or tensor.nbytes < LARGE_BYTES:
        return torch.empty_like(tensor)
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return torch.from_numpy(large_like(tensor.view(torch.uint16).numpy())).view(torch.bfloat16)
    return torch.from_numpy(large_like(tensor.resolve_neg().numpy()))


def new_empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a new contiguous tensor, with nothing written yet."""
    return new_like(torch.empty((), dtype=dtype, device=device).expand(shape))
