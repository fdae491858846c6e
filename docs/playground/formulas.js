// The steps from logits to gradient as HTML: each a formula, as the options make it, and the same with the reader's
// numbers. Only numbers and fixed text are put into it.
(function (root) {
  "use strict";

  const { significant, short } = root.Format;

  const subscript = (index) => `<sub${typeof index === "number" ? ' class="number"' : ""}>${index}</sub>`;
  const name = (letter, index) => `<var>${letter}${subscript(index)}</var>`;
  const exp = (exponent) => `<var>e</var><sup>${exponent}</sup>`;
  const sum = (under) => `<span class="sum">∑<sub>${under}</sub></span>`;
  const fraction = (above, below) => `<span class="fraction"><span>${above}</span><span>${below}</span></span>`;
  const power = (base, exponent) => `${base}<sup>${exponent}</sup>`;
  const plus = (terms) => terms.join(" + ");
  const tuple = (numbers) => `(${numbers.join(", ")})`;

  const except = (row, label) => row.filter((_, j) => j !== label);
  const others = `<var>j</var>≠<var>y</var>`;
  const eight = (x) => `<b>${significant(x, 8)}</b>`;
  const five = (x) => significant(x, 5);

  function logits({ temperature, softcap }) {
    const divided = temperature === 1 ? name("z", "j") : `${name("z", "j")} / <var>T</var>`;
    if (softcap === null) return divided;
    const inner = temperature === 1 ? `${name("z", "j")} / <var>c</var>` : `${name("z", "j")} / (<var>T c</var>)`;
    return `<var>c</var> tanh(${inner})`;
  }

  function softmax(result, label) {
    const e = result.v.map((x) => exp(short(x)));
    const rest = result.rest[label];
    const value = rest < 1e-6 ? `<b>1 − ${significant(rest, 8)}</b>` : eight(result.p[label]);
    return [
      `${name("p", "y")} = ${fraction(exp(name("v", "y")), sum("<var>k</var>") + exp(name("v", "k")))}`,
      `${name("p", label)} = ${fraction(e[label], plus(e))} = ${value}`,
    ];
  }

  function loss(result, { label, labelSmoothing, focalGamma }) {
    if (labelSmoothing > 0) {
      const terms = result.q.map((q, j) => `${short(q, 4)} · ${five(result.surprisal[j])}`);
      return [
        `<var>L</var> = ${sum("<var>j</var>")} ${name("q", "j")} · (−log ${name("p", "j")})`,
        `<var>L</var> = ${plus(terms)} = ${eight(result.loss)}`,
      ];
    }
    if (focalGamma > 0) {
      return [
        `<var>L</var> = ${power(`(1 − ${name("p", "y")})`, "<var>γ</var>")} · (−log ${name("p", "y")})`,
        `<var>L</var> = ${power(five(result.rest[label]), short(focalGamma))} · ${five(result.surprisal[label])} = ` +
          eight(result.loss),
      ];
    }
    const gap = exp(`${name("v", "j")} − ${name("v", "y")}`);
    const gaps = except(result.v, label).map((x) => exp(short(x - result.v[label])));
    return [
      `<var>L</var> = −log ${name("p", "y")} = log(1 + ${sum(others)} ${gap})`,
      `<var>L</var> = log(1 + ${plus(gaps)}) = ${eight(result.loss)}`,
    ];
  }

  function kappa(result, { label, focalGamma }) {
    const p = name("p", "y");
    const [m, surprisal] = [five(result.rest[label]), five(result.surprisal[label])];
    const gamma = short(focalGamma);
    return [
      `<var>κ</var> = ${power(`(1 − ${p})`, "<var>γ</var>")} ` +
        `(1 + <var>γ</var> ${p} ${fraction(`−log ${p}`, `1 − ${p}`)})`,
      `<var>κ</var> = ${power(m, gamma)} (1 + ${gamma} · ${five(result.p[label])} · ${fraction(surprisal, m)}) = ` +
        eight(result.kappa),
    ];
  }

  // The chain factor dv/dz that temperature and softcap leave behind, as a formula and as a number.
  function chain({ temperature, softcap }, slope) {
    if (temperature === 1 && softcap === null) return ["", ""];
    const divided = temperature === 1 ? "" : " / <var>T</var>";
    const factor = softcap === null ? "1" : `(1 − (${name("v", "j")} / <var>c</var>)<sup>2</sup>)`;
    return [` · ${factor}${divided}`, ` · ${five(slope)}`];
  }

  function gradientAtLabel(result, state) {
    const { label, labelSmoothing, focalGamma } = state;
    const [factor, number] = chain(state, result.slope[label]);
    const left = `∂<var>L</var>/∂${name("z", "y")}`;
    const leftNumber = `∂<var>L</var>/∂${name("z", label)}`;
    const value = eight(result.gradient[label]);
    const chained = factor.replaceAll("<sub>j</sub>", "<sub>y</sub>");
    if (labelSmoothing > 0) {
      return [
        `${left} = (${name("p", "y")} − ${name("q", "y")})${chained}`,
        `${leftNumber} = (${five(result.p[label])} − ${five(result.q[label])})${number} = ${value}`,
      ];
    }
    const e = result.v.map((x) => exp(short(x)));
    const share = fraction(sum(others) + exp(name("v", "j")), sum("<var>k</var>") + exp(name("v", "k")));
    const scale = focalGamma > 0 ? [" <var>κ</var> ·", ` ${five(result.kappa)} ·`] : ["", ""];
    return [
      `${left} = −${scale[0]} ${share}${chained}`,
      `${leftNumber} = −${scale[1]} ${fraction(plus(except(e, label)), plus(e))}${number} = ${value}`,
    ];
  }

  function gradientAtOthers(result, state) {
    const { label, labelSmoothing, focalGamma } = state;
    const [factor] = chain(state, 1);
    const difference = labelSmoothing > 0 ? `(${name("p", "j")} − ${name("q", "j")})` : name("p", "j");
    const scale = focalGamma > 0 ? "<var>κ</var> · " : "";
    const numbers = result.gradient.map((x, j) => `∂<var>L</var>/∂${name("z", j)} = ${eight(x)}`);
    return [
      `∂<var>L</var>/∂${name("z", "j")} = ${scale}${difference}${factor}`,
      except(numbers, label).map((x) => `<span class="piece">${x}</span>`).join(" "),
    ];
  }

  // [key of the step's title, formula, numbers] for each step.
  function steps(state, result) {
    const { labelSmoothing, focalGamma, temperature, softcap, logits: z } = state;
    const changed = temperature !== 1 || softcap !== null;
    const settings = [
      temperature === 1 ? "" : `<var>T</var> = ${short(temperature)}`,
      softcap === null ? "" : `<var>c</var> = ${short(softcap)}`,
    ].filter(Boolean);
    const v = `<var>v</var> = ${tuple(result.v.map((x) => short(x)))}`;
    const all = [
      [
        changed ? "stepLogits" : "stepLogitsPlain",
        `${name("v", "j")} = ${logits(state)}`,
        changed ? `<var>z</var> = ${tuple(z.map((x) => short(x)))}, ${settings.join(", ")}: ${v}` : v,
      ],
      ["stepSoftmax", ...softmax(result, state.label)],
      labelSmoothing > 0 && [
        "stepTarget",
        `${name("q", "j")} = (1 − <var>ε</var>) [<var>j</var> = <var>y</var>] + <var>ε</var> / <var>C</var>`,
        `<var>ε</var> = ${short(labelSmoothing)}: <var>q</var> = ${tuple(result.q.map((x) => short(x)))}`,
      ],
      ["stepLoss", ...loss(result, state)],
      focalGamma > 0 && ["stepScalar", ...kappa(result, state)],
      ["stepGradient", ...gradientAtLabel(result, state)],
      ["stepOthers", ...gradientAtOthers(result, state)],
    ];
    return all.filter(Boolean);
  }

  root.Formulas = { steps };
})(globalThis);
