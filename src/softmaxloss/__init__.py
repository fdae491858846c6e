"""The softmax loss: softmax, one-hot labels, cross-entropy, and their fusion, exact and with gradients."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from softmaxloss.functional import cross_entropy, log_softmax, logsumexp, one_hot, softmax
from softmaxloss.labels import LabelError
from softmaxloss.linear import LinearGrad, linear_cross_entropy, linear_cross_entropy_and_grad
from softmaxloss.loss import (
    RowStatistics,
    hessian_vector_product,
    row_statistics,
    softmax_cross_entropy,
    softmax_cross_entropy_and_grad,
)
from softmaxloss.runtime import get_num_threads, set_num_threads, show_config

if TYPE_CHECKING:
    from softmaxloss.calibration import fit_temperature
    from softmaxloss.classifier import SoftmaxClassifier
    from softmaxloss.classifier_cv import SoftmaxClassifierCV
    from softmaxloss.comparison import Comparison, compare
    from softmaxloss.evaluation import Evaluation, evaluate

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Evaluation",
    "LabelError",
    "LinearGrad",
    "RowStatistics",
    "SoftmaxClassifier",
    "SoftmaxClassifierCV",
    "__version__",
    "compare",
    "cross_entropy",
    "evaluate",
    "fit_temperature",
    "get_num_threads",
    "hessian_vector_product",
    "linear_cross_entropy",
    "linear_cross_entropy_and_grad",
    "log_softmax",
    "logsumexp",
    "one_hot",
    "row_statistics",
    "set_num_threads",
    "show_config",
    "softmax",
    "softmax_cross_entropy",
    "softmax_cross_entropy_and_grad",
]

_LAZY = {
    "SoftmaxClassifier": "softmaxloss.classifier",  # imports scikit-learn
    "SoftmaxClassifierCV": "softmaxloss.classifier_cv",
    "Comparison": "softmaxloss.comparison",  # imports scipy, when it compares
    "compare": "softmaxloss.comparison",
    "Evaluation": "softmaxloss.evaluation",
    "evaluate": "softmaxloss.evaluation",
    "fit_temperature": "softmaxloss.calibration",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
