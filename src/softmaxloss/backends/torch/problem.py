"""What is asked of the loss, as tensors with the class axis last: shapes, dtypes and options are checked here."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from softmaxloss.backends.torch.doors import is_plain
from softmaxloss.backends.torch.views import view
from softmaxloss.labels import label_indices, tolerance_of
from softmaxloss.options import GivenOptions, LossOptions, contiguous, integer

_COMPUTED_IN = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}
_INTEGERS = {
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
}
_REAL = {*_INTEGERS, *_COMPUTED_IN, torch.bool}
AS_THEY_ARE = math.inf  # the tolerance for targets that need be no distributions: PyTorch's


class Problem(NamedTuple):
    """One loss.

    Parameters
    ----------
    logits : Tensor, (rows..., C)
        float16, bfloat16, float32 or float64.
    indices : Tensor of the rows' shape, or None
        int64.
    distribution : Tensor of the logits' shape, or None
        In any real dtype.
    sample_weight, class_weight, logit_bias : Tensor or None
        As they were given.
    options : LossOptions
        The scalars; on the host, where values can be looked at, the arrays as well.
    tolerance : float
        How far from 1 a distribution may sum.
    on_host : bool
        Whether values have been looked at: what is left to be found wrong is a label, or a distribution.
    loss_dtype : torch.dtype
        Of the loss.
    """

    logits: Tensor
    indices: Tensor | None
    distribution: Tensor | None
    sample_weight: Tensor | None
    class_weight: Tensor | None
    logit_bias: Tensor | None
    options: LossOptions
    tolerance: float
    on_host: bool
    loss_dtype: torch.dtype

    @property
    def dtype(self) -> torch.dtype:
        """What the rows are computed in."""
        return _COMPUTED_IN[self.logits.dtype]

    @property
    def wide(self) -> torch.dtype:
        """What sums over rows are computed in."""
        return torch.float32 if self.logits.device.type == "mps" else torch.float64

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return the fields that are tensors."""
        return self[:6]

    def with_tensors(self, tensors: Any) -> "Problem":
        """Return the problem with other tensors in the place of these."""
        return Problem._make((*tensors, *self[6:]))

    def asks_beside_logits(self) -> bool:
        """Tell whether anything that gradients go through asks for one, the logits aside."""
        return any(
            tensor is not None and tensor.requires_grad
            for tensor in (self.distribution, self.sample_weight, self.logit_bias)
        )


def problem_of(logits: Tensor, labels: Any, axis: int, given: GivenOptions, tolerance: float | None = None) -> Problem:
    """Return the problem, or raise as the public functions do.

    With the tolerance `AS_THEY_ARE` distributions and class weights are PyTorch's: any numbers.
    """
    z = as_logits(logits, axis)
    target = labels if isinstance(labels, Tensor) else _labels_tensor(labels, logits)
    sample_weight = as_tensor("sample_weight", given.sample_weight, logits)
    class_weight = as_tensor("class_weight", given.class_weight, logits)
    logit_bias = as_tensor("logit_bias", given.logit_bias, logits)
    weights = (sample_weight, class_weight, logit_bias)
    indices, distribution = _targets(target, logits, axis)
    if tolerance is None:
        tolerance = 0.0 if distribution is None else _tolerance(distribution.dtype)
    on_host = is_plain(logits, target, *weights)
    options = (checked_on_host if on_host else _checked_unseen)(given, weights, z.shape, tolerance)
    if distribution is not None:
        options.check_distributions_are_allowed()
    return Problem(
        z,
        indices,
        distribution,
        sample_weight,
        class_weight,
        logit_bias,
        options,
        tolerance,
        on_host,
        _COMPUTED_IN[z.dtype],
    )


def as_logits(logits: Tensor, axis: int, name: str = "logits") -> Tensor:
    """Return floating logits with the class axis last."""
    if logits.dtype not in _COMPUTED_IN:
        if logits.dtype not in _REAL:
            raise TypeError(
                f"{name} have dtype {logits.dtype}; expected float16, bfloat16, float32, float64, an integer or bool"
            )
        logits = logits.to(torch.get_default_dtype())
    if logits.ndim < 1:
        raise ValueError(f"{name} have 0 dimensions; expected 1 (one row of classes) or more")
    z = class_axis_last(logits, axis)
    if z.shape[-1] == 0:
        raise ValueError(f"the class axis has length 0 in {name} of shape {tuple(logits.shape)}")
    return z


def class_axis_last(array: Tensor, axis: int) -> Tensor:
    """Return a view with the class axis last; `AxisError` (a `ValueError`) where there is no such axis."""
    if type(axis) is not int:
        axis = integer("axis", axis)
    if axis in (-1, array.ndim - 1):
        return array
    if not -array.ndim <= axis < array.ndim:
        raise np.exceptions.AxisError(axis, array.ndim)
    return array.movedim(axis, -1)


def as_tensor(name: str, values: Any, like: Tensor) -> Tensor | None:
    """Return real numbers as a tensor, itself where it is one, on the device of the logits."""
    if values is None:
        return None
    if isinstance(values, Tensor):
        if values.dtype not in _REAL:
            raise TypeError(f"{name} has dtype {values.dtype}; expected real numbers")
        if values.device != like.device:
            raise _elsewhere(name, values, like)
        return values
    return torch.as_tensor(np.asarray(values, dtype=np.float32 if like.device.type == "mps" else None)).to(like.device)


def _labels_tensor(labels: Any, like: Tensor) -> Tensor:
    array = np.asarray(labels)
    if array.size == 0 and not isinstance(labels, np.ndarray):
        array = array.astype(np.int64)  # an empty list holds no numbers of any kind
    return torch.as_tensor(array).to(like.device)


def checked_on_host(
    given: GivenOptions, weights: Sequence[Tensor | None], logits_shape: Sequence[int], tolerance: float
) -> LossOptions:
    """Return the options with the arrays among them, checked for their values as well."""
    sample_weight, class_weight, logit_bias = (view(values) for values in weights)
    *rows_shape, classes = logits_shape
    if tolerance != AS_THEY_ARE or class_weight is None:
        given = given._replace(sample_weight=sample_weight, class_weight=class_weight, logit_bias=logit_bias)
        return given.check(tuple(rows_shape), classes)
    _check_shape("class_weight", class_weight, (classes,), "one weight a class")
    given = given._replace(sample_weight=sample_weight, class_weight=None, logit_bias=logit_bias)
    return given.check(tuple(rows_shape), classes)._replace(class_weight=contiguous(class_weight, np.dtype(np.float64)))


def _checked_unseen(
    given: GivenOptions, weights: Sequence[Tensor | None], logits_shape: Sequence[int], tolerance: float
) -> LossOptions:
    """Return the scalars among the options, checked; of the tensors only the shapes are looked at."""
    sample_weight, class_weight, logit_bias = weights
    *rows_shape, classes = logits_shape
    _check_shape("sample_weight", sample_weight, tuple(rows_shape), "one weight a row")
    _check_shape("class_weight", class_weight, (classes,), "one weight a class")
    _check_shape("logit_bias", logit_bias, (classes,), "one number a class")
    return given._replace(sample_weight=None, class_weight=None, logit_bias=None).check((), classes)


def _check_shape(name: str, values: Any, shape: tuple[int, ...], meaning: str) -> None:
    if values is not None and tuple(values.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(values.shape)}; expected {shape}: {meaning}")


def _targets(labels: Tensor, logits: Tensor, axis: int) -> tuple[Tensor | None, Tensor | None]:
    """Tell distributions from class indices by the number of dimensions."""
    if labels.device != logits.device:
        raise _elsewhere("labels", labels, logits)
    class_axis = axis % logits.ndim
    rows_shape = logits.shape[:class_axis] + logits.shape[class_axis + 1 :]
    if labels.shape == logits.shape:
        if labels.dtype not in _REAL:
            raise TypeError(f"label distributions have dtype {labels.dtype}; expected real numbers")
        return None, class_axis_last(labels, axis)
    if labels.shape == rows_shape:
        return as_indices(labels), None
    raise ValueError(
        f"labels have shape {tuple(labels.shape)}; logits of shape {tuple(logits.shape)} with the class axis at {axis} "
        f"take class indices of shape {tuple(rows_shape)} or distributions of shape {tuple(logits.shape)}"
    )


def as_indices(labels: Tensor) -> Tensor:
    """Return index labels of any integer dtype as int64, the same values; what cannot be is no class."""
    if labels.dtype == torch.int64:
        return labels
    if labels.dtype not in _INTEGERS:
        raise TypeError(
            f"index labels have dtype {labels.dtype}; expected integers (labels.long()), or distributions "
            "with the logits' number of dimensions"
        )
    if labels.dtype == torch.uint64:
        if is_plain(labels):
            return torch.from_numpy(label_indices(labels.numpy()))
        wrapped = labels.view(torch.int64)
        return torch.where(wrapped < 0, torch.iinfo(torch.int64).max, wrapped)
    return labels.long()


def index_of_row(number: int, rows_shape: Any) -> tuple[int, ...]:
    """Return a row's index, of its number."""
    return tuple(int(i) for i in np.unravel_index(number, tuple(rows_shape))) if len(rows_shape) else ()


def _tolerance(dtype: torch.dtype) -> float:
    return tolerance_of(np.dtype(np.float16)) if dtype in (torch.float16, torch.bfloat16) else 1e-3


def _elsewhere(name: str, values: Tensor, logits: Tensor) -> ValueError:
    return ValueError(
        f"{name} on device {values.device}, and logits on {logits.device}; move one to the other's: "
        f"{name}.to(logits.device)"
    )
