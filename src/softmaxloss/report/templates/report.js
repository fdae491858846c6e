// Draws the figures, in the page's language and colours, and again when either changes, the page is resized or printed.
(function () {
  "use strict";

  const { words, figures } = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const darkScreen = matchMedia("(prefers-color-scheme: dark)");
  let theme = darkScreen.matches ? "dark" : "light";

  // Plotly reads a little HTML in its texts: what the data say stays as it is.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const short = (text, most) => {
    const letters = [...text];
    return plain(letters.length > most ? letters.slice(0, most - 1).join("") + "…" : text);
  };
  const percent = (x) => `${(100 * x).toFixed(2)}%`;
  const lines = (...parts) => parts.join("<br>") + "<extra></extra>";

  function look() {
    const probe = document.createElement("i");
    document.body.append(probe);
    const resolved = (name) => {
      probe.style.color = `var(--${name})`;
      return getComputedStyle(probe).color;
    };
    const names = ["paper", "raised", "ink", "quiet", "line", "edge", "first", "second", "loss", "link"];
    const colours = Object.fromEntries(names.map((name) => [name, resolved(name)]));
    probe.remove();
    return { ...colours, say: words[root.lang], sans: getComputedStyle(document.body).fontFamily };
  }

  const axis = (l, title, more) => ({
    title: { text: title, standoff: 10 },
    gridcolor: l.line,
    linecolor: l.edge,
    zerolinecolor: l.edge,
    automargin: true,
    fixedrange: true,
    ...more,
  });
  const seriesName = (l, name) => plain(l.say[name] ?? name);
  const colourOf = (l, index) => [l.first, l.second][index % 2];

  // Each gives what Plotly takes: traces, layout.
  const draw = {
    reliability(figure, l) {
      const heaviest = Math.max(...figure.series.flatMap((each) => each.weight));
      const traces = figure.series.map((each, index) => ({
        name: seriesName(l, each.name),
        x: each.confidence,
        y: each.accuracy,
        customdata: each.low.map((low, i) => [`${+low.toPrecision(4)}–${+each.high[i].toPrecision(4)}`, each.rows[i]]),
        mode: "lines+markers",
        line: { color: colourOf(l, index), width: index ? 1.5 : 2.5, dash: index ? "dot" : "solid" },
        marker: {
          color: index ? l.raised : colourOf(l, index),
          line: { color: colourOf(l, index), width: 2 },
          symbol: index ? "diamond" : "circle",
          size: each.weight.map((weight) => 7 + 11 * Math.sqrt(weight / heaviest)),
        },
        hovertemplate: lines(
          `${l.say.confidence} %{x:.2%} (%{customdata[0]})`,
          `${l.say.accuracy} %{y:.2%}`,
          `${l.say.rows} %{customdata[1]:,}`,
        ),
      }));
      const diagonal = {
        name: l.say.perfect, x: [0, 1], y: [0, 1], mode: "lines", hoverinfo: "skip",
        line: { color: l.edge, width: 1.5, dash: "dash" },
      };
      const unit = { range: [-0.02, 1.04], tickformat: ".0%", dtick: 0.25 };
      return [[diagonal, ...traces], {
        height: 430,
        xaxis: axis(l, l.say.confidence, unit),
        yaxis: axis(l, l.say.accuracy, unit),
        showlegend: true,
      }];
    },

    histogram(figure, l) {
      const two = figure.series.length > 1;
      const traces = figure.series.map((each, index) => ({
        type: "bar",
        name: seriesName(l, each.name),
        x: each.low.map((low, i) => (low + each.high[i]) / 2),
        y: each.weight,
        width: two ? undefined : each.low.map((low, i) => (each.high[i] - low) * 0.92),
        customdata: each.low.map((low, i) => [`${+low.toPrecision(4)}–${+each.high[i].toPrecision(4)}`, each.rows[i]]),
        marker: { color: colourOf(l, index), pattern: index ? { shape: "/", solidity: 0.25 } : undefined },
        hovertemplate: lines(`${l.say.confidence} %{customdata[0]}`, "%{y:.2%}", `${l.say.rows} %{customdata[1]:,}`),
      }));
      const [confidence, accuracy] = figure.series[0].mean;
      const line = (x, dash) => ({
        type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: l.ink, width: 2, dash },
      });
      return [traces, {
        height: 430,
        xaxis: axis(l, l.say.confidence, { range: [0, 1.005], tickformat: ".0%", dtick: 0.25 }),
        yaxis: axis(l, l.say.share, { tickformat: ".0%", rangemode: "tozero" }),
        shapes: two ? [] : [line(confidence, "dot"), line(accuracy, "solid")],
        showlegend: two,
      }];
    },

    classes(figure, l) {
      return horizontalBars(figure, l, {
        colours: figure.values.map(() => l.loss),
        hover: [`${l.say.loss} %{customdata[1]}`, `${l.say.accuracy} %{customdata[3]}`, `${l.say.rows} %{customdata[2]:,}`],
        extra: figure.accuracy,
        title: l.say.mean_loss,
        lines: figure.mean === null ? [] : [figure.mean],
      });
    },

    differences(figure, l) {
      return horizontalBars(figure, l, {
        colours: figure.values.map((value) => (value > 0 ? l.second : l.first)),
        hover: [`${l.say.difference} %{customdata[1]}`, `${l.say.rows} %{customdata[2]:,}`],
        extra: figure.values,
        title: l.say.difference,
        lines: [],
      });
    },

    confusion(figure, l) {
      const n = figure.names.length;
      const places = figure.names.map((_, i) => i);
      const width = document.getElementById(figure.name).clientWidth;
      const narrow = width < 600;
      const most = narrow ? 8 : 16;
      const ticks = { tickvals: places, ticktext: figure.names.map((name) => short(name, most)), showgrid: false };
      const trace = {
        type: "heatmap",
        z: figure.share,
        x: places,
        y: places,
        customdata: figure.counts.map((row, i) => (
          row.map((count, j) => [plain(figure.names[i]), plain(figure.names[j]), count])
        )),
        zmin: 0,
        zmax: 1,
        colorscale: [[0, 0], [0.01, 0.03], [0.1, 0.12], [0.5, 0.36], [1, 0.5]].map(([at, alpha]) => [at, mixed(l.first, l.raised, alpha)]),
        xgap: 1,
        ygap: 1,
        text: figure.counts,
        textfont: { color: l.ink }, // on half the colour at most, so that it stays legible
        texttemplate: (width - 120) / n > 34 ? "%{text}" : "",
        colorbar: { tickformat: ".0%", thickness: 10, outlinewidth: 0, len: 0.9, title: { text: l.say.share_of_label, side: "right" } },
        showscale: !narrow,
        hovertemplate: lines(
          `${l.say.label} %{customdata[0]}`,
          `${l.say.prediction} %{customdata[1]}`,
          `${l.say.rows} %{customdata[2]:,} (%{z:.1%})`,
        ),
      };
      return [[trace], {
        height: Math.max(380, Math.min(680, 150 + 32 * n)),
        xaxis: axis(l, l.say.prediction, { ...ticks, tickangle: n > 4 ? -45 : 0 }),
        yaxis: axis(l, l.say.label, { ...ticks, autorange: "reversed" }),
      }];
    },

    curve(figure, l) {
      const trace = {
        x: figure.iterations,
        y: figure.values,
        mode: figure.values.length > 60 ? "lines" : "lines+markers",
        line: { color: l.first, width: 2.5 },
        marker: { size: 5 },
        hovertemplate: lines(`${l.say.iteration} %{x:,}`, `${l.say.objective} %{y:.6g}`),
      };
      return [[trace], {
        height: 380,
        xaxis: axis(l, l.say.iteration, { rangemode: "tozero" }),
        yaxis: axis(l, l.say.objective, figure.log ? { type: "log", dtick: "D1" } : {}),
      }];
    },

    interval(figure, l) {
      const [low, high] = figure.interval;
      const trace = {
        x: [figure.value],
        y: [0],
        mode: "markers",
        marker: { color: l.loss, size: 11 },
        error_x: { array: [high - figure.value], arrayminus: [figure.value - low], color: l.loss, thickness: 3, width: 9 },
        customdata: [figure.shown],
        hovertemplate: lines(`${l.say.difference} %{customdata[0]}`, "%{customdata[1]} … %{customdata[2]}"),
      };
      const far = 1.35 * Math.max(Math.abs(low), Math.abs(high), 1e-12);
      return [[trace], {
        height: 170,
        xaxis: axis(l, `${l.say.a_better}      ${l.say.b_better}`, { range: [-far, far], zeroline: true, zerolinewidth: 2 }),
        yaxis: axis(l, "", { visible: false, range: [-1, 1] }),
      }];
    },

    rows(figure, l) {
      const places = figure.rows.map((_, i) => i);
      const known = (i) => figure.a[i] !== null && figure.b[i] !== null;
      const joined = places.filter(known);
      const between = {
        x: joined.flatMap((i) => [figure.a[i], figure.b[i], null]),
        y: joined.flatMap((i) => [i, i, null]),
        mode: "lines", line: { color: l.edge, width: 2 }, hoverinfo: "skip", showlegend: false,
      };
      const points = (name, values, shown, index) => ({
        name,
        x: values,
        y: places,
        mode: "markers",
        marker: { color: colourOf(l, index), size: 12, symbol: index ? "diamond" : "circle" },
        customdata: places.map((i) => [figure.rows[i], plain(figure.labels[i]), shown[i]]),
        hovertemplate: lines(`${l.say.row} %{customdata[0]:,}`, `${l.say.label} %{customdata[1]}`, `${name}: %{customdata[2]}`),
      });
      const ticks = { tickvals: places, ticktext: figure.rows.map((row) => row.toLocaleString("en")) };
      return [[between, points("A", figure.a, figure.shown_a, 0), points("B", figure.b, figure.shown_b, 1)], {
        height: 130 + 30 * places.length,
        xaxis: axis(l, l.say.loss, { rangemode: "tozero" }),
        yaxis: axis(l, l.say.row, { ...ticks, autorange: "reversed", showgrid: false, zeroline: false }),
        showlegend: true,
      }];
    },
  };

  // An infinite bar has no end: it has no length, and says so beside it.
  function horizontalBars(figure, l, { colours, hover, extra, title, lines: marks }) {
    const places = figure.names.map((_, i) => i);
    const narrow = document.getElementById(figure.name).clientWidth < 500;
    const trace = {
      type: "bar",
      orientation: "h",
      x: figure.values.map((value) => value ?? 0),
      y: places,
      marker: { color: colours },
      text: figure.shown,
      textposition: "auto",
      insidetextanchor: "end",
      insidetextfont: { color: l.raised },
      outsidetextfont: { color: l.quiet },
      textangle: 0,
      cliponaxis: false,
      customdata: places.map((i) => [plain(figure.names[i]), figure.shown[i], figure.rows[i], extra[i]]),
      hovertemplate: lines("<b>%{customdata[0]}</b>", ...hover),
    };
    const ticktext = figure.names.map((name) => short(name, narrow ? 12 : 28));
    const ends = [0, ...figure.values.map((value) => value ?? 0), ...marks];
    const low = Math.min(...ends);
    const high = Math.max(...ends);
    const room = (narrow ? 0.3 : 0.14) * (high - low || 1);
    return [[trace], {
      height: Math.max(220, 90 + 26 * places.length),
      bargap: 0.35,
      xaxis: axis(l, title, { range: [low < 0 ? low - room : 0, high > 0 || low === 0 ? high + room : 0], zeroline: true }),
      yaxis: axis(l, "", { tickvals: places, ticktext, range: [places.length - 0.4, -0.6], showgrid: false, zeroline: false }),
      shapes: marks.map((x) => ({
        type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, layer: "below",
        line: { color: l.ink, width: 1.5, dash: "dot" },
      })),
    }];
  }

  function mixed(colour, behind, alpha) {
    const [front, back] = [colour, behind].map((text) => text.match(/[\d.]+/g).map(Number));
    return `rgb(${front.map((x, i) => Math.round(alpha * x + (1 - alpha) * back[i])).join(", ")})`;
  }

  const settings = { displaylogo: false, displayModeBar: false, responsive: false };

  function drawAll(width) {
    const l = look();
    for (const figure of figures) {
      const [traces, layout] = draw[figure.kind](figure, l);
      const place = document.getElementById(figure.name);
      Plotly.newPlot(place, traces, {
        width: width ?? place.clientWidth,
        margin: { l: 12, r: 16, t: 10, b: 44 },
        paper_bgcolor: "rgba(0, 0, 0, 0)",
        plot_bgcolor: "rgba(0, 0, 0, 0)",
        font: { family: l.sans, size: 13, color: l.ink },
        hoverlabel: { bgcolor: l.raised, bordercolor: l.edge, font: { family: l.sans, size: 14, color: l.ink }, align: "left" },
        legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
        dragmode: false,
        showlegend: false,
        ...layout,
      }, settings);
    }
  }

  function show() {
    root.dataset.theme = theme;
    const title = document.querySelector("title");
    document.title = title.dataset[root.lang];
    drawAll();
  }

  document.getElementById("language").addEventListener("click", () => {
    root.lang = root.lang === "en" ? "zh" : "en";
    show();
  });
  document.getElementById("theme").addEventListener("click", () => {
    theme = theme === "dark" ? "light" : "dark";
    show();
  });
  darkScreen.addEventListener("change", () => {
    theme = darkScreen.matches ? "dark" : "light";
    show();
  });

  let width = root.clientWidth;
  addEventListener("resize", () => {
    if (root.clientWidth === width) return; // a phone's address bar
    width = root.clientWidth;
    requestAnimationFrame(() => drawAll());
  });

  // Paper is white, and as wide as A4 less its margins.
  addEventListener("beforeprint", () => {
    root.dataset.theme = "light";
    drawAll(640);
  });
  addEventListener("afterprint", show);

  show();
})();
