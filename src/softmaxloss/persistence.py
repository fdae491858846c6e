"""The pipeline that the command trains, and its file: skops, which holds no code to run, unlike pickle."""

from __future__ import annotations

import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from softmaxloss.data.datasets import Layout, LayoutKind
from softmaxloss.data.files import DataError, check_input, listed, one_line, replacing

if TYPE_CHECKING:
    from softmaxloss.classifier import SoftmaxClassifier

__all__ = [
    "TRUSTED_TYPES",
    "Model",
    "UnseenCategories",
    "build_pipeline",
    "load_model",
    "save_model",
    "unseen_categories",
]

# The only types that a model file may hold beyond those of scikit-learn and NumPy that skops itself trusts.
TRUSTED_TYPES = (
    "softmaxloss.classifier.SoftmaxClassifier",
    "numpy.dtype",  # the type of scikit-learn's encoded categories
)

# What a model file says of the model beside the pipeline itself.
FACTS = {
    **{"version": str, "target": str, "kind": str},
    **{"numbers": list, "text": list, "n_features": int, "zero_based": bool},
}


@dataclass(frozen=True)
class Model:
    """A fitted pipeline, what its features look like, and what it predicts.

    ``version`` is that of the library that trained it.
    """

    pipeline: Any  # sklearn.pipeline.Pipeline
    layout: Layout
    target: str
    version: str

    @property
    def classifier(self) -> SoftmaxClassifier:
        """The classifier at the pipeline's end."""
        classifier: SoftmaxClassifier = self.pipeline[-1]
        return classifier


def build_pipeline(layout: Layout, classifier: SoftmaxClassifier) -> Any:
    """Put before a classifier what its features need, by their layout.

    =======  =======================================================================================
    table    numbers: a missing value becomes the median, then mean 0 and variance 1; text: one
             column for each category, where a missing value is a category if training saw one, and
             a category that training did not see is none of them
    dense    as the numbers of a table
    sparse   each feature divided by its largest magnitude, which keeps zeros
    pixels   likewise, so that all lie in [0, 1]
    =======  =======================================================================================

    Parameters
    ----------
    layout : Layout
        What the features look like.
    classifier : SoftmaxClassifier
        The last step; not fitted here.

    Returns
    -------
    sklearn.pipeline.Pipeline
        With the steps "features" and "classifier".

    Examples
    --------
    >>> from softmaxloss.classifier import SoftmaxClassifier
    >>> from softmaxloss.data.datasets import Layout
    >>> from softmaxloss.persistence import build_pipeline
    >>> pipeline = build_pipeline(Layout("sparse", n_features=3), SoftmaxClassifier())
    >>> list(pipeline.named_steps)
    ['features', 'classifier']
    """
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import MaxAbsScaler, OneHotEncoder, StandardScaler

    if layout.kind in ("sparse", "pixels"):
        return Pipeline([("features", MaxAbsScaler()), ("classifier", classifier)])
    # A column without any value stays, as zeros: the model then takes the columns it was given.
    filled = SimpleImputer(strategy="median", keep_empty_features=True)
    scaled = Pipeline([("fill", filled), ("scale", StandardScaler())])
    if layout.kind == "dense":
        return Pipeline([("features", scaled), ("classifier", classifier)])
    parts = [
        ("numbers", scaled, list(layout.numbers)),
        ("text", OneHotEncoder(handle_unknown="ignore"), list(layout.text)),
    ]
    columns = ColumnTransformer([part for part in parts if part[2]])
    return Pipeline([("features", columns), ("classifier", classifier)])


def unseen_categories(model: Model, features: Any) -> list[str]:
    """Tell, for each column of text, how many rows hold a category that training did not see.

    Such a row gets no column of its category, so what it holds there does not count in the prediction.

    Parameters
    ----------
    model : Model
        A fitted model.
    features : Features
        Rows to predict, of the model's layout.

    Returns
    -------
    list of str
        A sentence for each column that has such rows.
    """
    unseen = UnseenCategories(model)
    unseen.count(features)
    return unseen.notes()


class UnseenCategories:
    """Counts, over blocks of rows, what `unseen_categories` tells.

    Parameters
    ----------
    model : Model
        A fitted model.
    """

    def __init__(self, model: Model) -> None:
        self._text = model.layout.text
        self._known = model.pipeline[0].named_transformers_["text"].categories_ if self._text else []
        self._counts = dict.fromkeys(self._text, 0)
        self._examples: dict[str, str] = {}
        self._rows = 0

    def count(self, features: Any) -> None:
        """Look at some rows."""
        if not self._text:
            return
        self._rows += len(features)
        for name, categories in zip(self._text, self._known, strict=True):
            values = features[name]
            unseen = values[~values.isin(categories)]
            self._counts[name] += len(unseen)
            written = unseen.dropna()
            if len(written):
                self._examples.setdefault(name, repr(written.iloc[0]))

    def notes(self) -> list[str]:
        """Return a sentence for each column that has such rows."""
        return [
            f"column {name!r}: {count} of {self._rows} rows hold a category that training did not see, such as "
            f"{self._examples.get(name, 'that of no value')}"
            for name, count in self._counts.items()
            if count
        ]


def save_model(path: Path, model: Model) -> None:
    """Write a model to a file, whole or not at all.

    The file holds the pipeline, which anyone can load with `skops.io.load`; what else `Model` knows is its
    attribute ``softmaxloss_``.

    Raises
    ------
    DataError
        The file cannot be written.
    """
    import skops.io

    model.pipeline.softmaxloss_ = {
        "version": model.version,
        "target": model.target,
        "kind": model.layout.kind,
        "numbers": list(model.layout.numbers),
        "text": list(model.layout.text),
        "n_features": model.layout.n_features,
        "zero_based": model.layout.zero_based,
    }
    with replacing(path) as temporary:
        skops.io.dump(model.pipeline, temporary)


def load_model(path: Path) -> Model:
    """Read a model from a file.

    scikit-learn warns where another version of it saved the model.

    Raises
    ------
    DataError
        The file is no such model, is one that cannot predict, or holds a type that is not among those trusted.
    """
    check_input(path)
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: is not a model saved by softmaxloss, or is cut off")
    import skops.io

    try:
        untrusted = skops.io.get_untrusted_types(file=path)
    except Exception as error:  # skops raises whatever the damaged part makes it raise
        raise _no_model(path, error) from None
    strange = sorted(set(untrusted) - set(TRUSTED_TYPES))
    if strange:
        raise DataError(
            f"{path}: holds the type {strange[0]}, which is not trusted, so the file is not loaded; a model "
            "saved by softmaxloss holds no such type"
        )
    try:
        return _described(skops.io.load(path, trusted=list(TRUSTED_TYPES)))
    except Exception as error:
        raise _no_model(path, error) from None


def _described(pipeline: Any) -> Model:
    from softmaxloss.classifier import SoftmaxClassifier

    if not isinstance(pipeline[-1], SoftmaxClassifier):
        raise TypeError(f"its last step is a {type(pipeline[-1]).__name__}, not a SoftmaxClassifier")
    facts = pipeline.softmaxloss_
    for name, kind in FACTS.items():
        if not isinstance(facts[name], kind):
            raise TypeError(f"its {name} is {facts[name]!r}, not a {kind.__name__}")
    layout = Layout(
        facts["kind"], tuple(facts["numbers"]), tuple(facts["text"]), facts["n_features"], facts["zero_based"]
    )
    if layout.kind not in get_args(LayoutKind):
        raise ValueError(f"its kind is {layout.kind!r}, not one of {listed(get_args(LayoutKind))}")
    _check_classifier(pipeline[-1])
    _check_prediction(pipeline, layout)
    return Model(pipeline, layout, facts["target"], facts["version"])


def _check_classifier(classifier: SoftmaxClassifier) -> None:
    """Raise ValueError for parameters that do not fit each other, or are no numbers."""
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(classifier)
    classes, coef, intercept = (
        np.asarray(value) for value in (classifier.classes_, classifier.coef_, classifier.intercept_)
    )
    logits = 1 if classes.shape == (2,) else classes.size
    if classes.ndim != 1 or coef.shape != (logits, classifier.n_features_in_) or intercept.shape != (logits,):
        raise ValueError(
            f"classes_ has shape {classes.shape}, coef_ {coef.shape} and intercept_ {intercept.shape}, which do not "
            f"fit with {classifier.n_features_in_} features"
        )
    if len(np.unique(classes)) < max(len(classes), 2):
        raise ValueError("classes_ holds fewer than two classes, or one of them twice")
    if not (np.isfinite(coef).all() and np.isfinite(intercept).all()):
        raise ValueError("its coefficients are not all finite numbers")


def _check_prediction(pipeline: Any, layout: Layout) -> None:
    """Raise an error unless the pipeline predicts rows of zeros and of missing values."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probabilities = pipeline.predict_proba(_probe(layout))
    if probabilities.shape[1] != len(pipeline[-1].classes_) or not np.isfinite(probabilities).all():
        raise ValueError("it does not predict finite probabilities")


def _probe(layout: Layout) -> Any:
    if layout.kind == "table":
        import pandas as pd

        columns = {name: pd.Series([0.0, np.nan]) for name in layout.numbers}
        return pd.DataFrame(columns | {name: pd.Series(["", np.nan], dtype=object) for name in layout.text})
    if layout.kind == "dense":
        return np.array([[0.0], [np.nan]]).repeat(layout.n_features, axis=1)
    zeros = np.zeros((1, layout.n_features))
    if layout.kind == "pixels":
        return zeros
    from scipy.sparse import csr_matrix

    # Zeros that are stored, as only those are computed with.
    return csr_matrix((zeros[0], np.arange(layout.n_features), [0, layout.n_features]), shape=zeros.shape)


def _no_model(path: Path, error: Exception) -> DataError:
    reason = f"{type(error).__name__}: {one_line(error)}"
    return DataError(f"{path}: is not a model saved by softmaxloss, or is damaged or cut off ({reason})")
