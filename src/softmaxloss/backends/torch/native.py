"""The kernels on tensors of the host."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from softmaxloss.backends.kernel import LossKernel
from softmaxloss.backends.torch.problem import Problem
from softmaxloss.backends.torch.views import kernels_take, new_like, view
from softmaxloss.labels import Labels


def kernel_serves(problem: Problem) -> bool:
    """Tell whether the kernels can be asked, for derivatives by the logits alone."""
    return problem.on_host and kernels_take(problem.logits.dtype)


def loss(problem: Problem, gradient: Tensor | None, *, in_place: bool = False) -> Tensor:
    """Return the reduced loss, and fill `gradient`, which may be the logits themselves (`in_place`)."""
    answer = kernel_of(problem).loss(view(gradient), in_place=in_place)
    return torch.from_numpy(np.asarray(answer)).to(problem.loss_dtype)


def gradient(problem: Problem, upstream: Tensor) -> Tensor:
    """Return the gradient of the reduced loss times `upstream`, which is multiplied in before anything is rounded."""
    kernel = _with_upstream(problem, view(upstream))
    result = new_like(problem.logits)
    kernel.loss(view(result))
    return result


def hessian_vector_product(problem: Problem, vector: Tensor, upstream: Tensor | None = None) -> Tensor:
    """Return the Hessian, of the sum of the rows' losses times `upstream`, times `vector`."""
    kernel = kernel_of(problem) if upstream is None else _with_upstream(problem, view(upstream))
    product = new_like(problem.logits)
    kernel.hessian_vector_product(view(vector), view(product))
    return product


def kernel_of(problem: Problem) -> LossKernel:
    """Return the loss for the kernels; `LabelError` for a label outside of the classes."""
    indices, distribution = problem.indices, problem.distribution
    if indices is not None:
        labels = Labels(np.ascontiguousarray(view(indices)).reshape(indices.shape), None, 0.0)
    else:
        labels = Labels(None, view(distribution), problem.tolerance)
    return LossKernel(view(problem.logits), labels, problem.options)


def _with_upstream(problem: Problem, upstream: Any) -> LossKernel:
    options = problem.options
    if options.reduction != "none":
        kernel = kernel_of(problem)
        kernel.gradient_scale *= float(upstream)
        return kernel
    # As weights of the rows: the kernels multiply by these whatever their sign.
    by_row = np.array(upstream, dtype=np.float64)
    if options.sample_weight is not None:
        by_row *= options.sample_weight
    return kernel_of(problem._replace(options=options._replace(sample_weight=by_row)))
