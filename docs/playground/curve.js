// The loss as one logit moves and the others stay, with the tangent at the reader's point, drawn into an SVG element.
(function (root) {
  "use strict";

  const { short, aligned, nice } = root.Format;
  const SAMPLES = 160;
  const MARGIN = { left: 34, right: 12, top: 22, bottom: 26 };

  function element(name, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // `lossAt(x)` is the loss with the moving logit at x; `at` where it is, `slope` its gradient there.
  function draw(svg, { lossAt, at, slope, range, axis, words }) {
    const width = Math.max(svg.clientWidth, 240);
    const height = Math.round(Math.min(330, Math.max(240, 0.62 * width)));
    const plot = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
    const places = Array.from({ length: SAMPLES + 1 }, (_, i) => ((2 * i) / SAMPLES - 1) * range);
    const samples = places.map((z) => [z, lossAt(z)]);
    const here = lossAt(at);
    const high = nice(Math.max(0.1, here, ...samples.map(([, loss]) => loss)));
    const x = (z) => MARGIN.left + ((z + range) / (2 * range)) * plot.width;
    const y = (loss) => MARGIN.top + (1 - loss / high) * plot.height;
    const line = (x1, y1, x2, y2, kind) => element("line", { x1, y1, x2, y2, class: kind });

    const nodes = [line(x(-range), y(0), x(range), y(0), "axis"), line(x(0), y(0), x(0), y(high), "grid")];
    for (const loss of [high / 2, high]) nodes.push(line(x(-range), y(loss), x(range), y(loss), "grid"));
    for (const loss of [0, high / 2, high]) {
      nodes.push(element("text", { x: MARGIN.left - 6, y: y(loss) + 4, "text-anchor": "end" }, short(loss)));
    }
    for (const z of [-range, 0, range]) {
      const anchor = z < 0 ? "start" : z > 0 ? "end" : "middle";
      nodes.push(element("text", { x: x(z), y: height - 8, "text-anchor": anchor }, short(z)));
    }
    nodes.push(element("text", { x: x(-range), y: 12 }, words.loss));
    const axisName = element("text", { x: x(range / 2), y: height - 8, class: "variable" }, "z");
    axisName.append(element("tspan", { dy: 3, class: "subscript" }, String(axis)));
    nodes.push(axisName);

    nodes.push(line(x(at), y(0), x(at), y(here), "drop"));
    const path = samples.map(([z, loss], i) => `${i ? "L" : "M"}${x(z).toFixed(2)} ${y(loss).toFixed(2)}`).join("");
    nodes.push(element("path", { d: path, class: "loss-curve" }));

    // A piece of the tangent of the same length on the screen whatever its slope, but that it ends at the axis.
    const rise = (-slope * plot.height * 2 * range) / (high * plot.width);
    const half = Math.min(90, plot.width / 4) / Math.hypot(1, rise);
    const end = (dx) => {
      const cut = Math.min(1, (y(0) - y(here)) / Math.max(rise * dx, 1e-9));
      return [x(at) + cut * dx, y(here) + cut * rise * dx];
    };
    nodes.push(line(...end(-half), ...end(half), `tangent ${slope < 0 ? "negative" : "positive"}`));
    nodes.push(element("circle", { cx: x(at), cy: y(here), r: 5.5, class: "dot" }));
    const slopeText = `${words.slope} ${aligned(slope)}`;
    nodes.push(element("text", { x: x(range), y: 12, "text-anchor": "end", class: "slope" }, slopeText));

    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    svg.replaceChildren(...nodes);
  }

  root.Curve = { draw };
})(globalThis);
