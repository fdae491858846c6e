"""What every part of the JAX backend is told: a plan, fixed while a program is traced, and arrays of a few shapes."""

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp

# What computes: the kernels, plain JAX, or whichever of these serves the platform that the program will run on.
Serving = Literal["kernels", "jax", "either"]


class Plan(NamedTuple):
    """What a traced program has built into it: `LossOptions` without arrays, hashable."""

    reduction: str
    ignore_index: int
    label_smoothing: float
    temperature: float
    softcap: float  # 0 means none
    z_loss: float
    focal_gamma: float
    poly_epsilon: float
    soft: bool  # whether labels are distributions
    tolerance: float  # how far from 1 they may sum
    serving: Serving
    consumes: bool = False  # whether logits (rows, classes, 1) are needed no longer once there is a gradient


class Capped(NamedTuple):
    """A transform of the logits: as much of a `Plan` as there is without a loss."""

    temperature: float = 1.0
    softcap: float = 0.0  # 0 means none
    serving: Serving = "jax"


class Operands(NamedTuple):
    """The arrays. Whatever the class axis was, it is the one in the middle: (before, classes, after).

    Parameters
    ----------
    logits : (before, classes, after)
        Of a floating dtype.
    labels : (before, after) of int32 or int64, or (before, classes, after) of the dtype computed in
        Class indices, or distributions.
    sample_weight : (before, after) or None
        Like the next two of float32 or float64.
    class_weight, logit_bias : (classes,) or None
        One number a class.
    """

    logits: Any
    labels: Any
    sample_weight: Any = None
    class_weight: Any = None
    logit_bias: Any = None


def computed_in(dtype: Any) -> Any:
    """Return the dtype that logits of this one are computed in: float64 for float64, else float32."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def rows_shape(operands: Operands) -> tuple[int, int]:
    """Return the shape of one number a row."""
    before, _, after = operands.logits.shape
    return before, after
