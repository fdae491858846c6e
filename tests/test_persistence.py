"""The pipelines that are trained, and their files: the same predictions back, and nothing else loaded."""

import json
import zipfile

import numpy as np
import pandas as pd
import pytest
import skops.io
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from softmaxloss.classifier import SoftmaxClassifier
from softmaxloss.data.datasets import Layout
from softmaxloss.data.files import DataError
from softmaxloss.persistence import (
    TRUSTED_TYPES,
    Model,
    build_pipeline,
    load_model,
    save_model,
    unseen_categories,
)

TABLE = Layout("table", ("width", "constant", "empty"), ("colour", "nothing"), 5)


def frame(rows=40):
    """Make a table with missing values, a constant column, and columns that hold nothing."""
    rng = np.random.default_rng(0)
    colours = pd.Series(rng.choice(["red", "blue", "green"], rows), dtype=object)
    width = pd.Series(rng.normal(size=rows) + (colours == "red"))
    width[::7], colours[::5] = np.nan, np.nan
    nothing = pd.Series([np.nan] * rows, dtype=object)
    return pd.DataFrame({"width": width, "constant": 3.0, "empty": np.nan, "colour": colours, "nothing": nothing})


def trained(layout, features, labels):
    pipeline = build_pipeline(layout, SoftmaxClassifier()).fit(features, labels)
    return Model(pipeline, layout, "target", "1.2.3")


def test_missing_constant_and_empty_columns_are_taken():
    features = frame()
    model = trained(TABLE, features, ["a", "b", "c", "b"] * 10)
    probabilities = model.pipeline.predict_proba(features)

    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_the_order_of_columns_does_not_matter_and_further_ones_are_ignored():
    features = frame()
    pipeline = trained(TABLE, features, ["a", "b", "c", "b"] * 10).pipeline
    other = features[["nothing", "colour", "empty", "constant", "width"]].assign(further="text")

    np.testing.assert_array_equal(pipeline.predict_proba(other), pipeline.predict_proba(features))


def test_unseen_categories_are_none_of_those_known():
    features = frame()
    pipeline = trained(TABLE, features, ["a", "b", "c", "b"] * 10).pipeline
    unseen = features.assign(
        colour=pd.Series("violet", features.index, object), nothing=pd.Series("x", features.index, object)
    )
    encoded = pipeline[:-1].transform(unseen)

    assert encoded.shape[1] == 3 + 4 + 1  # the missing colour is the fourth; all that "nothing" held is missing
    assert not encoded[:, 3:].any()
    assert np.isfinite(pipeline.predict_proba(unseen)).all()


def test_unseen_categories_are_told_by_column():
    model = trained(TABLE, frame(), ["a", "b", "c", "b"] * 10)
    assert unseen_categories(model, frame()) == []

    seen = ["red", "1.0", np.nan, "violet"]
    columns = {"width": 1.0, "constant": 3.0, "empty": np.nan}
    features = pd.DataFrame({"colour": seen, "nothing": ["x", np.nan, np.nan, np.nan]}, dtype=object).assign(**columns)
    assert unseen_categories(model, features) == [
        "column 'colour': 2 of 4 rows hold a category that training did not see, such as '1.0'",
        "column 'nothing': 1 of 4 rows hold a category that training did not see, such as 'x'",
    ]
    whole = frame().assign(colour=pd.Series(["red", "blue"] * 20, dtype=object))
    model = trained(TABLE, whole, ["a", "b", "c", "b"] * 10)
    assert "3 of 4 rows" in unseen_categories(model, features)[0]
    assert unseen_categories(model, features.iloc[2:3])[0].endswith("such as that of no value")


def test_numbers_are_filled_with_the_median_and_scaled():
    features = np.array([[1.0, 10], [2, np.nan], [6, 30], [7, 20]])
    model = trained(Layout("dense", n_features=2), features, [0, 1, 0, 1])
    scaled = model.pipeline[:-1].transform(features)

    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-15)
    np.testing.assert_allclose(scaled.std(axis=0), 1)
    assert scaled[1, 1] == scaled[3, 1]  # 20, the median of 10, 20, 30


@pytest.mark.parametrize("kind", ["sparse", "pixels"])
def test_zeros_stay_zeros_where_they_mean_something(kind):
    features = np.array([[0, 16.0], [4, 0], [0, 8], [2, 0]])
    given = csr_matrix(features) if kind == "sparse" else features
    scaled = trained(Layout(kind, n_features=2), given, [0, 1, 0, 1]).pipeline[:-1].transform(given)

    dense = scaled.toarray() if kind == "sparse" else scaled
    np.testing.assert_array_equal(dense, [[0, 1], [1, 0], [0, 0.5], [0.5, 0]])


# Files


@pytest.mark.parametrize("labels", [["a", "猫", "c", "猫"], [3, 1, 2, 1], [True, False, True, False]])
def test_a_model_comes_back_as_it_was(tmp_path, labels):
    path, features = tmp_path / "m.skops", frame()
    model = trained(TABLE, features, np.array(labels * 10))
    save_model(path, model)
    loaded = load_model(path)

    assert (loaded.layout, loaded.target, loaded.version) == (model.layout, "target", "1.2.3")
    np.testing.assert_array_equal(loaded.classifier.classes_, model.classifier.classes_)
    assert loaded.classifier.classes_.dtype == model.classifier.classes_.dtype
    assert vars(loaded.classifier).keys() == vars(model.classifier).keys()
    np.testing.assert_array_equal(loaded.pipeline.predict_proba(features), model.pipeline.predict_proba(features))
    assert [file.name for file in tmp_path.iterdir()] == ["m.skops"]


@pytest.mark.parametrize(
    "layout", [Layout("dense", n_features=2), Layout("pixels", n_features=2), Layout("sparse", (), (), 2, True)]
)
def test_models_of_matrices_come_back_too(tmp_path, layout):
    path = tmp_path / "m.skops"
    features = np.array([[0, 16.0], [4, 0], [0, 8], [2, 0]])
    model = trained(layout, csr_matrix(features) if layout.kind == "sparse" else features, [0, 1, 0, 1])
    save_model(path, model)
    loaded = load_model(path)

    assert loaded.layout == layout
    np.testing.assert_array_equal(loaded.pipeline.predict_proba(features), model.pipeline.predict_proba(features))


def test_the_file_is_a_pipeline_for_anyone_who_has_skops(tmp_path):
    path = tmp_path / "m.skops"
    save_model(path, trained(TABLE, frame(), [0, 1] * 20))
    pipeline = skops.io.load(path, trusted=list(TRUSTED_TYPES))

    assert isinstance(pipeline, Pipeline)
    assert pipeline.feature_names_in_.tolist() == [*TABLE.numbers, *TABLE.text]
    assert pipeline.softmaxloss_["target"] == "target"


def test_only_the_types_named_are_needed_and_trusted(tmp_path):
    path = tmp_path / "m.skops"
    save_model(path, trained(TABLE, frame(), [0, 1] * 20))

    assert set(skops.io.get_untrusted_types(file=path)) == set(TRUSTED_TYPES)


def shout(values):
    """Stand for code of somebody else's."""
    raise AssertionError("was run")


def test_a_type_that_is_not_trusted_is_named_and_not_loaded(tmp_path):
    path = tmp_path / "m.skops"
    pipeline = Pipeline([("shout", FunctionTransformer(shout)), ("classifier", SoftmaxClassifier())])
    skops.io.dump(pipeline, path)
    with pytest.raises(DataError, match=r"m\.skops: holds the type \S*\.shout, which is not trusted"):
        load_model(path)


@pytest.mark.parametrize(
    "thing",
    [
        {"a": 1},
        StandardScaler(),
        Pipeline([("scale", StandardScaler()), ("classifier", LogisticRegression())]),
        Pipeline([("scale", StandardScaler()), ("classifier", SoftmaxClassifier())]),
    ],
)
def test_skops_files_of_other_things(tmp_path, thing):
    path = tmp_path / "m.skops"
    skops.io.dump(thing, path)
    with pytest.raises(DataError, match=r"m\.skops: is not a model saved by softmaxloss") as caught:
        load_model(path)

    assert "\n" not in str(caught.value)


def spoil(**attributes):
    """Make a change to a pipeline that sets attributes of its classifier, or deletes those that are None."""

    def change(pipeline):
        for name, value in attributes.items():
            delattr(pipeline[-1], name) if value is None else setattr(pipeline[-1], name, value)

    return change


def change_layout(**facts):
    return lambda pipeline: pipeline.softmaxloss_.update(facts)


def unfit_a_scaler(pipeline):
    del pipeline[0].named_transformers_["numbers"]["scale"].mean_


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (spoil(classes_=np.array(["a", "b"])), "which do not fit"),
        (spoil(classes_=np.array([["a", "b", "c"]])), "which do not fit"),
        (spoil(classes_="abc"), "which do not fit"),
        (spoil(classes_=np.array(["a", "b", "b"])), "one of them twice"),
        (spoil(coef_=np.ones((3, 7))), "which do not fit with 8 features"),
        (spoil(coef_=np.full((3, 8), np.nan)), "not all finite"),
        (spoil(coef_=np.ones((1, 8))), "which do not fit"),
        (spoil(intercept_=None), "intercept_"),
        (spoil(intercept_=np.zeros(1)), "which do not fit"),
        (spoil(classes_=None, coef_=None, intercept_=None), "no attribute"),
        (unfit_a_scaler, "mean_"),
        (change_layout(kind="heap"), "its kind is 'heap'"),
        (change_layout(zero_based=7), "its zero_based is 7, not a bool"),
        (change_layout(numbers=["width", "other"]), "constant"),
    ],
)
def test_models_that_are_broken_inside(tmp_path, change, problem):
    path = tmp_path / "m.skops"
    features = frame()
    features.loc[:1, "colour"] = ["red", np.nan]
    save_model(path, model := trained(TABLE, features, ["a", "b", "c", "b"] * 10))
    assert load_model(path).classifier.coef_.shape == (3, 8)
    change(model.pipeline)
    skops.io.dump(model.pipeline, path)
    with pytest.raises(DataError, match=rf"m\.skops: is not a model .*{problem}") as caught:
        load_model(path)

    assert "\n" not in str(caught.value)


def test_matrix_models_that_are_broken_inside(tmp_path):
    path, features = tmp_path / "m.skops", np.array([[0, 16.0], [4, 0], [0, 8], [2, 0]])
    for kind in ("pixels", "sparse"):
        given = csr_matrix(features) if kind == "sparse" else features
        model = trained(Layout(kind, n_features=2), given, [0, 1, 0, 1])
        model.pipeline[0].scale_[1] = np.nan
        save_model(path, model)
        with pytest.raises(DataError, match="is not a model"):
            load_model(path)
        save_model(path, Model(model.pipeline, Layout(kind, n_features=3), "y", "1"))
        with pytest.raises(DataError, match="3 features"):
            load_model(path)


def test_files_that_are_no_skops_files(tmp_path):
    path = tmp_path / "m.skops"
    save_model(path, trained(Layout("dense", n_features=1), [[0.0], [1], [2]], [0, 1, 0]))
    content = path.read_bytes()
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("schema.json", json.dumps({}))
    others = [(tmp_path / name).read_bytes() for name in ("other.zip", "empty.zip")]
    for part in (content[: len(content) // 2], b"hello", *others):
        path.write_bytes(part)
        with pytest.raises(DataError, match=r"m\.skops: is not a model saved by softmaxloss"):
            load_model(path)
    with pytest.raises(DataError, match="there is no such file"):
        load_model(tmp_path / "none.skops")


def test_a_place_that_takes_no_model(tmp_path):
    model = trained(Layout("dense", n_features=1), [[0.0], [1], [2]], [0, 1, 0])
    with pytest.raises(DataError, match="cannot be written"):
        save_model(tmp_path / "none" / "m.skops", model)
