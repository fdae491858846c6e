"""The loss of hidden states and a weight whose rows, the classes, are spread over the processes of a group.

Every process has all hidden states, and makes the logits of its own classes a block of rows at a time. Where each row's
share in the loss is known beforehand (a mean, a sum), the processes exchange their numbers for each block, which is
turned into gradients while its logits are there: 3 products in one sweep, and two small all-reduces a block, which take
far less time than the fourth product would. Where it comes later (``reduction="none"``, weights of rows that are to be
learned) one sweep finds the numbers of all rows, and after one exchange another makes the logits anew: 4 products.

The gradient by the hidden states is then added up over the group; the gradient by the weight is each process's own.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softmaxloss.backends.block_plan import DEFAULT_BLOCK_BYTES, BlockPlan
from softmaxloss.backends.torch import formula, slices
from softmaxloss.backends.torch.linear_problem import LinearProblem
from softmaxloss.backends.torch.linear_products import Asked, Products, product_dtype
from softmaxloss.backends.torch.parallel import KnownRows, exchange, slice_of, terms
from softmaxloss.backends.torch.ranks import Ranks, agreed, check_backward_is_plain, check_nothing_watches, ranks_of
from softmaxloss.backends.torch.slices import AllClasses, ClassSlice, Statistics, Upstream
from softmaxloss.backends.torch.views import view


@torch.compiler.disable  # type: ignore[untyped-decorator]  # PyTorch has no types for it
def loss(
    hidden: Tensor, weight_shard: Tensor, make: Callable[[], LinearProblem], group: Any, sizes: Sequence[int] | None
) -> Tensor:
    """Return the loss, differentiable once, by what is this process's own and by `hidden`.

    `make` returns the problem of hidden states and this process's weight, or raises: then all processes do. Each must
    want the same gradients.
    """
    check_nothing_watches()
    for name, value in (("hidden states", hidden), ("the weight", weight_shard)):
        if not isinstance(value, Tensor) or not value.ndim:
            raise TypeError(f"with a group, {name} must be a PyTorch tensor of one dimension or more")
    ranks = ranks_of(hidden, hidden.shape[:-1].numel(), len(weight_shard), group, sizes)
    nothing = torch.zeros(0, dtype=torch.float64, device=hidden.device)
    try:
        problem = make()
        _check_is_taken(problem)
        part = slice_of(problem.losses, ranks)
    except (TypeError, ValueError) as error:
        agreed(group, nothing, error)
        raise
    if hidden.is_cpu:
        agreed(group, nothing)
    return _Head.of(problem, part, ranks).loss()


def _check_is_taken(problem: LinearProblem) -> None:
    if problem.positions:
        raise ValueError(
            f"the weight has shape {tuple(problem.weight.shape)}; with a group it must be (classes, features)"
        )
    if problem.gradient_filter:
        raise ValueError(
            f"gradient_filter is {problem.gradient_filter:g}; with a group gradients are exact: leave it at 0"
        )


class _Head(NamedTuple):
    """The last layer of a network and its loss, as one process has them.

    Parameters
    ----------
    problem : LinearProblem
        All hidden states, and this process's weight and bias.
    part : ClassSlice
        The loss of those rows that count. Something without memory stands in its logits' place.
    kept : integer Tensor or None
        Which rows these are, None for all.
    ranks : Ranks
        Who has the other classes.
    """

    problem: LinearProblem
    part: ClassSlice
    kept: Tensor | None
    ranks: Ranks

    @classmethod
    def of(cls, problem: LinearProblem, part: ClassSlice, ranks: Ranks) -> "_Head":
        """Return the head with the rows that are ignored left out: they cost nothing then."""
        losses, by_row = part.problem, part.kept()
        if by_row is None or not losses.on_host or by_row.all():
            return cls(problem, part, None, ranks)
        kept = by_row.nonzero().squeeze(-1)
        assert losses.indices is not None
        losses = losses._replace(
            logits=losses.logits[: len(kept)],
            indices=losses.indices[kept],
            sample_weight=None if losses.sample_weight is None else losses.sample_weight[kept],
        )
        return cls(problem, part._replace(problem=losses), kept, ranks)

    def loss(self) -> Tensor:
        """Return the reduced loss."""
        losses, operands = self.part.problem, self.problem.operands()
        beside = losses.distribution, losses.logit_bias
        if self._gradient_is_known():
            # (PyTorch has no types for `apply`.)
            known: Tensor = _KnownGradient.apply(*operands, self)  # type: ignore[no-untyped-call]
            return known
        numbers = KnownRows(*_LaterGradient.apply(*operands, *beside, self))  # type: ignore[no-untyped-call]
        loss = formula.reduced(losses, terms(self.part, numbers), numbers.label_weight)
        if losses.options.reduction != "none":
            return loss
        rows_shape = self.problem.hidden.shape[:-1]
        if self.kept is not None:
            loss = loss.new_zeros(rows_shape.numel()).index_copy(0, self.kept, loss)
        return loss.reshape(rows_shape)

    def _gradient_is_known(self) -> bool:
        losses = self.part.problem
        return (
            torch.is_grad_enabled()
            and losses.options.reduction != "none"
            and any(each is not None and each.requires_grad for each in self.problem.operands())
            and not losses.asks_beside_logits()
            # Whose gradients may vanish before the upstream is multiplied in.
            and product_dtype(self.problem) != torch.float16
        )

    def products(self, asked: Asked) -> "_BlockProducts":
        """Return the products, in blocks of as many rows in each process."""
        all_rows, classes = self.part.problem.logits.shape
        item, most = product_dtype(self.problem).itemsize, self.problem.max_block_bytes or DEFAULT_BLOCK_BYTES
        rows = max(1, min(all_rows, most // (max(self.ranks.sizes) * item)))
        return _BlockProducts(self.problem, self._numbers, asked, BlockPlan(all_rows, classes, rows, classes, item))

    def _numbers(self, rows: slice) -> Any:
        return rows if self.kept is None else view(self.kept)[rows]

    def rows(self, block: slice, logits: Tensor) -> ClassSlice:
        """Return the loss of a block's logits."""
        part = self.part.rows(block)
        return part._replace(problem=part.problem._replace(logits=logits))

    def label_weight(self) -> Tensor | None:
        """Return each label's class weight, which one of the processes has."""
        losses = self.part.problem
        if losses.class_weight is None or losses.indices is None:
            return None
        here, places = self.part.labels()
        weight = formula.class_weights(losses, losses.wide)[places]
        return self.ranks.total(torch.where(here, weight, 0.0))

    def numbers(self) -> tuple[KnownRows, AllClasses]:
        """Return what is known of all rows, by one sweep and one exchange."""
        products = self.products((False, False, False))
        found = [slices.statistics(self.rows(block, logits)) for block, logits in products.logits()]
        if not found:
            found = [slices.statistics(self.part)]
        own = Statistics._make(None if each[0] is None else torch.cat(each) for each in zip(*found, strict=True))
        return exchange(self.part, own, self.ranks)

    def loss_and_gradients(self, asked: Asked) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return the reduced loss and its gradients by hidden states, weight and bias: this process's part of each."""
        losses, products, label_weight = self.part.problem, self.products(asked), self.label_weight()
        zeros = losses.logits.new_zeros(losses.logits.shape[0], dtype=losses.wide)
        whole = formula.Rows(zeros, torch.zeros_like(zeros) if losses.options.z_loss else None)
        by_term = _derivatives(self.part, whole, label_weight)
        for block, logits in products.logits():
            part = self.rows(block, logits)
            numbers, all_classes = exchange(part, slices.statistics(part), self.ranks)
            leaves = [each.detach().requires_grad_() for each in numbers[:3]]
            with torch.enable_grad():
                found = terms(part, KnownRows._make([*leaves, *numbers[3:]]))
            upstream = torch.autograd.grad(
                _parts(found), leaves, [each[block] for each in by_term], materialize_grads=True
            )
            for each, of_block in zip(_parts(whole), _parts(found), strict=True):
                each[block] = of_block.detach()
            slices.gradient(part, all_classes, Upstream(*upstream), logits=logits)
            products.add(block, logits)
        return formula.reduced(losses, whole, label_weight), products.gradients()

    def gradients(
        self, all_classes: AllClasses, upstream: Upstream, asked: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients by hidden states, weight, bias, distribution and logit bias, by a sweep of its own."""
        losses, of_operands = self.part.problem, (asked[0], asked[1], asked[2])
        products = self.products(of_operands)
        by_distribution = (
            torch.empty_like(losses.distribution) if asked[3] and losses.distribution is not None else None
        )
        by_bias = None
        if asked[4] and losses.logit_bias is not None:
            by_bias = torch.zeros_like(losses.logit_bias, dtype=losses.dtype)
        for block, logits in products.logits():
            slices.gradient(
                self.rows(block, logits),
                all_classes.rows(block),
                upstream.rows(block),
                logits=logits if any(of_operands) else None,
                distribution=None if by_distribution is None else by_distribution[block],
                logit_bias=by_bias,
            )
            if any(of_operands):
                products.add(block, logits)
        return *products.gradients(), by_distribution, by_bias

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return all that is kept for a backward pass."""
        return *self.problem.tensors(), *self.part.problem.tensors()[1:], self.kept

    def with_tensors(self, tensors: Sequence[Any]) -> "_Head":
        """Return the head with other tensors in the place of these."""
        problem, losses = self.problem.with_tensors(tensors[:8]), self.part.problem
        losses = losses.with_tensors((losses.logits, *tensors[8:13]))
        return self._replace(problem=problem, part=self.part._replace(problem=losses), kept=tensors[13])

    def total(self, by_operand: Sequence[Tensor | None], factor: Tensor | None = None) -> list[Tensor | None]:
        """Return the gradients as they are to be handed out: that of the hidden states of all processes' parts."""
        by_hidden = by_operand[0]
        if by_hidden is not None:
            self.ranks.total(by_hidden)
        if factor is not None:
            by_operand = [None if each is None else each.mul_(factor) for each in by_operand]
        return [
            None if each is None or like is None else each.to(like.dtype)
            for each, like in zip(by_operand, self.problem.operands(), strict=True)
        ]


_TENSORS = 14  # of a head


class _BlockProducts:
    """The products of blocks of rows with all of this process's classes."""

    def __init__(self, problem: LinearProblem, numbers: Callable[[slice], Any], asked: Asked, plan: BlockPlan) -> None:
        self._products = Products(problem, numbers, asked, plan)
        self._plan, self._classes = plan, slice(0, plan.all_classes)
        self.gradients = self._products.gradients

    def logits(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of rows, and their logits."""
        for block in self._plan.row_blocks():
            yield block, self._products.tensor_of_logits(block, self._classes)

    def add(self, block: slice, gradient: Tensor) -> None:
        """Add what a block's gradient makes of the gradients asked for."""
        self._products.add(block, self._classes, gradient)


class _KnownGradient(torch.autograd.Function):
    """The reduced loss, whose gradients are made with it and handed out once, and made anew after that."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: _Head) -> Tensor:
        ctx.save_for_backward(*head.tensors())
        ctx.head = head.with_tensors((None,) * _TENSORS)
        with torch.autocast(hidden.device.type, enabled=False):
            loss, ctx.gradients = head.loss_and_gradients(ctx.needs_input_grad[:3])
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        check_backward_is_plain()
        head = ctx.head.with_tensors(ctx.saved_tensors)
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            with torch.autocast(upstream.device.type, enabled=False):
                _, gradients = head.loss_and_gradients(ctx.needs_input_grad[:3])
        return *head.total(gradients, upstream), None


class _LaterGradient(torch.autograd.Function):
    """The numbers of each row, of which gradients are made by another sweep."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        distribution: Tensor | None,
        logit_bias: Tensor | None,
        head: _Head,
    ) -> tuple[Tensor | None, ...]:
        with torch.autocast(hidden.device.type, enabled=False):
            numbers, all_classes = head.numbers()
        ctx.save_for_backward(*head.tensors(), *all_classes)
        ctx.head = head.with_tensors((None,) * _TENSORS)
        ctx.mark_non_differentiable(*[each for each in numbers[3:] if each is not None])
        return tuple(numbers)

    @staticmethod
    def backward(ctx: Any, *by_number: Tensor) -> Any:
        check_backward_is_plain()
        tensors = ctx.saved_tensors
        head = ctx.head.with_tensors(tensors[:_TENSORS])
        with torch.autocast(by_number[0].device.type, enabled=False):
            *by_operand, by_distribution, by_bias = head.gradients(
                AllClasses(*tensors[_TENSORS:]), Upstream(*by_number[:3]), ctx.needs_input_grad
            )
        if by_bias is not None:
            by_bias = by_bias.to(head.part.problem.logit_bias.dtype)
        return *head.total(by_operand), by_distribution, by_bias, None


def _parts(rows: formula.Rows) -> list[Tensor]:
    return [part for part in rows if part is not None]


def _derivatives(part: ClassSlice, rows: formula.Rows, label_weight: Tensor | None) -> tuple[Tensor, ...]:
    """Return the derivatives of the reduced loss by the rows' terms, which it is linear in: they are known before."""
    leaves = [each.clone().requires_grad_() for each in _parts(rows)]
    with torch.enable_grad():
        loss = formula.reduced(part.problem, formula.Rows(leaves[0], leaves[1] if leaves[1:] else None), label_weight)
    return torch.autograd.grad(loss, leaves)
