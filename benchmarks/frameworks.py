"""The loss and its backward pass in PyTorch and JAX: with our drop-ins, and with what these take the place of."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from benchmarks.cases import Case
from benchmarks.operations import Operation, Operations
from benchmarks.peers import class_axis_second, in_torch, pytorch_mean_loss, tensor
from benchmarks.rotation import copies, in_turn

# A mean loss of logits and labels, as tensors.
MeanLoss = Callable[..., Any]


def load_ours_in_torch(case: Case, threads: int, buffers: int) -> Operations:
    """Load softmaxloss.torch, with its gradient in a new tensor, and over the logits."""
    import softmaxloss as sl
    import softmaxloss.torch as slt

    sl.set_num_threads(threads)
    options = dict(case.data().options)
    if "class_weight" in options:
        options["weight"] = tensor(options.pop("class_weight"))

    def mean_loss(logits: Any, labels: Any, **more: Any) -> Any:
        return slt.cross_entropy(*class_axis_second(case, logits, labels), **options, **more)

    operations = in_torch(mean_loss, case, threads, buffers)
    operations["grad_in_place"] = _in_place(mean_loss, case, buffers)
    return operations


def load_compiled_pytorch(case: Case, threads: int, buffers: int) -> Operations:
    """Load PyTorch's own function, compiled for this case before anything is measured."""
    import torch

    torch._dynamo.reset()
    mean_loss = pytorch_mean_loss(case, case.data().options)
    operations = in_torch(torch.compile(mean_loss, fullgraph=True, dynamic=False), case, threads, buffers)
    for one in operations.values():
        one.run()
    return operations


def _in_place(mean_loss: MeanLoss, case: Case, buffers: int) -> Operation:
    import torch

    data = case.data()
    source, labels = tensor(data.logits), tensor(data.labels)
    # As a model's last layer gives them: the result of an operation, which is not differentiated further here.
    layers = deque(source.clone().requires_grad_() * 1 for _ in range(buffers))

    def grad_in_place() -> Any:
        logits = layers[0]
        loss = mean_loss(logits, labels, inplace=True)
        (gradient,) = torch.autograd.grad(loss, logits)
        return loss.detach(), gradient

    def restore() -> None:
        # What was written over last goes to the end of the line, so that it has left the caches when it is used.
        with torch.no_grad():
            layers[0].copy_(source)
        layers.rotate(-1)

    return Operation(grad_in_place, before=restore)


def load_ours_in_jax(case: Case, threads: int, buffers: int) -> Operations:
    """Load softmaxloss under jit, with JAX's own gradient of it."""
    import jax

    import softmaxloss as sl

    sl.set_num_threads(threads)
    jax.config.update("jax_enable_x64", case.dtype == "float64")
    data = case.data()
    inputs = [
        (jax.device_put(logits), jax.device_put(labels))
        for logits, labels in zip(copies(data.logits, buffers), copies(data.labels, buffers), strict=True)
    ]
    next_input = in_turn(inputs)

    def mean_loss(logits: Any, labels: Any) -> Any:
        return sl.softmax_cross_entropy(logits, labels, axis=case.axis, **data.options)

    # Compiled ahead, so that no call that is measured compiles.
    loss = jax.jit(mean_loss).lower(*inputs[0]).compile()
    grad = jax.jit(jax.value_and_grad(mean_loss)).lower(*inputs[0]).compile()
    return {
        "loss": Operation(lambda: jax.block_until_ready(loss(*next_input()))),
        "grad": Operation(lambda: jax.block_until_ready(grad(*next_input()))),
    }
