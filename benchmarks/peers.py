"""The peers: each mean loss and gradient as that library's users write it, from its own parts where it has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.cases import Case
from benchmarks.operations import Operation, Operations
from benchmarks.rotation import copies, in_turn


def load_pytorch(case: Case, threads: int, buffers: int) -> Operations:
    """PyTorch, eager; what `cross_entropy` has no option for is composed around it."""
    return in_torch(pytorch_mean_loss(case, case.data().options), case, threads, buffers)


def in_torch(mean_loss: Callable[[Any, Any], Any], case: Case, threads: int, buffers: int) -> Operations:
    """Return the mean loss, and its backward pass to the logits, of a function of tensors."""
    import torch

    torch.set_num_threads(threads)
    data = case.data()
    inputs = [
        (tensor(logits).requires_grad_(), tensor(labels))
        for logits, labels in zip(copies(data.logits, buffers), copies(data.labels, buffers), strict=True)
    ]
    next_input = in_turn(inputs)

    def loss() -> Any:
        logits, labels = next_input()
        with torch.no_grad():
            return mean_loss(logits, labels)

    def grad() -> Any:
        logits, labels = next_input()
        loss = mean_loss(logits, labels)
        loss.backward()
        gradient, logits.grad = logits.grad, None
        return loss.detach(), gradient

    return {"loss": Operation(loss), "grad": Operation(grad)}


def pytorch_mean_loss(case: Case, options: dict[str, Any]) -> Callable[[Any, Any], Any]:
    """Return the mean loss of logits and labels."""
    import torch

    softcap, gamma, z_loss = options.get("softcap"), options.get("focal_gamma"), options.get("z_loss")
    weight = tensor(options["class_weight"]) if "class_weight" in options else None
    smoothing = options.get("label_smoothing", 0.0)
    cross_entropy = torch.nn.functional.cross_entropy

    def mean_loss(logits: Any, labels: Any) -> Any:
        logits, labels = class_axis_second(case, logits, labels)
        if softcap:
            logits = softcap * torch.tanh(logits / softcap)
        if gamma:
            losses = cross_entropy(logits, labels, reduction="none")
            loss = ((1 - torch.exp(-losses)) ** gamma * losses).mean()
        else:
            loss = cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing)
        if z_loss:
            loss = loss + z_loss * torch.logsumexp(logits, 1).square().mean()
        return loss

    return mean_loss


def class_axis_second(case: Case, logits: Any, labels: Any) -> tuple[Any, Any]:
    """Return views of tensors with their classes where PyTorch expects them."""
    if case.axis == 1 or len(case.shape) == 2:
        return logits, labels

    def by_rows(array: Any) -> Any:
        return array.flatten(0, -2) if case.axis == -1 else array.movedim(case.axis, 1)

    soft, last = case.variant == "soft_labels", case.axis == -1
    return by_rows(logits), by_rows(labels) if soft else labels.flatten() if last else labels


def tensor(array: Any) -> Any:
    """Return a tensor that shares an array's memory."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def load_jax(case: Case, threads: int, buffers: int) -> Operations:
    """JAX with optax, jitted. It takes the threads that the process may run on, which is all of them."""
    import jax

    jax.config.update("jax_enable_x64", case.dtype == "float64")
    data = case.data()
    inputs = [
        (jax.device_put(logits), jax.device_put(labels))
        for logits, labels in zip(copies(data.logits, buffers), copies(data.labels, buffers), strict=True)
    ]
    next_input = in_turn(inputs)
    mean_loss = _jax_mean_loss(case, data.options)
    # Compiled ahead, so that no call that is measured compiles.
    loss = jax.jit(mean_loss).lower(*inputs[0]).compile()
    grad = jax.jit(jax.value_and_grad(mean_loss)).lower(*inputs[0]).compile()
    return {
        "loss": Operation(lambda: jax.block_until_ready(loss(*next_input()))),
        "grad": Operation(lambda: jax.block_until_ready(grad(*next_input()))),
    }


def _jax_mean_loss(case: Case, options: dict[str, Any]) -> Callable[[Any, Any], Any]:
    import jax
    import jax.numpy as jnp
    import optax

    softcap, gamma, z_loss = options.get("softcap"), options.get("focal_gamma"), options.get("z_loss")
    weight = jnp.asarray(options["class_weight"]) if "class_weight" in options else None
    smoothing, axis = options.get("label_smoothing", 0.0), case.axis

    def mean_loss(logits: Any, labels: Any) -> Any:
        if logits.dtype.itemsize == 2:
            # As models do: optax computes in the logits' dtype, which loses the loss's digits.
            logits = logits.astype(jnp.float32)
        if softcap:
            logits = softcap * jnp.tanh(logits / softcap)
        if case.variant == "soft_labels":
            losses = optax.softmax_cross_entropy(logits, labels, axis=axis)
        elif smoothing:
            one_hot = jax.nn.one_hot(labels, case.classes, dtype=logits.dtype, axis=axis)
            losses = optax.softmax_cross_entropy(logits, optax.smooth_labels(one_hot, smoothing), axis=axis)
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels, axis=axis)
        if gamma:
            losses = (1 - jnp.exp(-losses)) ** gamma * losses
        if weight is None:
            loss = losses.mean()
        else:
            weights = weight[labels]
            loss = (weights * losses).sum() / weights.sum()
        if z_loss:
            loss = loss + z_loss * (jax.nn.logsumexp(logits, axis=axis) ** 2).mean()
        return loss

    return mean_loss


def plain(case: Case) -> bool:
    """Whether SciPy and NumPy take part: what they would need for the rest is no longer them."""
    return case.dtype in ("float32", "float64") and not case.variant


def load_scipy(case: Case, threads: int, buffers: int) -> Operations:
    """SciPy's log_softmax, and the gradient from its exponentials."""
    from scipy.special import log_softmax

    data, axis = case.data(), case.axis
    labels = np.expand_dims(data.labels, axis)
    next_logits = in_turn(copies(data.logits, buffers))

    def loss() -> Any:
        return -np.take_along_axis(log_softmax(next_logits(), axis=axis), labels, axis).mean()

    def grad() -> Any:
        log_p = log_softmax(next_logits(), axis=axis)
        loss = -np.take_along_axis(log_p, labels, axis).mean()
        return loss, _mean_gradient(np.exp(log_p), labels, axis)

    return {"loss": Operation(loss), "grad": Operation(grad)}


def load_numpy(case: Case, threads: int, buffers: int) -> Operations:
    """NumPy alone: the textbook's formula, with the maximum subtracted."""
    data, axis = case.data(), case.axis
    labels = np.expand_dims(data.labels, axis)
    next_logits = in_turn(copies(data.logits, buffers))

    def exps_and_loss() -> Any:
        logits = next_logits()
        shifted = logits - logits.max(axis=axis, keepdims=True)
        exps = np.exp(shifted)
        sums = exps.sum(axis=axis, keepdims=True)
        return exps, sums, (np.log(sums) - np.take_along_axis(shifted, labels, axis)).mean()

    def grad() -> Any:
        exps, sums, loss = exps_and_loss()
        return loss, _mean_gradient(exps / sums, labels, axis)

    return {"loss": Operation(lambda: exps_and_loss()[2]), "grad": Operation(grad)}


def _mean_gradient(p: Any, labels: Any, axis: int) -> Any:
    np.put_along_axis(p, labels, np.take_along_axis(p, labels, axis) - 1, axis)
    p /= labels.size
    return p
