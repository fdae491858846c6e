"""The documentation's site: its navigation has every page, in both languages, and what pages refer to is there."""

import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import softmaxloss

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CLAIMS = (DOCS / "claims.md").read_text()
REFERENCE = "".join(path.read_text() for path in sorted((DOCS / "reference").glob("*.md")))


def module(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / "theme" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def site():
    yaml = pytest.importorskip("mkdocs.utils.yaml", reason="MkDocs is not installed")
    with (ROOT / "mkdocs.yml").open() as file:
        return yaml.yaml_load(file)


def titles_and_pages(nav):
    for item in nav:
        (title, page) = next(iter(item.items())) if isinstance(item, dict) else (None, item)
        if isinstance(page, list):
            yield title, None
            yield from titles_and_pages(page)
        else:
            yield title, page


def pages_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")}


def test_every_page_is_in_the_navigation(site):
    listed = [page for _, page in titles_and_pages(site["nav"]) if page]
    english = {page for page in pages_of(DOCS) if not page.startswith("zh/")}

    assert len(listed) == len(set(listed))
    assert set(listed) == english | {"playground/index.html"}


def test_every_title_has_its_chinese(site):
    languages = next(plugin["i18n"]["languages"] for plugin in site["plugins"] if "i18n" in plugin)
    chinese = next(language for language in languages if language["locale"] == "zh")
    titles = {title for title, _ in titles_and_pages(site["nav"]) if title}

    assert titles - set(chinese["nav_translations"]) <= {"PyTorch", "JAX", "Dask"}
    assert set(chinese["nav_translations"]) <= titles


def test_every_chinese_page_is_the_translation_of_one():
    assert pages_of(DOCS / "zh") <= pages_of(DOCS)
    assert {"index.md", "tutorial.md", "evaluation.md"} <= pages_of(DOCS / "zh")


def test_a_translation_runs_the_same_code():
    def code(path):
        found = "".join(re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL))
        return re.sub(r'"[^"\n]*"', '""', re.sub(r" +#.*", "", found))  # comments and texts are translated

    for name in ("index.md", "evaluation.md", "classifier.md"):
        assert code(DOCS / name) == code(DOCS / "zh" / name), name


@pytest.mark.parametrize("name", sorted({*softmaxloss.__all__} - {"__version__"}))
def test_the_reference_has_every_public_name(name):
    assert f"\n::: softmaxloss.{name}\n" in REFERENCE


def test_the_reference_has_every_drop_in():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    assert torch
    from softmaxloss import torch as drop_ins

    for name in drop_ins.__all__:
        assert f"\n::: softmaxloss.torch.{name}\n" in REFERENCE, name


def test_the_claims_name_tests_that_exist():
    named = re.findall(r"\btests/\w+\.py", CLAIMS)
    selected = re.findall(r'pytest (tests/\w+\.py) -k (?:"([^"]+)"|(\w+))', CLAIMS)

    assert len(named) > 30
    for path in named:
        assert (ROOT / path).is_file(), path
    assert len(selected) > 4
    for path, words, word in selected:
        tests = re.findall(r"def (test_\w+)", (ROOT / path).read_text())
        for part in (words or word).split(" or "):
            assert any(part in test for test in tests), (path, part)


def test_the_pages_name_benchmarks_that_exist():
    commands = set(re.findall(r"python -m benchmarks (\w+)", CLAIMS + (DOCS / "performance.md").read_text()))
    there = (ROOT / "benchmarks" / "__main__.py").read_text()

    assert {"dense", "torch"} <= commands
    for command in commands - {"COMMAND"}:
        assert f'"{command}": _' in there, command


@pytest.fixture(scope="module")
def to_markdown():
    pytest.importorskip("griffe", reason="mkdocstrings is not installed")
    docstrings = module("docstrings")
    return lambda text: docstrings.to_markdown(text, docstrings.public_names())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("As `softmax` does.", "As [`softmax`][softmaxloss.softmax] does."),
        ("Along `axis`, ``softmax``.", "Along `axis`, ``softmax``."),
        (":math:`z_j` is", r"\(z_j\) is"),
        (".. math::\n\n    a = b\n\nText", "\\[\na = b\n\\]\n\nText"),
        ("It minimises::\n\n    a + b\n", "It minimises:\n\n    a + b\n"),
        ("By Boehning [1]_, it", "By Boehning<sup>1</sup>, it"),
        (".. [1] D. Boehning,\n   1992.", "1. D. Boehning, 1992."),
        ("softcap : float\n    > 0: keeps", "softcap : float\n    \\> 0: keeps"),
        (">>> 1 > 0\nTrue", ">>> 1 > 0\nTrue"),
    ],
)
def test_docstrings_become_markdown(to_markdown, text, expected):
    assert to_markdown(text) == expected


def test_parameters_told_together_are_told_one_by_one(to_markdown):
    section = "Parameters\n----------\n"

    assert to_markdown(section + "a, b : array_like, (C,)\n    Two.\nc\n    One.\n\nReturns") == (
        section
        + "a : array_like of shape (C,)\n    Two.\nb : array_like of shape (C,)\n    Two.\nc\n    One.\n\nReturns"
    )


def test_see_also_is_a_list_of_links(to_markdown):
    section = "See Also\n--------\n"

    assert to_markdown(section + "softmax : With\n    words.\nlogsumexp : Its sum.") == (
        section + "- [`softmax`][softmaxloss.softmax]: With words.\n- [`logsumexp`][softmaxloss.logsumexp]: Its sum."
    )


@pytest.mark.parametrize("name", ["softmax_cross_entropy", "linear_cross_entropy_and_grad", "SoftmaxClassifier"])
def test_nothing_of_restructured_text_is_left(to_markdown, name):
    found = to_markdown(inspect.cleandoc(getattr(softmaxloss, name).__doc__))

    for left in (":math:", ".. math::", ".. [", "]_"):
        assert left not in found


def test_the_readmes_tables_of_speed_are_shown():
    for name in ("latex2mathml", "mkdocs"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    hooks = module("hooks")
    page = (DOCS / "performance.md").read_text()
    shown = hooks.HOW_FAST.sub(lambda found: hooks.how_fast(hooks.README.read_text()), page)

    assert shown.count("| 512 x 128256 |") == hooks.README.read_text().count("| 512 x 128256 |") > 0
    assert "The numbers are kept in one place" not in shown
    with pytest.raises(Exception, match="How fast"):
        hooks.how_fast("# A README without it\n")
