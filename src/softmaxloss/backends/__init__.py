"""Kinds of arrays: for each a module that says how it reaches the kernels."""

from types import ModuleType
from typing import Any

from softmaxloss.backends import numpy as numpy_backend

# Kinds that numpy.asarray would silently turn into NumPy arrays, where their users expect an answer in kind.
_NOT_YET = {
    "torch": "a PyTorch tensor",
    "jax": "a JAX array",
    "jaxlib": "a JAX array",
    "dask": "a Dask array",
}


def backend_of(array: Any) -> ModuleType:
    """Return the backend for this kind of array: NumPy's for whatever `numpy.asarray` takes."""
    package = type(array).__module__.partition(".")[0]
    if package in _NOT_YET:
        raise TypeError(
            f"got {_NOT_YET[package]}; this version takes NumPy arrays and what numpy.asarray takes: "
            "pass numpy.asarray(array), detached from any graph"
        )
    return numpy_backend
