// Numbers as the page shows them. What a reader may want whole stands in the element's data-value, as JavaScript prints
// it: the shortest digits that give the same double.
(function (root) {
  "use strict";

  const withMinus = (text) => text.replace("-", "\u2212");

  // So many significant digits; small and large numbers as 4.1e-9, the way Python prints them.
  function significant(x, digits) {
    if (x === 0 || !Number.isFinite(x)) return withMinus(String(x).replace("Infinity", "\u221e"));
    const magnitude = Math.abs(x);
    const exponential = magnitude < 1e-4 || magnitude >= 1e7;
    const text = exponential ? x.toExponential(digits - 1) : x.toPrecision(digits);
    const [mantissa, exponent] = text.split("e");
    return withMinus(mantissa) + (exponent ? `e${withMinus(exponent.replace("+", ""))}` : "");
  }

  // Beside a bar: four decimals, so that a column of them lines up, unless that would show too few digits.
  function aligned(x) {
    const magnitude = Math.abs(x);
    if (x === 0 || (magnitude >= 1e-3 && magnitude < 1e4)) return withMinus(x.toFixed(4));
    return withMinus(withMinus(x.toExponential(4)).replace("e+", "e"));
  }

  // As short as may be, for numbers that a reader has set.
  function short(x, digits = 5) {
    return withMinus(String(Number(x.toPrecision(digits))));
  }

  // The smallest of 1, 2, 5, 10, 20, ... that is at least x.
  function nice(x) {
    const power = Math.pow(10, Math.floor(Math.log10(x)));
    return [1, 2, 5, 10].map((step) => step * power).find((candidate) => candidate >= x * (1 - 1e-12));
  }

  root.Format = { significant, aligned, short, nice };
})(globalThis);
