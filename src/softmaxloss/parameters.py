"""What the classifiers' parameters may be, and an estimator that stays as it was where `fit` fails."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

_FLAGS = (bool, np.bool_)

# The parameters that are numbers or flags: types, range, and both in words. NaN is in no range, and True is a number
# for `verbose` only.
_RANGES: dict[str, tuple[tuple[type, ...], Callable[[Any], bool], str]] = {
    "C": ((Real,), lambda value: value > 0, "a number above 0"),
    "fit_intercept": (_FLAGS, lambda value: True, "True or False"),
    "label_smoothing": ((Real,), lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    "tol": ((Real,), lambda value: value > 0, "a number above 0"),
    "max_iter": ((Integral,), lambda value: value >= 1, "an integer of at least 1"),
    "warm_start": (_FLAGS, lambda value: True, "True or False"),
    "refit": (_FLAGS, lambda value: True, "True or False"),
    "verbose": ((Integral, *_FLAGS), lambda value: value >= 0, "an integer of at least 0, or True or False"),
}


def check_parameters(estimator: BaseEstimator) -> None:
    """Refuse a parameter out of its range, before anything is computed."""
    for name, value in estimator.get_params(deep=False).items():
        if name in _RANGES:
            kinds, is_in_range, expected = _RANGES[name]
            is_of_kind = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
            if not (is_of_kind and is_in_range(value)):
                raise ValueError(f"{name}={value!r} was given: set {name} to {expected}")
    if not isinstance(estimator.checkpoint, str | os.PathLike | None):
        raise ValueError(f"checkpoint={estimator.checkpoint!r} was given: set checkpoint to a path, or None for none")


@contextmanager
def untouched_on_error(estimator: BaseEstimator) -> Iterator[None]:
    """Give the estimator its attributes back if the body raises, Ctrl-C included."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        estimator.__dict__ = before
        raise
