"""The command that trains a classifier and saves it."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softmaxloss import __version__
from softmaxloss.commands.app import check_target, fraction, naming, positive
from softmaxloss.report.options import LanguageOption, ReportOption, check_report_options, save_report
from softmaxloss.streams import say

if TYPE_CHECKING:
    from softmaxloss.data.datasets import Dataset
    from softmaxloss.evaluation import Evaluation
    from softmaxloss.persistence import Model


# A Parquet file of more bytes than this is not read into memory.
STREAMED_BYTES = 1 << 30


class ClassWeight(StrEnum):
    """What --class-weight takes."""

    balanced = "balanced"


class Engine(StrEnum):
    """What --engine takes."""

    local = "local"
    dask = "dask"


def train(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="[b]digits[/b] (built in), a .csv, .parquet, .npz or .svmlight file; or, larger than memory, a .npy "
            "file with --labels, or a folder or quoted pattern of .parquet files.",
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column to predict; for .npz the array, [b]y[/b] unless said."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="For a .npy file, its rows' labels: a .npy, .npz, .csv, .parquet or .txt file."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Where to save the model; unless said, DATA's name with .skops, here."),
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Column to leave out; can be repeated.")
    ] = None,
    categorical: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Column to take as text whatever it holds; can be repeated."),
    ] = None,
    test_size: Annotated[
        float | None,
        typer.Option(callback=fraction, help="Fraction of the rows to test on; 0 to train on all.", show_default="0.2"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Which rows are tested on.", show_default="0")
    ] = None,
    C: Annotated[float, typer.Option("--C", callback=positive, help="Inverse of the regularisation's strength.")] = 1.0,
    class_weight: Annotated[ClassWeight | None, typer.Option(help="Give each class the same total weight.")] = None,
    label_smoothing: Annotated[
        float, typer.Option(min=0, max=1, help="Share of each label that is spread over all classes.")
    ] = 0.0,
    tol: Annotated[float, typer.Option(callback=positive, help="Largest derivative at which training is done.")] = 1e-4,
    max_iter: Annotated[int, typer.Option(min=1, help="The most iterations.")] = 1000,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Where to keep the state; killed and run again, training goes on from there."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Refuse to begin anew, if there is no checkpoint.")] = False,
    report: ReportOption = None,
    lang: LanguageOption = None,
    engine: Annotated[
        Engine, typer.Option(help="dask: Parquet files, as in 'data/*.parquet', on all rows; none are set aside.")
    ] = Engine.local,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="The cluster for --engine dask; threads unless said.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show the progress.")] = False,
) -> None:
    """Train a softmax classifier and save it, with its loss and accuracy on rows set aside to test on."""
    from softmaxloss.data.datasets import DIGITS, read_training_data, split_rows
    from softmaxloss.data.files import MODEL_SUFFIX, check_output, known_suffix

    _check_engine(data, engine, scheduler, {"--test-size": test_size, "--seed": seed, "--report": report})
    _check_table_options(data, target, drop, categorical)
    _check_labels(data, labels, target)
    _check_checkpoint(checkpoint, resume)
    path = out or Path(Path(data).stem.replace("*", "all") + MODEL_SUFFIX)
    known_suffix(path, [MODEL_SUFFIX])
    inputs = [*([] if data == DIGITS else [Path(data)]), *([labels] if labels else [])]
    check_output(path, inputs=inputs)
    check_report_options(report, lang, inputs=inputs, outputs=[path, *([checkpoint] if checkpoint else [])])
    settings: dict[str, Any] = {
        "C": C,
        "class_weight": None if class_weight is None else "balanced",
        "label_smoothing": label_smoothing,
        "tol": tol,
        "max_iter": max_iter,
        "checkpoint": checkpoint and str(checkpoint),
        "verbose": 0 if quiet else 1,
    }
    columns: dict[str, Any] = {"target": target, "drop": drop or (), "categorical": categorical or ()}
    if engine is Engine.dask:
        _train_on_dask(data, scheduler, columns, settings, path)
        return
    in_files = _is_streamed(data)
    if in_files:
        from softmaxloss.file_training import open_training_array, open_training_files, prepare_files

        dataset = (
            open_training_files(data, **columns) if labels is None else open_training_array(Path(data), labels, target)
        )
    else:
        dataset = read_training_data(data, **columns)
    train_rows, test_rows, notes = split_rows(dataset, 0.2 if test_size is None else test_size, seed or 0)
    for note in (*dataset.notes, *notes):
        say(f"note: {note}")

    # These import scikit-learn, which takes seconds: what is wrong with the data is said before.
    from softmaxloss.classifier import SoftmaxClassifier
    from softmaxloss.persistence import Model, build_pipeline, save_model

    classifier = SoftmaxClassifier(**settings)
    pipeline = build_pipeline(dataset.layout, classifier)
    model = Model(pipeline, dataset.layout, dataset.target, __version__)
    if in_files:
        with naming(dataset.source):
            dataset = prepare_files(pipeline, dataset, train_rows)
    learned = dataset.rows(train_rows)  # once: what is decoded for the fit serves the evaluation too
    seconds = _fit(model, dataset, *learned)
    parts = {"train": _measured(model, *learned)}
    del learned
    if len(test_rows):
        parts["test"] = _measured(model, *dataset.rows(test_rows))
    save_model(path, model)
    _print_training(model, dataset, parts, seconds)
    typer.echo(f"saved {path}")
    # Of the rows set aside to test on, or where there are none of those it was trained on.
    part = list(parts)[-1]
    title = f"{dataset.source} · {dataset.target} · {part}"
    save_report(report, lang, parts[part], title=title, curve=classifier.loss_curve_)


def _train_on_dask(
    data: str, scheduler: str | None, columns: dict[str, Any], settings: dict[str, Any], path: Path
) -> None:
    """Train on all rows of Parquet files, on Dask's threads or a cluster."""
    from softmaxloss.classifier import SoftmaxClassifier
    from softmaxloss.dask_files import on_scheduler, train_on_parquet
    from softmaxloss.persistence import save_model

    classifier = SoftmaxClassifier(**settings)
    with on_scheduler(scheduler):
        model, notes = train_on_parquet(data, classifier=classifier, **columns)
    for note in notes:
        say(f"note: {note}")
    save_model(path, model)
    typer.echo(f"{classifier.n_iter_} iterations, objective {classifier.loss_curve_[-1]:.6g}")
    typer.echo(f"saved {path}")


def _is_streamed(data: str) -> bool:
    """Tell whether rows are to be read from files as they are needed."""
    from softmaxloss.data.datasets import is_array, is_many_files

    path = Path(data)
    is_large = path.suffix.lower() == ".parquet" and path.is_file() and path.stat().st_size > STREAMED_BYTES
    return is_large or is_array(data) or is_many_files(data)


def _check_engine(data: str, engine: Engine, scheduler: str | None, of_test_rows: dict[str, object]) -> None:
    """Refuse what the engine does not do."""
    if engine is Engine.local:
        if scheduler is not None:
            raise typer.BadParameter("is for --engine dask.", param_hint="'--scheduler'")
        return
    if Path(data).suffix.lower() != ".parquet":
        raise typer.BadParameter(f"dask reads .parquet files, and {data} is none.", param_hint="'--engine'")
    for option, given in of_test_rows.items():
        if given is not None:
            raise typer.BadParameter("dask trains on all rows, and sets none aside; leave it out.", param_hint=option)


def _check_table_options(data: str, target: str | None, drop: Any, categorical: Any) -> None:
    """Refuse options that would be ignored, and the want of one."""
    from softmaxloss.data.datasets import DIGITS, is_sparse, is_table

    if is_table(data) and target is None:
        raise typer.BadParameter(f"say which column of {data} to predict.", param_hint="'--target'")
    if (data == DIGITS or is_sparse(data)) and target is not None:
        raise typer.BadParameter(f"{data} has its own labels; leave it out.", param_hint="'--target'")
    for option, given in (("--drop", drop), ("--categorical", categorical)):
        if given and not is_table(data):
            raise typer.BadParameter(f"{data} has no named columns; leave it out.", param_hint=f"'{option}'")


def _check_labels(data: str, labels: Path | None, target: str | None) -> None:
    """Want a file of labels for a file that has none, and for no other."""
    from softmaxloss.data.datasets import is_array

    if is_array(data) and labels is None:
        raise typer.BadParameter(f"{data} holds features only: say which file has the labels.", param_hint="'--labels'")
    if labels is not None:
        if not is_array(data):
            raise typer.BadParameter(f"is for a .npy file, and {data} has its own labels.", param_hint="'--labels'")
        check_target(labels, target)


def _check_checkpoint(checkpoint: Path | None, resume: bool) -> None:
    """Refuse to resume from nothing."""
    from softmaxloss.data.files import DataError

    if resume and checkpoint is None:
        raise typer.BadParameter("say from where: add --checkpoint PATH.", param_hint="'--resume'")
    if resume and checkpoint is not None and not checkpoint.exists():
        raise DataError(f"{checkpoint}: there is no checkpoint to resume from; leave out --resume to begin anew")


def _fit(model: Model, dataset: Dataset, features: Any, labels: Any) -> float:
    """Fit the model's pipeline and give the seconds it took."""
    start = time.perf_counter()
    with naming(dataset.source):
        # What comes before the classifier is fitted to rows in files already.
        (model.classifier if _are_in_files(features) else model.pipeline).fit(features, labels)
    return time.perf_counter() - start


def _are_in_files(features: Any) -> bool:
    return type(features).__module__ == "softmaxloss.data.row_files"


def _measured(model: Model, features: Any, labels: Any) -> Evaluation:
    import numpy as np

    from softmaxloss.evaluation import evaluate

    if _are_in_files(features):
        from softmaxloss.file_training import evaluate_files

        return evaluate_files(model, features, labels)
    # Log-probabilities are logits whose logsumexp is 0.
    logits = model.pipeline.predict_log_proba(features)
    classes = model.classifier.classes_
    return evaluate(logits, np.searchsorted(classes, labels), class_names=[str(name) for name in classes])


def _print_training(model: Model, dataset: Dataset, parts: dict[str, Evaluation], seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    layout, classifier = model.layout, model.classifier
    columns = f" ({len(layout.numbers)} of numbers, {len(layout.text)} of text)" if layout.kind == "table" else ""
    typer.echo(
        f"{dataset.source}: {len(dataset.labels)} rows, {layout.n_features} features{columns}, "
        f"{len(classifier.classes_)} classes of {dataset.target!r}"
    )
    table = Table("", "rows", "loss", "accuracy")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, found in parts.items():
        table.add_row(name, str(found.n_rows), f"{found.loss:.6g}", f"{found.accuracy:.2%}")
    Console().print(table)
    typer.echo(f"trained in {seconds:.2f} s, {classifier.n_iter_} iterations")
