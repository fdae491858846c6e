"""Reports as their readers see them: opened from a file in Chromium, on a desktop and a phone, dark and light.

The browser is Chromium of the system, run by playwright; without them these tests are skipped.
"""

import shutil

import pytest
from playground_page import CONTRASTS
from report_cases import NASTY, compared, evaluated, infinite

from softmaxloss.report import write_report

DESKTOP = {"width": 1280, "height": 900}
# What each kind of figure is made of, as Plotly draws it.
MARKS = ".points path.point, .bars path, .heatmaplayer image, .heatmaplayer path, .js-line"


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    pytest.importorskip("plotly", reason="plotly is not installed")
    folder = tmp_path_factory.mktemp("reports")
    found = {
        "evaluation": (evaluated(2000), {"curve": [2.0, 1.0, 0.5, 0.4], "title": "Digits"}),
        "comparison": (compared(), {"evaluations": (evaluated(), evaluated(scale=1)), "names": ("raw", "scaled")}),
        "names": (evaluated(class_names=NASTY), {"title": NASTY[0]}),
        "pair of names": (compared(class_names=NASTY), {"names": (NASTY[1], NASTY[3])}),
        "infinite": (infinite(), {"curve": [float("inf"), 1.0, float("nan")]}),
        "one class": (evaluated(5, 1), {}),
        "no rows": (evaluated(0), {}),
        "many": (evaluated(3000, 1000), {"language": "zh"}),
    }
    for name, (what, options) in found.items():
        write_report(folder / f"{name}.html", what, **options)
    return folder, list(found)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--headless"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, reports):
    """Yield a function that opens a report; afterwards nothing may have been fetched or complained of."""
    contexts, requests, complaints = [], [], []

    def start(name="evaluation", viewport=DESKTOP, **settings):
        contexts.append(browser.new_context(viewport=viewport, **settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto((reports[0] / f"{name}.html").as_uri())
        return page

    yield start
    assert complaints == []
    assert len(requests) == len(contexts)
    assert {url.split(":")[0] for url in requests} == {"file"}
    for context in contexts:
        context.close()


def names_of_figures(page):
    return page.eval_on_selector_all(".plot", "all => all.map(each => each.id)")


def open_tables(page):
    page.eval_on_selector_all("details", "all => all.forEach(each => { each.open = true })")


def visible(page):
    return page.inner_text("body")


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("evaluation", ["reliability", "histogram", "classes", "confusion", "curve"]),
        ("comparison", ["interval", "reliability", "histogram", "differences", "rows"]),
        ("many", ["reliability", "histogram", "classes", "confusion"]),
        ("names", ["reliability", "histogram", "classes", "confusion"]),
        ("infinite", ["reliability", "histogram", "classes", "confusion", "curve"]),
        ("one class", ["reliability", "histogram", "classes"]),
        ("no rows", []),
    ],
)
def test_each_figure_draws(opened, name, figures):
    page = opened(name)

    assert names_of_figures(page) == figures
    for figure in figures:
        assert page.locator(f"#{figure} .main-svg").count() > 0
        assert page.locator(f"#{figure} :is({MARKS})").count() > 0
        assert page.locator(f"#{figure}").bounding_box()["height"] > 100


SAID = {
    "evaluation": {
        "reliability": ["confidence", "accuracy", "rows"],
        "histogram": ["confidence", "%", "rows"],
        "classes": ["loss 1.", "accuracy", "rows"],
        "confusion": ["label", "prediction", "rows"],
        "curve": ["iteration", "objective"],
    },
    "comparison": {
        "interval": ["difference in loss, A − B +0."],  # noqa: RUF001  # the page's minus sign
        "differences": ["difference in loss", "rows"],
        "rows": ["row", "label", "B: "],
    },
    "names": {"confusion": ["label", "prediction"]},
}


@pytest.mark.parametrize("name", SAID)
def test_hovering_shows_the_numbers(opened, name):
    page = opened(name)
    for figure, expected in SAID[name].items():
        # Points carry their own shape; cells of a heatmap are one image, of which the middle will do.
        marks = page.locator(f"#{figure} :is(.points path.point, .bars path, .heatmaplayer image, .heatmaplayer path)")
        page.locator(f"#{figure}").scroll_into_view_if_needed()
        box = marks.last.bounding_box()
        page.mouse.move(box["x"] + 0.45 * box["width"], box["y"] + 0.45 * box["height"])
        page.mouse.move(box["x"] + 0.47 * box["width"], box["y"] + 0.47 * box["height"])
        page.wait_for_selector(f"#{figure} .hovertext")
        text = " ".join(page.locator(f"#{figure} .hovertext").all_text_contents())

        for part in expected:
            assert part in text
        assert "customdata" not in text


def test_the_language_switches(opened):
    page = opened()
    assert "Reliability diagram" in visible(page)
    assert "可靠性图" not in visible(page)
    page.click("#language")

    shown = visible(page)
    assert page.evaluate("document.documentElement.lang") == "zh"
    for term in ("可靠性图", "混淆矩阵", "校准误差", "困惑度", "English", "深色"):
        assert term in shown
    for term in ("Reliability", "Calibration", "Loss by class", "中文"):
        assert term not in shown
    assert page.locator("#reliability .xtitle").text_content() == "置信度"
    page.click("#language")
    assert page.locator("#reliability .xtitle").text_content() == "confidence"


def test_the_title_switches_too(opened):
    page = opened("many")
    assert page.title() == "模型评估"
    page.click("#language")
    assert page.title() == "Evaluation"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_screen_and_switches(opened, scheme):
    page = opened(color_scheme=scheme)
    brightness = "() => getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + +b, 0)"
    axis = "() => getComputedStyle(document.querySelector('#curve .xtitle')).fill"
    before, colour = page.evaluate(brightness), page.evaluate(axis)
    assert (before > 380) == (scheme == "light")
    page.click("#theme")

    assert (page.evaluate(brightness) > 380) == (scheme == "dark")
    assert page.evaluate(axis) != colour


def test_a_figure_drawn_again_is_the_same(opened):
    page = opened()
    state = "() => [...document.querySelectorAll('.plot')].map(each => each._fullLayout.yaxis.range)"
    before = page.evaluate(state)
    page.click("#theme")
    page.click("#language")

    assert page.evaluate(state) == before


@pytest.mark.parametrize("name", ["evaluation", "comparison", "names", "pair of names", "infinite", "many"])
def test_nothing_overflows(opened, name):
    page = opened(name, {"width": 375, "height": 800})
    for width in (375, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        for _ in range(2):
            open_tables(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.click("#language")


def test_the_figures_follow_the_window(opened):
    page = opened()
    page.set_viewport_size({"width": 320, "height": 640})
    page.wait_for_function("document.querySelector('#curve .main-svg').clientWidth < 320")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


@pytest.mark.parametrize("name", ["evaluation", "comparison"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(opened, name, scheme):
    page = opened(name, color_scheme=scheme)
    open_tables(page)
    # What stands on bars and cells has these behind it, not the page: see below.
    page.eval_on_selector_all(".bartext, .heatmaplayer text", "all => all.forEach(each => each.remove())")
    contrasts = page.evaluate(CONTRASTS)

    assert len(contrasts) > 60
    assert [(text, round(ratio, 2)) for text, ratio in contrasts if ratio < 4.5] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_on_bars_can_be_read(opened, scheme):
    page = opened(color_scheme=scheme)
    ratio = page.evaluate(
        """() => {
          const rgb = (node) => getComputedStyle(node).fill.match(/[\\d.]+/g).slice(0, 3).map((x) => x / 255);
          const linear = (x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
          const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b) + 0.05;
          const pair = [".bars path", ".bars .bartext"].map((s) => light(rgb(document.querySelector("#classes " + s))));
          return Math.max(...pair) / Math.min(...pair);
        }"""
    )
    assert ratio >= 4.5


def test_the_keyboard_is_enough(opened):
    page = opened()
    stops = []
    for _ in range(5):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert stops[:3] == ["skip", "language", "theme"]
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("details").first.get_attribute("open") is not None


def test_every_figure_has_a_name_and_a_description(opened):
    page = opened("comparison")
    for figure in names_of_figures(page):
        place = page.locator(f"#{figure}")
        for attribute in ("aria-labelledby", "aria-describedby"):
            assert page.inner_text(f"#{place.get_attribute(attribute)}").strip()
        assert page.locator(f"section:has(#{figure}) table").count() == 1


@pytest.mark.parametrize("name", ["names", "pair of names"])
def test_names_do_nothing(opened, name):
    page = opened(name)
    assert page.locator("img").count() == 0
    assert page.locator(".plot a, .plot script").count() == 0
    open_tables(page)
    assert "</script><script>alert(1)</script>" in visible(page)


def test_on_paper(opened):
    page = opened(color_scheme="dark")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#theme").is_visible()
    widths = page.eval_on_selector_all(".plot .main-svg", "all => all.map(each => each.clientWidth)")
    assert max(widths) <= 680
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_without_script_the_tables_are_there(opened):
    page = opened(java_script_enabled=False)
    assert page.locator("table").count() >= 7
    assert "Reliability diagram" in page.locator("body").text_content()
