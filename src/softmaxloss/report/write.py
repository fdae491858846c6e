"""From an evaluation or a comparison to one HTML file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from softmaxloss import __version__
from softmaxloss.comparison import Comparison
from softmaxloss.data.files import check_output, known_suffix, replacing
from softmaxloss.measures.evaluation import Evaluation
from softmaxloss.report import comparison, evaluation
from softmaxloss.report.pieces import Figure, Say, Table, Tile, clean, number, numbers
from softmaxloss.report.words import FIGURE_WORDS

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["check_report", "write_report"]

SUFFIXES = (".html", ".htm")

LANGUAGES = ("en", "zh")
# A longer curve is thinned: no screen shows more points, and no page has room for a million.
MOST_POINTS = 1000


@dataclass(frozen=True)
class _Page:
    lead: Sequence[Say]
    warnings: Sequence[Say]
    tiles: Sequence[Tile]
    figures: Sequence[Figure]


def write_report(
    path: str | os.PathLike[str],
    found: Evaluation | Comparison,
    *,
    language: Literal["en", "zh"] = "en",
    title: str | None = None,
    curve: Sequence[float] | None = None,
    evaluations: tuple[Evaluation, Evaluation] | None = None,
    names: tuple[str, str] = ("A", "B"),
) -> None:
    """Write an evaluation or a comparison as one HTML file, with figures, that opens offline.

    The page holds all it needs, in English and in Chinese, for dark and light screens and for paper, and asks the
    network for nothing. Each figure comes with its numbers as a table. It takes about 5 MB, nearly all of it
    plotly.js, whatever the number of rows and classes: of many classes, those of the largest losses are drawn.

    Parameters
    ----------
    path : path
        Where to write; a file that is there is replaced once the new one is whole.
    found : Evaluation or Comparison
        What `evaluate` or `compare` found.
    language : {"en", "zh"}
        The language that the page opens in; it has a switch.
    title : str, optional
        Its heading.
    curve : sequence of float, optional
        Of an evaluation: the objective after each iteration of the training, such as a classifier's ``loss_curve_``.
    evaluations : tuple of two Evaluation, optional
        Of a comparison: what `evaluate` found of A and of B on the same rows, to be shown side by side.
    names : tuple of two str
        Of a comparison: what A and B are.

    Raises
    ------
    ValueError
        The language is another; `curve` comes with a comparison; `evaluations` or `names` with an evaluation, or not
        two of them, or of other classes than the comparison.
    TypeError
        `found` is neither an evaluation nor a comparison.
    DataError
        The file cannot be written. It is a ValueError, too.
    ModuleNotFoundError
        Jinja2 or Plotly is not installed: ``pip install 'softmaxloss[report]'``.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import softmaxloss as sl
    >>> from softmaxloss.report import write_report
    >>> found = sl.evaluate([[2.0, 1.0], [0.0, 3.0]], [0, 1], class_names=["cat", "dog"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "report.html")
    ...     write_report(path, found, language="zh", title="Cats and dogs")
    ...     page = path.read_text(encoding="utf-8")
    >>> "<h1>Cats and dogs</h1>" in page, len(page) < 6_000_000
    (True, True)
    """
    if language not in LANGUAGES:
        raise ValueError(f"language is {language!r}; expected one of 'en' and 'zh'")
    page = _page(found, curve, evaluations, names)
    check_output(Path(path))
    kind = "title_comparison" if isinstance(found, Comparison) else "title_evaluation"
    heading = Say(kind) if title is None else Say("plain", {"text": clean(title)})
    text = _template().render(
        language=language,
        heading=heading,
        Say=Say,
        page=page,
        version=__version__,
        data=_script_json(_drawn(page.figures)),
        style=_resource("report.css"),
        script=_resource("report.js"),
        plotly=_plotly(),
    )
    with replacing(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_report(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Check that a report can be written, before the work that it is to tell of.

    Parameters
    ----------
    path : Path
        Where it is to be written.
    inputs : iterable of Path
        Files that it must not replace.

    Raises
    ------
    DataError
        The suffix is none of HTML, the path one of the inputs, or no file can be written there.
    ModuleNotFoundError
        Jinja2 or Plotly is not installed.

    Examples
    --------
    >>> from pathlib import Path
    >>> from softmaxloss.report.write import check_report
    >>> check_report(Path("report.pdf"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    softmaxloss.data.files.DataError: report.pdf: the suffix '.pdf' is not known; ...
    """
    known_suffix(path, SUFFIXES)
    check_output(path, inputs)
    for module in ("jinja2", "plotly"):
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def _page(
    found: Evaluation | Comparison,
    curve: Sequence[float] | None,
    evaluations: tuple[Evaluation, Evaluation] | None,
    names: tuple[str, str],
) -> _Page:
    """Check what goes together, and collect what the page shows."""
    if isinstance(found, Evaluation):
        if evaluations is not None or tuple(names) != ("A", "B"):
            raise ValueError("evaluations and names belong to a comparison; found is an evaluation: leave them out")
        figures = [*evaluation.evaluation_figures(found), *_curve(curve)]
        return _Page(evaluation.lead(found), evaluation.warnings(found), evaluation.tiles(found), figures)
    if not isinstance(found, Comparison):
        raise TypeError(f"found is of type {type(found).__name__}; expected what evaluate or compare gives")
    if curve is not None:
        raise ValueError("curve belongs to an evaluation; found is a comparison: leave it out")
    if len(names) != 2 or isinstance(names, str):
        raise ValueError(f"names is {names!r}; expected two names, of A and of B")
    if evaluations is not None and (
        len(evaluations) != 2 or any(each.class_names != found.class_names for each in evaluations)
    ):
        raise ValueError("evaluations do not fit the comparison; expected two, of A and B, with the same class_names")
    figures = comparison.comparison_figures(found, evaluations)
    told = [clean(name) for name in names]
    return _Page(comparison.lead(found, told), comparison.warnings(found), comparison.tiles(found), figures)


def _curve(values: Sequence[float] | None) -> list[Figure]:
    given = [] if values is None else [float(value) for value in values]
    if not given:
        return []
    step = -(-len(given) // MOST_POINTS)
    kept = sorted({*range(0, len(given), step), len(given) - 1})
    shown = numbers(given[at] for at in kept)
    table = Table([Say("iteration"), Say("objective")], [(str(at), number(given[at], 6)) for at in kept])
    data: dict[str, Any] = {"iterations": kept, "values": shown}
    finite = [value for value in shown if value is not None]
    # Where it falls by orders of magnitude, the end is flat on any other axis.
    data["log"] = bool(finite) and min(finite) > 0 and max(finite) > 20 * min(finite)
    return [Figure("curve", table, "curve", data, wide=True)]


def _drawn(figures: Sequence[Figure]) -> dict[str, Any]:
    """Return what the script draws: the figures' data, and words in both languages."""
    words = {language: {key: pair[at] for key, pair in FIGURE_WORDS.items()} for at, language in enumerate(LANGUAGES)}
    drawn = [{"name": figure.name, "kind": figure.kind, **figure.data} for figure in figures if figure.kind]
    return {"words": words, "figures": drawn}


def _script_json(value: object) -> str:
    """Write JSON that no HTML parser takes for the end of the script, or for a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def _resource(name: str) -> str:
    return files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_resource("report.html"))
