"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks import cases, dense, memory, tables
from benchmarks.contenders import CONTENDERS, OPERATIONS, OURS, YARDSTICK, available
from benchmarks.machine import facts
from benchmarks.worker import WorkerError


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    wanted = [name for name in CONTENDERS if name in options.contenders or name in (OURS, YARDSTICK)]
    present, left_out = available(wanted)
    if OURS in left_out:
        print(f"{left_out[OURS]}: install the repository first, with pip install -e .", file=sys.stderr)
        return 1
    results = {
        "command": options.command,
        "machine": facts(),
        "operations": OPERATIONS,
        "left_out": left_out,
    }
    try:
        if options.command == "dense":
            effort = dense.QUICK if options.quick else dense.FULL
            results["cases"] = dense.measure(present, options.cases or cases.DENSE, effort)
            table = tables.dense(results)
        else:
            present = [name for name in present if name != YARDSTICK]
            left_out.pop(YARDSTICK, None)
            results["cases"] = memory.measure(present, options.cases or cases.MEMORY)
            table = tables.memory(results)
    except (dense.DisagreementError, WorkerError) as error:
        print(error, file=sys.stderr)
        return 1
    print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=sys.modules["benchmarks"].__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    timed = commands.add_parser("dense", help="time the loss and its gradient")
    timed.add_argument("--quick", action="store_true", help="three short rounds: for a first look")
    sized = commands.add_parser("memory", help="measure the memory a call takes beyond its arguments")
    peers = [name for name in CONTENDERS if name not in (OURS, YARDSTICK)]
    for command in (timed, sized):
        command.add_argument(
            "--cases",
            nargs="+",
            type=cases.Case.parse,
            metavar="CASE",
            help="rows x classes, such as 65536x10 or float64:8192x1000, in place of the usual ones",
        )
        command.add_argument(
            "--contenders",
            nargs="*",
            choices=peers,
            default=peers,
            metavar="NAME",
            help=f"peers to compare with, of {', '.join(peers)}; all those installed unless given",
        )
        command.add_argument("--json", type=Path, metavar="FILE", help="write the raw results there as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
