"""Where a gradient may be written, and whether two tensors are the same elements."""

from typing import Any

import torch
from torch import Tensor

from softmaxloss.backends import memory
from softmaxloss.backends.torch.doors import is_plain
from softmaxloss.backends.torch.views import view


def check_out(out: Any, logits: Tensor, *others: Any) -> None:
    """Raise unless `out` may take the gradient: a tensor like the logits, and no input of the user's in the way."""
    if not isinstance(out, Tensor):
        raise TypeError(f"out is a {type(out).__name__}; expected a PyTorch tensor, as the logits are")
    dtype = logits.dtype if logits.dtype.is_floating_point else torch.get_default_dtype()
    if out.device != logits.device:
        raise ValueError(f"out is on device {out.device}, and the logits on {logits.device}; pass a tensor there")
    if out.shape != logits.shape:
        raise ValueError(f"out has shape {tuple(out.shape)}; expected the logits' {tuple(logits.shape)}")
    if out.dtype != dtype:
        raise TypeError(f"out has dtype {out.dtype}; the gradient of {logits.dtype} logits is {dtype}")
    if out.requires_grad and out.is_leaf:
        raise ValueError("out is a leaf that requires a gradient; pass out.detach()")
    tensors = [other for other in others if isinstance(other, Tensor)]
    if is_plain(out, logits, *tensors):
        array = view(out)
        memory.check_out(array, view(logits), array.dtype, *map(view, tensors))
        return
    if not same_memory(out, logits) and _share_storage(out, logits):
        raise ValueError("out overlaps the logits; pass the logits themselves (in place) or separate memory")
    if any(_share_storage(out, other) for other in tensors):
        raise ValueError("out overlaps the labels or weights, or logit_bias; pass separate memory")


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors of one shape are the same elements in the same places."""
    return a is b or (_share_storage(a, b) and a.storage_offset() == b.storage_offset() and a.stride() == b.stride())


def _share_storage(a: Tensor, b: Tensor) -> bool:
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)
