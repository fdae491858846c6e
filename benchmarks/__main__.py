"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

from benchmarks import (
    accuracy,
    cases,
    classifier,
    classifier_cases,
    classifier_contenders,
    classifier_table,
    dense,
    judging,
    linear,
    linear_contenders,
    memory,
    path,
    scaling,
    streaming,
    tables,
    training,
)
from benchmarks.answers import ANSWERS
from benchmarks.contenders import CONTENDERS, EVERYONE, IN_JAX, IN_TORCH, available
from benchmarks.machine import facts
from benchmarks.operations import OPERATIONS
from benchmarks.rotation import CALL_BYTES
from benchmarks.worker import WorkerError


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    everyone = _FRAMEWORKS.get(options.command, CONTENDERS)
    ours = next(iter(everyone))
    wanted = [name for name in everyone if name in (ours, *options.contenders)]
    present, left_out = available(wanted, {**EVERYONE, **everyone})
    if ours in left_out:
        print(f"{left_out[ours]}: install the repository first, with pip install -e '.[bench]'", file=sys.stderr)
        return 1
    results: dict[str, Any] = {"command": options.command, "machine": facts(), "left_out": left_out}
    try:
        table = _COMMANDS[options.command](options, present, results)
    except (dense.DisagreementError, WorkerError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    return 0


def _dense(options: argparse.Namespace, present: list[str], results: dict[str, Any]) -> str:
    if not importlib.util.find_spec("torch"):
        results["left_out"]["memcpy"] = "torch not installed"
    effort = dense.QUICK if options.quick else dense.FULL
    results["operations"] = OPERATIONS
    results["in_cache"] = options.in_cache
    results["cases"] = dense.measure(present, options.cases or cases.DENSE, effort, options.in_cache)
    return tables.dense(results)


def _memory(options: argparse.Namespace, present: list[str], results: dict[str, Any]) -> str:
    results["operations"] = OPERATIONS
    results["cases"] = memory.measure(present, options.cases or cases.MEMORY)
    return tables.memory(results)


def _framework(options: argparse.Namespace, present: list[str], results: dict[str, Any]) -> str:
    usual = cases.TORCH if options.command == "torch" else cases.JAX
    # The memory of smaller logits is lost in that of the call.
    sized = [case for case in options.cases if case.nbytes >= CALL_BYTES] if options.cases else cases.MEMORY
    effort = dense.QUICK if options.quick else dense.FULL
    results["contenders"] = present
    results["cases"] = dense.measure(present, options.cases or usual, effort)
    results["memory"] = memory.measure(present, sized)
    return tables.frameworks(results)


def _linear(options: argparse.Namespace, present: list[str], results: dict[str, Any]) -> str:
    usual = options.cases or linear_contenders.CASES
    peaked = [dataclasses.replace(case, peaked=True) for case in usual[:1]]
    ours = [name for name in present if name in linear_contenders.OURS]
    effort = linear.QUICK if options.quick else linear.FULL
    results["contenders"] = present
    results["cases"] = linear.measure(present, usual, effort) + linear.measure(ours, peaked, effort)
    sized = usual if options.cases or options.quick else [*usual, linear_contenders.LARGE]
    results["memory"] = linear.measure_memory(present, sized)
    return linear.table(results)


def _classifier(options: argparse.Namespace, present: list[str], results: dict[str, Any]) -> str:
    usual = classifier_cases.QUICK_CASES if options.quick else list(classifier_cases.CASES.values())
    effort = classifier.QUICK if options.quick else classifier.FULL
    if options.seconds is not None:
        effort = dataclasses.replace(effort, seconds=options.seconds)
    if options.threads is not None:
        effort = dataclasses.replace(effort, threads=options.threads)
    results["contenders"] = present
    results["machine"]["threads"] = effort.threads
    results["cases"] = classifier.measure(present, options.cases or usual, effort)
    return classifier_table.table(results)


def _path(options: argparse.Namespace, present: list[str], results: dict[str, Any]) -> str:
    results["path"] = path.measure(path.QUICK if options.quick else path.Effort())
    return path.table(results)


def _training(options: argparse.Namespace, present: list[str], results: dict[str, Any]) -> str:
    results["runs"] = training.measure(training.QUICK if options.quick else training.FULL)
    return training.table(results)


def _scaling(options: argparse.Namespace, present: list[str], results: dict[str, Any]) -> str:
    if not importlib.util.find_spec("distributed"):
        raise ModuleNotFoundError("distributed is not installed: pip install 'softmaxloss[dask]'")
    results["scaling"] = scaling.measure(scaling.QUICK if options.quick else scaling.FULL)
    return scaling.table(results)


def _streaming(options: argparse.Namespace, present: list[str], results: dict[str, Any]) -> str:
    if not importlib.util.find_spec("pyarrow"):
        raise ModuleNotFoundError("pyarrow is not installed: it writes Parquet files; pip install pyarrow")
    results["streaming"] = streaming.measure(streaming.Effort(options.gigabytes, folder=options.folder))
    return streaming.table(results)


def _judging(options: argparse.Namespace, present: list[str], results: dict[str, Any]) -> str:
    if not importlib.util.find_spec("sklearn"):
        raise ModuleNotFoundError("scikit-learn is not installed: it has the peer, log_loss; pip install scikit-learn")
    effort = judging.Effort(gigabytes=options.gigabytes, folder=options.folder)
    if options.quick:
        effort = dataclasses.replace(effort, rounds=3, share=0.05)
    results["judging"] = judging.measure(effort)
    return judging.table(results)


def _accuracy(options: argparse.Namespace, present: list[str], results: dict[str, Any]) -> str:
    if not importlib.util.find_spec("mpmath"):
        raise ModuleNotFoundError("mpmath is not installed: it computes the exact values; pip install mpmath")
    results["dtype"] = options.dtype
    results["kinds"] = accuracy.measure(present, options.dtype, options.classes)
    return tables.accuracy(results, detail=options.detail)


_COMMANDS = {
    "dense": _dense,
    "memory": _memory,
    "accuracy": _accuracy,
    "torch": _framework,
    "jax": _framework,
    "linear": _linear,
    "classifier": _classifier,
    "path": _path,
    "training": _training,
    "scaling": _scaling,
    "streaming": _streaming,
    "judging": _judging,
}
_FRAMEWORKS = {
    "torch": IN_TORCH,
    "jax": IN_JAX,
    "linear": linear_contenders.LINEAR,
    "classifier": classifier_contenders.CLASSIFIERS,
    "training": IN_TORCH,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=sys.modules["benchmarks"].__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    timed = commands.add_parser("dense", help="time the loss and its gradient")
    timed.add_argument(
        "--in-cache",
        action="store_true",
        help="use the same buffers in every call, so that what fits the caches stays there",
    )
    sized = commands.add_parser("memory", help="measure the memory a call takes beyond its arguments")
    exact = commands.add_parser("accuracy", help="measure how far from the exact values losses and gradients are")
    exact.add_argument("--dtype", choices=accuracy.UNIT, default="float32", help="float32 unless given")
    exact.add_argument("--detail", action="store_true", help="tell the numbers of classes apart as well")
    exact.add_argument(
        "--classes",
        nargs="+",
        type=_number_of_classes,
        default=accuracy.CLASSES,
        metavar="C",
        help=f"numbers of classes in place of {', '.join(map(str, accuracy.CLASSES))}",
    )
    in_torch = commands.add_parser(
        "torch", help="time the loss and its backward pass in PyTorch, and measure its memory"
    )
    in_jax = commands.add_parser("jax", help="the same in JAX, under jit")
    with_layer = commands.add_parser(
        "linear", help="time the loss of a linear layer's output beside its matrix products, and measure its memory"
    )
    fitted = commands.add_parser(
        "classifier",
        help="time SoftmaxClassifier and the solvers of scikit-learn until the objective is near its lowest",
    )
    swept = commands.add_parser("path", help="time ten values of C on a path beside fits that begin at 0")
    trained = commands.add_parser("training", help="train a small language model with PyTorch's loss and with ours")
    scaled = commands.add_parser("scaling", help="time passes over Dask's chunks on 1, 2 and 3 workers of this machine")
    streamed = commands.add_parser("streaming", help="fit files larger than memory; measure memory and time")
    streamed.add_argument("--gigabytes", type=float, default=12.0, help="how large the files are; 12 unless said")
    streamed.add_argument("--folder", type=Path, help="where to write them; where temporary files are, unless said")
    judged = commands.add_parser("judging", help="time evaluate beside log_loss; measure its memory on a file")
    judged.add_argument("--gigabytes", type=float, help="evaluate a file of logits of this size as well")
    judged.add_argument("--folder", type=Path, help="where to write it; where temporary files are, unless said")
    for command in (timed, in_torch, in_jax, with_layer, fitted, swept, trained, scaled, judged):
        command.add_argument("--quick", action="store_true", help="a few short rounds: for a first look")
    for command in (timed, sized, in_torch, in_jax):
        command.add_argument(
            "--cases",
            nargs="+",
            type=cases.Case.parse,
            metavar="CASE",
            help="rows x classes, such as 65536x10, float64:8192x1000, 8x21x256x256@1 (the class axis) or "
            f"8192x1000+VARIANT, of {', '.join(cases.VARIANTS)}; in place of the usual ones",
        )
    with_layer.add_argument(
        "--cases",
        nargs="+",
        type=linear_contenders.LinearCase.parse,
        metavar="CASE",
        help="rows x features x classes, such as 1024x768x32000; in place of the usual ones",
    )
    fitted.add_argument(
        "--cases",
        nargs="+",
        type=classifier_cases.ClassifierCase.parse,
        metavar="CASE",
        help=f"of {', '.join(classifier_cases.CASES)}, those made from a seed of other sizes as well, as in "
        "embeddings:2000x64x10 (rows x features x classes); in place of the usual ones",
    )
    fitted.add_argument(
        "--seconds",
        type=_number_of_seconds,
        metavar="S",
        help=f"the most that a fit may take, {classifier.FULL.seconds:g} unless given, or {classifier.QUICK.seconds:g} "
        "with --quick",
    )
    fitted.add_argument(
        "--threads",
        type=_number_of_threads,
        metavar="N",
        help="threads of BLAS and OpenMP; all processors unless given",
    )
    for command, everyone in (
        (timed, CONTENDERS),
        (sized, CONTENDERS),
        (exact, ANSWERS),
        (in_torch, IN_TORCH),
        (in_jax, IN_JAX),
        (with_layer, linear_contenders.LINEAR),
        (fitted, classifier_contenders.CLASSIFIERS),
    ):
        peers = list(everyone)[1:]
        command.add_argument(
            "--contenders",
            nargs="*",
            choices=peers,
            default=peers,
            metavar="NAME",
            help=f"peers to compare with, of {', '.join(peers)}; all those installed unless given",
        )
    trained.set_defaults(contenders=["pytorch-eager"])
    for command in (swept, scaled, streamed, judged):
        command.set_defaults(contenders=[])
    for command in commands.choices.values():
        command.add_argument("--json", type=Path, metavar="FILE", help="write the raw results there as well")
    return parser


def _number_of_classes(text: str) -> int:
    classes = int(text)
    if classes < 2:
        raise argparse.ArgumentTypeError(f"{text} classes: expected 2 or more")
    return classes


def _number_of_threads(text: str) -> int:
    threads = int(text)
    if threads < 1:
        raise argparse.ArgumentTypeError(f"{text} threads: expected 1 or more")
    return threads


def _number_of_seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} seconds: expected a number above 0")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
