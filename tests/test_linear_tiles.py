"""Rows whose logits come a block of classes at a time: how far the answers may be from mpmath's.

In float32 that is the dense kernels' bound; gradients in float64 have twice as much.
"""

import numpy as np
import pytest
from option_cases import (
    DTYPES,
    EVERY_DENSE,
    EVERY_INDEX,
    KINDS,
    OPTION_SETS,
    REDUCTIONS,
    assert_within,
    computed_in,
    ids,
    label_kinds,
    make_case,
)

from softmaxloss.backends.block_plan import BlockPlan
from softmaxloss.backends.linear_rows import LinearRows
from softmaxloss.backends.linear_tiles import LossOfTiles
from softmaxloss.labels import resolve_labels
from softmaxloss.options import GivenOptions

COMPUTED = [dtype for dtype in DTYPES if dtype.itemsize > 2]


def run(logits, labels, options, tile_rows, tile_classes):
    """Return loss and gradient of logits that are handed over in blocks, each of them twice, as a sweep does."""
    n, classes = logits.shape
    given = GivenOptions(**options).check((n,), classes)
    rows = LinearRows(resolve_labels(labels, logits.shape, -1), given, (n,), classes, logits.dtype)
    plan = BlockPlan(rows.count, classes, tile_rows, tile_classes, logits.itemsize)
    blocks = [(part, columns) for columns in plan.class_blocks() for part in plan.row_blocks()]
    tiles = LossOfTiles(rows)
    for part, columns in blocks:
        tiles.take(part, columns, np.array(logits[rows.numbers(part), columns], order="C"))
    tiles.finish()
    gradient = np.zeros_like(logits)
    for part, columns in blocks:
        block = np.array(logits[rows.numbers(part), columns], order="C")
        tiles.gradient(part, columns, block)
        gradient[rows.numbers(part), columns] = block
    return rows.result(), gradient


def check(case, tile_rows, tile_classes):
    """In float64 a logsumexp is rounded as a block's and as the row's, and a softcap's x before its exp(-2 |x|)."""
    reference, dtype = case.reference, case.logits.dtype
    wide, slope = dtype.itemsize == 8, 0.0
    if wide and "softcap" in case.options:
        x = np.abs(case.logits) / case.options["softcap"] / case.options.get("temperature", 1.0)
        slope = 8 * np.where(np.isfinite(x), x, 0.0)
    loss, gradient = run(case.logits, case.labels, case.options, tile_rows, tile_classes)
    largest = reference.largest if case.options["reduction"] == "none" else reference.largest.max(initial=0)
    where = (tile_rows, tile_classes)
    assert_within(loss, reference.loss, reference.loss_scale, 16 + largest, computed_in(dtype), ("loss", *where))
    bound = (1 + wide) * (16 + reference.largest[:, None]) + slope
    assert_within(gradient, reference.grad, reference.scale, bound, dtype, where)


@pytest.mark.parametrize("dtype", COMPUTED, ids=str)
@pytest.mark.parametrize("names", OPTION_SETS, ids=ids)
def test_pairs_of_options(names, dtype):
    seed = OPTION_SETS.index(names)
    rng = np.random.default_rng(seed)
    for kind in KINDS:
        classes, label_kind = int(rng.choice([1, 2, 5, 37, 64])), rng.choice(label_kinds(names))
        case = make_case(seed, names, dtype, kind, label_kind, classes, rng.choice(REDUCTIONS))
        check(case, int(rng.integers(1, 5)), int(rng.integers(1, classes + 1)))


@pytest.mark.parametrize("names", [(), EVERY_INDEX, EVERY_DENSE, ("label_smoothing",)], ids=ids)
@pytest.mark.parametrize("kind", KINDS)
def test_any_blocks(kind, names):
    for label_kind in label_kinds(names):
        case = make_case(5, names, np.dtype("f4"), kind, label_kind, 13, "none")
        for tile_rows, tile_classes in [(1, 1), (4, 13), (3, 12), (2, 5), (4, 1)]:
            check(case, tile_rows, tile_classes)


def test_a_certain_row_has_its_digits():
    for pivot in range(3):
        logits = np.zeros((1, 3), np.float32)
        logits[0, pivot] = 20.0
        for labels in ([pivot], np.eye(3, dtype="f4")[[pivot]]):
            loss, gradient = run(logits, labels, {}, 1, 1)
            assert loss == pytest.approx(4.1223072e-09, rel=1e-6)
            assert gradient[0, pivot] == pytest.approx(-4.1223072e-09, rel=1e-6)


def test_weights_far_apart():
    logits = np.array([[1.0, -2.0, 0.5, 3.0]], np.float32)
    for weight in (1e-60, 1e-42, 1e-30, 1e30):
        loss, gradient = run(logits, [2], {"sample_weight": [weight], "reduction": "sum"}, 1, 2)
        expected, expected_gradient = run(logits.astype("f8"), [2], {"reduction": "sum"}, 1, 2)
        np.testing.assert_allclose(loss, np.float32(expected * weight), rtol=1e-6)
        np.testing.assert_allclose(gradient, (expected_gradient * weight).astype("f4"), rtol=1e-5, atol=1e-45)


def test_a_row_that_is_no_distribution_is_found_before_anything_is_computed():
    with pytest.raises(ValueError, match=r"row \[1\] sums to 0.5"):
        run(np.zeros((2, 4)), np.array([[0.25] * 4, [0.125] * 4]), {}, 1, 2)
