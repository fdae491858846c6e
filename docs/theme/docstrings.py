"""For mkdocstrings: what our docstrings have of reStructuredText, as Markdown.

Single backticks around a public name become a link to it, and so do the names under "See Also"; parameters described
together are told one by one, each with its own default. All else is read as Sphinx would read it: ``:math:`` and
``.. math::``, literal blocks after ``::``, footnotes ``[1]_`` and their ``.. [1]``.
"""

import ast
import re
import textwrap
from pathlib import Path
from typing import Any

import griffe

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "softmaxloss"

MATH_BLOCK = re.compile(r"^( *)\.\. math::\n\s*\n((?:\1 +\S.*\n?|[ ]*\n)+)", re.MULTILINE)
MATH = re.compile(r":math:`([^`]+)`")
FOOTNOTE = re.compile(r"^( *)\.\. \[(\d+)\] (.*(?:\n\1 +\S.*)*)", re.MULTILINE)
CITATION = re.compile(r" ?\[(\d+)\]_")
LITERAL_BLOCK = re.compile(r"::$(?=\n\s*\n +)", re.MULTILINE)
PARAMETERS = re.compile(r"(?<=^Parameters\n----------\n)(.+?)(?=\n\n\w|\Z)", re.MULTILINE | re.DOTALL)
TOGETHER = re.compile(r"^(\w+(?:, \w+)+)((?: : .*)?\n(?: +.*(?:\n|\Z)|\n)+)", re.MULTILINE)
SHAPE = re.compile(r"^(\w+(?:, \w+)* : \w+), (?=\()", re.MULTILINE)
SEE_ALSO = re.compile(r"(?<=^See Also\n--------\n)(.+?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)
SEEN = re.compile(r"^([\w., ]+) : (.*(?:\n +.*)*)", re.MULTILINE)
TYPE = re.compile(r"^ *[\w*, ]+ : .*``.*$", re.MULTILINE)
GREATER = re.compile(r"^( *)>(?=[= ])", re.MULTILINE)
NAME = re.compile(r"(?<![`\w\[])`([A-Za-z_][\w.]*)`(?!`)")


def public_names() -> dict[str, str]:
    """Map each public name, as our docstrings write it, to its full path: those of `softmaxloss` are written bare."""
    names = {}
    modules = {
        "softmaxloss": "__init__.py",
        "softmaxloss.torch": "torch.py",
        "softmaxloss.report": "report/__init__.py",
    }
    for module, file in modules.items():
        for statement in ast.parse((PACKAGE / file).read_text()).body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
                for name in ast.literal_eval(statement.value):
                    names[f"{module}.{name}"] = f"{module}.{name}"
                    names.setdefault(name, f"{module}.{name}")
    del names["__version__"], names["softmaxloss.__version__"]
    return names


def to_markdown(text: str, names: dict[str, str]) -> str:
    """Return a docstring with Markdown in place of reStructuredText."""
    text = PARAMETERS.sub(_parameters, text)
    text = SEE_ALSO.sub(_see_also, text)
    text = TYPE.sub(lambda found: found[0].replace("``", ""), text)  # is shown as code anyway
    text = GREATER.sub(r"\1\>", text)  # "> 0" at the start of a line is no quotation
    text = MATH_BLOCK.sub(_math_block, text)
    text = MATH.sub(lambda found: rf"\({found[1]}\)", text)
    text = FOOTNOTE.sub(_footnote, text)
    text = CITATION.sub(r"<sup>\1</sup>", text)
    text = LITERAL_BLOCK.sub(":", text)
    return NAME.sub(lambda found: f"[{found[0]}][{names[found[1]]}]" if found[1] in names else found[0], text)


def _math_block(found: re.Match[str]) -> str:
    formula = textwrap.dedent(found[2]).strip()
    if "\\\\" in formula or "&" in formula:  # as Sphinx does
        formula = rf"\begin{{split}}{formula}\end{{split}}"
    return textwrap.indent(f"\\[\n{formula}\n\\]\n\n", found[1])


def _parameters(found: re.Match[str]) -> str:
    """Describe one parameter at a time, and "array_like, (C,)" in words: it would be taken for a tuple."""
    text = SHAPE.sub(r"\1 of shape ", found[1] + "\n")
    return TOGETHER.sub(lambda group: "".join(name + group[2] for name in group[1].split(", ")), text).rstrip("\n")


def _see_also(found: re.Match[str]) -> str:
    """Make a list of the names and what is said of each."""

    def item(seen: re.Match[str]) -> str:
        names = ", ".join(f"`{name.strip()}`" for name in seen[1].split(","))
        return f"- {names}: " + " ".join(line.strip() for line in seen[2].splitlines())

    return SEEN.sub(item, found[1])


def _footnote(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2]}. " + " ".join(line.strip() for line in found[3].splitlines())


class DocstringsAsMarkdown(griffe.Extension):
    """Turns each docstring that Griffe finds into Markdown, once."""

    def __init__(self) -> None:
        """Look up the names that get links."""
        self.names = public_names()

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the object's docstring."""
        if obj.docstring:
            elsewhere = {name: path for name, path in self.names.items() if name.rsplit(".", 1)[-1] != obj.name}
            obj.docstring.value = to_markdown(obj.docstring.value, elsewhere)
