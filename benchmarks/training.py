"""Trains one small language model with PyTorch's loss, with ours, and with ours in place: side by side, from one seed.

The text is the language reference that comes with Python (`pydoc_data.topics`), by characters and by words. The model
is Bengio's: the embeddings of the tokens before, a hidden layer, and the logits of the next. Each training has a
process of its own; all take a few steps in turn, so that they meet the same load.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import re
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import all_threads
from benchmarks.dense import DisagreementError
from benchmarks.machine import busy
from benchmarks.tables import framed, markdown_table, warnings_and_conditions
from benchmarks.worker import status_bytes

SEED = 20240229

# Who trains: the title, the module that has the loss, and its options.
LOSSES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "pytorch": ("PyTorch", "torch.nn.functional", {}),
    "softmaxloss": ("softmaxloss", "softmaxloss.torch", {}),
    "in place": ("softmaxloss, in place", "softmaxloss.torch", {"inplace": True}),
}

# The same steps in another order of rounding: what a step's loss may differ by, relative to it. A wrong formula is off
# by far more; a difference at one step is carried to those after it, and grows.
TOLERANCE = {"float32": 1e-3, "float64": 1e-9}


@dataclass(frozen=True)
class Setting:
    """What is trained and for how long: tokens are characters or words."""

    tokens: str
    rows: int
    steps: int
    context: int = 16
    width: int = 64
    hidden: int = 128
    rate: float = 0.5
    dtype: str = "float32"


FULL = [Setting("characters", rows=8192, steps=200), Setting("words", rows=2048, steps=200, rate=0.1)]
QUICK = [Setting("characters", rows=128, steps=10)]
STEPS_A_TURN = 5


@cache
def corpus(tokens: str) -> tuple[Any, int]:
    """Return the language reference as numbers, some 465 thousand characters or 180 thousand words, and of how many."""
    import torch

    topics = importlib.import_module("pydoc_data.topics").topics
    text = "\n".join(topics[name] for name in sorted(topics))
    found = re.findall(r"." if tokens == "characters" else r"\w+|[^\w\s]|\s+", text, re.DOTALL)
    vocabulary = {token: number for number, token in enumerate(sorted(set(found)))}
    return torch.tensor([vocabulary[token] for token in found]), len(vocabulary)


class Training:
    """A model, its data and its optimiser, which take steps with one of the losses."""

    def __init__(self, setting: Setting, loss: str) -> None:
        import torch

        torch.manual_seed(SEED)
        self.tokens, self.classes = corpus(setting.tokens)
        self.model = torch.nn.Sequential(
            torch.nn.Embedding(self.classes, setting.width),
            torch.nn.Flatten(),
            torch.nn.Linear(setting.context * setting.width, setting.hidden),
            torch.nn.Tanh(),
            torch.nn.Linear(setting.hidden, self.classes),
        ).to(getattr(torch, setting.dtype))
        self._optimiser = torch.optim.SGD(self.model.parameters(), lr=setting.rate, momentum=0.9)
        self._generator = torch.Generator().manual_seed(SEED)
        self._setting = setting
        _, module, self._options = LOSSES[loss]
        self._cross_entropy = importlib.import_module(module).cross_entropy

    def step(self) -> float:
        """Take a step; returns the loss before it."""
        loss = self.forward(self._setting.rows)
        loss.backward()
        self._optimiser.step()
        self._optimiser.zero_grad()
        return loss.item()

    def forward(self, rows: int) -> Any:
        import torch

        context = self._setting.context
        starts = torch.randint(len(self.tokens) - context, (rows,), generator=self._generator)
        windows = self.tokens[starts[:, None] + torch.arange(context + 1)]
        return self._cross_entropy(self.model(windows[:, :-1]), windows[:, -1], **self._options)


def curve(setting: Setting, loss: str) -> list[float]:
    """Return the loss of each step of a training in this process."""
    training = Training(setting, loss)
    return [training.step() for _ in range(setting.steps)]


def measure(settings: list[Setting]) -> list[dict[str, Any]]:
    """Train for every setting; each result is a dictionary that JSON can hold."""
    return [_measure_setting(setting) for setting in settings]


def _measure_setting(setting: Setting) -> dict[str, Any]:
    print(f"{setting.tokens} ...", file=sys.stderr)
    spawn = multiprocessing.get_context("spawn")
    pools = {name: ProcessPoolExecutor(1, mp_context=spawn) for name in LOSSES}
    busy_before = busy()
    try:
        starts = {name: pool.submit(_start, setting, name) for name, pool in pools.items()}
        classes = {start.result() for start in starts.values()}
        curves: dict[str, list[float]] = {name: [] for name in LOSSES}
        seconds: dict[str, list[float]] = {name: [] for name in LOSSES}
        while len(curves["pytorch"]) < setting.steps:
            for name, pool in pools.items():
                losses, times = pool.submit(_steps, STEPS_A_TURN).result()
                curves[name] += losses
                seconds[name] += times
        memory = {name: pool.submit(_peak).result() for name, pool in pools.items()}
    finally:
        for pool in pools.values():
            pool.shutdown(cancel_futures=True)
    return {
        "tokens": setting.tokens,
        "rows": setting.rows,
        "classes": classes.pop(),
        "steps": len(curves["pytorch"]),
        "busy": max(busy_before, busy()),
        "curves": curves,
        "difference": _largest_difference(setting, curves),
        "seconds_a_step": {name: statistics.median(times) for name, times in seconds.items()},
        "growth_bytes": memory,
    }


def _largest_difference(setting: Setting, curves: dict[str, list[float]]) -> float:
    """Return the largest relative difference between curves, or raise where it is more than rounding."""
    losses = np.array(list(curves.values()))
    largest = float((np.ptp(losses, axis=0) / losses.min(axis=0)).max())
    if not largest <= TOLERANCE[setting.dtype]:
        raise DisagreementError(f"{setting.tokens}: losses of one step differ by {largest:.2g} of it: {curves}")
    return largest


# In a training's own process: it, and the resident memory before its first step.
_own: dict[str, Any] = {}


def _start(setting: Setting, loss: str) -> int:
    import torch

    torch.set_num_threads(all_threads())
    training = Training(setting, loss)
    # A few rows first: this imports, and starts threads. Their gradients are dropped.
    torch.autograd.grad(training.forward(2), list(training.model.parameters()))
    gc.collect()
    # Writing 5 sets the peak (VmHWM) back to what is resident now: proc(5), /proc/pid/clear_refs.
    Path("/proc/self/clear_refs").write_text("5")
    _own.update(training=training, before=status_bytes("VmRSS"))
    return training.classes


def _steps(count: int) -> tuple[list[float], list[float]]:
    losses, times = [], []
    for _ in range(count):
        start = time.perf_counter()
        losses.append(_own["training"].step())
        times.append(time.perf_counter() - start)
    return losses, times


def _peak() -> int:
    return status_bytes("VmHWM") - _own["before"]


def table(results: dict[str, Any]) -> str:
    """Write the trainings side by side."""
    rows = []
    for run in results["runs"]:
        of_pytorch = run["seconds_a_step"]["pytorch"]
        for name, (title, _, _) in LOSSES.items():
            curve, seconds = run["curves"][name], run["seconds_a_step"][name]
            rows.append(
                [
                    f"{run['tokens']}, {run['rows']} x {run['classes']}",
                    title,
                    f"{curve[0]:.5f}",
                    f"{curve[-1]:.5f}",
                    f"{1e3 * seconds:.3g} ms",
                    f"{of_pytorch / seconds:.2f}",
                    f"{run['growth_bytes'][name] / 1e6:.0f} MB",
                ]
            )
    header = ["tokens, logits", "loss function", "loss at first", "at last", "a step", "times faster", "peak memory"]
    agreement = "; ".join(
        f"{run['tokens']}: {run['difference']:.1e} in {run['steps']} steps" for run in results["runs"]
    )
    lead = (
        "One language model, trained from one seed with each loss function: the loss of the first step and the last, "
        "the median time of a step (the whole of it: model, loss, backward pass and update), and the memory that "
        "training takes at its peak beyond the model and the text."
    )
    difference = f"Largest relative difference between the losses of one step, by order of rounding: {agreement}."
    return framed(
        "training", [*warnings_and_conditions(results, results["runs"]), lead, markdown_table(header, rows), difference]
    )
