"""Problems for the tests of the PyTorch door: logits, labels and options as tensors, those of tests/option_cases.py."""

import numpy as np
import torch
import torch_formula
from option_cases import DRAWS, EVERY_DENSE, EVERY_INDEX, INDEX_ONLY

import softmaxloss.torch as slt

IGNORED = -100

# Every option alone, and all that go together.
OPTION_SETS = [(), *((name,) for name in DRAWS), (*EVERY_INDEX, "sample_weight"), EVERY_DENSE]
REDUCTIONS = ["mean", "sum", "none"]


def label_kinds(names):
    return ["index"] if INDEX_ONLY & set(names) else ["index", "soft"]


def problem(names=(), kind="index", shape=(6, 5), dtype=torch.float64, reduction="mean", seed=0):
    """Return (logits, labels, options of softmaxloss.torch.cross_entropy), the class axis the second."""
    rng = np.random.default_rng(seed)
    classes, rows_shape = shape[1], (shape[0], *shape[2:])
    rows = int(np.prod(rows_shape))
    logits = torch.from_numpy(2 * rng.standard_normal(shape)).to(dtype)
    if kind == "index":
        labels = rng.integers(0, classes, rows)
        labels[rows // 2] = IGNORED
        labels = torch.from_numpy(labels.reshape(rows_shape))
    else:
        labels = torch.from_numpy(rng.dirichlet(np.ones(classes), rows_shape)).movedim(-1, 1).to(dtype).contiguous()
    options = {"reduction": reduction}
    for name in names:
        value = DRAWS[name](rng, rows, classes)
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value).to(dtype)
            value = value.reshape(rows_shape) if name == "sample_weight" else value
        options["weight" if name == "class_weight" else name] = value
    return logits, labels, options


def ours(logits, labels, options):
    return slt.cross_entropy(logits, labels, **options)


def formula(logits, labels, options):
    rest = {name: value for name, value in options.items() if name != "weight"}
    return torch_formula.loss(logits, labels, options.get("weight"), **rest)


def assert_close(found, expected, rtol=1e-11, atol=1e-12):
    """Assert that float64 numbers, one or a tree of them, agree; PyTorch's formula is right to some 1e-14."""
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, equal_nan=True)
