"""linear_cross_entropy of NumPy arrays: from what the public functions are given to what they return."""

from typing import Any, NamedTuple

from numpy.typing import ArrayLike

from softmaxloss.backends import sweeps
from softmaxloss.backends.block_plan import BlockPlan, plan_blocks
from softmaxloss.backends.linear_layer import Layer, layer_of
from softmaxloss.backends.linear_products import Gradients, products_of, with_room_in_gradient
from softmaxloss.backends.linear_rows import LinearRows
from softmaxloss.labels import resolve_labels
from softmaxloss.options import GivenOptions, scalar


class _Problem(NamedTuple):
    """All that was given, checked."""

    layer: Layer
    rows: LinearRows
    plan: BlockPlan
    gradient_filter: float


def linear_cross_entropy(
    hidden: Any,
    weight: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None,
    options: GivenOptions,
    gradient_filter: float,
    max_block_bytes: int | None,
) -> Any:
    """Return the loss."""
    layer = layer_of(hidden, weight, bias)
    problem = _problem(layer, labels, options, gradient_filter, max_block_bytes, gradient=False)
    return sweeps.loss(problem.rows, products_of(*problem[:3]), problem.plan)


def linear_cross_entropy_and_grad(
    hidden: Any,
    weight: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None,
    options: GivenOptions,
    gradient_filter: float,
    max_block_bytes: int | None,
) -> tuple[Any, Gradients]:
    """Return the loss, and its gradients by hidden states (None for sparse ones), weight and bias (None without)."""
    layer = layer_of(hidden, weight, bias)
    problem = _problem(layer, labels, options, gradient_filter, max_block_bytes, gradient=True)
    if problem.gradient_filter == 0.0:
        problem = problem._replace(plan=with_room_in_gradient(problem.layer, problem.plan))
    products = products_of(*problem[:3])
    loss = sweeps.loss_and_gradients(problem.rows, products, problem.plan, problem.gradient_filter)
    return loss, products.gradients()


def _problem(
    layer: Layer,
    labels: ArrayLike,
    options: GivenOptions,
    gradient_filter: float,
    max_block_bytes: int | None,
    *,
    gradient: bool,
) -> _Problem:
    rows_shape, classes = tuple(layer.hidden.shape[:-1]), len(layer.weight)
    checked = options.check(rows_shape, classes)
    targets = resolve_labels(labels, (*rows_shape, classes), -1)
    if targets.distribution is not None:
        checked.check_distributions_are_allowed()
    smallest = scalar("gradient_filter", gradient_filter, at_least=0.0)
    rows = LinearRows(targets, checked, rows_shape, classes, layer.dtype)
    plan = plan_blocks(rows.count, classes, layer.dtype.itemsize, max_block_bytes, gradient=gradient)
    return _Problem(layer, rows, plan, smallest)
