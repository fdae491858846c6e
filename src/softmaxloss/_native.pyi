"""The compiled module: see native/module.cpp. It trusts its callers; the modules beside it check.

Arrays of `storage` 0 are float32, 1 float64, 2 float16 and 3 bfloat16, the last two as the uint16 of the same bits: in
native byte order, aligned, with any strides that are multiples of the item, and the class axis last. What goes with
them is of the dtype computed in, float64 for float64 and else float32.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

compiler: str
block_unit: int

class LossTerms:
    """What the loss and its Hessian product have in common: see LossTerms in native/arguments.hpp."""

    def __init__(
        self,
        labels: NDArray[np.int64] | None,
        distribution: NDArray[Any] | None,
        gradient_scale: float,
        weights: NDArray[np.float64] | None,
        ignore_index: int,
        spike: NDArray[np.float64] | None,
        dense: NDArray[Any] | None,
        dense_sum: float,
        scale: NDArray[Any] | None,
        shift: NDArray[Any] | None,
        tolerance: float,
        temperature: float,
        softcap: float,
        bias: NDArray[np.float64] | None,
        z_loss: float,
        focal_gamma: float,
        poly_epsilon: float,
    ) -> None: ...

def loss(
    logits: NDArray[Any],
    storage: int,
    terms: LossTerms,
    row_loss: NDArray[np.float64],
    gradient: NDArray[Any] | None,
) -> tuple[float, tuple[int, float, float] | None]: ...
def hessian_vector_product(
    logits: NDArray[Any],
    storage: int,
    terms: LossTerms,
    vector: NDArray[Any],
    product: NDArray[Any],
) -> tuple[int, float, float] | None: ...
def row_statistics(
    logits: NDArray[Any],
    storage: int,
    labels: NDArray[np.int64] | None,
    temperature: float,
    softcap: float,
    bias: NDArray[np.float64] | None,
    loss: NDArray[np.float64] | None,
    logsumexp: NDArray[np.float64],
    prediction: NDArray[np.int64],
    rank: NDArray[np.int64] | None,
) -> None: ...
def softmax(
    logits: NDArray[Any],
    storage: int,
    output: NDArray[Any] | None,
    logsumexp: NDArray[np.float64] | None,
    temperature: float,
    logarithm: bool,
) -> None: ...
def quick_loss(
    logits: NDArray[Any], labels: NDArray[Any], gradient: NDArray[Any] | None, mean: bool
) -> float | None: ...
def quick_loss_at(
    logits: int,
    labels: int,
    gradient: int,
    loss: int,
    rows: int,
    classes: int,
    is_double: bool,
    mean: bool,
) -> bool: ...
def bad_distribution(distribution: NDArray[Any], tolerance: float) -> tuple[int, float, float] | None: ...
def class_blocks(
    features: NDArray[Any],
    curvatures: NDArray[Any],
    weights: NDArray[Any],
    least: float,
    mean: NDArray[Any],
    scale: NDArray[Any],
    intercept_scale: float,
    of_all: NDArray[Any],
    penalties: NDArray[Any],
    factors: NDArray[Any],
) -> None: ...
def solve_blocks(factors: NDArray[Any], vectors: NDArray[Any]) -> None: ...
def sparse_product(
    starts: NDArray[Any],
    columns: NDArray[Any],
    values: NDArray[Any],
    dense: NDArray[Any],
    out: NDArray[Any],
    less_column: NDArray[Any] | None = None,
    less_row: NDArray[Any] | None = None,
) -> None: ...
def add_transposed_product(
    starts: NDArray[Any], columns: NDArray[Any], values: NDArray[Any], dense: NDArray[Any], out: NDArray[Any]
) -> None: ...
def add_distances(
    starts: NDArray[Any],
    columns: NDArray[Any],
    values: NDArray[Any],
    weights: NDArray[np.float64],
    origin: NDArray[np.float64],
    power: int,
    sums: NDArray[np.float64],
) -> None: ...
def largest_derivative(
    centred: NDArray[Any], scale: NDArray[Any], mean: NDArray[Any], by_intercept: NDArray[Any]
) -> float: ...
def dots(vectors: list[NDArray[np.float64]], vector: NDArray[np.float64], out: NDArray[np.float64]) -> None: ...
def add_multiples(
    vectors: list[NDArray[np.float64]], factors: NDArray[np.float64], to: NDArray[np.float64]
) -> None: ...
def add_columns(matrix: NDArray[Any], sums: NDArray[np.float64]) -> None: ...
def survey_labels(
    labels: NDArray[np.int64],
    classes: int,
    ignore_index: int,
    weights: NDArray[np.float64] | None,
    class_weight: NDArray[np.float64] | None,
) -> tuple[int, int, float]: ...
def judge_rows(
    scores: NDArray[Any],
    labels: NDArray[np.int64],
    kind: int,
    sums: NDArray[np.float64],
    least: NDArray[np.float64],
    prediction: NDArray[np.int64] | None,
    rank: NDArray[np.int64] | None,
    confidence: NDArray[np.float64] | None,
    brier: NDArray[np.float64] | None,
) -> None: ...
def cells_of_keys(keys: NDArray[np.uint64], start: int, bits: int, cells: NDArray[np.int64]) -> None: ...
def add_losses(
    labels: NDArray[np.int64],
    weights: NDArray[np.float64] | None,
    loss: NDArray[np.float64],
    count: NDArray[np.int64],
    weight: NDArray[np.float64],
    total: NDArray[np.float64],
) -> None: ...
def add_details(
    labels: NDArray[np.int64],
    weights: NDArray[np.float64] | None,
    rank: NDArray[np.int64],
    loss: NDArray[np.float64],
    confidence: NDArray[np.float64],
    brier: NDArray[np.float64],
    cell: NDArray[np.int64],
    class_hits: NDArray[np.float64],
    ks: NDArray[np.int64],
    top_k_hits: NDArray[np.float64],
    brier_sum: NDArray[np.float64],
    by_cell: NDArray[np.float64],
    by_confidence: NDArray[np.float64],
    confidence_counts: NDArray[np.int64],
) -> None: ...
def get_num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
def work_alone() -> None: ...
def supported_instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def set_instruction_set(name: str) -> None: ...
