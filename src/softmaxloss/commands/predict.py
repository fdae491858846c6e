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
    from softmaxloss.data.datasets import DIGITS, is_many_files
    from softmaxloss.data.files import check_output, known_suffix
    from softmaxloss.data.predictions import write_prediction_blocks
    from softmaxloss.data.scores import PREDICTION_SUFFIXES, check_predictions
    from softmaxloss.persistence import load_model

    known_suffix(out, PREDICTION_SUFFIXES)
    inputs = [] if data == DIGITS else [Path(data)]
    if is_many_files(data):
        from softmaxloss.data.parquet_files import parquet_paths

        inputs = parquet_paths(data)
    check_output(out, inputs=[model, *inputs])
    loaded = load_model(model)
    classes = loaded.classifier.classes_
    check_predictions(out, [str(name) for name in classes])

    from softmaxloss.file_prediction import Predictions

    predictions = Predictions(loaded, data)
    with naming(data):
        write_prediction_blocks(out, predictions.blocks(), predictions.rows, classes)
    for note in predictions.notes():
        say(f"note: {note}")
    typer.echo(f"saved {out}: {predictions.rows} rows, {len(classes)} classes of {loaded.target!r}")
