// The softmax loss of one row, its gradient, and what lies between them, in double precision: the formula of
// docs/options.md, computed as the library's kernels compute it. A script rather than a module, because browsers refuse
// to load modules from file://.
//
// Nothing here subtracts numbers that are nearly equal. A probability may be 1 but for 1e-9, and then log p and 1 - p
// lose every digit; the sum over the other classes has them all:
//
//     -log p_j = log1p(others_j / e_j)          1 - p_j = others_j / total
(function (root) {
  "use strict";

  // Below it exp(gap) nears the smallest double, and log1p(others / e_j) is log(others) - gap to the last bit.
  const LOWEST_GAP = -600;

  function check(name, value, holds, expected) {
    if (!holds) throw new RangeError(`${name} is ${value}; expected ${expected}`);
  }

  // z_j to v_j = softcap * tanh(z_j / temperature / softcap), and dv_j / dz_j.
  function transform(z, temperature, softcap) {
    const u = z.map((x) => x / temperature);
    if (softcap === null) return { v: u, slope: z.map(() => 1 / temperature) };
    const slope = u.map((x) => {
      const t = Math.exp((-2 * Math.abs(x)) / softcap); // 1 - tanh^2, without the subtraction
      return (4 * t) / ((1 + t) * (1 + t)) / temperature;
    });
    return { v: u.map((x) => softcap * Math.tanh(x / softcap)), slope };
  }

  // What the v say of each class: p, 1 - p and -log p.
  function softmax(v) {
    const top = v.indexOf(Math.max(...v));
    const e = v.map((x) => Math.exp(x - v[top]));
    const others = e.map((_, j) => e.reduce((sum, x, k) => (k === j ? sum : sum + x), 0));
    const total = e[top] + others[top];
    const surprisal = v.map((x, j) => {
      const gap = x - v[top];
      return gap > LOWEST_GAP ? Math.log1p(others[j] / e[j]) : Math.log(others[j]) - gap;
    });
    return { p: e.map((x) => x / total), rest: others.map((x) => x / total), surprisal };
  }

  // The options of softmax_cross_entropy that are here, as they are where nobody sets them.
  const unset = { temperature: 1, softcap: null, labelSmoothing: 0, focalGamma: 0 };

  // Loss and gradient of a row of logits for the class `label`.
  function softmaxLoss(logits, label, options = {}) {
    const { temperature, softcap, labelSmoothing, focalGamma } = { ...unset, ...options };
    const classes = logits.length;
    check("logits", logits, classes > 0 && logits.every(Number.isFinite), "one or more finite numbers");
    check("label", label, Number.isInteger(label) && label >= 0 && label < classes, `a class below ${classes}`);
    check("temperature", temperature, temperature > 0 && temperature < Infinity, "a number above 0");
    check("softcap", softcap, softcap === null || (softcap > 0 && softcap < Infinity), "null or a number above 0");
    check("labelSmoothing", labelSmoothing, labelSmoothing >= 0 && labelSmoothing <= 1, "a number from 0 to 1");
    check("focalGamma", focalGamma, focalGamma >= 0 && focalGamma < Infinity, "a number of at least 0");
    check("focalGamma", focalGamma, focalGamma === 0 || labelSmoothing === 0, "0 where labels are smoothed");

    const { v, slope } = transform(logits, temperature, softcap);
    const { p, rest, surprisal } = softmax(v);
    const q = p.map((_, j) => labelSmoothing / classes + (j === label ? 1 - labelSmoothing : 0));
    const crossEntropy = surprisal.reduce((sum, x, j) => (q[j] === 0 ? sum : sum + q[j] * x), 0);

    // d/dL (m^g L) = m^g (1 + g p L / m), where p L / m tends to p as m tends to 0.
    const m = rest[label];
    const modulation = Math.pow(m, focalGamma);
    const ratio = m > 0 ? (p[label] * surprisal[label]) / m : p[label];
    const kappa = modulation * (1 + focalGamma * ratio);

    // At the label p - q is (1 - q) - (1 - p): never p - 1.
    const offLabel = labelSmoothing - labelSmoothing / classes;
    const atLabel = labelSmoothing > 0 && p[label] < 0.5 ? p[label] - q[label] : offLabel - m;
    const byV = p.map((x, j) => kappa * (j === label ? atLabel : x - q[j]));

    return {
      loss: modulation * crossEntropy,
      gradient: byV.map((x, j) => (slope[j] * x) || 0), // no -0
      v,
      slope,
      p,
      q,
      rest,
      surprisal,
      crossEntropy,
      modulation,
      kappa,
    };
  }

  // -log p and 1 - p of class j as textbooks have them, each step rounded to float32.
  function textbook(v, j) {
    const round = Math.fround;
    const top = Math.max(...v);
    const e = v.map((x) => round(Math.exp(round(x - top))));
    const total = e.reduce((sum, x) => round(sum + x), 0);
    const p = round(e[j] / total);
    return { surprisal: round(-Math.log(p)) || 0, rest: round(1 - p) };
  }

  const SoftmaxLoss = { softmaxLoss, textbook, unset };
  root.SoftmaxLoss = SoftmaxLoss;
  if (typeof module === "object") module.exports = SoftmaxLoss; // Node, for tests
})(globalThis);
