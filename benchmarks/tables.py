"""Markdown tables of results, for people and for the README."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders import CONTENDERS, OURS, YARDSTICK

BEGIN, END = "<!-- begin: python -m benchmarks {} -->", "<!-- end: python -m benchmarks {} -->"
NOTHING = "-"

# Times taken while other programs use more than this share of the processors are not worth quoting.
BUSY = 0.1


def dense(results: dict[str, Any]) -> str:
    """Write two tables: times as multiples of memcpy, and how many times faster than each peer ours is."""
    cases = results["cases"]
    names = [name for name in CONTENDERS if name in cases[0]["seconds"]]
    peers = [name for name in names if name not in (OURS, YARDSTICK)]
    parts = [
        _conditions(results),
        "Time as a multiple of memcpy, which copies the logits: the loss / the loss and its gradient.",
        _table(
            ["rows x classes", "memcpy", "softmaxloss", "in place", "new array", *map(_title, peers)],
            [_multiples(case, peers) for case in cases],
        ),
    ]
    if peers:
        parts += [
            "Times faster than each: the loss / the loss and its gradient.",
            _table(["rows x classes", *map(_title, peers)], [_speedups(case, peers) for case in cases]),
        ]
    return _framed("dense", [*parts, *_left_out(results), _agreement(cases)])


def memory(results: dict[str, Any]) -> str:
    """Write one table: the memory that a call needs beyond its arguments."""
    cases = results["cases"]
    peers = [name for name in CONTENDERS if name in cases[0]["growth_bytes"] and name != OURS]
    header = ["rows x classes", "logits", "softmaxloss", "in place", "new array", *map(_title, peers)]
    rows = []
    for case in cases:
        growth = case["growth_bytes"]
        ours = growth[OURS]
        rows.append(
            [
                _shape(case),
                _megabytes(case["logits_bytes"]),
                f"{_megabytes(ours['loss'])} / {_megabytes(ours['grad'])}",
                _megabytes(ours["grad_in_place"]),
                _megabytes(ours["grad_new"]),
                *(f"{_megabytes(growth[p]['loss'])} / {_megabytes(growth[p]['grad'])}" for p in peers),
            ]
        )
    lead = (
        "Memory in MB that the first call takes beyond its arguments: the loss / the loss and its gradient. "
        "softmaxloss writes the gradient into `out=`, over the logits, or into a new array; "
        "the others into a new one."
    )
    return _framed("memory", [_conditions(results), lead, _table(header, rows), *_left_out(results)])


def _multiples(case: dict[str, Any], peers: list[str]) -> list[str]:
    seconds = case["seconds"]
    ours = seconds[OURS]
    copy = seconds.get(YARDSTICK, {}).get("copy")

    def multiple(*times: float) -> str:
        # Without the yardstick the times themselves are all there is to say.
        return " / ".join(_number(time / copy) if copy else _milliseconds(time) for time in times)

    return [
        _shape(case),
        _milliseconds(copy) if copy else NOTHING,
        multiple(ours["loss"], ours["grad"]),
        multiple(ours["grad_in_place"]),
        multiple(ours["grad_new"]),
        *(multiple(seconds[peer]["loss"], seconds[peer]["grad"]) for peer in peers),
    ]


def _speedups(case: dict[str, Any], peers: list[str]) -> list[str]:
    seconds = case["seconds"]
    pairs = ([seconds[peer][what] / seconds[OURS][what] for what in ("loss", "grad")] for peer in peers)
    return [_shape(case), *(" / ".join(map(_number, pair)) for pair in pairs)]


def _conditions(results: dict[str, Any]) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    busy = machine["busy_before"]
    warning = f" Other programs were using {busy:.0%} of the processors: measure again when they are not."
    return (
        f"{machine['processor']}, {machine['threads']} threads, {machine['instruction_set']}; "
        f"Python {machine['python']}, {versions}.{warning if busy > BUSY else ''}"
    )


def _left_out(results: dict[str, Any]) -> list[str]:
    reasons = [f"{_title(name)} ({reason})" for name, reason in results["left_out"].items()]
    return [f"Left out: {', '.join(reasons)}."] if reasons else []


def _agreement(cases: list[dict[str, Any]]) -> str:
    largest: dict[str, float] = {}
    for case in cases:
        found = max(d for of_one in case["differences"].values() for d in of_one.values())
        largest[case["dtype"]] = max(found, largest.get(case["dtype"], 0.0))
    told = ", ".join(f"{difference:.1e} for {dtype}" for dtype, difference in largest.items())
    return f"Largest relative difference of a loss or gradient entry from ours: {told}."


def _framed(command: str, parts: list[str]) -> str:
    return "\n\n".join([BEGIN.format(command), *parts, END.format(command)])


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shape(case: dict[str, Any]) -> str:
    shape = f"{case['rows']} x {case['classes']}"
    return shape if case["dtype"] == "float32" else f"{shape} {case['dtype']}"


def _title(name: str) -> str:
    return CONTENDERS[name].title


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}"
