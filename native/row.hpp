// The formula, for one row: from its sum of exponentials to its loss and the scalars of its gradient.
//
// Everything is relative to a reference r near the row's maximum: e_j = exp(z_j - r), total = sum_j e_j. One class,
// the pivot, is kept out of the sum: the label, or the largest class where that holds most of the total. Its
// probability may be 1 but for 1e-9, and then log p and p - 1 lose every digit, while rest = total - e_pivot has them
// all:
//
//     -log p_pivot = log1p(rest / e_pivot)          1 - p_pivot = rest / total
#pragma once

#include <cmath>
#include <limits>

#include "exp.hpp"
#include "problem.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

template <class T>
struct RowSum {
  Reference<T> reference;   // r
  double rest = 0.0;        // sum of e_j, the pivot left out
  T maximum = T{0};         // the largest z_j, the pivot included
  double target_sum = 0.0;  // sum of the dense targets t_j
  double target_dot = 0.0;  // sum of t_j (z_j - origin)
  T origin = T{0};          // close to r: a sum of t_j z_j would cancel where all logits are large
};

template <class T>
struct Pivot {
  Index index = -1;
  Longer<T> logit = -std::numeric_limits<Longer<T>>::infinity();  // without a pivot e_pivot is 0
  double dense = 0.0;                                             // the pivot's dense target
};

struct RowTerms {
  double total;        // sum of all e_j; NaN for a row that has no answer (NaN, +inf, nothing but -inf)
  double share;        // p_pivot
  double rest_share;   // 1 - p_pivot
  double minus_log_p;  // of the pivot
  double lse;          // log sum_j exp(z_j), relative to the row's origin
};

// exp(-600) is far from double's limits, and log1p(rest / e_pivot) is by then log(rest) - gap to the last bit.
constexpr double kLowestGap = -600.0;

// log(1 + x), x >= 0, by a logarithm of the rounded sum and what the rounding left out: half the time of std::log1p.
inline double log_one_plus(double x) {
  const double sum = 1.0 + x;
  return std::isinf(sum) ? sum : std::log(sum) + (x - (sum - 1.0)) / sum;
}

template <class T>
RowTerms row_terms(const RowSum<T>& sum, const Pivot<T>& pivot) {
  const double gap = sum.reference.below(pivot.logit);
  const bool ordinary = gap > kLowestGap;
  const double of_pivot = ordinary ? std::exp(gap) : 0.0;
  RowTerms terms;
  terms.total = sum.rest + of_pivot;
  if (!(terms.total > 0.0)) terms.total = std::numeric_limits<double>::quiet_NaN();
  terms.share = of_pivot / terms.total;
  terms.rest_share = sum.rest / terms.total;
  terms.minus_log_p = ordinary ? log_one_plus(sum.rest / of_pivot) : std::log(sum.rest) - gap;
  terms.lse = ordinary ? terms.minus_log_p + static_cast<double>(pivot.logit - sum.origin)
                       : std::log(sum.rest) - sum.reference.below(sum.origin);
  return terms;
}

// weight * value where a zero weight makes even an infinite value zero (but never a NaN).
inline double weighted(double weight, double value) {
  return weight == 0.0 && std::isinf(value) ? 0.0 : weight * value;
}

// What a row's formula makes of its cross-entropy CE = sum_j t_j * -log p_j: the row's value, and its gradient
// b (p_j sum(t) - t_j) + c p_j.
struct RowScalars {
  double value;
  double b;
  double c;
};

// `lse` is log sum_j exp(v_j) itself. Where the formula is focal or poly, the label is the pivot of `terms`, L its
// -log p and m = 1 - p:
//
//     d/dL (m^g L + poly m^(g + 1)) = m^g (1 + p (g L / m + poly (g + 1)))
inline RowScalars row_scalars(const RowFormula& formula, const RowTerms& terms, double cross_entropy, double spike,
                              double lse) {
  RowScalars row{cross_entropy, 1.0, 0.0};
  if (formula.focal_gamma != 0.0 || formula.poly_epsilon != 0.0) {
    const double m = terms.rest_share, gamma = formula.focal_gamma, poly = formula.poly_epsilon;
    const double modulation = std::pow(m, gamma);
    const double slope = m > 0.0 ? weighted(terms.share, terms.minus_log_p / m) : terms.share;  // p L / m, to its limit
    row.value = modulation * (cross_entropy + spike * poly * m);
    row.b = modulation * (1.0 + gamma * slope + poly * (gamma + 1.0) * terms.share);
  }
  if (formula.z_loss != 0.0) {
    row.value += formula.z_loss * lse * lse;
    row.c = 2.0 * formula.z_loss * lse;
  }
  return row;
}

// How b changes with L: db/dL times m, which has a limit where m is 0.
//
//     d^2/dL^2 (m^g L + poly m^(g + 1)) = m^(g - 1) p (g (2 - L + (g - 1) p L / m) + poly (g + 1) (g p - m))
inline double scalar_slope_times_rest(const RowFormula& formula, const RowTerms& terms) {
  const double m = terms.rest_share, p = terms.share, gamma = formula.focal_gamma;
  const double ratio = m > 0.0 ? weighted(p, terms.minus_log_p / m) : p;  // p L / m
  const double focal = 2.0 * p - weighted(p, terms.minus_log_p) + (gamma - 1.0) * p * ratio;
  const double poly = formula.poly_epsilon * (gamma + 1.0) * p * (gamma * p - m);
  return std::pow(m, gamma) * (gamma * focal + poly);
}

// The part of the loss that the dense targets make: sum_j t_j * -log p_j. `sum.target_dot` leaves the pivot out.
template <class T>
double dense_loss(const RowTerms& terms, const RowSum<T>& sum, const Pivot<T>& pivot) {
  const double above = pivot.index < 0 ? 0.0 : static_cast<double>(pivot.logit - sum.origin);
  // Relative to the pivot: where it has nearly all of both distributions, log p must not be lost beside `above`.
  if (terms.share > 0.25)
    return sum.target_sum * terms.minus_log_p - (sum.target_dot - (sum.target_sum - pivot.dense) * above);
  return sum.target_sum * terms.lse - (sum.target_dot + weighted(pivot.dense, above));
}

// weight * (sum(t) * p - t) at the pivot, where sum(t) and t may cancel: exactly they are subtracted first if p is
// large. The pivot's t is spike + dense.
inline double pivot_gradient(const RowTerms& terms, double spike, double target_sum, double dense, double weight) {
  if (terms.share < 0.5) return weight * ((spike + target_sum) * terms.share - (spike + dense));
  return weight * ((target_sum - dense) - (spike + target_sum) * terms.rest_share);
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
