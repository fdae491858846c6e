"""Kinds of arrays: for each a module that says how it reaches the kernels, imported when the first such array comes."""

from types import ModuleType
from typing import Any

from softmaxloss.backends import numpy as numpy_backend


def backend_of(array: Any) -> ModuleType:
    """Return the backend for this kind of array, by the package that its class, or one it derives from, is defined in.

    NumPy's is for whatever `numpy.asarray` takes, but for kinds whose users expect an answer in kind.
    """
    for cls in type(array).__mro__:
        package = cls.__module__.partition(".")[0]
        if package == "torch":
            from softmaxloss.backends import torch as torch_backend

            return torch_backend
        if package in ("jax", "jaxlib"):
            from softmaxloss.backends import jax as jax_backend

            return jax_backend
        if package == "dask":
            from softmaxloss.backends import dask as dask_backend

            return dask_backend
    return numpy_backend


def is_dask(values: Any) -> bool:
    """Tell whether these are of Dask's kinds, arrays or tables, without importing Dask."""
    return any(cls.__module__.partition(".")[0] == "dask" for cls in type(values).__mro__)
