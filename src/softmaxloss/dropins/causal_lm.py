"""Hugging Face's causal language models, trained without their logits: a model's own forward, but for the head.

In a training step with labels the head hands on the hidden states, and the loss is computed of these and the head's
weight. All else a model does (shifted labels, the tokens of several batches to average over, auxiliary losses) it does
itself. Nothing here imports `transformers`.
"""

import contextlib
import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from softmaxloss.backends.torch import linear
from softmaxloss.options import GivenOptions

_Model = TypeVar("_Model", bound=torch.nn.Module)

# What may happen to logits on their way from the head to the loss, by autograd's names: a factor, or nothing at all.
_FACTORS = ("MulBackward", "DivBackward", "ToCopyBackward", "CloneBackward", "ViewBackward", "AliasBackward")


def patch_causal_lm(
    model: _Model,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    gradient_filter: float = 0.0,
    max_block_bytes: int | None = None,
) -> _Model:
    """Train a causal language model of Hugging Face's `transformers` without ever holding its logits.

    In training mode, and where labels are given, the model's loss is that of `linear_cross_entropy`, and its output has
    no logits. Without labels, and in evaluation mode, nothing changes. Whatever a model does to its logits before the
    loss is respected (a factor, as Cohere's and Granite's; `final_logit_softcapping`, as Gemma's), or refused.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        With a linear head and a loss that `model.loss_function` computes, as nearly all that end in ``ForCausalLM``
        have. It is changed in place: call this once it is made, before others wrap it (`Trainer`, DDP,
        `torch.compile`).
    label_smoothing, z_loss, gradient_filter, max_block_bytes
        As in `softmaxloss.linear_cross_entropy`.

    Returns
    -------
    transformers.PreTrainedModel
        The model that was given.

    Raises
    ------
    TypeError
        Where the model is not such a one.
    RuntimeError
        In a training step, where the model computes its loss in another way than by `loss_function`, or does to its
        logits what has no place in this loss.

    References
    ----------
    ``transformers.loss.loss_utils.ForCausalLMLoss`` is the loss that this one stands in for. Liger-Kernel and Cut
    Cross-Entropy patch models to the same end.

    Examples
    --------
    >>> from softmaxloss.torch import patch_causal_lm
    >>> model = patch_causal_lm(AutoModelForCausalLM.from_config(config))  # doctest: +SKIP
    """
    _head_of(model)
    before: Any = getattr(model.forward, "unpatched", model.forward)
    signature = inspect.signature(before)
    options = GivenOptions(label_smoothing=label_smoothing, z_loss=z_loss)

    def call(self: Any, *args: Any, **named: Any) -> Any:
        # A method of this model is called as a function, so that a copy of the model calls it with itself.
        if getattr(before, "__self__", None) is model:
            return before.__func__(self, *args, **named)
        return before(*args, **named)

    @functools.wraps(before)
    def forward(self: Any, *args: Any, **named: Any) -> Any:
        labels = signature.bind_partial(*args, **named).arguments.get("labels")
        if labels is None or not self.training:
            return call(self, *args, **named)
        fused = _FusedLoss(_head_of(self), options, gradient_filter, max_block_bytes)
        wanted = named.pop("return_dict", None)
        with fused.in_place_of_the_heads(self):
            output = call(self, *args, return_dict=True, **named)
        fused.check_was_used(self)
        # What stands there are the hidden states.
        output = type(output)(**{name: value for name, value in output.items() if name != "logits"})
        as_tuple = not (getattr(self.config, "return_dict", True) if wanted is None else wanted)
        return output.to_tuple() if as_tuple else output

    patched: Any = forward
    patched.unpatched = before
    # Others look there for what a model takes.
    self_first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    patched.__signature__ = signature.replace(parameters=[self_first, *signature.parameters.values()])
    model.forward = types.MethodType(patched, model)
    return model


def _head_of(model: Any) -> torch.nn.Linear:
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    if not isinstance(head, torch.nn.Linear) or not hasattr(model, "loss_function"):
        raise TypeError(
            f"the model is a {type(model).__name__}, and its head a {type(head).__name__}; expected a causal language "
            "model of transformers, with a torch.nn.Linear for a head and a loss_function"
        )
    return head


class _FusedLoss:
    """The loss of one call: what the head is given, and what the model asks of its loss function."""

    def __init__(
        self, head: torch.nn.Linear, options: GivenOptions, gradient_filter: float, max_block_bytes: int | None
    ) -> None:
        self._head, self._options = head, options
        self._filter, self._block_bytes = gradient_filter, max_block_bytes
        self._hidden: Tensor | None = None
        self._version = 0
        self._was_called = False

    @contextlib.contextmanager
    def in_place_of_the_heads(self, model: Any) -> Iterator[None]:
        """Let the model's head hand on what it is given, and its loss function be this one."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(_replaced(self._head, "forward", self._hand_on))
            stack.enter_context(_replaced(model, "_loss_function", self._loss))
            config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
            for each in {id(model.config): model.config, id(config): config}.values():
                softcap = getattr(each, "final_logit_softcapping", None)
                if softcap is not None:
                    self._options = self._options._replace(softcap=softcap)
                    stack.enter_context(_replaced(each, "final_logit_softcapping", None))
            yield

    def check_was_used(self, model: Any) -> None:
        """Raise `RuntimeError` where the model has computed some other loss."""
        if not self._was_called:
            raise RuntimeError(
                f"{type(model).__name__} does not compute its loss by its loss_function, which patch_causal_lm stands "
                "in for; train it without the patch"
            )

    def _hand_on(self, hidden: Tensor) -> Tensor:
        self._hidden, self._version = hidden, hidden._version
        return hidden

    def _loss(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int | None = None,
        num_items_in_batch: Any = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Return the loss, as transformers' `ForCausalLMLoss` does of logits."""
        self._was_called = True
        self._check_are_hidden_states(logits)
        if shift_labels is None:
            # The labels move, not the hidden states: each position's next token, and none for the last.
            shift_labels = torch.nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        options = self._options._replace(
            reduction="mean" if num_items_in_batch is None else "sum", ignore_index=ignore_index
        )
        loss: Tensor = linear.linear_cross_entropy(
            logits,
            self._head.weight,
            shift_labels.to(logits.device),
            self._head.bias,
            options,
            self._filter,
            self._block_bytes,
        )
        if num_items_in_batch is None:
            return loss
        if isinstance(num_items_in_batch, Tensor):
            num_items_in_batch = num_items_in_batch.to(loss.device)
        mean: Tensor = loss / num_items_in_batch
        return mean

    def _check_are_hidden_states(self, logits: Tensor) -> None:
        """Raise `RuntimeError` unless these are the hidden states, or these times a number."""
        hidden = self._hidden
        unwritten = hidden is not None and hidden._version == self._version
        if unwritten and (logits is hidden or (self._head.bias is None and _is_multiple(logits, hidden))):
            return
        raise RuntimeError(
            "the model does more to its logits, between head and loss, than to multiply them by a number, and "
            "patch_causal_lm cannot follow it; train it without the patch"
        )


def _is_multiple(tensor: Tensor, of: Tensor | None) -> bool:
    """Tell whether a tensor is a number times another, by its graph and its values."""
    if of is None or tensor.shape != of.shape or of.grad_fn is None or tensor.grad_fn is None:
        return False
    node = tensor.grad_fn
    while node is not of.grad_fn:
        before = [each for each, _ in node.next_functions if each is not None]
        if len(before) != 1 or not any(name in node.name() for name in _FACTORS):
            return False
        node = before[0]
    with torch.no_grad():
        a, b = tensor.float(), of.float()
        factor = (a * b).sum() / (b * b).sum().clamp_min(torch.finfo(b.dtype).tiny)
        return torch.allclose(a, b * factor, rtol=2.0**-7, atol=0.0)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an object another attribute for a while."""
    had, before = name in vars(owner), vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
