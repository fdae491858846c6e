"""The data on which classifiers are trained: of kinds that people have, made from a seed, and scikit-learn's own.

Rows of every class are as many as of any other. Features are float32, of scikit-learn's sets float64 as they come.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

SEED = 20240229

# How far apart the classes are: half the distance between two centres, in standard deviations of the rows about them.
SEPARATION = 3.0


@dataclass(frozen=True)
class ClassifierCase:
    """What is trained on: rows, features and classes of a kind, and the inverse of the regularisation's strength."""

    name: str
    kind: str
    rows: int
    features: int
    classes: int
    C: float = 1.0

    @classmethod
    def parse(cls, text: str) -> ClassifierCase:
        """Return the case of that name, or one like it of other sizes: NAME or NAME:rows x features x classes."""
        name, _, shape = text.partition(":")
        if name not in CASES:
            raise ValueError(f"{text!r} is no case: expected one of {', '.join(CASES)}")
        if not shape:
            return CASES[name]
        try:
            rows, features, classes = (int(part) for part in shape.split("x"))
        except ValueError:
            raise ValueError(
                f"{text!r} is no case: expected NAME:rows x features x classes, such as embeddings:2000x64x10"
            ) from None
        if CASES[name].is_built_in:
            raise ValueError(f"{name} comes as it is: expected {name!r}, was given {text!r}")
        if CASES[name].kind == "pixels" and math.isqrt(features) ** 2 != features:
            raise ValueError(f"{text!r}: pixels are of a square, such as 784, which {features} is not")
        if not 2 <= classes <= rows:
            raise ValueError(f"{text!r}: expected 2 classes at least, and no more than rows")
        return dataclasses.replace(CASES[name], rows=rows, features=features, classes=classes)

    @property
    def title(self) -> str:
        strength = "" if self.C == 1.0 else f", C = {self.C:g}"
        return f"{self.name}, {self.rows} x {self.features}, {self.classes} classes{strength}"

    @property
    def is_built_in(self) -> bool:
        return self.kind == "built-in"

    @property
    def itemsize(self) -> int:
        return 8 if self.is_built_in else 4

    @property
    def tiny(self) -> ClassifierCase:
        """Return a case of the same kind that takes no time: the first call imports, and starts threads."""
        if self.is_built_in:
            return CASES["iris"]
        return dataclasses.replace(self, rows=60, features=64, classes=min(self.classes, 3))

    def data(self) -> tuple[Any, Any]:
        """Return the features, an array or a CSR matrix, and the labels from 0."""
        if self.is_built_in:
            import sklearn.datasets

            return getattr(sklearn.datasets, f"load_{self.name}")(return_X_y=True)
        rng = np.random.default_rng(SEED)
        labels = rng.permutation(np.arange(self.rows) % self.classes)
        return KINDS[self.kind](self, labels, rng), labels


def _embeddings(case: ClassifierCase, labels: Any, rng: np.random.Generator) -> Any:
    """Return rows about the centre of their class, alike in all directions."""
    centres = rng.standard_normal((case.classes, case.features), dtype=np.float32)
    centres *= np.float32(SEPARATION * math.sqrt(2.0 / case.features))
    return centres[labels] + rng.standard_normal((case.rows, case.features), dtype=np.float32)


def _sentences(case: ClassifierCase, labels: Any, rng: np.random.Generator) -> Any:
    """Return rows as language models give them: few directions hold most, a common mean, every row of norm 1."""
    spread = np.arange(1, case.features + 1, dtype=np.float32) ** np.float32(-0.75)
    rotation, _ = np.linalg.qr(rng.standard_normal((case.features, case.features), dtype=np.float32))
    rows = (_embeddings(case, labels, rng) * spread) @ rotation.T
    mean = rng.standard_normal(case.features, dtype=np.float32)
    rows += mean * np.float32(np.linalg.norm(spread) / np.linalg.norm(mean))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _pixels(case: ClassifierCase, labels: Any, rng: np.random.Generator) -> Any:
    """Return smooth pictures from 0 to 1, mostly 0, with a margin that always is: a class has several styles."""
    from scipy.ndimage import gaussian_filter

    side, styles = math.isqrt(case.features), 5

    def smooth(count: int) -> Any:
        noise = rng.standard_normal((count, side, side), dtype=np.float32)
        fields = gaussian_filter(noise, side / 14, axes=(1, 2), output=np.float32)
        return fields / fields.std()

    drawn = smooth(case.classes * styles)[labels * styles + rng.integers(0, styles, case.rows)]
    pictures = np.clip(0.5 * drawn + 0.4 * smooth(case.rows) - 0.1, 0.0, 1.0, dtype=np.float32)
    margin = max(1, side // 10)
    inside = np.zeros((side, side), np.float32)
    inside[margin:-margin, margin:-margin] = 1.0
    return (pictures * inside).reshape(case.rows, case.features)


def _text(case: ClassifierCase, labels: Any, rng: np.random.Generator) -> Any:
    """Return tf-idf of texts, rows of norm 1: words follow Zipf's law, and a topic has its own among them."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfTransformer

    frequency = 1.0 / (np.arange(case.features) + 2.7)
    # The place of a word in the vocabulary says nothing of how frequent it is.
    frequency = rng.permutation(frequency / frequency.sum())
    lengths = rng.lognormal(np.log(155.0), 0.6, case.rows).astype(np.int64) + 1
    words = np.empty(lengths.sum(), np.int64)
    text_of_word = np.repeat(np.arange(case.rows), lengths)
    topic_of_word = labels[text_of_word]
    for topic in range(case.classes):
        of_topic = frequency * np.exp(0.4 * rng.standard_normal(case.features))
        cumulative = np.cumsum(of_topic)
        here = topic_of_word == topic
        drawn = rng.random(np.count_nonzero(here)) * cumulative[-1]
        words[here] = np.minimum(np.searchsorted(cumulative, drawn), case.features - 1)
    ones = np.ones(len(words), np.float32)
    counts = csr_matrix((ones, (text_of_word, words)), shape=(case.rows, case.features))
    return TfidfTransformer().fit_transform(counts)


KINDS: dict[str, Callable[[ClassifierCase, Any, np.random.Generator], Any]] = {
    "embeddings": _embeddings,
    "sentences": _sentences,
    "pixels": _pixels,
    "text": _text,
}
CASES = {
    case.name: case
    for case in (
        ClassifierCase("embeddings", "embeddings", 20000, 256, 100),
        ClassifierCase("many-classes", "embeddings", 20000, 512, 1000),
        ClassifierCase("pixels", "pixels", 60000, 784, 10),
        ClassifierCase("sentences", "sentences", 20000, 384, 100),
        ClassifierCase("weak", "embeddings", 20000, 512, 100, C=100.0),
        ClassifierCase("text", "text", 11000, 130000, 20),
        ClassifierCase("iris", "built-in", 150, 4, 3),
        ClassifierCase("wine", "built-in", 178, 13, 3),
        ClassifierCase("breast_cancer", "built-in", 569, 30, 2),
        ClassifierCase("digits", "built-in", 1797, 64, 10),
    )
}
QUICK_CASES = [ClassifierCase.parse("embeddings:2000x64x10"), CASES["iris"]]
