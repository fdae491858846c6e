"""The cases that are measured: shape, dtype and variant of the loss, and the same seeded data in every process."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 20240229

DTYPES = ("float32", "float64", "float16", "bfloat16")

# What a case may add to the plain loss of index labels, with the options that softmaxloss is given for it.
VARIANTS: dict[str, dict[str, Any]] = {
    "soft_labels": {},  # distributions for labels
    "label_smoothing": {"label_smoothing": 0.1},
    "class_weight": {},  # random weights, made with the data
    "z_loss": {"z_loss": 1e-4},
    "focal_gamma": {"focal_gamma": 2.0},
    "softcap": {"softcap": 30.0},
}

_NOTATION = re.compile(
    rf"(?:(?P<dtype>{'|'.join(DTYPES)}):)?(?P<shape>[1-9]\d*(?:x[1-9]\d*)+)(?:@(?P<axis>\d+))?"
    rf"(?:\+(?P<variant>{'|'.join(VARIANTS)}))?"
)


@dataclass(frozen=True)
class Case:
    """Logits of one shape and dtype and what is asked of them; written ``float64:8x21x256x256@1+label_smoothing``.

    Without a dtype it is float32, without ``@axis`` the classes are along the last axis, and without a variant the
    labels are class indices and there are no options.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    axis: int = -1
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Case:
        match = _NOTATION.fullmatch(text)
        shape = tuple(map(int, match["shape"].split("x"))) if match else ()
        axis = int(match["axis"]) if match and match["axis"] else -1
        if match is None or axis >= len(shape):
            raise argparse.ArgumentTypeError(
                f"case {text!r}: expected rows x classes such as 8192x1000, bfloat16:8192x1000, 8x21x256x256@1 with "
                f"the class axis, or 8192x1000+VARIANT, of {', '.join(VARIANTS)}"
            )
        return cls(shape, match["dtype"] or "float32", -1 if axis == len(shape) - 1 else axis, match["variant"] or "")

    def __str__(self) -> str:
        dtype = "" if self.dtype == "float32" else f"{self.dtype}:"
        axis = "" if self.axis == -1 else f"@{self.axis}"
        return f"{dtype}{'x'.join(map(str, self.shape))}{axis}{'+' if self.variant else ''}{self.variant}"

    @property
    def title(self) -> str:
        """How tables name it."""
        words = [" x ".join(map(str, self.shape))]
        words += [f"axis {self.axis}"] if self.axis != -1 else []
        words += [self.dtype] if self.dtype != "float32" else []
        return " ".join([*words, *([self.variant.replace("_", " ")] if self.variant else [])])

    @property
    def classes(self) -> int:
        return self.shape[self.axis]

    @property
    def rows_shape(self) -> tuple[int, ...]:
        return tuple(np.delete(self.shape, self.axis).tolist())

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.numpy_dtype.itemsize

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        if self.dtype == "bfloat16":
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(self.dtype)

    def data(self) -> Data:
        rng = np.random.default_rng(SEED)
        drawn = "float64" if self.dtype == "float64" else "float32"
        logits = rng.standard_normal(self.shape, dtype=drawn).astype(self.numpy_dtype, copy=False)
        options = dict(VARIANTS[self.variant]) if self.variant else {}
        if self.variant == "class_weight":
            options["class_weight"] = rng.uniform(0.5, 1.5, self.classes).astype(self.numpy_dtype)
        if self.variant == "soft_labels":
            shares = rng.random(self.shape, dtype=drawn)
            return Data(logits, (shares / shares.sum(self.axis, keepdims=True)).astype(self.numpy_dtype), options)
        return Data(logits, rng.integers(0, self.classes, self.rows_shape), options)


@dataclass(frozen=True)
class Data:
    """What a contender is given: logits, labels, and the options of `softmaxloss.softmax_cross_entropy`."""

    logits: NDArray[Any]
    labels: NDArray[Any]
    options: dict[str, Any]


DENSE = [
    Case.parse(text)
    for text in (
        "8192x1000",
        "1024x32000",
        "512x128256",
        "8x21x256x256@1",
        "65536x10",
        "200000x3",
        "100000x37",
        *(f"8192x1000+{variant}" for variant in VARIANTS),
        "bfloat16:8192x1000",
        "float16:8192x1000",
        "float64:8192x1000",
        "float64:1024x32000",
        "1x10",
    )
]
MEMORY = [Case.parse("8192x1000"), Case.parse("1024x32000")]
TORCH = [
    Case.parse(text)
    for text in ("8192x1000", "1024x32000", "512x128256", "8x21x256x256@1", "bfloat16:8192x1000", "128x1000", "8x10")
]
JAX = [Case.parse(text) for text in ("8192x1000", "1024x32000")]
