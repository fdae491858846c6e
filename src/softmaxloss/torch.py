"""Drop-ins for PyTorch with its own signatures, class axis and answers: cross-entropy, and that of a last layer.

>>> from softmaxloss.torch import CrossEntropyLoss, LinearCrossEntropyLoss  # in place of torch.nn's
"""

from softmaxloss.backends.torch.parallel import vocab_parallel_cross_entropy
from softmaxloss.backends.torch.ranks import class_slices
from softmaxloss.backends.torch.spare import empty_cache
from softmaxloss.dropins.causal_lm import patch_causal_lm
from softmaxloss.dropins.dense import CrossEntropyLoss, cross_entropy
from softmaxloss.dropins.errors import ArgumentError, DtypeError
from softmaxloss.dropins.linear import linear_cross_entropy
from softmaxloss.dropins.linear_module import LinearCrossEntropyLoss

__all__ = [
    "ArgumentError",
    "CrossEntropyLoss",
    "DtypeError",
    "LinearCrossEntropyLoss",
    "class_slices",
    "cross_entropy",
    "empty_cache",
    "linear_cross_entropy",
    "patch_causal_lm",
    "vocab_parallel_cross_entropy",
]
