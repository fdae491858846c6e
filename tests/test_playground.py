"""docs/playground: its arithmetic against the library's, in Node and in a browser, and the page as a reader uses it.

The browser is Chromium of the system, run by playwright; neither is needed for anything else, and without them (or
without Node) the tests that need them are skipped.
"""

import functools
import json
import re
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from playground_page import CASES, CLOSE, CONTRASTS, OUTSIDE, PLAYGROUND, Reader, assert_same, library

FILES = {path.name for path in PLAYGROUND.iterdir()}
ROWS_OF_PRESETS = {
    "classic": ([1, 2, 3], 1),
    "confident": ([20, 0, 0], 0),
    "uniform": ([0, 0, 0, 0], 2),
    "focal": ([4, 0, 0], 0),
}


# The arithmetic, without a browser.


def node(script, given):
    program = f"const {{ softmaxLoss }} = require({json.dumps(str(PLAYGROUND / 'softmax-loss.js'))});\n{script}"
    done = subprocess.run(["node", "-e", program], input=json.dumps(given), text=True, capture_output=True, check=True)
    return json.loads(done.stdout)


READ = 'const given = JSON.parse(require("fs").readFileSync(0, "utf8"));'
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


@needs_node
def test_arithmetic_in_node():
    answers = node(
        READ + "const all = given.map((c) => softmaxLoss(c.logits, c.label, c.options));"
        "console.log(JSON.stringify(all.map(({ loss, gradient }) => ({ loss, gradient }))))",
        CASES,
    )
    for case, answer in zip(CASES, answers, strict=True):
        assert_same(case, answer["loss"], np.array(answer["gradient"]))


@needs_node
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"focalGamma": 2, "labelSmoothing": 0.1}, "focalGamma is 2; expected 0 where labels are smoothed"),
        ({"temperature": 0}, "temperature is 0"),
        ({"softcap": -1}, "softcap is -1"),
        ({"labelSmoothing": 1.5}, "labelSmoothing is 1.5"),
    ],
)
def test_what_the_library_refuses_is_refused(options, message):
    script = "try { softmaxLoss([1, 2, 3], 1, given) } catch (error) { console.log(JSON.stringify(error.message)) }"
    assert message in node(READ + script, options)
    with pytest.raises(ValueError, match=r"."):
        library([1, 2, 3], 1, options)


# The page.


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
def reader(browser):
    """Yield a function that opens the page from file://; afterwards nothing may have been fetched or complained of."""
    contexts, readers = [], []

    def start(query="", **settings):
        settings = {"viewport": {"width": 1280, "height": 900}, "locale": "en-US", **settings}
        contexts.append(browser.new_context(**settings))
        readers.append(Reader(contexts[-1].new_page()))
        return readers[-1].open((PLAYGROUND / "index.html").as_uri() + query)

    yield start
    for each in readers:
        assert each.complaints == []
        assert {url.split(":")[0] for url in each.requests} <= {"file", "data"}
    for context in contexts:
        context.close()


def test_arithmetic_in_the_browser(reader):
    script = "cases => cases.map(c => SoftmaxLoss.softmaxLoss(c.logits, c.label, c.options))"
    answers = reader().page.evaluate(script, CASES)
    for case, answer in zip(CASES, answers, strict=True):
        assert_same(case, answer["loss"], np.array(answer["gradient"]))


def test_presets(reader):
    page = (started := reader()).page
    names = [
        button.removeprefix("preset-") for button in page.eval_on_selector_all(".chips button", "a => a.map(b => b.id)")
    ]
    assert set(ROWS_OF_PRESETS) < set(names)
    for name in names:
        page.click(f"#preset-{name}")
        case, _, _ = started.check()
        if name in ROWS_OF_PRESETS:
            assert (case["logits"], case["label"]) == ROWS_OF_PRESETS[name]
        assert page.get_attribute(f"#preset-{name}", "aria-pressed") == "true"
        check_python(started)


def check_python(started):
    """Run the page's Python and compare with what the page shows."""
    names = {}
    exec(started.page.inner_text("#python"), names)
    _, loss, gradient = started.shown()
    np.testing.assert_allclose(names["loss"], loss, rtol=CLOSE)
    np.testing.assert_allclose(names["grad"], gradient, rtol=1e-9)


def test_a_confident_row_keeps_its_digits(reader):
    started = reader()
    started.page.click("#preset-confident")
    _, loss, gradient = started.check()
    others = 2 * np.exp(-20.0)
    assert loss == pytest.approx(np.log1p(others), rel=1e-14)
    assert gradient[0] == pytest.approx(-others / (1 + others), rel=1e-14)
    assert started.page.inner_text("#loss") == "4.1223072e\N{MINUS SIGN}9"
    assert started.page.inner_text("#gradient-0") == "\N{MINUS SIGN}4.1223e\N{MINUS SIGN}9"
    assert "\N{MINUS SIGN}4.1223072e\N{MINUS SIGN}9" in started.page.inner_text("#steps")
    assert started.value("textbook-surprisal") == started.value("textbook-rest") == 0


def test_options_by_slider_and_number(reader):
    started = reader()
    page = started.page
    started.slide("temperature", 25)
    started.slide("softcap", 30)
    started.slide("labelSmoothing", 0.3)
    case, _, _ = started.check()
    assert case["options"] == {"temperature": 3.2, "softcap": 4.0, "labelSmoothing": 0.3, "focalGamma": 0}
    check_python(started)

    started.slide("focalGamma", 1.5)  # not together with smoothing: the page says so
    case, _, _ = started.check()
    assert (case["options"]["labelSmoothing"], case["options"]["focalGamma"]) == (0, 1.5)
    assert "smoothing is back at 0" in page.inner_text("#notice")
    check_python(started)
    started.slide("labelSmoothing", 0.2)
    assert started.check()[0]["options"]["focalGamma"] == 0
    assert "back at 0" in page.inner_text("#notice")

    page.fill("#temperature-number", "0.5")
    page.fill("#softcap-number", "")
    assert started.check()[0]["options"] == {"temperature": 0.5, "labelSmoothing": 0.2, "focalGamma": 0}
    before = started.value("loss")
    page.fill("#temperature-number", "-1")
    assert page.get_attribute("#temperature-number", "aria-invalid") == "true"
    assert started.value("loss") == before
    page.press("#temperature-number", "Enter")
    assert page.input_value("#temperature-number") == "0.5"


def test_classes_label_and_axis(reader):
    started = reader()
    page = started.page
    for count in (6, 4):
        page.check(f"#classes-{count}")
        assert len(started.check()[0]["logits"]) == count
    page.check("#label-3")
    assert started.check()[0]["label"] == 3
    page.check("#classes-3")
    assert started.check()[0]["label"] == 2
    page.fill("#number-0", "17.25")
    assert page.get_attribute("#logit-0", "max") == "25"
    assert page.is_disabled("#range-10")
    page.check("#range-100")
    assert page.get_attribute("#logit-0", "max") == "100"
    assert started.check()[0]["logits"][0] == 17.25


def test_drag(reader):
    started = reader()
    page = started.page
    box = page.locator("#logit-0").bounding_box()
    middle = box["y"] + box["height"] / 2
    losses = [started.value("loss")]
    page.mouse.move(box["x"] + 0.6 * box["width"], middle)
    page.mouse.down()
    for share in (0.75, 0.9):
        page.mouse.move(box["x"] + share * box["width"], middle, steps=3)
        losses.append(started.check()[1])
    page.mouse.up()
    assert losses == sorted(set(losses))  # the label is another class
    assert started.shown()[0]["logits"][0] > 3.5
    assert page.get_attribute("#preset-classic", "aria-pressed") == "false"
    assert "class 0" in page.get_attribute("#curve", "aria-label")


def test_keyboard_alone(reader):
    started = reader()
    page = started.page
    page.focus("#logit-1")
    page.keyboard.press("ArrowRight")
    assert started.check()[0]["logits"] == [1, 2.1, 3]
    assert page.get_attribute("#logit-1", "aria-valuetext") == "2.1"
    page.keyboard.press("Home")
    assert started.check()[0]["logits"][1] == -5
    page.focus("#label-1")
    page.keyboard.press("ArrowDown")
    assert started.check()[0]["label"] == 2
    page.focus("#preset-uniform")
    page.keyboard.press("Enter")
    assert started.check()[0]["logits"] == [0, 0, 0, 0]


def test_bars_stand_for_the_numbers(reader):
    page = reader(reduced_motion="reduce").page
    assert page.eval_on_selector(".fill", "bar => getComputedStyle(bar).transitionDuration") == "0s"
    width = "([bar, fill]) => fill.getBoundingClientRect().width / bar.getBoundingClientRect().width"
    for j, (p, gradient) in enumerate([(0.0900, 0.0900), (0.2447, -0.7553), (0.6652, 0.6652)]):
        for kind, share in (("probability", p), ("gradient", abs(gradient) / 2)):
            bar = page.locator(f"#{kind}-bar-{j}")
            parts = f"bar => ({width})([bar, bar.querySelector('.fill')])"
            assert bar.evaluate(parts) == pytest.approx(share, abs=2e-3)
    colours = [
        page.eval_on_selector(f"#gradient-bar-{j} .fill", "fill => getComputedStyle(fill).backgroundColor")
        for j in range(3)
    ]
    assert colours[0] == colours[2] != colours[1]  # the negative one, at the label


def test_languages(reader):
    started = reader("?lang=zh")
    page = started.page
    assert page.get_attribute("html", "lang") == "zh-CN"
    assert "损失" in page.title()
    assert page.get_attribute("#logit-0", "aria-label") == "类别 0 的 logit"
    page.click("#language")
    assert page.get_attribute("html", "lang") == "en"
    assert page.get_attribute("#logit-0", "aria-label") == "Logit of class 0"
    assert not re.search("[\u4e00-\u9fff]", page.inner_text("main"))
    assert reader(locale="zh-CN").page.get_attribute("html", "lang") == "zh-CN"
    assert reader("?lang=en", locale="zh-CN").page.get_attribute("html", "lang") == "en"

    keys = "Object.values(PlaygroundText.languages).map(t => [Object.keys(t), Object.keys(t.presets)])"
    english, chinese = page.evaluate(keys)
    assert english == chinese
    used = page.eval_on_selector_all("[data-text], [data-html]", "a => a.map(n => n.dataset.text ?? n.dataset.html)")
    assert set(used) <= set(english[0])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_themes_and_their_contrast(reader, scheme):
    page = reader(color_scheme=scheme, reduced_motion="reduce").page
    paper = "getComputedStyle(document.body).backgroundColor"
    for preset in ("smoothing", "softcap"):
        page.click(f"#preset-{preset}")
        poor = [(text, ratio) for text, ratio in page.evaluate(CONTRASTS) if ratio < 4.5]
        assert poor == []
    before = page.evaluate(paper)
    page.click("#theme")
    assert page.evaluate(paper) != before
    assert page.get_attribute("html", "data-theme") == {"light": "dark", "dark": "light"}[scheme]
    page.reload()
    assert page.get_attribute("html", "data-theme") == {"light": "dark", "dark": "light"}[scheme]


@pytest.mark.parametrize("width", [320, 360, 820, 1280, 1920])
def test_nothing_sticks_out(reader, width):
    """No sideways scrolling, and no bar or number outside the panel, with the longest numbers and most classes."""
    started = reader(viewport={"width": width, "height": 800})
    page = started.page
    page.check("#classes-6")
    page.fill("#number-3", "-23.456")
    page.fill("#number-1", "27.125")
    page.fill("#temperature-number", "0.87")
    assert len(page.inner_text("#gradient-1")) == 11
    started.check()
    for language in ("en", "zh-CN"):
        assert page.get_attribute("html", "lang") == language
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for row in page.locator(".panel, #rows .row, #rows .cell").all():
            assert row.evaluate(OUTSIDE) == []
        page.click("#language")


def test_every_control_has_a_name(reader):
    page = reader().page
    names = """all => all.filter(n => !(n.getAttribute('aria-label') || n.labels?.length && n.labels[0].innerText.trim()
      || n.innerText?.trim())).map(n => n.id)"""
    assert page.eval_on_selector_all("button, input, [role=img], [role=meter]", names) == []


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_on_a_static_host(browser):
    handler = functools.partial(QuietHandler, directory=str(PLAYGROUND))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        context = browser.new_context()
        try:
            host = f"http://127.0.0.1:{server.server_port}/"
            reader = Reader(context.new_page()).open(host)
            reader.check()
            own = {url.removeprefix(host) or "index.html" for url in reader.requests if not url.startswith("data:")}
            assert own == FILES
            assert reader.complaints == []
        finally:
            context.close()
            server.shutdown()
            thread.join()
