"""The loss of hidden states and a weight with all of its logits there: whatever the dense loss can do with them."""

import torch
from torch import Tensor

from softmaxloss.backends.torch import answers, formula
from softmaxloss.backends.torch.doors import is_plain
from softmaxloss.backends.torch.linear_problem import LinearProblem
from softmaxloss.backends.torch.problem import Problem


def loss(problem: LinearProblem) -> Tensor:
    """Return the reduced loss, differentiable in every way that the call may be."""
    return answers.loss(_dense(problem))


def loss_by_formula(problem: LinearProblem) -> Tensor:
    """Return the same in PyTorch's own operations alone, so that its derivatives have derivatives."""
    return formula.loss(_dense(problem))


def _dense(problem: LinearProblem) -> Problem:
    logits = logits_of(problem)
    losses = problem.losses
    return losses._replace(logits=logits, on_host=losses.on_host and is_plain(logits))


def logits_of(problem: LinearProblem) -> Tensor:
    """Return all logits, class axis last, as a function of the operands."""
    hidden, weight, bias = problem.operands()
    kept = kept_rows(problem)
    if kept is not None:
        # A row that is left out has logits without a gradient; 0 times what it holds must be 0 as well.
        hidden = torch.where(kept.unsqueeze(-1), hidden, torch.zeros((), dtype=hidden.dtype, device=hidden.device))
    columns = weight.shape[:-1].numel()
    rows = hidden if hidden.ndim > 1 else hidden.unsqueeze(0)  # of one row PyTorch's batched forward mode takes none
    logits = torch.nn.functional.linear(
        rows, weight.reshape(columns, weight.shape[-1]), None if bias is None else bias.reshape(columns)
    )
    return logits.reshape(*hidden.shape[:-1], *weight.shape[:-1]).movedim(hidden.ndim - 1, -1)


def kept_rows(problem: LinearProblem) -> Tensor | None:
    """Tell for each row of hidden whether any of its losses counts; None where no label leaves one out."""
    indices = problem.losses.indices
    if indices is None:
        return None
    kept = indices != problem.losses.options.ignore_index
    return kept.flatten(problem.hidden.ndim - 1).any(-1) if problem.positions else kept
