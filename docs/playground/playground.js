// The page: what the reader has set, the controls that set it, and everything that is drawn from it.
(function () {
  "use strict";

  const { softmaxLoss, textbook, unset } = globalThis.SoftmaxLoss;
  const { languages, presets } = globalThis.PlaygroundText;
  const { significant, aligned, short, nice } = globalThis.Format;

  const RANGES = [5, 10, 25, 100];
  const STEPS = { 5: 0.1, 10: 0.1, 25: 0.5, 100: 1 };
  const CLASSES = [3, 4, 5, 6];
  const identity = (x) => x;
  const twoDigits = (x) => Number(x.toPrecision(2));

  // The sliders of temperature and softcap are logarithmic; the softcap's last position is off.
  const OPTIONS = {
    temperature: {
      min: -50,
      max: 50,
      step: 1,
      toValue: (x) => twoDigits(10 ** (x / 50)),
      toPosition: (t) => 50 * Math.log10(t),
    },
    softcap: {
      min: 0,
      max: 101,
      step: 1,
      toValue: (x) => (x > 100 ? null : twoDigits(10 ** (x / 50))),
      toPosition: (cap) => (cap === null ? 101 : Math.min(100, 50 * Math.log10(cap))),
    },
    labelSmoothing: { min: 0, max: 1, step: 0.01, toValue: identity, toPosition: identity },
    focalGamma: { min: 0, max: 5, step: 0.1, toValue: identity, toPosition: identity },
  };
  const PYTHON = {
    temperature: "temperature",
    softcap: "softcap",
    labelSmoothing: "label_smoothing",
    focalGamma: "focal_gamma",
  };

  const $ = (id) => document.getElementById(id);
  const saved = {
    get: (key) => { try { return localStorage.getItem(`softmaxloss-${key}`); } catch { return null; } },
    set: (key, value) => { try { localStorage.setItem(`softmaxloss-${key}`, value); } catch { /* not here, then */ } },
  };

  let language = firstLanguage();
  let state = fromPreset("classic");
  let rows = [];
  let text = languages[language];

  // What the reader has set.

  function fromPreset(name) {
    const preset = presets[name];
    const { logits, label } = preset;
    return { ...preset, logits: [...logits], preset: name, active: label, range: rangeOf(logits), notice: null };
  }

  function rangeOf(logits) {
    const largest = Math.max(...logits.map(Math.abs));
    return RANGES.find((range) => range >= largest) ?? nice(largest);
  }

  // Takes the change and says true, or leaves all as it was where there is no such loss.
  function set(change) {
    const next = { ...state, preset: null, notice: null, ...change };
    if (change.focalGamma > 0 && state.labelSmoothing > 0) {
      Object.assign(next, { labelSmoothing: 0, notice: "focalDropsSmoothing" });
    } else if (change.labelSmoothing > 0 && state.focalGamma > 0) {
      Object.assign(next, { focalGamma: 0, notice: "smoothingDropsFocal" });
    }
    next.range = Math.max(next.range, rangeOf(next.logits));
    try {
      softmaxLoss(next.logits, next.label, next);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      return false;
    }
    state = next;
    render();
    return true;
  }

  function setLogit(j, value) {
    return set({ logits: state.logits.map((x, k) => (k === j ? value : x)), active: j });
  }

  function setClasses(count) {
    const logits = Array.from({ length: count }, (_, j) => state.logits[j] ?? 0);
    const [label, active] = [state.label, state.active].map((j) => Math.min(j, count - 1));
    set({ logits, label, active });
  }

  // Controls, made once, or once for each number of classes.

  function make(tag, properties = {}, ...children) {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  }

  // A slider and a number field for one value. An empty field is `empty`, or not taken.
  function pair(slider, number, toValue, take, empty) {
    slider.addEventListener("input", () => take(toValue(Number(slider.value))));
    number.addEventListener("input", () => {
      const isEmpty = number.value.trim() === "";
      const taken = isEmpty ? empty !== undefined && take(empty) : take(Number(number.value));
      number.setAttribute("aria-invalid", String(!taken));
    });
    number.addEventListener("change", render); // what was not taken goes back
  }

  function makeRow(j) {
    const radio = make("input", { type: "radio", name: "label", id: `label-${j}` });
    const badge = make("span", { className: "badge" });
    const pick = make("label", { className: "pick" }, radio, make("span", { className: "class-name" }), badge);
    const slider = make("input", { type: "range", id: `logit-${j}`, className: "logit" });
    const number = make("input", { type: "number", step: "any", id: `number-${j}` });
    const bar = (className, id) => make("div", { className, id }, make("i", { className: "fill" }));
    const probability = bar("bar", `probability-bar-${j}`);
    const gradient = bar("bar centred", `gradient-bar-${j}`);
    const values = ["probability", "gradient"].map((name) => make("span", { className: "value", id: `${name}-${j}` }));
    const sub = `<sub class="number">${j}</sub>`;
    const names = [`<var>p${sub}</var>`, `∂<var>L</var>/∂<var>z${sub}</var>`].map((innerHTML) =>
      make("span", { className: "name", ariaHidden: "true", innerHTML }),
    );
    probability.setAttribute("role", "meter");
    gradient.setAttribute("role", "img");

    radio.addEventListener("change", () => set({ label: j }));
    pair(slider, number, identity, (value) => setLogit(j, value));
    slider.addEventListener("focus", () => {
      if (state.active !== j) {
        state.active = j;
        render();
      }
    });

    const node = make(
      "div",
      { className: "row", id: `row-${j}` },
      make("div", { className: "head" }, pick, make("div", { className: "control" }, slider, number)),
      make("div", { className: "cell" }, probability, names[0], values[0]),
      make("div", { className: "cell" }, gradient, names[1], values[1]),
    );
    node.setAttribute("role", "group");
    return { node, radio, pick, badge, slider, number, probability, gradient, values };
  }

  function makeOptions() {
    for (const [key, option] of Object.entries(OPTIONS)) {
      const slider = make("input", { type: "range", id: key, min: option.min, max: option.max, step: option.step });
      const number = make("input", { type: "number", step: "any", id: `${key}-number` });
      pair(slider, number, option.toValue, (value) => set({ [key]: value }), key === "softcap" ? null : undefined);
      const name = make("label", { htmlFor: key, id: `${key}-name` });
      const note = make("p", { className: "small", id: `${key}-note` });
      $("options").append(make("div", { className: "option" }, name, number, slider, note));
    }
  }

  function makeSegments(fieldset, values, show, take) {
    for (const value of values) {
      const radio = make("input", { type: "radio", name: fieldset.id, value, id: `${fieldset.id}-${value}` });
      radio.addEventListener("change", () => take(value));
      fieldset.append(make("label", {}, radio, make("span", { textContent: show(value) })));
    }
  }

  function makePresets() {
    for (const name of Object.keys(presets)) {
      const button = make("button", { type: "button", id: `preset-${name}` });
      button.addEventListener("click", () => {
        state = fromPreset(name);
        render();
      });
      $("presets").append(button);
    }
  }

  // What is drawn.

  function write(node, content, value) {
    node.textContent = content;
    node.dataset.value = String(value);
  }

  // A bar from `start` to `end`, both parts of its length; what is not 0 can be seen.
  function fill(bar, start, end) {
    const { style } = bar.querySelector(".fill");
    const [low, high] = [Math.max(0, Math.min(start, end)), Math.min(1, Math.max(start, end))];
    style.left = `${low * 100}%`;
    style.width = start === end ? "0" : `max(2px, ${(high - low) * 100}%)`;
    style.transform = end < start && high - low < 0.01 ? "translateX(-2px)" : "";
  }

  function showNumber(field, value) {
    const typing = document.activeElement === field && Number(field.value) === value && field.value !== "";
    if (!typing) field.value = value === null ? "" : String(value);
    field.removeAttribute("aria-invalid");
  }

  function renderRow(j, result, high) {
    const row = rows[j];
    const [z, p, gradient] = [state.logits[j], result.p[j], result.gradient[j]];
    const { range } = state;
    row.node.setAttribute("aria-label", text.classIs(j));
    row.node.classList.toggle("is-label", j === state.label);
    row.node.classList.toggle("is-active", j === state.active);
    row.radio.checked = j === state.label;
    row.radio.setAttribute("aria-label", text.labelIs(j));
    row.pick.querySelector(".class-name").textContent = text.classIs(j);
    row.badge.textContent = text.label;

    Object.assign(row.slider, { min: -range, max: range, step: STEPS[range] ?? range / 100 });
    row.slider.value = z;
    row.slider.setAttribute("aria-label", text.logitOf(j));
    row.slider.setAttribute("aria-valuetext", short(z));
    const at = (Math.max(-range, Math.min(range, z)) + range) / (2 * range);
    row.slider.style.setProperty("--from", Math.min(at, 0.5));
    row.slider.style.setProperty("--to", Math.max(at, 0.5));
    showNumber(row.number, z);
    row.number.setAttribute("aria-label", text.logitNumber(j));

    fill(row.probability, 0, p);
    const meter = { label: text.probabilityOf(j), valuemin: 0, valuemax: 1, valuenow: p, valuetext: aligned(p) };
    for (const [key, value] of Object.entries(meter)) row.probability.setAttribute(`aria-${key}`, value);
    write(row.values[0], aligned(p), p);
    fill(row.gradient, 0.5, 0.5 + gradient / (2 * high));
    row.gradient.setAttribute("aria-label", text.gradientOf(j, aligned(gradient)));
    for (const node of [row.gradient, row.values[1]]) node.classList.toggle("negative", gradient < 0);
    write(row.values[1], aligned(gradient), gradient);
  }

  function renderRows(result) {
    if (rows.length !== state.logits.length) {
      rows = state.logits.map((_, j) => makeRow(j));
      $("rows").replaceChildren(...rows.map((row) => row.node));
    }
    const high = nice(Math.max(1, ...result.gradient.map(Math.abs)));
    rows.forEach((_, j) => renderRow(j, result, high));
    for (const [side, sign] of [["low", -1], ["high", 1]]) {
      $(`axis-${side}`).textContent = short(sign * state.range);
      $(`gradient-${side}`).textContent = short(sign * high);
    }
  }

  function renderLoss(result) {
    const guess = softmaxLoss(state.logits.map(() => 0), state.label, state).loss;
    const high = nice(Math.max(4, result.loss));
    write($("loss"), significant(result.loss, 8), result.loss);
    fill($("loss-bar"), 0, result.loss / high);
    $("loss-bar").querySelector(".mark").style.left = `${(guess / high) * 100}%`;
    $("guess").style.left = `clamp(3.6em, ${(guess / high) * 100}%, 100% - 3.6em)`;
    $("guess").textContent = text.guess(aligned(guess));
    $("loss-high").textContent = short(high);
  }

  function renderOptions() {
    for (const [key, option] of Object.entries(OPTIONS)) {
      const value = state[key];
      $(key).value = option.toPosition(value);
      $(key).setAttribute("aria-valuetext", value === null ? text.off : short(value));
      const share = (position) => (position - option.min) / (option.max - option.min);
      const [at, rest] = [share(Number($(key).value)), share(option.toPosition(unset[key]))];
      $(key).style.setProperty("--from", Math.min(at, rest));
      $(key).style.setProperty("--to", Math.max(at, rest));
      showNumber($(`${key}-number`), value);
      $(`${key}-number`).placeholder = text.off;
      $(`${key}-number`).setAttribute("aria-label", text.number(text[key]));
      $(`${key}-name`).textContent = text[key];
      $(`${key}-note`).textContent = text[`${key}Note`];
    }
    $("notice").textContent = state.notice ? text[state.notice] : "";
    for (const [id, value] of [["classes", state.logits.length], ["range", state.range]]) {
      for (const radio of $(id).querySelectorAll("input")) radio.checked = Number(radio.value) === value;
    }
    const needed = rangeOf(state.logits);
    for (const radio of $("range").querySelectorAll("input")) radio.disabled = Number(radio.value) < needed;
  }

  function renderCurve(result) {
    const j = state.active;
    const [at, slope] = [state.logits[j], result.gradient[j]];
    const lossAt = (x) => softmaxLoss(state.logits.map((z, k) => (k === j ? x : z)), state.label, state).loss;
    const words = { loss: text.curveLoss, slope: text.slope };
    globalThis.Curve.draw($("curve"), { lossAt, at, slope, range: state.range, axis: j, words });
    $("curve").setAttribute("aria-label", text.curveIs(j, aligned(result.loss), aligned(slope)));
  }

  function renderDigits(result) {
    const j = state.label;
    const naive = textbook(result.v, j);
    for (const key of ["surprisal", "rest"]) {
      write($(key), significant(result[key][j], 8), result[key][j]);
      write($(`textbook-${key}`), significant(naive[key], 8), naive[key]);
    }
  }

  function renderPython(result) {
    const options = Object.entries(PYTHON)
      .filter(([key]) => state[key] !== unset[key])
      .map(([key, name]) => `    ${name}=${state[key]},`);
    const ascii = (x) => significant(x, 8).replaceAll("\u2212", "-");
    $("python").textContent = [
      "import softmaxloss as sl",
      "",
      "loss, grad = sl.softmax_cross_entropy_and_grad(",
      `    [${state.logits.join(", ")}],`,
      `    ${state.label},`,
      ...options,
      ")",
      `# loss  ${ascii(result.loss)}`,
      ...result.gradient.map((x, j) => `# ${j ? "    " : "grad"}  ${x < 0 ? "" : " "}${ascii(x)}`),
    ].join("\n");
  }

  function renderSteps(result) {
    const step = ([title, formula, numbers]) =>
      `<li><h3>${text[title]}</h3><p class="formula">${formula}</p><p class="formula numbers">${numbers}</p></li>`;
    $("steps").innerHTML = globalThis.Formulas.steps(state, result).map(step).join("");
  }

  function renderText() {
    document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
    document.title = text.title;
    for (const node of document.querySelectorAll("[data-text]")) node.textContent = text[node.dataset.text];
    for (const node of document.querySelectorAll("[data-html]")) node.innerHTML = text[node.dataset.html];
    $("language").textContent = text.language;
    $("language").lang = language === "zh" ? "en" : "zh-CN";
    $("theme").textContent = isDark() ? text.toLight : text.toDark;
    for (const name of Object.keys(presets)) $(`preset-${name}`).textContent = text.presets[name][0];
  }

  function render() {
    const result = softmaxLoss(state.logits, state.label, state);
    renderRows(result);
    renderLoss(result);
    renderOptions();
    renderCurve(result);
    renderDigits(result);
    renderPython(result);
    renderSteps(result);
    $("caption").innerHTML = state.preset ? text.presets[state.preset][1] : text.own;
    for (const name of Object.keys(presets)) {
      $(`preset-${name}`).setAttribute("aria-pressed", String(name === state.preset));
    }
  }

  // Language and theme.

  function firstLanguage() {
    const asked = new URLSearchParams(location.search).get("lang");
    return (asked ?? saved.get("language") ?? navigator.language).toLowerCase().startsWith("zh") ? "zh" : "en";
  }

  const prefersDark = matchMedia("(prefers-color-scheme: dark)");

  function isDark() {
    const theme = document.documentElement.dataset.theme;
    return theme ? theme === "dark" : prefersDark.matches;
  }

  function switchLanguage() {
    language = language === "zh" ? "en" : "zh";
    text = languages[language];
    saved.set("language", language);
    renderText();
    render();
  }

  function switchTheme() {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    saved.set("theme", document.documentElement.dataset.theme);
    renderText();
  }

  const theme = saved.get("theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  makePresets();
  makeOptions();
  makeSegments($("classes"), CLASSES, String, setClasses);
  makeSegments($("range"), RANGES, (range) => `±${range}`, (range) => {
    state.range = range;
    render();
  });
  $("language").addEventListener("click", switchLanguage);
  $("theme").addEventListener("click", switchTheme);
  prefersDark.addEventListener("change", renderText);
  window.addEventListener("resize", render);
  renderText();
  render();
})();
