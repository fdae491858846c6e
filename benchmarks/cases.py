"""The cases that are measured: a dtype, rows and classes, and the same seeded data in every process."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SEED = 20240229


@dataclass(frozen=True)
class Case:
    """Logits of one dtype and shape, with index labels; written ``8192x1000`` or ``float64:8192x1000``."""

    rows: int
    classes: int
    dtype: str = "float32"

    @classmethod
    def parse(cls, text: str) -> Case:
        match = re.fullmatch(r"(?:(float32|float64):)?([1-9]\d*)x([1-9]\d*)", text)
        if match is None:
            raise argparse.ArgumentTypeError(
                f"case {text!r}: expected rows x classes such as 8192x1000, or float64:8192x1000"
            )
        return cls(int(match[2]), int(match[3]), match[1] or "float32")

    def __str__(self) -> str:
        shape = f"{self.rows}x{self.classes}"
        return shape if self.dtype == "float32" else f"{self.dtype}:{shape}"

    @property
    def nbytes(self) -> int:
        return self.rows * self.classes * np.dtype(self.dtype).itemsize

    def data(self) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
        rng = np.random.default_rng(SEED)
        labels = rng.integers(0, self.classes, self.rows)
        return rng.standard_normal((self.rows, self.classes), dtype=self.dtype), labels


DENSE = [Case(8192, 1000), Case(1024, 32000), Case(512, 128256), Case(65536, 10), Case(8192, 1000, "float64")]
MEMORY = [Case(8192, 1000), Case(1024, 32000)]
