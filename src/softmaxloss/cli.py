"""The softmaxloss command: train a classifier, predict with it, evaluate and compare scores."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from softmaxloss import __version__
from softmaxloss.streams import is_unicode, prepare, say, stdout_problem

EXIT_PROBLEM = 1
EXIT_INTERRUPTED = 130

try:
    import typer
except KeyboardInterrupt:
    say("interrupted")
    raise SystemExit(EXIT_INTERRUPTED) from None
except ModuleNotFoundError as error:
    raise SystemExit(f"softmaxloss: {error}; install the command with: pip install 'softmaxloss[cli]'") from None

# What is heavier than NumPy is imported in the commands: `softmaxloss --help` does not wait for it.
if TYPE_CHECKING:
    from softmaxloss.comparison import Comparison
    from softmaxloss.data.datasets import Dataset
    from softmaxloss.data.scores import Scores
    from softmaxloss.evaluation import Evaluation
    from softmaxloss.persistence import Model

__all__ = ["app", "main"]


class ClassWeight(StrEnum):
    """What --class-weight takes."""

    balanced = "balanced"


class Kind(StrEnum):
    """What --kind takes."""

    logits = "logits"
    log_probabilities = "log_probabilities"
    probabilities = "probabilities"


class Commands(typer.core.TyperGroup):
    """The commands, and what they share: warnings and errors as one line each, and the exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            # What overflows is refused where it matters, in words that name the file.
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                say("interrupted")
                raise typer.Exit(EXIT_INTERRUPTED) from None
            except MemoryError:
                say("error: there is not enough memory for this data")
            except ModuleNotFoundError as error:
                say(f"error: {error}; install the command with: pip install 'softmaxloss[cli]'")
            except ValueError as error:
                from softmaxloss.data.files import DataError, one_line

                if not isinstance(error, DataError):
                    raise
                say(f"error: {one_line(error)}")
            raise typer.Exit(EXIT_PROBLEM)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    from softmaxloss.data.files import one_line

    say(f"note: {one_line(message)}")


app = typer.Typer(
    cls=Commands,
    help="Train a softmax classifier, predict with it, and evaluate scores by the softmax cross-entropy.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"softmaxloss {__version__}")
        raise typer.Exit


def _positive(value: float) -> float:
    if not value > 0:
        raise typer.BadParameter(f"{value:g} is not a number above 0.")
    return value


def _label(value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise typer.BadParameter(f"{value} is not a label, which has 64 bits.")
    return value


def _fraction(value: float) -> float:
    if not 0 <= value < 1:
        raise typer.BadParameter(f"{value:g} is not a fraction of at least 0 and less than 1.")
    return value


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="[b]digits[/b] (built in), or a .csv, .parquet, .npz, .svmlight file."),
    ],
    target: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column to predict; for .npz the array, [b]y[/b] unless said."),
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
        float, typer.Option(callback=_fraction, help="Fraction of the rows to test on; 0 to train on all.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Which rows are tested on.")] = 0,
    C: Annotated[
        float, typer.Option("--C", callback=_positive, help="Inverse of the regularisation's strength.")
    ] = 1.0,
    class_weight: Annotated[ClassWeight | None, typer.Option(help="Give each class the same total weight.")] = None,
    label_smoothing: Annotated[
        float, typer.Option(min=0, max=1, help="Share of each label that is spread over all classes.")
    ] = 0.0,
    tol: Annotated[
        float, typer.Option(callback=_positive, help="Largest derivative at which training is done.")
    ] = 1e-4,
    max_iter: Annotated[int, typer.Option(min=1, help="The most iterations.")] = 1000,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Where to keep the state; killed and run again, training goes on from there."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Refuse to begin anew, if there is no checkpoint.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show the progress.")] = False,
) -> None:
    """Train a softmax classifier and save it, with its loss and accuracy on rows set aside to test on."""
    from softmaxloss.data.datasets import DIGITS, read_training_data, split_rows
    from softmaxloss.data.files import MODEL_SUFFIX, check_output, known_suffix

    _check_table_options(data, target, drop, categorical)
    _check_checkpoint(checkpoint, resume)
    path = out or Path(Path(data).stem + MODEL_SUFFIX)
    known_suffix(path, [MODEL_SUFFIX])
    check_output(path, inputs=[] if data == DIGITS else [Path(data)])
    dataset = read_training_data(data, target=target, drop=drop or (), categorical=categorical or ())
    train_rows, test_rows, notes = split_rows(dataset, test_size, seed)
    for note in (*dataset.notes, *notes):
        say(f"note: {note}")

    # These import scikit-learn, which takes seconds: what is wrong with the data is said before.
    from softmaxloss.classifier import SoftmaxClassifier
    from softmaxloss.persistence import Model, build_pipeline, save_model

    classifier = SoftmaxClassifier(
        C,
        class_weight=None if class_weight is None else "balanced",
        label_smoothing=label_smoothing,
        tol=tol,
        max_iter=max_iter,
        checkpoint=checkpoint and str(checkpoint),
        verbose=0 if quiet else 1,
    )
    pipeline = build_pipeline(dataset.layout, classifier)
    model = Model(pipeline, dataset.layout, dataset.target, __version__)
    seconds = _fit(model, dataset, train_rows)
    parts = {"train": _measured(model, dataset, train_rows)}
    if len(test_rows):
        parts["test"] = _measured(model, dataset, test_rows)
    save_model(path, model)
    _print_training(model, dataset, parts, seconds)
    typer.echo(f"saved {path}")


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


def _check_checkpoint(checkpoint: Path | None, resume: bool) -> None:
    """Refuse to resume from nothing."""
    from softmaxloss.data.files import DataError

    if resume and checkpoint is None:
        raise typer.BadParameter("say from where: add --checkpoint PATH.", param_hint="'--resume'")
    if resume and checkpoint is not None and not checkpoint.exists():
        raise DataError(f"{checkpoint}: there is no checkpoint to resume from; leave out --resume to begin anew")


def _fit(model: Model, dataset: Dataset, rows: Any) -> float:
    """Fit the model's pipeline and give the seconds it took."""
    features, labels = dataset.rows(rows)
    start = time.perf_counter()
    with _naming(dataset.source):
        model.pipeline.fit(features, labels)
    return time.perf_counter() - start


@contextlib.contextmanager
def _naming(source: object, kind: type[ValueError] = ValueError) -> Iterator[None]:
    """Put the name of the file before what a library says is wrong with its values."""
    from softmaxloss.data.files import DataError

    try:
        yield
    except DataError:
        raise
    except kind as error:
        raise DataError(f"{source}: {error}") from None


def _measured(model: Model, dataset: Dataset, rows: Any) -> Evaluation:
    import numpy as np

    from softmaxloss.evaluation import evaluate

    features, labels = dataset.rows(rows)
    # Log-probabilities are logits whose logsumexp is 0.
    logits = model.pipeline.predict_log_proba(features)
    return evaluate(logits, np.searchsorted(model.classifier.classes_, labels), top_k=())


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


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model saved by the train command.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Rows like those that the model was trained on.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to save: a .csv, .parquet, .npz or .npy file.")],
) -> None:
    """Predict each class's probability, and the most probable class."""
    from softmaxloss.data.datasets import DIGITS, read_features
    from softmaxloss.data.files import check_output, known_suffix
    from softmaxloss.data.scores import PREDICTION_SUFFIXES, check_predictions, write_predictions
    from softmaxloss.persistence import load_model, unseen_categories

    known_suffix(out, PREDICTION_SUFFIXES)
    check_output(out, inputs=[model, *([] if data == DIGITS else [Path(data)])])
    loaded = load_model(model)
    classes = loaded.classifier.classes_
    check_predictions(out, [str(name) for name in classes])
    features = read_features(data, loaded.layout)
    for note in unseen_categories(loaded, features):
        say(f"note: {note}")
    with _naming(data):
        probabilities = loaded.pipeline.predict_proba(features)
    write_predictions(out, probabilities, classes, classes[probabilities.argmax(axis=1)])
    typer.echo(f"saved {out}: {len(probabilities)} rows, {len(classes)} classes of {loaded.target!r}")


@app.command()
def evaluate(
    scores: Annotated[
        Path,
        typer.Argument(metavar="SCORES", help="A row of scores for each label: a .npy, .npz, .csv or .parquet file."),
    ],
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS", help="A .npy, .npz, .csv, .parquet, .txt or .svmlight file, or [b]digits[/b]."
        ),
    ],
    kind: Annotated[Kind, typer.Option(help="What the scores are.")] = Kind.logits,
    target: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of LABELS with the labels, or array of a .npz file."),
    ] = None,
    top_k: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Count labels among the k largest scores; can be repeated.", show_default="1, 5"),
    ] = None,
    bins: Annotated[int, typer.Option(min=1, max=1000, help="Bins of confidence.")] = 15,
    ignore_index: Annotated[int, typer.Option(callback=_label, help="Label of the rows to leave out.")] = -100,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Evaluate scores against labels: loss, accuracy, calibration, mistakes. The .npy files may exceed memory."""
    _check_target(labels, target)
    _print_found(_evaluated(scores, labels, kind, target, tuple(top_k or (1, 5)), bins, ignore_index), json)


@app.command()
def compare(
    scores_a: Annotated[Path, typer.Argument(metavar="SCORES_A", help="Scores of one model, as evaluate takes them.")],
    scores_b: Annotated[Path, typer.Argument(metavar="SCORES_B", help="Scores of another for the same rows.")],
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Their labels, as evaluate takes them.")],
    kind: Annotated[Kind, typer.Option(help="What the scores are.")] = Kind.logits,
    kind_b: Annotated[
        Kind | None, typer.Option(help="What SCORES_B are.", show_default="as --kind", metavar="KIND")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of LABELS with the labels, or array of a .npz file."),
    ] = None,
    ignore_index: Annotated[int, typer.Option(callback=_label, help="Label of the rows to leave out.")] = -100,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two models' scores on the same rows: by how much their losses differ, and whether by chance."""
    _check_target(labels, target)
    _print_found(_compared(scores_a, scores_b, labels, (kind, kind_b or kind), target, ignore_index), json)


def _check_target(labels: Path, target: str | None) -> None:
    from softmaxloss.data.scores import has_one_array_of_labels

    if target is not None and has_one_array_of_labels(labels):
        raise typer.BadParameter(f"{labels} has no other labels to choose; leave it out.", param_hint="'--target'")


def _print_found(found: Evaluation | Comparison, json: bool) -> None:
    if json:
        from json import dumps

        typer.echo(dumps(found.to_dict(), ensure_ascii=not is_unicode()))
    else:
        from rich.console import Console

        Console().print(found)


def _evaluated(
    scores: Path, labels: Path, kind: Kind, target: str | None, top_k: tuple[int, ...], bins: int, ignore_index: int
) -> Evaluation:
    from softmaxloss.data.scores import read_labels, read_scores
    from softmaxloss.evaluation import evaluate
    from softmaxloss.labels import LabelError

    read = read_scores(scores)
    indices = read_labels(labels, read, target=target, ignore_index=ignore_index)
    _check_kind(read, kind)
    with _naming(scores), _naming(labels, LabelError):
        return evaluate(
            read.values,
            indices,
            kind=kind.value,
            top_k=top_k,
            bins=bins,
            ignore_index=ignore_index,
            class_names=read.classes,
        )


def _compared(
    scores_a: Path, scores_b: Path, labels: Path, kinds: tuple[Kind, Kind], target: str | None, ignore_index: int
) -> Comparison:
    from softmaxloss.comparison import compare
    from softmaxloss.data.files import DataError
    from softmaxloss.data.scores import read_labels, read_scores
    from softmaxloss.labels import LabelError

    a, b = read_scores(scores_a), read_scores(scores_b)
    if a.values.shape != b.values.shape:
        raise DataError(f"{scores_b}: has shape {b.values.shape}; expected {a.values.shape}, that of {scores_a}")
    if a.classes is not None and b.classes is not None and a.classes != b.classes:
        raise DataError(f"{scores_b}: its classes are not those of {scores_a}, in the same order")
    named = b if a.classes is None else a
    indices = read_labels(labels, named, target=target, ignore_index=ignore_index)
    for read, kind in zip((a, b), kinds, strict=True):
        _check_kind(read, kind)
    with _naming(f"{scores_a} and {scores_b}"), _naming(labels, LabelError):
        return compare(
            a.values,
            b.values,
            indices,
            kind=(kinds[0].value, kinds[1].value),
            ignore_index=ignore_index,
            class_names=named.classes,
        )


def _check_kind(scores: Scores, kind: Kind) -> None:
    """Refuse probabilities that are taken for logits."""
    from softmaxloss.data.files import DataError
    from softmaxloss.data.scores import look_like_probabilities

    if kind is Kind.logits and look_like_probabilities(scores.values):
        raise DataError(
            f"{scores.path}: every row is non-negative and sums to 1, but for rounding, so it holds probabilities, not "
            "logits; evaluate it with --kind probabilities"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; the exit status is 0 done, 1 a problem with the data, 2 usage, 130 interrupted."""
    try:
        prepare()
        app(arguments, prog_name="softmaxloss")
    except KeyboardInterrupt:
        say("interrupted")
        raise SystemExit(EXIT_INTERRUPTED) from None
    except OSError as error:
        problem = stdout_problem(error)
        if problem is None:
            raise
        say(f"error: cannot write to standard output ({problem})")
        raise SystemExit(EXIT_PROBLEM) from None
