"""Markdown tables of results, for people and for the documents."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from benchmarks.accuracy import UNIT
from benchmarks.contenders import CONTENDERS, EVERYONE, OURS
from benchmarks.rotation import CACHES, CALL_BYTES

BEGIN, END = "<!-- begin: python -m benchmarks {} -->", "<!-- end: python -m benchmarks {} -->"
NOTHING = "-"

# Times taken while other programs use more than this share of the processors are not worth quoting.
BUSY = 0.1


def dense(results: dict[str, Any]) -> str:
    """Write times as multiples of memcpy, times of small calls, and how many times faster than each peer ours is."""
    cases = results["cases"]
    peers = [name for name in CONTENDERS if name != OURS and any(name in case["seconds"] for case in cases)]
    large = [case for case in cases if case["logits_bytes"] >= CALL_BYTES]
    small = [case for case in cases if case["logits_bytes"] < CALL_BYTES]
    contenders = ["softmaxloss", "in place", "new array", *map(_title, peers)]
    parts = [_conditions(results), *_busy(cases), _rotation(results)]
    if large:
        lead = (
            "Time as a multiple of memcpy, which copies the logits: the loss / the loss and its gradient. softmaxloss "
            "writes the gradient into `out=`, over the logits, or into a new array; the others into a new one."
        )
        rows = [[case["title"], *_multiples(case, peers)] for case in large]
        parts += [lead, markdown_table(["logits", "memcpy", *contenders], rows)]
    if small:
        rows = [[case["title"], *_times(case, peers, _microseconds)] for case in small]
        parts += [
            "Microseconds of a call from Python: the loss / the loss and its gradient.",
            markdown_table(["logits", *contenders], rows),
        ]
    if peers:
        rows = [[case["title"], *_speedups(case, peers)] for case in cases]
        lead = "Times faster than each: the loss / the loss and its gradient, which softmaxloss writes into `out=`."
        parts += [lead, markdown_table(["logits", *map(_title, peers)], rows)]
    return framed("dense", [*parts, *_left_out(results), _agreement(cases)])


def memory(results: dict[str, Any]) -> str:
    """Write one table: the memory that a call needs beyond its arguments."""
    cases = results["cases"]
    peers = [name for name in CONTENDERS if name != OURS and any(name in case["growth_bytes"] for case in cases)]
    header = ["logits", "their size", "softmaxloss", "in place", "new array", *map(_title, peers)]
    rows = []
    for case in cases:
        growth = case["growth_bytes"]
        ours = growth[OURS]
        rows.append(
            [
                case["title"],
                _megabytes(case["logits_bytes"]),
                _pair(ours, _megabytes),
                _megabytes(ours["grad_in_place"]),
                _megabytes(ours["grad_new"]),
                *(_pair(growth.get(peer), _megabytes) for peer in peers),
            ]
        )
    lead = (
        "Memory in MB that the first call takes beyond its arguments: the loss / the loss and its gradient. "
        "softmaxloss writes the gradient into `out=`, over the logits, or into a new array; "
        "the others into a new one."
    )
    return framed("memory", [_conditions(results), lead, markdown_table(header, rows), *_left_out(results)])


def frameworks(results: dict[str, Any]) -> str:
    """Write times of the loss and its backward pass, how many times faster ours is, and the memory both take."""
    cases, names = results["cases"], results["contenders"]
    ours, *peers = names
    in_place = any("grad_in_place" in case["seconds"][ours] for case in cases)
    headings = ["logits", "softmaxloss", *(["in place"] if in_place else []), *map(_title, peers)]
    operations = [(ours, "grad"), *([(ours, "grad_in_place")] if in_place else []), *((peer, "grad") for peer in peers)]
    times = [
        [case["title"], *(_tell_time(case, case["seconds"][name][op]) for name, op in operations)] for case in cases
    ]
    faster = [
        [
            case["title"],
            *(_number(_against(case, peer, name, op)) for peer in peers for name, op in operations if name == ours),
        ]
        for case in cases
    ]
    against = [f"{_title(peer)}{way}" for peer in peers for way in ["", *([", in place"] if in_place else [])]]
    memory = [
        [
            case["title"],
            _megabytes(case["logits_bytes"]),
            *(_megabytes(case["growth_bytes"][name][op]) for name, op in operations),
        ]
        for case in results["memory"]
    ]
    parts = [
        *warnings_and_conditions(results, cases),
        _rotation({**results, "in_cache": False}, "all contenders"),
        "The mean loss and the backward pass to the logits:",
        markdown_table(headings, times),
        "Times faster than each:",
        markdown_table(["logits", *against], faster),
    ]
    if memory:
        lead = "Memory in MB that the same takes beyond the logits, in the first call:"
        parts += [lead, markdown_table(["logits", "their size", *headings[1:]], memory)]
    return framed(results["command"], [*parts, *_left_out(results), _agreement(cases)])


def _tell_time(case: dict[str, Any], seconds: float) -> str:
    return _milliseconds(seconds) if case["logits_bytes"] >= CALL_BYTES else f"{_microseconds(seconds)} us"


def _against(case: dict[str, Any], peer: str, ours: str, operation: str) -> float:
    return case["seconds"][peer]["grad"] / case["seconds"][ours][operation]


def accuracy(results: dict[str, Any], detail: bool) -> str:
    """Write the worst and the median error by kind of row, and with `detail` by number of classes, for each number."""
    kinds, dtype = results["kinds"], results["dtype"]
    names = list(kinds[0]["errors"])
    unit = UNIT[dtype]
    parts = [
        _conditions(results),
        f"Relative errors in units of 2^{round(math.log2(unit))}, {dtype}'s rounding unit, worst / median: "
        f"{_units(1 / unit)} is 100%.",
    ]
    for number, of in (("The loss of a row", "loss"), ("The entries of the gradient", "gradient")):
        rows = [[kind["kind"], *_errors(kind["errors"], of)] for kind in kinds]
        parts += [f"{number}:", markdown_table(["rows", *map(_title, names)], rows)]
        if detail:
            rows = [
                [kind["kind"], str(one["classes"]), str(one["rows"]), *_errors(one["errors"], of)]
                for kind in kinds
                for one in kind["by_classes"]
            ]
            parts += [
                f"{number}, by classes:",
                markdown_table(["rows", "classes", "how many", *map(_title, names)], rows),
            ]
    command = "accuracy" if dtype == "float32" else f"accuracy --dtype {dtype}"
    return framed(command, [*parts, *_left_out(results)])


def _errors(errors: dict[str, Any], of: str) -> list[str]:
    return [f"{_units(one[of]['worst'])} / {_units(one[of]['median'])}" for one in errors.values()]


def _multiples(case: dict[str, Any], peers: list[str]) -> list[str]:
    copy = case["seconds"][OURS].get("copy")
    # Without the yardstick the times themselves are all there is to say.
    times = _times(case, peers, lambda seconds: _number(seconds / copy) if copy else _milliseconds(seconds))
    return [_milliseconds(copy) if copy else NOTHING, *times]


def _times(case: dict[str, Any], peers: list[str], tell: Callable[[float], str]) -> list[str]:
    seconds = case["seconds"]
    ours = seconds[OURS]
    return [
        _pair(ours, tell),
        tell(ours["grad_in_place"]),
        tell(ours["grad_new"]),
        *(_pair(seconds.get(peer), tell) for peer in peers),
    ]


def _speedups(case: dict[str, Any], peers: list[str]) -> list[str]:
    ours = case["seconds"][OURS]
    found = [case["seconds"].get(peer) for peer in peers]
    ratios = [one and {what: one[what] / ours[what] for what in ("loss", "grad")} for one in found]
    return [_pair(one, _number) for one in ratios]


def _pair(values: dict[str, Any] | None, tell: Callable[[Any], str]) -> str:
    return f"{tell(values['loss'])} / {tell(values['grad'])}" if values else NOTHING


def _conditions(results: dict[str, Any]) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['threads']} threads, {machine['instruction_set']}; "
        f"Python {machine['python']}, {versions}."
    )


def warnings_and_conditions(results: dict[str, Any], cases: list[dict[str, Any]]) -> list[str]:
    """Return where and under what load the results were taken."""
    return [_conditions(results), *_busy(cases)]


def _busy(cases: list[dict[str, Any]]) -> list[str]:
    share = max(case["busy"] for case in cases)
    told = f"Other programs were using up to {share:.0%} of the processors: measure again when they are not."
    return [told] if share > BUSY else []


def _rotation(results: dict[str, Any], workers: str = "memcpy and all contenders alike") -> str:
    if results["in_cache"]:
        return "Every call used the same buffers, so that what fits the caches stayed there."
    cache = results["machine"]["last_level_cache_bytes"]
    large = [case for case in results["cases"] if case["logits_bytes"] >= CALL_BYTES]
    short = [case["title"] for case in large if case["buffers"] * case["logits_bytes"] < CACHES * cache]
    exception = f" There is too little memory here for as many with {', '.join(short)}." if short else ""
    return (
        f"Every call used other buffers than the one before, {CACHES} times the last level of cache "
        f"({cache >> 20} MiB) of each kind, so that {workers} worked from memory; logits below "
        f"{CALL_BYTES >> 20} MiB stayed in the caches.{exception}"
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


def framed(command: str, parts: list[str]) -> str:
    """Return paragraphs between the lines that tell documents which command printed them."""
    return "\n\n".join([BEGIN.format(command), *parts, END.format(command)])


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table whose columns but the first are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _title(name: str) -> str:
    return EVERYONE[name].title if name in EVERYONE else name


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _units(value: float | str) -> str:
    if isinstance(value, str):
        return {"inf": "infinity", "nan": "NaN"}[value]
    return f"{float(f'{value:.2g}'):g}" if value < 1000 else f"{value:.1e}".replace("e+0", "e").replace("e+", "e")


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:.3g}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}"
