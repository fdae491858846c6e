"""For the tests of docs/playground: problems with the library's answers, and the page as its reader sees it."""

from pathlib import Path

import numpy as np

import softmaxloss as sl

PLAYGROUND = Path(__file__).parents[1] / "docs" / "playground"
PYTHON_NAMES = {
    "temperature": "temperature",
    "softcap": "softcap",
    "labelSmoothing": "label_smoothing",
    "focalGamma": "focal_gamma",
}
CHANGED = {
    "temperature": (0.1, 0.73, 4.0),
    "softcap": (1.5, 30.0),
    "labelSmoothing": (0.1, 1.0),
    "focalGamma": (0.3, 2.0),
}
CLOSE = 1e-12


def make_cases():
    rng = np.random.default_rng(7)
    none = (None,)
    for temperature in none + CHANGED["temperature"]:
        for softcap in none + CHANGED["softcap"]:
            for term in [{}, *({name: x} for name in ("labelSmoothing", "focalGamma") for x in CHANGED[name])]:
                classes = int(rng.integers(3, 7))
                rows = [rng.normal(size=classes) * scale for scale in (1, 10)]
                rows += [np.eye(classes)[0] * 20, np.zeros(classes), np.eye(classes)[1] * 300]
                options = {"temperature": temperature, "softcap": softcap}
                options = {name: value for name, value in options.items() if value is not None} | term
                for row in rows:
                    for label in (0, classes - 1):
                        yield {"logits": row.tolist(), "label": label, "options": options}


CASES = list(make_cases())


def library(logits, label, options):
    options = {PYTHON_NAMES[name]: value for name, value in options.items()}
    return sl.softmax_cross_entropy_and_grad(np.array(logits, dtype=np.float64), label, **options)


def assert_same(case, loss, gradient):
    """Within 1e-12 of the library's; of an entry that is a difference p - q, of the larger of the two."""
    want_loss, want_gradient = library(**case)
    np.testing.assert_allclose(loss, want_loss, rtol=CLOSE, atol=1e-300, err_msg=str(case))
    smoothing, classes = case["options"].get("labelSmoothing", 0), len(case["logits"])
    share = smoothing / classes + (1 - smoothing) * (np.arange(classes) == case["label"]) if smoothing else 0
    error = np.abs(gradient - want_gradient)
    scale = np.abs(want_gradient) + share / case["options"].get("temperature", 1)
    assert np.all(error <= CLOSE * scale + 1e-300), (case, gradient, want_gradient)


# The page.


class Reader:
    """A page, what it asked the network for, and what it complained of."""

    def __init__(self, page):
        self.page, self.requests, self.complaints = page, [], []
        page.set_default_timeout(10_000)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, url):
        self.page.goto(url)
        self.page.wait_for_selector("#steps li")
        return self

    def value(self, name):
        return float(self.page.get_attribute(f"#{name}", "data-value"))

    def shown(self):
        """Return what has been set, as the controls show it, and loss and gradient."""
        count = self.page.locator("#rows .row").count()
        logits = [float(self.page.input_value(f"#number-{j}")) for j in range(count)]
        label = [self.page.is_checked(f"#label-{j}") for j in range(count)].index(True)
        texts = {name: self.page.input_value(f"#{name}-number") for name in PYTHON_NAMES}
        options = {name: float(text) for name, text in texts.items() if text}
        case = {"logits": logits, "label": label, "options": options}
        return case, self.value("loss"), np.array([self.value(f"gradient-{j}") for j in range(count)])

    def check(self):
        case, loss, gradient = self.shown()
        assert_same(case, loss, gradient)
        return case, loss, gradient

    def slide(self, name, value):
        self.page.locator(f"#{name}").fill(str(value))


# Run in the page: the contrast of every text with what is behind it, and what sticks out of a panel.
CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => {
    const linear = (x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = channels(colour).map((x) => linear(x / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if ((channels(colour)[3] ?? 1) > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const own = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  const texts = [...document.querySelectorAll("body *")].filter((node) => own(node) && node.getClientRects().length);
  return texts.map((node) => {
    const { fill, color } = getComputedStyle(node);
    const pair = [node.closest("svg") ? fill : color, behind(node)].map(luminance);
    return [node.textContent, (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05)];
  });
}"""

OUTSIDE = """panel => {
  const right = (node) => node.getBoundingClientRect().right;
  const seen = [...panel.querySelectorAll(":not(.unseen)")].filter((node) => node.getClientRects().length);
  return seen.filter((node) => right(node) > right(panel)).map((node) => node.id || node.className);
}"""
