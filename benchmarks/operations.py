"""What is measured of a contender: calls, each with its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# What an operation is called, in the results and here.
OPERATIONS = {
    "copy": "the logits copied into the buffer of out=, by torch with all threads: memcpy, the yardstick",
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
