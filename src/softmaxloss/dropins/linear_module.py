"""PyTorch's linear cross-entropy as a module, which holds the layer."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.modules.loss import _WeightedLoss

from softmaxloss.dropins.errors import ArgumentError
from softmaxloss.dropins.linear import linear_cross_entropy

if TYPE_CHECKING:
    from torch.nn import LinearCrossEntropyLoss as _PyTorchs
    from torch.nn import LinearCrossEntropyOptions
else:  # versions before 2.13 have none
    _PyTorchs = getattr(torch.nn, "LinearCrossEntropyLoss", _WeightedLoss)


class LinearCrossEntropyLoss(_PyTorchs):
    r"""The module form of `linear_cross_entropy`: ``torch.nn.LinearCrossEntropyLoss``, and with our options.

    It is a subclass of PyTorch's (where that has one), with its attributes and state: the layer is ``linear``, whose
    weight may be tied to another's. `logit_bias` becomes a buffer, or a parameter if it is one. The weights of losses
    go to the call: ``criterion(input, target, sample_weight=...)``.

    Parameters
    ----------
    in_features : int
        D, the length of a row of the input.
    num_classes : int
        C.
    out_features : tuple of int
        (d1, ...), the shape of the losses of each row of the input; () for one.
    bias : bool
        Whether the layer has one.
    device, dtype
        Of the layer.
    reduction, weight, ignore_index, label_smoothing, options
        As in `linear_cross_entropy`, and in PyTorch.
    temperature, softcap, logit_bias, z_loss, focal_gamma, poly_epsilon
        As in `linear_cross_entropy`.
    gradient_filter, max_block_bytes, shift
        As in `linear_cross_entropy`.

    Raises
    ------
    LabelError, ArgumentError, DtypeError
        As `linear_cross_entropy`, when called; `ArgumentError` at once for a weight of another shape and a label
        smoothing out of its range, as PyTorch.

    References
    ----------
    ``torch.nn.LinearCrossEntropyLoss``.

    Examples
    --------
    >>> import torch
    >>> from softmaxloss.torch import LinearCrossEntropyLoss
    >>> criterion = LinearCrossEntropyLoss(3, 5, bias=True, shift=1)
    >>> loss = criterion(torch.randn(2, 6, 3), torch.randint(5, (2, 6)))
    >>> loss.backward()
    >>> criterion.linear.weight.grad.shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: "LinearCrossEntropyOptions | None" = None,
        temperature: float = 1.0,
        softcap: float | None = None,
        logit_bias: Tensor | None = None,
        z_loss: float = 0.0,
        focal_gamma: float = 0.0,
        poly_epsilon: float = 0.0,
        gradient_filter: float = 0.0,
        max_block_bytes: int | None = None,
        shift: int = 0,
    ) -> None:
        if weight is not None and weight.shape != (num_classes,):
            raise ArgumentError(f"weight has shape {tuple(weight.shape)}; expected {(num_classes,)}, one a class")
        if not 0.0 <= label_smoothing <= 1.0:
            raise ArgumentError(f"label_smoothing is {label_smoothing}; it must be from 0 to 1")
        # Not PyTorch's own, which other versions do not have.
        _WeightedLoss.__init__(self, weight, None, None, reduction)
        self.num_classes = num_classes
        self.out_features = out_features
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.options = options
        columns = math.prod(out_features, start=num_classes)
        self.linear = torch.nn.Linear(in_features, columns, bias=bias, device=device, dtype=dtype)
        self.temperature = temperature
        self.softcap = softcap
        if isinstance(logit_bias, torch.nn.Parameter):
            self.logit_bias: Tensor | None = logit_bias
        else:
            self.register_buffer("logit_bias", logit_bias)
        self.z_loss = z_loss
        self.focal_gamma = focal_gamma
        self.poly_epsilon = poly_epsilon
        self.gradient_filter = gradient_filter
        self.max_block_bytes = max_block_bytes
        self.shift = shift

    def forward(self, input: Tensor, target: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:  # noqa: A002  # PyTorch's
        """Return the loss of `input`, hidden states, and `target`."""
        shape = (self.num_classes, *self.out_features)
        bias = self.linear.bias
        return linear_cross_entropy(
            input,
            self.linear.weight.reshape(*shape, self.linear.in_features),
            target,
            linear_bias=None if bias is None else bias.reshape(shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
            sample_weight=sample_weight,
            temperature=self.temperature,
            softcap=self.softcap,
            logit_bias=self.logit_bias,
            z_loss=self.z_loss,
            focal_gamma=self.focal_gamma,
            poly_epsilon=self.poly_epsilon,
            gradient_filter=self.gradient_filter,
            max_block_bytes=self.max_block_bytes,
            shift=self.shift,
        )

    def extra_repr(self) -> str:
        """Return what sets it apart, as PyTorch's does."""
        return (
            f"in_features={self.linear.in_features}, num_classes={self.num_classes}, out_features={self.out_features}, "
            f"bias={self.linear.bias is not None}, reduction={self.reduction}, ignore_index={self.ignore_index}, "
            f"label_smoothing={self.label_smoothing}, options={self.options}"
        )
