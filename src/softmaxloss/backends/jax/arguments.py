"""What the public functions are given, as the backend takes it: values checked where they are at hand, shapes always.

Values are at hand in host arrays (NumPy's, lists, and JAX arrays in CPU memory) that no transformation of JAX's has in
its hands. Of others, traced ones and arrays on a device, nobody waits to see what they hold.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from softmaxloss import _native
from softmaxloss.backends.jax import ffi
from softmaxloss.backends.jax.problem import Capped, Operands, Plan, Serving, computed_in
from softmaxloss.backends.layout import converted, kernel_reads
from softmaxloss.labels import Labels, label_error, label_indices, not_a_distribution, resolve_labels
from softmaxloss.options import GivenOptions, GivenTransform, LossOptions, integer

_MAX_DIMENSIONS = 33  # as for NumPy arrays
_FLOATS = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)
_INT32 = np.iinfo(np.int32)
_UNUSED_INDEX = -100


class Layout:
    """The shape of logits and their class axis: the shapes that go with it, and the way to (before, classes, after)."""

    def __init__(self, shape: tuple[int, ...], axis: int, dtype: Any, name: str = "logits") -> None:
        if not 1 <= len(shape) <= _MAX_DIMENSIONS:
            raise ValueError(
                f"{name} have {len(shape)} dimensions; expected 1 (one row of classes) to {_MAX_DIMENSIONS}"
            )
        self.shape, self.dtype = shape, dtype
        axis = integer("axis", axis)
        if not -len(shape) <= axis < len(shape):
            raise np.exceptions.AxisError(axis, len(shape))
        self.axis = axis % len(shape)
        self.rows_shape = self.shape[: self.axis] + self.shape[self.axis + 1 :]
        self.classes = self.shape[self.axis]
        if self.classes == 0:
            last = (*self.rows_shape, 0)
            raise ValueError(f"the class axis has length 0 in {name} of shape {last} (class axis last)")
        self.before, self.after = math.prod(self.shape[: self.axis]), math.prod(self.shape[self.axis + 1 :])

    def folded(self, array: Any) -> Any:
        """Return an array of the logits' shape as (before, classes, after)."""
        return array.reshape(self.before, self.classes, self.after)

    def unfolded(self, array: Any) -> Any:
        """Undo `folded`."""
        return array.reshape(self.shape)

    def of_rows(self, array: Any) -> Any:
        """Return one number a row, in the shape (before, after), in the rows' shape."""
        return array.reshape(self.rows_shape)


class Rows(Layout):
    """Logits with their class axis."""

    def __init__(self, logits: Any, axis: int, name: str = "logits") -> None:
        self.array = as_floats(logits, name)
        super().__init__(self.array.shape, axis, self.array.dtype, name)
        self.logits = self.folded(self.array)


def as_floats(array: Any, name: str) -> Any:
    """Return an array of a dtype we take, integers and bool as JAX's default float."""
    array = jnp.asarray(array)
    if jnp.issubdtype(array.dtype, jnp.integer) or array.dtype == jnp.bool_:
        return array.astype(jnp.result_type(float))
    if array.dtype not in _FLOATS:
        raise TypeError(
            f"{name} have dtype {array.dtype}; expected float16, bfloat16, float32, float64, an integer or bool"
        )
    return array


def on_host(values: Any) -> Any:
    """Return values as NumPy has them where they are at hand, else None."""
    if _is_traced(values):
        return None
    if not isinstance(values, jax.Array):
        return values
    return np.asarray(values) if values.is_fully_addressable and _is_on_cpu(values) else None


def serving(*arrays: Any) -> Serving:
    """Return what serves these arrays; None stands for one that is absent."""
    if not ffi.available:
        return "jax"
    at_hand = all(array is None or (not _is_traced(array) and _is_on_cpu(array)) for array in arrays)
    return "kernels" if at_hand else "either"


def _is_traced(array: Any) -> bool:
    return isinstance(array, jax.core.Tracer)


def _is_on_cpu(array: jax.Array) -> bool:
    return all(device.platform == "cpu" for device in array.devices())


def loss_problem(
    logits: Any, labels: Any, axis: int, given: GivenOptions, name: str = "logits"
) -> tuple[Rows, Plan, Operands]:
    """Return what a loss is made of, or raise what NumPy's backend raises."""
    rows = Rows(logits, axis, name)
    plan, operands = problem_of_rows(rows, rows.logits, labels, given)
    return rows, plan, operands


def problem_of_rows(rows: Layout, logits: Any, labels: Any, given: GivenOptions) -> tuple[Plan, Operands]:
    """Return what a loss is made of; `logits` are folded, or None where they are still to be computed."""
    options = _checked(given, rows)
    operands = Operands(
        logits,
        None,
        _reals("sample_weight", given.sample_weight, rows.rows_shape, "one weight a row", (rows.before, rows.after)),
        _reals("class_weight", given.class_weight, (rows.classes,), "one weight a class"),
        _reals("logit_bias", given.logit_bias, (rows.classes,), "one number a class"),
    )
    soft, tolerance, targets, ignored = _targets(labels, rows, options)
    plan = Plan(
        reduction=options.reduction,
        ignore_index=ignored,
        label_smoothing=options.label_smoothing,
        temperature=options.transform.temperature,
        softcap=options.transform.softcap or 0.0,
        z_loss=options.z_loss,
        focal_gamma=options.focal_gamma,
        poly_epsilon=options.poly_epsilon,
        soft=soft,
        tolerance=tolerance,
        serving=serving(*operands, targets),
    )
    return plan, operands._replace(labels=targets)


def statistics_problem(logits: Any, labels: Any, axis: int, given: GivenTransform) -> tuple[Rows, Capped, Operands]:
    """Return what the statistics of rows are made of."""
    rows = Rows(logits, axis)
    checked = given._replace(logit_bias=on_host(given.logit_bias)).check(rows.classes)
    bias = _reals("logit_bias", given.logit_bias, (rows.classes,), "one number a class")
    indices = None
    if labels is not None:
        soft, _, indices, _ = _targets(labels, rows, None)
        if soft:
            raise ValueError(
                "labels have the logits' shape, which makes them distributions; row_statistics takes class indices, "
                "one dimension less: of one-hot labels, labels.argmax along the class axis"
            )
    capped = Capped(checked.temperature, checked.softcap or 0.0, serving(rows.logits, indices, bias))
    return rows, capped, Operands(rows.logits, indices, logit_bias=bias)


def _checked(given: GivenOptions, rows: Layout) -> LossOptions:
    """Return the options checked, but for the values of arrays that are not at hand."""
    at_hand = {name: on_host(getattr(given, name)) for name in ("sample_weight", "class_weight", "logit_bias")}
    return given._replace(**at_hand).check(rows.rows_shape, rows.classes)


def _reals(name: str, values: Any, shape: tuple[int, ...], meaning: str, folded: tuple[int, ...] | None = None) -> Any:
    """Return one number a row or a class, in float64 where that is what they are, else float32."""
    if values is None:
        return None
    array = jnp.asarray(values)
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == jnp.bool_) or jnp.iscomplexobj(array):
        raise TypeError(f"{name} has dtype {array.dtype}; expected real numbers")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; expected {shape}: {meaning}")
    return array.astype(computed_in(array.dtype)).reshape(shape if folded is None else folded)


def _targets(labels: Any, rows: Layout, options: LossOptions | None) -> tuple[bool, float, Any, int]:
    """Return whether labels are distributions, how far from 1 these may sum, the labels folded, and what is ignored.

    Without options (for the statistics of rows) no index is ignored.
    """
    at_hand = on_host(labels)
    # Of values that are not at hand, zeros of their shape and dtype tell all that can be wrong.
    known = np.broadcast_to(np.zeros((), labels.dtype), labels.shape) if at_hand is None else at_hand
    resolved = resolve_labels(known, rows.shape, rows.axis)
    if resolved.indices is None:
        if options is not None:
            options.check_distributions_are_allowed()
        if at_hand is not None:
            _check_distributions(resolved)
        return True, resolved.tolerance, _distributions(labels, rows), _UNUSED_INDEX
    ignored = None if options is None else options.ignore_index
    if at_hand is not None:
        _check_indices(resolved.indices, rows.classes, ignored)
        if not isinstance(labels, jax.Array):
            labels, ignored = _in_32_bits(resolved.indices, ignored)
    indices = signed_indices(labels, ignored).reshape(rows.before, rows.after)
    return False, 0.0, indices, _UNUSED_INDEX if ignored is None else ignored


def checked_indices(labels: Any, classes: int) -> Any:
    """Return index labels for `one_hot`, as JAX's integers; `LabelError` where they are at hand and one is no class."""
    at_hand = on_host(labels)
    if at_hand is not None:
        _check_indices(label_indices(at_hand), classes, None)
    elif not jnp.issubdtype(labels.dtype, jnp.integer):
        label_indices(np.zeros(1, labels.dtype))  # raises
    return signed_indices(labels, None)


def _check_indices(indices: NDArray[np.int64], classes: int, ignored: int | None) -> None:
    """Raise `LabelError` for the first label that is neither a class nor ignored."""
    valid = 0 if ignored is None else ignored  # a label that is valid where there is any class
    bad, _, _ = _native.survey_labels(indices.reshape(-1), classes, valid, None, None)
    if bad >= 0:
        raise label_error(indices, bad, classes, ignored)


def _check_distributions(labels: Labels) -> None:
    """Raise `ValueError` for the first row that is no distribution."""
    rows = labels.distribution
    assert rows is not None
    if rows.dtype not in (np.float32, np.float64) or not kernel_reads(rows, rows.dtype):
        rows = converted(rows, np.dtype(np.float64))
    bad = _native.bad_distribution(rows, labels.tolerance)
    if bad is not None:
        row, total, least = bad
        where = tuple(int(i) for i in np.unravel_index(row, rows.shape[:-1]))
        complaint = "a label distribution; class indices have one dimension less than the logits"
        raise not_a_distribution(where, total, least, complaint)


def _in_32_bits(indices: NDArray[np.int64], ignored: int | None) -> tuple[NDArray[np.int32], int | None]:
    """Return labels that have been checked, and what is ignored, in what JAX has integers in unless told otherwise."""
    if ignored is not None and not _INT32.min <= ignored <= _INT32.max:
        indices, ignored = np.where(indices == ignored, _UNUSED_INDEX, indices), _UNUSED_INDEX
    return indices.astype(np.int32), ignored


def signed_indices(labels: Any, ignored: int | None) -> Any:
    """Return labels as int32 or int64: an unsigned one too large for it as one that is neither a class nor ignored."""
    labels = jnp.asarray(labels)
    dtype = jnp.int64 if labels.dtype.itemsize == 8 else jnp.int32
    if jnp.issubdtype(labels.dtype, jnp.unsignedinteger) and labels.dtype.itemsize >= 4:
        neither = -2 if ignored == -1 else -1
        return jnp.where(labels > np.iinfo(dtype).max, neither, labels.astype(dtype))
    return labels.astype(dtype)


def _distributions(labels: Any, rows: Layout) -> Any:
    """Return distributions in the dtype computed in: what is above 0 stays so, and a mask meets it."""
    given = jnp.asarray(labels)
    dtype = computed_in(rows.dtype)
    q = given.astype(dtype)
    if given.dtype == jnp.float64 and dtype == jnp.float32:
        q = jnp.where((q == 0) & (given != 0), jnp.copysign(np.finfo(dtype).smallest_subnormal, given).astype(dtype), q)
    return rows.folded(q)
