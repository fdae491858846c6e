"""Writes what the benchmark of classifiers measured."""

from __future__ import annotations

from typing import Any

from benchmarks.classifier_contenders import CLASSIFIERS, OURS
from benchmarks.classifier_watch import GAPS
from benchmarks.tables import NOTHING, framed, markdown_table, warnings_and_conditions

# A value lower than the long fit's by more than this share of the smallest gap says that it was not long enough.
FOUND_LOWER = 0.1

HEADING = "case"
NEVER = "never"


def table(results: dict[str, Any]) -> str:
    """Write seconds, how many times faster ours is, passes and memory."""
    names, cases = results["contenders"], results["cases"]
    titles = [CLASSIFIERS[name].title for name in names]
    peers = [name for name in names if name != OURS]
    gaps = " / ".join(f"{gap:.0e}".replace("e-0", "e-") for gap in GAPS)

    def told(tell: Any) -> str:
        rows = [
            [case["title"], *(tell(case["fits"][n]) if n in case["fits"] else NOTHING for n in names)] for case in cases
        ]
        return markdown_table([HEADING, *titles], rows)

    parts = [
        *warnings_and_conditions(results, cases),
        f"Seconds of `fit` until the objective is above the best known by {gaps} of it. >: not within that time; "
        "never: the solver ended before.",
        told(seconds),
    ]
    if peers:
        lead = (
            "Times faster than scikit-learn's LogisticRegression, by its usual solver and by the best for each number:"
        )
        usual = ["lbfgs"] if "lbfgs" in peers else []
        rows = [
            [case["title"], *(_faster(case, some) for some in (*([name] for name in usual), peers))] for case in cases
        ]
        parts += [lead, markdown_table([HEADING, *usual, "the best of all measured"], rows)]
    parts += [
        "Passes over the rows, to the same gaps: values with gradients, Hessian matrices, and products with these.",
        told(_passes),
        "Memory in MiB that `fit` takes at its peak beside the data.",
        told(_memory),
        *_doubts(cases),
    ]
    return framed("classifier", parts)


def seconds(fit: dict[str, Any]) -> str:
    """Tell the seconds to each gap."""
    return " / ".join(_tell(*until(fit, gap)) for gap in GAPS)


def _tell(sign: str, number: float) -> str:
    return sign if sign == NEVER else f"{sign}{number:.3g}"


def until(fit: dict[str, Any], gap: float) -> tuple[str, float]:
    """Return the seconds to a gap, with a sign before: none, that it takes more, or that it is never reached."""
    if str(gap) in fit["reached"]:
        return "", fit["reached"][str(gap)]["seconds"]
    return (NEVER, float("inf")) if fit["ended"] else ("> ", fit["seconds"])


def _faster(case: dict[str, Any], names: list[str]) -> str:
    """Return the ratios of the best of the contenders to ours, and who that is where there are several."""
    return " / ".join(faster(case["fits"], [name for name in names if name in case["fits"]], gap) for gap in GAPS)


def faster(fits: dict[str, dict[str, Any]], names: list[str], gap: float) -> str:
    """Return how many times faster ours reaches a gap than the best of the contenders; bounds where one does not."""
    found = {name: until(fits[name], gap) for name in names}
    # Those that reach it come first, then those that may in more time than they had.
    order = {"": 0, "> ": 1, NEVER: 2}
    best = min(found, key=lambda name: (order[found[name][0]], found[name][1]), default=None)
    if best is None:
        return NOTHING
    sign, their_seconds = found[best]
    our_sign, our_seconds = until(fits[OURS], gap)
    if our_sign:
        return NOTHING if sign else f"< {_ratio(their_seconds / our_seconds)}"
    if sign == NEVER:
        return NEVER
    return f"{sign}{_ratio(their_seconds / our_seconds)}{f' ({best})' if len(names) > 1 and not sign else ''}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _passes(fit: dict[str, Any]) -> str:
    return " / ".join(
        _number(fit["reached"][str(gap)]["passes"]) if str(gap) in fit["reached"] else NOTHING for gap in GAPS
    )


def _number(passes: float) -> str:
    return f"{passes:.1f}" if passes < 10 and passes % 1 else f"{passes:.0f}"


def _memory(fit: dict[str, Any]) -> str:
    return NOTHING if fit["growth_bytes"] is None else f"{fit['growth_bytes'] / 2**20:.1f}"


def _doubts(cases: list[dict[str, Any]]) -> list[str]:
    """Say where the best known value may not be the lowest there is."""
    short = [f"{case['title']} ({case['best_seconds']:.0f} s)" for case in cases if not case["best_ended"]]
    lower = [
        f"{case['title']} (by {case['lower_by']:.1g})" for case in cases if case["lower_by"] > FOUND_LOWER * GAPS[-1]
    ]
    parts = [
        f"The long fit of ours that the gaps are counted from was ended by its time in: {'; '.join(short)}."
    ] * bool(short)
    parts += [f"A contender found a value lower than it, relative to it, in: {'; '.join(lower)}."] * bool(lower)
    return parts
