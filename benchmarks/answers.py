"""Each contender's losses, row by row, and the gradient of their sum, as its users write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The logits, (rows, classes), and index labels in; the rows' losses and the gradient, of the logits' dtype, out.
Answer = Callable[[NDArray[np.floating], NDArray[np.int64]], tuple[Any, Any]]


def softmaxloss(logits: Any, labels: Any) -> tuple[Any, Any]:
    import softmaxloss as sl

    return sl.softmax_cross_entropy_and_grad(logits, labels, reduction="none")


def pytorch(logits: Any, labels: Any) -> tuple[Any, Any]:
    import torch

    leaf = torch.from_numpy(logits).requires_grad_()
    losses = torch.nn.functional.cross_entropy(leaf, torch.from_numpy(labels), reduction="none")
    losses.sum().backward()
    return losses.detach().numpy(), leaf.grad.numpy()


def jax(logits: Any, labels: Any) -> tuple[Any, Any]:
    import jax
    import optax

    jax.config.update("jax_enable_x64", logits.dtype == np.float64)

    def losses(logits: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    gradient = jax.jit(jax.grad(lambda logits: losses(logits).sum()))
    return np.asarray(jax.jit(losses)(logits)), np.asarray(gradient(logits))


def scipy(logits: Any, labels: Any) -> tuple[Any, Any]:
    from scipy.special import log_softmax, softmax

    rows = np.arange(len(logits))
    gradient = softmax(logits, axis=1)
    gradient[rows, labels] -= 1
    return -log_softmax(logits, axis=1)[rows, labels], gradient


ANSWERS: dict[str, Answer] = {"softmaxloss": softmaxloss, "pytorch": pytorch, "jax": jax, "scipy": scipy}
