"""The formula a block of rows at a time: memory of the blocks' size beside what is asked for, on any device."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from softmaxloss.backends.layout import row_blocks
from softmaxloss.backends.torch import formula
from softmaxloss.backends.torch.doors import nothing_watches
from softmaxloss.backends.torch.problem import Problem

# What a block's logits take, as they are computed in; a few times that is used. A cache's size on the host; elsewhere
# enough to keep a device busy for longer than it takes to ask for it.
_HOST_BYTES, _DEVICE_BYTES = 1 << 22, 1 << 26

_DIFFERENTIATED = ("logits", "distribution", "logit_bias")


def loss(problem: Problem) -> Tensor:
    """Return the reduced loss, differentiable by everything."""
    blocks = blocks_of(problem)
    if len(blocks) <= 1:
        return formula.loss(problem)
    # (PyTorch has no types for `apply`.)
    rows = BlockedRows.apply(problem.logits, problem.distribution, problem.logit_bias, problem, blocks)  # type: ignore[no-untyped-call]
    return formula.reduced(problem, formula.Rows(*rows))


def loss_and_gradient(problem: Problem, out: Tensor) -> Tensor:
    """Return the reduced loss, and fill `out`, which may be the logits, with its gradient."""
    found, by_row, blocks = _loss_of_rows(problem)
    _blocked_gradients(problem, by_row, blocks, {"logits": out})
    return found


def hessian_vector_product(problem: Problem, vector: Tensor) -> Tensor:
    """Return the Hessian of the reduced loss (of the sum for "none") times `vector`."""
    _, by_row, blocks = _loss_of_rows(problem)
    product = torch.empty_like(problem.logits)
    for block in blocks:
        part = block_of(problem, block)
        with torch.enable_grad():
            logits = part.logits.to(problem.dtype).requires_grad_()
            rows = formula.rows(part._replace(logits=logits))
            upstream = [each[block] for each in by_row]
            (gradient,) = torch.autograd.grad(_outputs(rows), logits, upstream, create_graph=True)
        direction = vector[block].to(problem.dtype)
        product[block] = torch.autograd.grad(gradient, logits, direction, materialize_grads=True)[0]
    return product


class BlockedRows(torch.autograd.Function):
    """`formula.rows`, of which nothing of the logits' size is kept, and nothing made but their gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        distribution: Tensor | None,
        logit_bias: Tensor | None,
        problem: Problem,
        blocks: Sequence[Any],
    ) -> tuple[Tensor, Tensor | None]:
        """Return each row's cross-entropy, and its squared logsumexp where there is a z_loss."""
        ctx.blocks, ctx.problem = blocks, problem.with_tensors([None] * 6)
        ctx.save_for_backward(*problem.tensors())
        rows = _rows(problem, blocks)
        return rows.cross_entropy, rows.square

    @staticmethod
    def backward(ctx: Any, by_cross_entropy: Tensor, by_square: Tensor | None) -> Any:
        """Return the gradients by logits, distribution and bias."""
        problem = ctx.problem.with_tensors(ctx.saved_tensors)
        asked = [name for name, needed in zip(_DIFFERENTIATED, ctx.needs_input_grad, strict=False) if needed]
        by_row = [by_cross_entropy] if by_square is None else [by_cross_entropy, by_square]
        if torch.is_grad_enabled() or not nothing_watches():
            found = _row_gradients(problem, asked, by_row, create_graph=torch.is_grad_enabled())
        else:
            found = {name: torch.empty_like(getattr(problem, name)) for name in asked}
            _blocked_gradients(problem, by_row, ctx.blocks, found)
        return *(found.get(name) for name in _DIFFERENTIATED), None, None


def blocks_of(problem: Problem) -> list[Any]:
    """Return the indices of blocks of its rows."""
    size = _HOST_BYTES if problem.logits.device.type == "cpu" else _DEVICE_BYTES
    rows_shape, classes = tuple(problem.logits.shape[:-1]), problem.logits.shape[-1]
    return list(row_blocks(rows_shape, max(1, size // (classes * problem.dtype.itemsize))))


def block_of(problem: Problem, block: Any) -> Problem:
    """Return the problem of some of its rows, for what a row's own numbers depend on."""
    tensors = [None if tensor is None else tensor[block] for tensor in problem[:3]]
    return problem.with_tensors([*tensors, *problem[3:6]])


def _rows(problem: Problem, blocks: Sequence[Any]) -> formula.Rows:
    shape = problem.logits.shape[:-1]
    cross_entropy = problem.logits.new_empty(shape, dtype=problem.dtype)
    square = torch.empty_like(cross_entropy) if problem.options.z_loss else None
    for block in blocks:
        rows = formula.rows(block_of(problem, block))
        cross_entropy[block] = rows.cross_entropy
        if square is not None:
            assert rows.square is not None
            square[block] = rows.square
    return formula.Rows(cross_entropy, square)


def _outputs(rows: formula.Rows) -> list[Tensor]:
    return [part for part in rows if part is not None]


def _loss_of_rows(problem: Problem) -> tuple[Tensor, list[Tensor], list[Any]]:
    """Return the reduced loss, its derivatives by what `formula.rows` gives, and the blocks."""
    blocks = blocks_of(problem)
    with torch.no_grad():
        rows = _rows(problem, blocks)
    with torch.enable_grad():
        for part in _outputs(rows):
            part.requires_grad_()
        answer = formula.reduced(problem, rows)
    by_row = torch.autograd.grad(answer, _outputs(rows), torch.ones_like(answer))
    return answer.detach(), list(by_row), blocks


def _row_gradients(
    problem: Problem, asked: Sequence[str], by_row: Sequence[Tensor], *, create_graph: bool
) -> dict[str, Tensor]:
    """Return the gradients of `formula.rows`, times `by_row`, by those of the tensors that are asked for."""
    leaves = {name: getattr(problem, name) for name in asked}
    with torch.enable_grad():
        if not create_graph:
            leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
        outputs = _outputs(formula.rows(problem._replace(**leaves)))
    found = torch.autograd.grad(
        outputs, list(leaves.values()), list(by_row), create_graph=create_graph, materialize_grads=True
    )
    return dict(zip(asked, found, strict=True))


def _blocked_gradients(
    problem: Problem, by_row: Sequence[Tensor], blocks: Sequence[Any], found: dict[str, Tensor]
) -> None:
    """Fill `found`, gradients by its names."""
    bias = found.get("logit_bias")
    total = None if bias is None else torch.zeros_like(bias, dtype=problem.dtype)
    for block in blocks:
        part = _row_gradients(
            block_of(problem, block), list(found), [each[block] for each in by_row], create_graph=False
        )
        for name, values in part.items():
            if name != "logit_bias":
                found[name][block] = values
            elif total is not None:
                total += values
    if bias is not None and total is not None:
        bias.copy_(total)
