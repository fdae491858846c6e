"""The pipeline that the command trains, and its file: skops, which holds no code to run, unlike pickle."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softmaxloss.data.datasets import Layout
from softmaxloss.data.files import DataError, check_input, one_line, replacing

if TYPE_CHECKING:
    from softmaxloss.classifier import SoftmaxClassifier

__all__ = ["TRUSTED_TYPES", "Model", "build_pipeline", "load_model", "save_model"]

# The only types that a model file may hold beyond those of scikit-learn and NumPy that skops itself trusts.
TRUSTED_TYPES = (
    "softmaxloss.classifier.SoftmaxClassifier",
    "numpy.dtype",  # the type of scikit-learn's encoded categories
)


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
        The file is no such model, or holds a type that is not among those trusted.
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
    layout = Layout(
        facts["kind"], tuple(facts["numbers"]), tuple(facts["text"]), facts["n_features"], facts["zero_based"]
    )
    return Model(pipeline, layout, facts["target"], facts["version"])


def _no_model(path: Path, error: Exception) -> DataError:
    reason = f"{type(error).__name__}: {one_line(error)}"
    return DataError(f"{path}: is not a model saved by softmaxloss, or is damaged or cut off ({reason})")
