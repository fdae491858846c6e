"""Runs the Python blocks of README.md, README.zh-CN.md and every Markdown file in docs/ as tests.

A block fenced as ``python`` runs; where it starts with ``>>>``, each statement is a test and its output is
compared. Any other language is only shown. The blocks of one document share their names, as in one session,
so run a document whole (with pytest-xdist: ``--dist loadfile``). What a block writes goes to a temporary
folder. A block that cannot run everywhere comes after ``<!-- skip: next if(condition, reason="...") -->``.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from sybil import Document, Region, Sybil
from sybil.integration.pytest import SybilFile, SybilItem
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

ROOT = Path(__file__).resolve().parent
READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")

_fences = RawFencedCodeBlockLexer(re.compile(r"(?P<info>[^\n]*)\n"))


def refuse_python_that_would_not_run(document: Document) -> Iterable[Region]:
    """Stop at a block that holds Python but is not fenced as ``python``: it would never be checked."""
    for region in _fences(document):
        info, source = region.lexemes["info"].strip(), region.lexemes["source"]
        if info != "python" and (info.lower().startswith("py") or source.lstrip().startswith(">>>")):
            raise ValueError(
                f"{document.path}, {document.line_column(region.start)}: a block of Python is fenced as "
                f"{info!r}; fence it as 'python' so that it runs as a test."
            )
    return ()


def enter_temporary_directory(namespace: dict[str, Any]) -> None:
    """Give each document an empty working directory, so that its examples may write files."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(stack.enter_context(tempfile.TemporaryDirectory())))
        namespace["_working_directory"] = stack.pop_all()


def leave_temporary_directory(namespace: dict[str, Any]) -> None:
    """Go back to where pytest was started and remove the document's directory."""
    namespace.pop("_working_directory").close()


_collect_markdown = Sybil(
    parsers=[refuse_python_that_would_not_run, PythonCodeBlockParser(), SkipParser()],
    pattern="*.md",
    setup=enter_temporary_directory,
    teardown=leave_temporary_directory,
).pytest()


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> SybilFile | None:
    """Collect the documents, and no other Markdown file that lies about."""
    if file_path in READMES or file_path.is_relative_to(ROOT / "docs"):
        return _collect_markdown(file_path, parent)
    return None


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let a warning from outside a block, such as one of a file left open, be shown as that block's failure.

    sybil looks for the block in the traceback, and its own IndexError stops the run where it is not there.
    """
    if isinstance(item, SybilItem):
        block_only = item._traceback_filter

        def block_or_all(excinfo: pytest.ExceptionInfo[BaseException]) -> Any:
            return block_only(excinfo) if len(excinfo.traceback) > 1 else excinfo.traceback

        item._traceback_filter = block_or_all
