"""Problems for the tests of linear_cross_entropy on tensors: hidden states, weight, bias, labels and options."""

import torch
import torch_formula
from torch_problems import problem

import softmaxloss.torch as slt


def linear_problem(names=(), kind="index", rows=6, features=3, classes=5, positions=(), reduction="mean", seed=0):
    """Return ([hidden, weight, bias], labels, options of softmaxloss.torch.linear_cross_entropy), in float64."""
    _, labels, options = problem(names, kind, (rows, classes, *positions), reduction=reduction, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    shapes = (rows, features), (classes, *positions, features), (classes, *positions)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes], labels, options


def ours(operands, labels, options):
    """Return the loss by softmaxloss."""
    hidden, weight, *bias = operands
    return slt.linear_cross_entropy(hidden, weight, labels, linear_bias=bias[0] if bias else None, **options)


def formula(operands, labels, options):
    """Return the loss by all logits and the formula in plain operations; without options of blocks."""
    hidden, weight, *bias = operands
    logits = torch.einsum("nd,c...d->nc...", hidden, weight) if hidden.ndim > 1 else weight @ hidden
    logits = logits + bias[0] if bias else logits
    rest = {name: value for name, value in options.items() if name not in ("weight", *BLOCKS)}
    return torch_formula.loss(logits, labels, options.get("weight"), **rest)


BLOCKS = ("max_block_bytes", "gradient_filter", "options")

# Of logits in float64 with 5 classes: all rows at once, two rows, and blocks of fewer classes than there are.
BLOCK_BYTES = {"one block": None, "blocks of rows": 80, "blocks of classes": 24}
