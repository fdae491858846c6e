"""How the kernels run here: threads, instruction set, versions."""

import os
import platform
from importlib.metadata import version
from importlib.util import find_spec
from typing import Literal

import numpy as np

from softmaxloss import _native
from softmaxloss.options import integer

_MOST_THREADS = 512  # each has memory of its own; more than there are processors for is a mistake
_INSTRUCTION_SET_VARIABLE = "SOFTMAXLOSS_INSTRUCTION_SET"


def _instruction_set_from_environment() -> None:
    name = os.environ.get(_INSTRUCTION_SET_VARIABLE)
    if not name:
        return
    supported = _native.supported_instruction_sets()
    if name not in supported:
        raise ImportError(f"{_INSTRUCTION_SET_VARIABLE} is {name!r}; this machine can run {', '.join(supported)}")
    _native.set_instruction_set(name)


_instruction_set_from_environment()


def set_num_threads(n: int) -> None:
    """Set how many threads the kernels may use, for the whole process.

    Results do not depend on it: every number of threads gives the same bits. Small arrays are done by one thread,
    and so is everything in a child made by ``os.fork``.

    Parameters
    ----------
    n : int
        At least 1. At import it is the number of processors that the process may use, or ``OMP_NUM_THREADS``.

    Raises
    ------
    ValueError
        If `n` is less than 1 or more than 512.
    TypeError
        If `n` is not an integer.

    Examples
    --------
    >>> import softmaxloss as sl
    >>> before = sl.get_num_threads()
    >>> sl.set_num_threads(1)
    >>> sl.get_num_threads()
    1
    >>> sl.set_num_threads(before)
    """
    threads = integer("n", n)
    if not 1 <= threads <= _MOST_THREADS:
        raise ValueError(f"n is {threads}; the number of threads must be from 1 to {_MOST_THREADS}")
    _native.set_num_threads(threads)


def get_num_threads() -> int:
    """Return how many threads the kernels may use.

    Examples
    --------
    >>> import softmaxloss as sl
    >>> sl.get_num_threads() >= 1
    True
    """
    return _native.get_num_threads()


def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, object] | None:
    """Show which kernels run, on how many threads, and the versions; after ``numpy.show_config``.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Print the facts, or return them as a dict: ``softmaxloss``, ``numpy`` and ``python`` (versions),
        ``compiler``, ``machine``, ``instruction_set`` (the one in use), ``supported_instruction_sets`` (best first),
        ``num_threads`` and ``jax_ffi`` (whether the calls were built by which XLA reaches the kernels on CPUs; without
        them JAX arrays are computed in plain JAX). The environment variable ``SOFTMAXLOSS_INSTRUCTION_SET`` picks
        another instruction set at import.

    Raises
    ------
    ValueError
        If `mode` is neither.

    Examples
    --------
    >>> import softmaxloss as sl
    >>> config = sl.show_config(mode="dicts")
    >>> config["instruction_set"] in config["supported_instruction_sets"]
    True
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode is {mode!r}; expected 'stdout' or 'dicts'")
    facts: dict[str, object] = {
        "softmaxloss": version("softmaxloss"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "compiler": _native.compiler,
        "machine": platform.machine(),
        "instruction_set": _native.instruction_set(),
        "supported_instruction_sets": _native.supported_instruction_sets(),
        "num_threads": _native.get_num_threads(),
        "jax_ffi": find_spec("softmaxloss._xla") is not None,
    }
    if mode == "dicts":
        return facts
    for name, fact in facts.items():
        print(f"{name + ':':28}{', '.join(fact) if isinstance(fact, list) else fact}")
    return None
