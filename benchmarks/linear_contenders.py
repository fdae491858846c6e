"""Who takes part in the benchmark of linear layers: a case's data, and what each makes ready of it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.contenders import all_threads

SEED = 20240229
FILTER = 2.0**-12

Call = Callable[[], Any]


@dataclass(frozen=True)
class LinearCase:
    """Hidden states (rows, features) and a weight (classes, features), in float32."""

    rows: int
    features: int
    classes: int
    peaked: bool = False

    @classmethod
    def parse(cls, text: str) -> LinearCase:
        """Return the case that is written so: rows x features x classes."""
        try:
            rows, features, classes = (int(part) for part in text.split("x"))
        except ValueError:
            raise ValueError(
                f"{text!r} is no case: expected rows x features x classes, such as 1024x768x32000"
            ) from None
        return cls(rows, features, classes)

    @property
    def title(self) -> str:
        return f"{self.rows} x {self.features} x {self.classes}"

    @property
    def logits_bytes(self) -> int:
        return 4 * self.rows * self.classes

    @property
    def gradient_bytes(self) -> int:
        return 4 * self.features * (self.rows + self.classes)

    def data(self) -> tuple[Any, Any, Any]:
        """Return hidden states, weight and labels."""
        rng = np.random.default_rng(SEED)
        hidden = rng.standard_normal((self.rows, self.features), dtype=np.float32)
        weight = rng.standard_normal((self.classes, self.features), dtype=np.float32)
        weight /= np.float32(np.sqrt(self.features))
        if not self.peaked:
            return hidden, weight, rng.integers(0, self.classes, self.rows)
        share = 1.0 / np.arange(1, self.classes + 1)
        labels = rng.choice(self.classes, self.rows, p=share / share.sum())
        weight[:, 0] = np.log(share) / 3.0
        hidden += 12.0 * weight[labels]
        hidden[:, 0] = 3.0
        return hidden, weight, labels


CASES = [
    LinearCase(1024, 768, 32000),
    LinearCase(2048, 384, 30522),
    LinearCase(4096, 256, 50257),
    LinearCase(512, 1024, 128256),
]
LARGE = LinearCase(65536, 64, 131072)  # 34 GB of logits: for the memory alone
TINY = LinearCase(64, 8, 16)


def load_numpy(case: LinearCase) -> dict[str, Call]:
    """Load our functions of NumPy arrays, and NumPy's products."""
    import softmaxloss as sl

    hidden, weight, labels = case.data()
    logits = _logits_if_they_fit(case)

    def loss_and_gradients(gradient_filter: float) -> Any:
        loss, grad = sl.linear_cross_entropy_and_grad(hidden, weight, labels, gradient_filter=gradient_filter)
        return loss, grad.hidden, grad.weight

    return {
        "product": lambda: np.matmul(hidden, weight.T, out=logits),
        "loss": lambda: sl.linear_cross_entropy(hidden, weight, labels),
        "products": lambda: (np.matmul(hidden, weight.T, out=logits), logits @ weight, logits.T @ hidden),
        "grad": lambda: loss_and_gradients(0.0),
        "filtered": lambda: loss_and_gradients(FILTER),
    }


def load_torch(case: LinearCase) -> dict[str, Call]:
    """Load our functions of tensors, and PyTorch's products."""
    import softmaxloss as sl

    def mean_loss(hidden: Any, weight: Any, labels: Any, **options: Any) -> Any:
        return sl.linear_cross_entropy(hidden, weight, labels, **options)

    return _in_torch(case, mean_loss, FILTER)


def load_plain(case: LinearCase) -> dict[str, Call]:
    """Load PyTorch's layer and loss, one after the other."""
    return _in_torch(case, _plain)


def load_compiled(case: LinearCase) -> dict[str, Call]:
    """Load the same, compiled before anything is measured."""
    import torch

    torch._dynamo.reset()
    operations = _in_torch(case, torch.compile(_plain, fullgraph=True, dynamic=False))
    for name in ("loss", "grad"):
        operations[name]()
    return operations


def load_chunked(case: LinearCase) -> dict[str, Call]:
    """Load PyTorch's function for both, in chunks of its own choice."""
    import torch

    options = torch.nn.LinearCrossEntropyOptions()

    def mean_loss(hidden: Any, weight: Any, labels: Any) -> Any:
        return torch.nn.functional.linear_cross_entropy(hidden, weight, labels, options=options)

    return _in_torch(case, mean_loss)


def load_jax(case: LinearCase) -> dict[str, Call]:
    """Load our functions of JAX arrays, compiled, and JAX's products."""
    import jax

    import softmaxloss as sl

    hidden, weight, labels = (jax.block_until_ready(jax.device_put(array)) for array in case.data())
    made: list[Any] = []

    def mean_loss(h: Any, w: Any, gradient_filter: float = 0.0) -> Any:
        return sl.linear_cross_entropy(h, w, labels, gradient_filter=gradient_filter)

    def compiled(function: Any) -> Any:
        return jax.jit(function).lower(hidden, weight).compile()

    def loss_and_gradients(gradient_filter: float) -> Call:
        both = compiled(jax.value_and_grad(lambda h, w: mean_loss(h, w, gradient_filter), argnums=(0, 1)))

        def call() -> Any:
            loss, gradients = jax.block_until_ready(both(hidden, weight))
            return loss, *gradients

        return call

    loss = compiled(mean_loss)
    first, second, third = (
        jax.jit(product) for product in (lambda h, w: h @ w.T, lambda z, w: z @ w, lambda z, h: z.T @ h)
    )

    def products() -> Any:
        if not made:
            made.append(first(hidden, weight))
        logits = made[0]
        return jax.block_until_ready((first(hidden, weight), second(logits, weight), third(logits, hidden)))

    return {
        "product": lambda: jax.block_until_ready(first(hidden, weight)),
        "loss": lambda: jax.block_until_ready(loss(hidden, weight)),
        "products": products,
        "grad": loss_and_gradients(0.0),
        "filtered": loss_and_gradients(FILTER),
    }


def _plain(hidden: Any, weight: Any, labels: Any) -> Any:
    import torch

    return torch.nn.functional.cross_entropy(torch.nn.functional.linear(hidden, weight), labels)


def _in_torch(case: LinearCase, mean_loss: Callable[..., Any], gradient_filter: float | None = None) -> dict[str, Call]:
    import torch

    torch.set_num_threads(all_threads())
    hidden, weight, labels = (torch.from_numpy(array) for array in case.data())
    logits = torch.from_numpy(_logits_if_they_fit(case))
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]

    def loss() -> Any:
        with torch.no_grad():
            return mean_loss(hidden, weight, labels)

    def loss_and_gradients(**options: float) -> Any:
        found = mean_loss(*leaves, labels, **options)
        return found.detach(), *torch.autograd.grad(found, leaves)

    operations = {
        "product": lambda: torch.mm(hidden, weight.T, out=logits),
        "loss": loss,
        "products": lambda: (torch.mm(hidden, weight.T, out=logits), logits @ weight, logits.T @ hidden),
        "grad": loss_and_gradients,
    }
    if gradient_filter is not None:
        operations["filtered"] = lambda: loss_and_gradients(gradient_filter=gradient_filter)
    return operations


def _logits_if_they_fit(case: LinearCase) -> Any:
    """Return memory for all logits, of which nothing is taken before it is written."""
    return np.empty((case.rows, case.classes) if holds_logits(case) else (0, 0), np.float32)


def holds_logits(case: LinearCase) -> bool:
    """Tell whether there is memory for the logits, their gradient and what else there is."""
    return 6 * case.logits_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True)
class LinearContender:
    """One of those measured: its title, the packages it needs, how it is loaded, and whether it holds all logits."""

    title: str
    packages: tuple[str, ...]
    load: Callable[[LinearCase], dict[str, Call]]
    materialises: bool = False

    @property
    def missing(self) -> list[str]:
        return [package for package in self.packages if importlib.util.find_spec(package) is None]

    def takes(self, case: LinearCase) -> bool:
        return not self.materialises or holds_logits(case)


LINEAR = {
    "numpy": LinearContender("softmaxloss, NumPy", ("softmaxloss",), load_numpy),
    "torch": LinearContender("softmaxloss, PyTorch", ("softmaxloss", "torch"), load_torch),
    "jax": LinearContender("softmaxloss, JAX", ("softmaxloss", "jax"), load_jax),
    "pytorch-plain": LinearContender("PyTorch", ("torch",), load_plain, materialises=True),
    "pytorch-chunked": LinearContender("PyTorch, in chunks", ("torch",), load_chunked),
    "pytorch-compiled": LinearContender("torch.compile", ("torch",), load_compiled, materialises=True),
}
OURS = ("numpy", "torch", "jax")
