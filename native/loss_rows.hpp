// The softmax loss of a range of rows, with or without its gradient.
#pragma once

#include <type_traits>
#include <utility>

#include "contiguous.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

// e_j -> exp(z_j - maximum), without the scale of scaled_exp, in a row's scratch.
template <class T>
void rescale_terms(T* scratch, Index classes, const RowSum<T>& sum) {
  const T factor = static_cast<T>(std::exp(static_cast<double>(sum.reference) - sum.maximum) / kExpScale<T>);
  for (Index j = 0; j < classes; ++j) scratch[j] *= factor;
}

// The factor that turns the scratch's terms into a * p_j. Where it would be subnormal (tiny weights), the terms are
// made smaller first, so that a gradient that is a normal number keeps all its digits.
template <class T>
T term_factor(double a, const RowTerms& terms, const RowSum<T>& sum, T* scratch, Index classes) {
  const double factor = a / terms.total / kExpScale<T>;
  const bool subnormal = std::abs(factor) < static_cast<double>(std::numeric_limits<T>::min());
  if (!subnormal || a == 0.0) return static_cast<T>(factor);
  rescale_terms(scratch, classes, sum);
  return static_cast<T>(a / (terms.total * std::exp(static_cast<double>(sum.reference) - sum.maximum)));
}

template <class T, Dense kDense, bool kGradient, bool kStream>
class LossRows {
 public:
  LossRows(const LossProblem<T>& problem, T* scratch)
      : problem_(problem),
        targets_(problem.targets),
        classes_(problem.classes),
        scratch_(scratch),
        spare_(scratch + scratch_row_length(problem.classes)) {}

  BadDistribution run(Index begin, Index end) {
    RowCursor<const T> logits(problem_.logits, begin), distribution(targets_.distribution, begin);
    RowCursor<T> gradient(problem_.gradient, begin);
    BadDistribution bad;
    for (Index row = begin; row < end && bad.row < 0; ++row) {
      if (targets_.labels && targets_.labels[row] == targets_.ignore_index) {
        problem_.loss[row] = 0.0;
        if constexpr (kGradient) std::memset(gradient.get(), 0, sizeof(T) * static_cast<std::size_t>(classes_));
      } else {
        const T* dense = kDense == Dense::kShared ? targets_.dense : distribution.get();
        bad = one_row(row, {logits.get(), dense, targets_.distribution_scale, targets_.distribution_shift},
                      gradient.get());
      }
      logits.advance();
      distribution.advance();
      gradient.advance();
    }
    writer_.finish();
    if constexpr (kStream) stream_fence();
    return bad;
  }

 private:
  using RowWriter = std::conditional_t<kGradient, Writer<T, kDense, kStream>, NoWriter>;

  BadDistribution one_row(Index row, const RowInput<T>& in, T* gradient) {
    const Index label = per_row(kDense) ? -1 : targets_.labels[row];
    const double spike = per_row(kDense) ? 0.0 : targets_.spike ? targets_.spike[label] : 1.0;
    const double weight = problem_.weights ? problem_.weights[row] : 1.0;

    LabelSum labels;
    RowSum<T> sum = sum_row<T, kDense, kGradient>(labels, in, classes_, label, scratch_, writer_);
    writer_.finish();
    if (per_row(kDense) && !is_distribution(labels.sum, labels.least, targets_.tolerance))
      return {row, labels.sum, labels.least};

    const T scratch_reference = sum.reference;
    Pivot pivot;
    if constexpr (per_row(kDense)) {
      pivot = largest_as_pivot<T, kDense>(sum, in, classes_);
    } else {
      pivot.index = label;
      pivot.gap = static_cast<double>(in.logits[label]) - sum.reference;
      if constexpr (kDense == Dense::kShared) {
        pivot.dense = in.dense[label];
        sum.target_sum = targets_.dense_sum;
        sum.target_dot += weighted(pivot.dense, pivot.gap);
      }
    }
    const RowTerms terms = row_terms(sum.rest, pivot.gap);
    problem_.loss[row] = weighted(weight, row_loss(terms, spike, sum.target_sum, sum.target_dot));
    if constexpr (kGradient) start_writing(in, gradient, terms, sum, scratch_reference, pivot, spike, weight);
    return {};
  }

  void start_writing(const RowInput<T>& in, T* gradient, RowTerms terms, RowSum<T> sum, T scratch_reference,
                     const Pivot& pivot, double spike, double weight) {
    const double b = problem_.gradient_scale * weight;
    const double a = b * (spike + sum.target_sum);
    // The scratch holds the terms relative to the reference they were stored with.
    terms.total *= std::exp(static_cast<double>(sum.reference) - scratch_reference);
    sum.reference = scratch_reference;
    const T factor = term_factor(a, terms, sum, scratch_, classes_);
    const double at_pivot = pivot_gradient(terms, spike, sum.target_sum, pivot.dense, b);
    if constexpr (!per_row(kDense)) {
      const double before_scaling = (at_pivot + b * pivot.dense) / static_cast<double>(factor);
      scratch_[pivot.index] = factor == T{0} ? T{0} : static_cast<T>(before_scaling);
    }
    writer_ = RowWriter(gradient, classes_, scratch_, in, factor, static_cast<T>(b));
    if constexpr (per_row(kDense)) {
      if (pivot.index >= 0) writer_.replace(pivot.index, static_cast<T>(at_pivot));
    }
    std::swap(scratch_, spare_);
  }

  const LossProblem<T>& problem_;
  const Targets<T>& targets_;
  Index classes_;
  T* scratch_;
  T* spare_;
  RowWriter writer_;
};

template <class T, Dense kDense>
BadDistribution loss_with_targets(const LossProblem<T>& problem, Index begin, Index end, T* scratch) {
  if (!problem.gradient) return LossRows<T, kDense, false, false>(problem, scratch).run(begin, end);
  if (problem.stream) return LossRows<T, kDense, true, true>(problem, scratch).run(begin, end);
  return LossRows<T, kDense, true, false>(problem, scratch).run(begin, end);
}

template <class T>
BadDistribution loss(const LossProblem<T>& problem, Index begin, Index end, T* scratch) {
  const Targets<T>& targets = problem.targets;
  if (targets.distribution_scale) return loss_with_targets<T, Dense::kAffineRow>(problem, begin, end, scratch);
  if (targets.distribution) return loss_with_targets<T, Dense::kRow>(problem, begin, end, scratch);
  if (targets.dense) return loss_with_targets<T, Dense::kShared>(problem, begin, end, scratch);
  return loss_with_targets<T, Dense::kNone>(problem, begin, end, scratch);
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
