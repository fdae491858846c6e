"""The command that predicts with a saved model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from softmaxloss.commands.app import naming
from softmaxloss.streams import say


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model saved by the train command.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Rows like those that it was trained on, in such files.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to save: a .csv, .parquet, .npz or .npy file.")],
) -> None:
    """Predict each class's probability, and the most probable class."""
    from softmaxloss.data.datasets import DIGITS, is_many_files, read_features
    from softmaxloss.data.files import check_output, known_suffix
    from softmaxloss.data.scores import PREDICTION_SUFFIXES, check_predictions, write_predictions
    from softmaxloss.persistence import load_model, unseen_categories

    known_suffix(out, PREDICTION_SUFFIXES)
    check_output(out, inputs=[model, *([] if data == DIGITS else [Path(data)])])
    loaded = load_model(model)
    classes = loaded.classifier.classes_
    check_predictions(out, [str(name) for name in classes])
    if is_many_files(data):
        from softmaxloss.file_training import open_features, predict_files

        probabilities = predict_files(loaded, open_features(data, loaded))
    else:
        features = read_features(data, loaded.layout)
        for note in unseen_categories(loaded, features):
            say(f"note: {note}")
        with naming(data):
            probabilities = loaded.pipeline.predict_proba(features)
    write_predictions(out, probabilities, classes, classes[probabilities.argmax(axis=1)])
    typer.echo(f"saved {out}: {len(probabilities)} rows, {len(classes)} classes of {loaded.target!r}")
