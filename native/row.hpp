// The formula, for one row: from its sum of exponentials to its loss and the scalars of its gradient.
//
// Everything is relative to a reference r near the row's maximum: e_j = exp(z_j - r), total = sum_j e_j. One class,
// the pivot, is kept out of the sum: the label, or the largest class where there is no label. Its probability may be
// 1 but for 1e-9, and then log p and p - 1 lose every digit, while rest = total - e_pivot has them all:
//
//     -log p_pivot = log1p(rest / e_pivot)          1 - p_pivot = rest / total
#pragma once

#include <cmath>
#include <limits>

#include "problem.hpp"
#include "simd.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

template <class T>
struct RowSum {
  double rest = 0.0;        // sum of e_j, the pivot left out
  T reference = T{0};       // r
  T maximum = T{0};         // the largest z_j, the pivot included
  double target_sum = 0.0;  // sum of the dense targets t_j
  double target_dot = 0.0;  // sum of t_j (z_j - r)
};

struct Pivot {
  Index index = -1;
  double gap = -std::numeric_limits<double>::infinity();  // z_pivot - r; -inf (e_pivot = 0) without a pivot
  double dense = 0.0;                                     // the pivot's dense target
};

struct RowTerms {
  double total;        // sum of all e_j; NaN for a row that has no answer (NaN, +inf, nothing but -inf)
  double share;        // p_pivot
  double rest_share;   // 1 - p_pivot
  double minus_log_p;  // of the pivot
  double log_total;
};

// exp(-600) is far from double's limits, and log1p(rest / e_pivot) is by then log(rest) - gap to the last bit.
constexpr double kLowestGap = -600.0;

inline RowTerms row_terms(double rest, double gap) {
  const bool ordinary = gap > kLowestGap;
  const double pivot = ordinary ? std::exp(gap) : 0.0;
  RowTerms terms;
  terms.total = rest + pivot;
  if (!(terms.total > 0.0)) terms.total = std::numeric_limits<double>::quiet_NaN();
  terms.share = pivot / terms.total;
  terms.rest_share = rest / terms.total;
  terms.minus_log_p = ordinary ? std::log1p(rest / pivot) : std::log(rest) - gap;
  terms.log_total = ordinary ? terms.minus_log_p + gap : std::log(rest);
  return terms;
}

// weight * value where a zero weight makes even an infinite value zero (but never a NaN).
inline double weighted(double weight, double value) {
  return weight == 0.0 && std::isinf(value) ? 0.0 : weight * value;
}

// CE = spike * -log p_pivot + sum_j dense_j * -log p_j.
inline double row_loss(const RowTerms& terms, double spike, double target_sum, double target_dot) {
  return weighted(spike, terms.minus_log_p) + (target_sum * terms.log_total - target_dot);
}

// weight * (sum(t) * p - t) at the pivot, where sum(t) and t may cancel: exactly they are subtracted first if p is
// large.
inline double pivot_gradient(const RowTerms& terms, double spike, double target_sum, double dense, double weight) {
  if (terms.share < 0.5) return weight * ((spike + target_sum) * terms.share - (spike + dense));
  return weight * ((target_sum - dense) - (spike + target_sum) * terms.rest_share);
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
