"""Who takes part: each contender makes operations of a case, and is imported in its own process only."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.cases import Case

# What an operation is called, in the results and here.
OPERATIONS = {
    "copy": "the logits copied into a warm buffer",
    "loss": "the mean loss",
    "grad": "the mean loss and its gradient; softmaxloss writes it into out=",
    "grad_in_place": "the same, over the logits",
    "grad_new": "the same, into a new array",
}


@dataclass(frozen=True)
class Operation:
    """A call to measure, which returns the loss or (loss, gradient), and what to do before it, unmeasured."""

    run: Callable[[], Any]
    before: Callable[[], None] = lambda: None


Operations = dict[str, Operation]


def load_memcpy(case: Case, threads: int) -> Operations:
    import torch

    torch.set_num_threads(threads)
    logits = torch.from_numpy(case.data()[0])
    buffer = torch.zeros_like(logits)
    return {"copy": Operation(lambda: buffer.copy_(logits))}


def load_softmaxloss(case: Case, threads: int) -> Operations:
    import softmaxloss as sl

    sl.set_num_threads(threads)
    logits, labels = case.data()
    out = np.zeros_like(logits) + 1  # written, so that its pages are there
    in_place = logits.copy()
    grad = sl.softmax_cross_entropy_and_grad
    return {
        "loss": Operation(lambda: sl.softmax_cross_entropy(logits, labels)),
        "grad": Operation(lambda: grad(logits, labels, out=out)),
        "grad_in_place": Operation(
            lambda: grad(in_place, labels, out=in_place), before=lambda: np.copyto(in_place, logits)
        ),
        "grad_new": Operation(lambda: grad(logits, labels)),
    }


def load_pytorch(case: Case, threads: int) -> Operations:
    import torch

    torch.set_num_threads(threads)
    logits, labels = map(torch.from_numpy, case.data())
    leaf = logits.detach().requires_grad_()

    def grad() -> Any:
        loss = torch.nn.functional.cross_entropy(leaf, labels)
        loss.backward()
        return loss.detach(), leaf.grad

    def forget() -> None:
        leaf.grad = None

    return {
        "loss": Operation(lambda: torch.nn.functional.cross_entropy(logits, labels)),
        "grad": Operation(grad, before=forget),
    }


def load_jax(case: Case, threads: int) -> Operations:
    # JAX takes the threads that the process may run on, which is all of them.
    import jax
    import optax

    jax.config.update("jax_enable_x64", case.dtype == "float64")
    logits, labels = map(jax.device_put, case.data())

    def mean_loss(logits: Any, labels: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    # Compiled ahead, so that no call that is measured compiles.
    loss = jax.jit(mean_loss).lower(logits, labels).compile()
    grad = jax.jit(jax.value_and_grad(mean_loss)).lower(logits, labels).compile()
    return {
        "loss": Operation(lambda: jax.block_until_ready(loss(logits, labels))),
        "grad": Operation(lambda: jax.block_until_ready(grad(logits, labels))),
    }


def load_scipy(case: Case, threads: int) -> Operations:
    from scipy.special import log_softmax

    logits, labels = case.data()
    rows = np.arange(case.rows)

    def grad() -> Any:
        log_p = log_softmax(logits, axis=1)
        loss = -log_p[rows, labels].mean()
        gradient = np.exp(log_p)
        gradient[rows, labels] -= 1
        gradient /= case.rows
        return loss, gradient

    return {
        "loss": Operation(lambda: -log_softmax(logits, axis=1)[rows, labels].mean()),
        "grad": Operation(grad),
    }


def load_numpy(case: Case, threads: int) -> Operations:
    logits, labels = case.data()
    rows = np.arange(case.rows)

    def exps_and_loss() -> Any:
        shifted = logits - logits.max(axis=1, keepdims=True)
        exps = np.exp(shifted)
        sums = exps.sum(axis=1, keepdims=True)
        return exps, sums, (np.log(sums[:, 0]) - shifted[rows, labels]).mean()

    def grad() -> Any:
        exps, sums, loss = exps_and_loss()
        gradient = exps / sums
        gradient[rows, labels] -= 1
        gradient /= case.rows
        return loss, gradient

    return {"loss": Operation(lambda: exps_and_loss()[2]), "grad": Operation(grad)}


@dataclass(frozen=True)
class Contender:
    """One of those measured: its title, the packages it needs, and how it is made ready for a case."""

    title: str
    packages: tuple[str, ...]
    load: Callable[[Case, int], Operations]

    @property
    def missing(self) -> list[str]:
        return [package for package in self.packages if importlib.util.find_spec(package) is None]


OURS, YARDSTICK = "softmaxloss", "memcpy"
CONTENDERS = {
    YARDSTICK: Contender("memcpy", ("torch",), load_memcpy),
    OURS: Contender("softmaxloss", ("softmaxloss",), load_softmaxloss),
    "pytorch": Contender("PyTorch", ("torch",), load_pytorch),
    "jax": Contender("JAX", ("jax", "optax"), load_jax),
    "scipy": Contender("SciPy", ("scipy",), load_scipy),
    "numpy": Contender("NumPy", ("numpy",), load_numpy),
}


def available(names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Part the contenders into those that can run and those that cannot, with the reason."""
    missing = {name: CONTENDERS[name].missing for name in names}
    present = [name for name, packages in missing.items() if not packages]
    return present, {name: f"{' and '.join(packages)} not installed" for name, packages in missing.items() if packages}


def all_threads() -> int:
    return len(os.sched_getaffinity(0))
