"""Who takes part, what each needs, and how it is made ready for a case, in its own process only."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import frameworks, ours, peers
from benchmarks.cases import Case
from benchmarks.operations import Operations


@dataclass(frozen=True)
class Contender:
    """One of those measured: its title, the packages it needs, how it is loaded, and the cases it takes.

    `load` is given the case, the number of threads, and the number of buffers to go through in turn.
    """

    title: str
    packages: tuple[str, ...]
    load: Callable[[Case, int, int], Operations]
    takes: Callable[[Case], bool] = lambda case: True

    @property
    def missing(self) -> list[str]:
        return [package for package in self.packages if importlib.util.find_spec(package) is None]


OURS = "softmaxloss"
CONTENDERS = {
    OURS: Contender("softmaxloss", ("softmaxloss",), ours.load),
    "pytorch": Contender("PyTorch", ("torch",), peers.load_pytorch),
    "jax": Contender("JAX", ("jax", "optax"), peers.load_jax),
    "scipy": Contender("SciPy", ("scipy",), peers.load_scipy, peers.plain),
    "numpy": Contender("NumPy", ("numpy",), peers.load_numpy, peers.plain),
}

# Those that train in a framework, with its own automatic differentiation: ours first, then what it takes the place of.
IN_TORCH = {
    "softmaxloss-torch": Contender("softmaxloss", ("softmaxloss", "torch"), frameworks.load_ours_in_torch),
    "pytorch-eager": Contender("PyTorch", ("torch",), peers.load_pytorch),
    "pytorch-compiled": Contender("torch.compile", ("torch",), frameworks.load_compiled_pytorch),
}
IN_JAX = {
    "softmaxloss-jax": Contender("softmaxloss", ("softmaxloss", "jax"), frameworks.load_ours_in_jax),
    "optax": Contender("optax", ("jax", "optax"), peers.load_jax),
}
EVERYONE = {**CONTENDERS, **IN_TORCH, **IN_JAX}


def available(names: list[str], everyone: dict[str, Any] = EVERYONE) -> tuple[list[str], dict[str, str]]:
    """Part the contenders into those that can run and those that cannot, with the reason."""
    missing = {name: everyone[name].missing for name in names}
    present = [name for name, packages in missing.items() if not packages]
    return present, {name: f"{' and '.join(packages)} not installed" for name, packages in missing.items() if packages}


def all_threads() -> int:
    return len(os.sched_getaffinity(0))
