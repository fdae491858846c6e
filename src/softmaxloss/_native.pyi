"""The compiled module: see native/module.cpp. It trusts its callers; the modules beside it check."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

compiler: str

def loss(
    logits: NDArray[Any],
    labels: NDArray[np.int64] | None,
    distribution: NDArray[Any] | None,
    row_loss: NDArray[np.float64],
    gradient: NDArray[Any] | None,
    gradient_scale: float,
    weights: NDArray[np.float64] | None,
    ignore_index: int,
    spike: NDArray[np.float64] | None,
    dense: NDArray[Any] | None,
    dense_sum: float,
    scale: NDArray[Any] | None,
    shift: NDArray[Any] | None,
    tolerance: float,
) -> tuple[float, tuple[int, float, float] | None]: ...
def softmax(
    logits: NDArray[Any],
    output: NDArray[Any] | None,
    logsumexp: NDArray[np.float64] | None,
    temperature: float,
    logarithm: bool,
) -> None: ...
def bad_distribution(distribution: NDArray[Any], tolerance: float) -> tuple[int, float, float] | None: ...
def survey_labels(
    labels: NDArray[np.int64],
    classes: int,
    ignore_index: int,
    weights: NDArray[np.float64] | None,
    class_weight: NDArray[np.float64] | None,
) -> tuple[int, int, float]: ...
def get_num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def supported_instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def set_instruction_set(name: str) -> None: ...
