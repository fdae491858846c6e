"""What a report is made of, before it is HTML: words in two languages, headline numbers, tables, figures."""

# ruff: noqa: RUF001, RUF002 (a minus sign is not a hyphen)

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from softmaxloss.report.words import WORDS

__all__ = [
    "MISSING",
    "Cell",
    "Figure",
    "Say",
    "Table",
    "Tile",
    "clean",
    "count",
    "integers",
    "number",
    "numbers",
    "p_value",
    "percent",
    "signed",
]

# Beyond this a name is no name; ten thousand of them would otherwise outgrow the page.
LONGEST_NAME = 120
MISSING = "–"

# Control characters, halves of surrogate pairs, and what would reverse the text that follows.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")


@dataclass(frozen=True)
class Say:
    """Words of the report by their key, and what to put into them.

    Examples
    --------
    >>> from softmaxloss.report.pieces import Say
    >>> Say("rows_of", {"n": "12"}).texts()
    ('12 rows', '12 行')
    """

    key: str
    values: dict[str, str] = field(default_factory=dict)

    def texts(self) -> tuple[str, str]:
        """Return the English words and the Chinese ones."""
        english, chinese = WORDS[self.key]
        return english.format(**self.values), chinese.format(**self.values)


Cell = str | Say


@dataclass(frozen=True)
class Tile:
    """A headline number, what it is, and what it means."""

    name: Say
    value: str
    notes: Sequence[Say] = ()
    large: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under headings; columns whose index is in `words` are text, the others numbers."""

    headings: Sequence[Say]
    rows: Sequence[Sequence[Cell]]
    words: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Figure:
    """A picture (none: only its table, in full), what it shows, and its numbers as a table.

    Parameters
    ----------
    name : str
        Names the words ``figure_<name>`` and ``caption_<name>``.
    kind : str
        The function in report.js that draws it; "" for none.
    data : dict
        What that function takes: of lists, text, finite numbers and None.
    """

    name: str
    table: Table
    kind: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    wide: bool = False
    caption: Say | None = None

    @property
    def heading(self) -> Say:
        """What it is called."""
        return Say(f"figure_{self.name}")

    @property
    def explained(self) -> Say:
        """What to see in it."""
        return self.caption or Say(f"caption_{self.name}")


def clean(name: object) -> str:
    r"""Return a name that any page can show: one line of it, not too long.

    Examples
    --------
    >>> from softmaxloss.report.pieces import clean
    >>> clean("a\x00b\n" + "c" * 200)[:5]
    'a�b�c'
    """
    text = _UNSEEN.sub("\ufffd", str(name)[: LONGEST_NAME + 1])
    return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"


def number(value: float, digits: int = 4) -> str:
    """Write a number with so many significant digits.

    Examples
    --------
    >>> from softmaxloss.report.pieces import number
    >>> number(0.18092537), number(float("inf")), number(float("nan")), number(12345.6), number(-2.5e-9)
    ('0.1809', '∞', '–', '12,346', '−2.500e−9')
    """
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if 10 ** (digits - 1) <= abs(value) < 1e9:
        return f"{value:,.0f}".replace("-", "−")
    text = f"{value:#.{digits}g}"
    return re.sub(r"e([+-])0*(\d+)", lambda found: f"e{found[1].strip('+')}{found[2]}", text).replace("-", "−")


def signed(value: float) -> str:
    """Write a number with its sign, + too.

    Examples
    --------
    >>> from softmaxloss.report.pieces import signed
    >>> signed(0.25), signed(-0.25), signed(0.0)
    ('+0.2500', '−0.2500', '0')
    """
    return f"+{number(value)}" if value > 0 else number(value)


def percent(fraction: float) -> str:
    """Write a fraction in percent.

    Examples
    --------
    >>> from softmaxloss.report.pieces import percent
    >>> percent(0.98765), percent(float("nan"))
    ('98.77%', '–')
    """
    return f"{100 * fraction:.2f}%" if math.isfinite(fraction) else MISSING


def p_value(p: float) -> str:
    """Write a probability, of tiny ones only that they are tiny.

    Examples
    --------
    >>> from softmaxloss.report.pieces import p_value
    >>> p_value(0.0312), p_value(1e-12)
    ('0.031', '< 0.0001')
    """
    if math.isnan(p):
        return MISSING
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def count(value: float) -> str:
    """Write a whole number.

    Examples
    --------
    >>> from softmaxloss.report.pieces import count
    >>> count(1234567)
    '1,234,567'
    """
    return f"{int(value):,}"


def numbers(values: Iterable[float]) -> list[float | None]:
    """Return numbers that JSON can hold, short, with None for NaN and infinity.

    Examples
    --------
    >>> from softmaxloss.report.pieces import numbers
    >>> numbers([1 / 3, float("inf")])
    [0.3333333, None]
    """
    return [float(f"{float(value):.7g}") if math.isfinite(value) else None for value in values]


def integers(values: Iterable[float]) -> list[int]:
    """Return whole numbers as Python's own.

    Examples
    --------
    >>> import numpy as np
    >>> from softmaxloss.report.pieces import integers
    >>> integers(np.array([1, 2]))
    [1, 2]
    """
    return [int(value) for value in values]
