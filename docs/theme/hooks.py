"""For MkDocs: what the pages need beyond plain Markdown, so that the same files read well in the repository.

Formulas become MathML, which browsers draw themselves; sessions of ``>>>`` are coloured as such; the links between the
two languages at a page's head give way to the site's own switch; a page with no Chinese says so; the README's tables of
speed stand in the page on performance.
"""

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

README = Path(__file__).resolve().parents[2] / "README.md"

SESSION = re.compile(r"^```python(?=\n>>> )", re.MULTILINE)
LANGUAGE_LINK = re.compile(r"^\[(?:中文|English)\]\([^)]*\)\n+", re.MULTILINE)
DIRECTIVE = re.compile(r"^<!--.*?-->\n+", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
HOW_FAST = re.compile(r'^<!-- README\.md, "How fast" -->\n\n.*\n', re.MULTILINE)
ALTERNATE = re.compile(r'\s*<link rel="alternate"[^>]*hreflang=[^>]*>')
UPRIGHT = re.compile(r"\\mathrm\{(\w+)\}")

FUNCTION_BEFORE_ITS_ARGUMENT = re.compile(r"<mi>(tanh|log)</mi>(?!<mo)")

UNTRANSLATED = '!!! note "本页尚无中文版"\n\n'


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Make a document of the repository into a page of the site."""
    markdown = LANGUAGE_LINK.sub("", markdown, count=1)
    markdown = HOW_FAST.sub(lambda found: how_fast(README.read_text()), markdown)
    markdown = DIRECTIVE.sub("", markdown)
    markdown = SESSION.sub("```pycon", markdown)
    if page.file.locale != page.file.locale_alternate_of and not page.file.src_uri.startswith("reference/"):
        heading, _, rest = markdown.partition("\n")
        markdown = f"{heading}\n\n{UNTRANSLATED}{rest}"
    return markdown


def how_fast(readme: str) -> str:
    """Return what the README tells of speed; without what has links, which hold in the README only."""
    _, found, rest = readme.partition("\n## How fast\n")
    if not found:
        raise PluginError('README.md has no section "How fast" any more: docs/performance.md shows its tables')
    blocks = rest.partition("\n## ")[0].strip().split("\n\n")
    return "\n\n".join(block for block in blocks if "](" not in block) + "\n"


def on_page_content(content: str, **kwargs: Any) -> str:
    """Draw the formulas."""
    return FORMULA.sub(_mathml, content)


def on_post_page(output: str, **kwargs: Any) -> str:
    """Leave out the links by which the theme looks for a map of each language's site: there is one for both."""
    return ALTERNATE.sub("", output)


def on_post_template(output: str, template_name: str, **kwargs: Any) -> str:
    """Do the same for the page of what is not found."""
    return ALTERNATE.sub("", output) if template_name == "404.html" else output


def _mathml(found: re.Match[str]) -> str:
    formula = UPRIGHT.sub(r"\\text{\1}", html.unescape(found[2]).strip())
    display = "inline" if found[1] == "span" else "block"
    drawn = FUNCTION_BEFORE_ITS_ARGUMENT.sub(r'<mi>\1</mi><mspace width="0.17em"/>', convert(formula, display=display))
    return drawn if display == "inline" else f'<div class="formula" tabindex="0">{drawn}</div>'
