"""Which way a call can go: where tensors are plain memory, and where something has to see every operation."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd import forward_ad

_transforms_are_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_is_tracing: Callable[[], bool] = torch._C._is_tracing
_is_compiling = torch.compiler.is_compiling
_is_included: Callable[[Any], bool] = torch._C._dispatch_tls_is_dispatch_key_included
# The vmap of torch.autograd itself, for is_grads_batched and the like; torch.func knows nothing of it.
_BATCHED_GRADIENTS = torch._C._parse_dispatch_key("VmapMode")
_PLAIN_DISPATCH = torch.Tensor.__torch_dispatch__


def nothing_watches() -> bool:
    """Tell whether nothing has to see the operations: no transform of torch.func, tracer, dual numbers or mode."""
    return not (
        _is_compiling()
        or _transforms_are_active()
        or forward_ad._current_level >= 0
        or _dispatch_modes()
        or _is_tracing()
        or _is_included(_BATCHED_GRADIENTS)
    )


def may_use_operators() -> bool:
    """Tell whether torch.compile is tracing, and nothing that would look inside an operator."""
    return (
        _is_compiling()
        and not torch.compiler.is_exporting()
        and not _transforms_are_active()
        and forward_ad._current_level < 0
    )


def is_plain(*tensors: Any) -> bool:
    """Tell whether the tensors (or None) are the host's memory, and nothing has to see what is done with them."""
    if not nothing_watches():
        return False
    return all(tensor is None or _is_memory(tensor) for tensor in tensors)


def _is_memory(tensor: torch.Tensor) -> bool:
    return (
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and type(tensor).__torch_dispatch__ is _PLAIN_DISPATCH
    )


def is_under_autocast(device: str) -> bool:
    """Tell whether torch.autocast is on for a kind of device."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Return a context in which operations are in the dtypes of what they are given."""
    return torch.autocast(device, enabled=False) if is_under_autocast(device) else nullcontext()
