"""What reports say: their contents, in both languages, of any evaluation and comparison, and with any names."""

# ruff: noqa: RUF001 (dashes, minus signs and Chinese are what they seem)

import dataclasses
import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_cases import NASTY, compared, drawn, evaluated, infinite

import softmaxloss as sl
from softmaxloss.data.files import DataError
from softmaxloss.report import write_report
from softmaxloss.report.pieces import clean
from softmaxloss.report.words import FIGURE_WORDS, WORDS

pytest.importorskip("plotly", reason="plotly is not installed")
MOST_BYTES = 6_000_000


class Page(HTMLParser):
    """The page as a browser takes it apart: what stands in each kind of element, and its tables."""

    VOID = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.source, self.open, self.scripts, self.seen, self.tags, self.ids = text, [], [], [], [], []
        self.tables, self.links, self.languages = {}, [], {"en": [], "zh": []}
        self.feed(text)
        assert self.open == [], "every element is closed"
        self.data = json.loads(self.scripts[0])
        self.text = " ".join(self.seen)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.links += [value for key, value in attrs.items() if key in ("src", "href")]
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag == "script":
            self.scripts.append("")
        if tag == "h2":
            self.section = attrs["id"]
        if tag == "tr":
            self.tables.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.tables[self.section][-1].append("")
        if tag not in self.VOID:
            self.open.append((tag, attrs.get("lang") if attrs.get("class") == "t" else None))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        within = [tag for tag, _ in self.open]
        if "script" in within:
            self.scripts[-1] += data
        elif "style" not in within:
            spoken = [language for _, language in self.open if language]
            if spoken:
                self.languages[spoken[0]].append(data)
            if spoken[:1] != ["zh"]:
                self.seen.append(data)
                if {"td", "th"} & set(within):
                    self.tables[self.section][-1][-1] += data

    def figures(self):
        return {figure["name"]: figure for figure in self.data["figures"]}


@pytest.fixture
def written(tmp_path):
    def write(found, **options):
        path = tmp_path / "report.html"
        write_report(path, found, **options)
        assert path.stat().st_size < MOST_BYTES
        return Page(path.read_text(encoding="utf-8"))

    return write


def test_the_headline_numbers(written):
    found = evaluated(1000)
    page = written(found)
    low, high = found.loss_interval

    for expected in (
        f"{found.loss:#.4g}",
        f"95% interval {low:.3f} to {high:.3f}",
        f"{100 * found.accuracy:.2f}%",
        f"{found.perplexity:#.4g}",
        f"{found.bits:#.4g}",
        f"{found.baseline_loss:#.4g}",
        f"{found.pseudo_r2:.4f}",
        f"{found.brier:.4f}",
        f"{100 * found.calibration_error:.2f}%",
        f"{100 * found.adaptive_calibration_error:.2f}%",
        f"{100 * found.top_k[5]:.2f}%",
        "1,000 scored",
    ):
        assert expected in page.text


def test_the_figures_hold_the_numbers(written):
    found = evaluated(1000)
    page = written(found, curve=[2.0, 1.0, 0.5])
    figures = page.figures()

    assert list(figures) == ["reliability", "histogram", "classes", "confusion", "curve"]
    width, weight = figures["reliability"]["series"]
    for series, bins in ((width, found.reliability), (weight, found.adaptive_reliability)):
        np.testing.assert_allclose(series["confidence"], bins.confidence, rtol=1e-6)
        np.testing.assert_allclose(series["accuracy"], bins.accuracy, rtol=1e-6)
        assert series["rows"] == bins.n_rows.tolist()
    order = np.argsort(-found.class_loss)
    np.testing.assert_allclose(figures["classes"]["values"], found.class_loss[order], rtol=1e-6)
    assert figures["classes"]["names"] == [str(c) for c in order]
    assert figures["confusion"]["counts"] == found.confusion_matrix.tolist()
    assert figures["curve"]["values"] == [2.0, 1.0, 0.5]


def test_every_figure_has_its_numbers_as_a_table(written):
    found = evaluated(300, 3, class_names=["cat", "dog", "fox"])
    page = written(found, curve=[2.0, 1.0])

    rows = {cells[0]: cells[1:] for cells in page.tables["h-classes"][1:]}
    assert rows["cat"] == [
        f"{found.class_loss[0]:#.4g}",
        f"{100 * found.class_accuracy[0]:.2f}%",
        str(found.class_count[0]),
    ]
    matrix = [[int(cell) for cell in row[1:]] for row in page.tables["h-confusion"][1:]]
    assert matrix == found.confusion_matrix.tolist()
    worst = found.worst_rows[0]
    assert page.tables["h-worst"][1][0] == str(worst.row)
    assert page.tables["h-confusions"][1] == [str(part) for part in found.top_confusions(1)[0]]
    assert page.tables["h-curve"][1:] == [["0", "2.00000"], ["1", "1.00000"]]
    for name in page.figures():
        assert name in page.ids
        assert len(page.tables[f"h-{name}"]) > 1


def test_a_comparison_alone(written):
    found = compared(500, class_names=[f"k{i}" for i in range(10)])
    page = written(found)
    figures = page.figures()

    assert list(figures) == ["interval", "differences", "rows"]
    assert "B has the smaller loss" in page.text
    assert f"+{found.difference:.4f}" in page.text
    assert "95% interval" in page.text
    assert "99.9% interval" in written(dataclasses.replace(found, level=0.999)).text
    assert figures["interval"]["interval"] == pytest.approx(found.interval, rel=1e-6)
    order = np.argsort(-np.abs(found.class_difference))
    np.testing.assert_allclose(figures["differences"]["values"], found.class_difference[order], rtol=1e-6)
    assert figures["rows"]["rows"] == [row.row for row in found.rows]
    assert figures["rows"]["a"] == pytest.approx([row.loss_a for row in found.rows], rel=1e-6)


def test_a_comparison_with_both_evaluations(written):
    pair = evaluated(500), evaluated(500, scale=1)
    page = written(compared(500), evaluations=pair, names=("first.npy", "second.npy"))

    assert "A is first.npy; B is second.npy." in page.text
    side = {row[0]: row[1:] for row in page.tables["h-side"][1:]}
    assert side["Mean loss"] == [f"{each.loss:#.4g}" for each in pair]
    series = page.figures()["reliability"]["series"]
    assert [each["name"] for each in series] == ["A", "B"]
    np.testing.assert_allclose(series[1]["accuracy"], pair[1].reliability.accuracy, rtol=1e-6)
    assert len(page.tables["h-differences"][0]) == 7


@pytest.mark.parametrize(("a", "b", "said"), [(1, 2, "A has the smaller loss"), (1, 1, "no more than chance")])
def test_which_is_better(written, a, b, said):
    logits, labels = drawn(500, 3)
    assert said in written(sl.compare(a * logits, b * logits, labels)).text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_both_languages_are_there(written, language):
    page = written(evaluated(), language=language, title="Mine")
    chinese = "".join(page.languages["zh"])

    assert f'<html lang="{language}">' in page.source
    assert "<h1>Mine</h1>" in page.source
    for term in ("交叉熵", "校准误差", "可靠性图", "置信度", "混淆矩阵", "困惑度"):
        assert term in chinese
    assert len(page.languages["en"]) == pytest.approx(len(page.languages["zh"]), rel=0.3)
    assert page.data["words"]["zh"].keys() == page.data["words"]["en"].keys() == FIGURE_WORDS.keys()


def test_the_words_of_both_languages_take_the_same_values():
    for key, (english, chinese) in WORDS.items():
        placeholders = [set(re.findall(r"{(\w+)}", text)) for text in (english, chinese)]
        assert placeholders[0] == placeholders[1], key


@pytest.mark.parametrize("make", [evaluated, compared])
@pytest.mark.parametrize("title", [None, NASTY[0], NASTY[9]])
def test_names_are_only_text(written, make, title):
    options = {"names": (NASTY[0], NASTY[3])} if make is compared else {}
    page = written(make(class_names=NASTY), title=title, **options)

    assert page.tags.count("script") == 3
    assert "img" not in page.tags
    shown = {name for row in page.tables["h-classes" if make is evaluated else "h-differences"] for name in row[:1]}
    assert {clean(name) for name in NASTY} <= shown
    assert "alert" not in page.scripts[-1]
    figure = page.figures()["classes" if make is evaluated else "differences"]
    assert set(figure["names"]) == {clean(name) for name in NASTY}


def test_nothing_is_fetched(written):
    page = written(evaluated())

    assert [link for link in page.links if not link.startswith("#")] == []
    assert "default-src 'none'" in html.unescape(page.source)


def test_a_thousand_classes(written):
    page = written(evaluated(5000, 1000), curve=np.linspace(2, 1, 50_000))
    figures = page.figures()

    assert len(figures["classes"]["values"]) == 30
    assert len(page.tables["h-classes"]) == 1 + 1000
    assert 2 <= len(figures["confusion"]["names"]) <= 20
    assert figures["curve"]["iterations"][-1] == 49_999
    assert len(figures["curve"]["values"]) <= 1001
    assert "30 largest of 1,000" in page.text


def test_the_most_confused_of_many_classes(written):
    labels = np.array([3] * 50 + [1500] * 20 + [7])
    scores = np.zeros((len(labels), 2000))
    scores[:50, 1999] = 5
    scores[50:70, 1500] = 5
    scores[70, 7] = 5
    figure = written(sl.evaluate(scores, labels)).figures()["confusion"]

    assert figure["names"] == ["3", "1999"]
    assert figure["counts"] == [[0, 50], [0, 0]]
    assert figure["share"] == [[0.0, 1.0], [0.0, 0.0]]


def test_long_names_of_many_classes_do_not_outgrow_the_page(written):
    logits, labels = drawn(3000, 1000)
    names = ["<&猫>" * 200 + str(c) for c in range(1000)]
    evaluations = (sl.evaluate(2 * logits, labels, class_names=names), sl.evaluate(logits, labels, class_names=names))
    written(evaluations[0])
    written(sl.compare(2 * logits, logits, labels, class_names=names), evaluations=evaluations)


def test_many_worst_rows(written):
    assert len(written(evaluated(2000, worst=2000)).tables["h-worst"]) == 1 + 100
    page = written(compared(2000, worst=2000))
    assert len(page.tables["h-rows"]) == 1 + 100
    assert len(page.figures()["rows"]["rows"]) == 30


def test_infinite_and_missing_losses(written):
    page = written(infinite(), curve=[np.inf, 1.0, np.nan])

    assert "∞" in page.text
    assert "1 of 60 rows are left out" in page.text
    assert "1 of 60 rows give their label probability 0" in page.text
    classes = page.figures()["classes"]
    assert classes["values"][0] is None
    assert classes["shown"][0] == "∞"
    assert classes["mean"] is None
    assert page.tables["h-classes"][-1] == ["3", "–", "–", "0"]
    assert page.figures()["curve"]["values"] == [None, 1.0, None]
    assert "nan" not in page.text


def test_infinite_losses_compared(written):
    logits, labels = drawn(60, 4)
    worse = logits.copy()
    worse[5, labels[5]] = -np.inf
    worse[6] = np.nan
    page = written(sl.compare(worse, logits, labels))

    assert "1 of 60 rows give their label probability 0 in A or in B" in page.text
    assert page.figures()["rows"]["a"][0] is None
    assert "interval" not in page.figures()


@pytest.mark.parametrize("n_classes", [1, 2, 3])
@pytest.mark.parametrize("n_rows", [0, 1, 2])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_few_rows_and_classes(written, n_rows, n_classes, language):
    logits, labels = drawn(n_rows, n_classes)
    alone = written(sl.evaluate(logits, labels), language=language)
    evaluations = sl.evaluate(logits, labels), sl.evaluate(2 * logits, labels)
    pair = written(sl.compare(logits, 2 * logits, labels), evaluations=evaluations, language=language)

    for page in (alone, pair):
        assert "nan" not in page.text
        assert ("There is no row to judge by." in page.text) == (n_rows == 0)


def test_only_the_loss(written):
    page = written(evaluated(only_loss=True))

    assert list(page.figures()) == ["classes"]
    assert "Calibration error" not in page.text


@pytest.mark.parametrize(
    ("found", "options", "error", "message"),
    [
        (evaluated, {"language": "de"}, ValueError, "language is 'de'; expected one of 'en' and 'zh'"),
        (evaluated, {"names": ("x", "y")}, ValueError, "belong to a comparison"),
        (evaluated, {"evaluations": ()}, ValueError, "belong to a comparison"),
        (compared, {"curve": [1.0]}, ValueError, "curve belongs to an evaluation"),
        (compared, {"names": ("x",)}, ValueError, "expected two names"),
        (compared, {"names": "xy"}, ValueError, "expected two names"),
        (compared, {"evaluations": ()}, ValueError, "evaluations do not fit"),
        (dict, {}, TypeError, "found is of type dict"),
    ],
)
def test_what_is_refused(tmp_path, found, options, error, message):
    with pytest.raises(error, match=message):
        write_report(tmp_path / "report.html", found(), **options)
    assert list(tmp_path.iterdir()) == []


def test_evaluations_of_other_classes_are_refused(tmp_path):
    pair = evaluated(), evaluated(class_names=NASTY)
    with pytest.raises(ValueError, match="evaluations do not fit the comparison"):
        write_report(tmp_path / "report.html", compared(), evaluations=pair)


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        write_report(tmp_path / "missing" / "report.html", evaluated())


def test_what_was_there_stays_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("before")
    monkeypatch.setattr("softmaxloss.report.write._plotly", lambda: "\ud800")
    with pytest.raises(UnicodeEncodeError):
        write_report(path, evaluated())
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
