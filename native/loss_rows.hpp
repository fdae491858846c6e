// The softmax loss of a range of rows, with or without its gradient.
#pragma once

#include <type_traits>
#include <utility>

#include "contiguous.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

// Whether scalar / scale, a scalar of a row's gradient, keeps its digits in T: not where weights are far from 1.
template <class T>
bool fits(double scalar, double scale) {
  const double magnitude = std::abs(scalar);
  const bool too_small = magnitude < std::numeric_limits<T>::min() * scale && magnitude > 0.0;
  return !too_small && !(magnitude > std::numeric_limits<T>::max() * scale);  // NaN fits
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
      const Index label = per_row(kDense) ? -1 : targets_.labels[row];
      if (!per_row(kDense) && label == targets_.ignore_index) {
        fill(row, gradient.get(), T{0});
      } else if (!per_row(kDense) && (label < 0 || label >= classes_)) {
        // Labels were checked before: another thread has written over them since.
        fill(row, gradient.get(), std::numeric_limits<T>::quiet_NaN());
      } else {
        const T* dense = kDense == Dense::kShared ? targets_.dense : distribution.get();
        bad = one_row(row, label, {logits.get(), dense, targets_.distribution_scale, targets_.distribution_shift},
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

  // A row without an answer of its own: loss and gradient are `value`.
  void fill(Index row, T* gradient, T value) {
    problem_.loss[row] = value;
    if constexpr (kGradient)
      for (Index j = 0; j < classes_; ++j) gradient[j] = value;
  }

  BadDistribution one_row(Index row, Index label, const RowInput<T>& in, T* gradient) {
    const double spike = per_row(kDense) ? 0.0 : targets_.spike ? targets_.spike[label] : 1.0;
    const double weight = problem_.weights ? problem_.weights[row] : 1.0;

    LabelSum labels;
    RowSum<T> sum = sum_row<T, kDense, kGradient>(labels, in, classes_, label, scratch_, writer_);
    writer_.finish();
    if (per_row(kDense) && !is_distribution(labels.sum, labels.least, targets_.tolerance))
      return {row, labels.sum, labels.least};

    Pivot pivot;
    if constexpr (!per_row(kDense)) pivot = label_as_pivot(sum, in, label);
    RowTerms terms = row_terms(sum, pivot);
    const double scratch_total = terms.total;  // relative to the reference that the scratch was filled with
    if constexpr (per_row(kDense)) {
      if (has_dominant_class(sum, terms, pivot)) {
        pivot = largest_as_pivot<T, kDense>(sum, in, classes_);
        terms = row_terms(sum, pivot);
      }
    }
    problem_.loss[row] = weighted(weight, loss_of(in, sum, terms, pivot, spike));
    if constexpr (kGradient) {
      const double b = problem_.gradient_scale * weight;
      const double a_over_total = b * (spike + sum.target_sum) / scratch_total;
      const T at_pivot = static_cast<T>(pivot_gradient(terms, spike, sum.target_sum, pivot.dense, b));
      if (fits<T>(a_over_total, kExpScale<T>) && fits<T>(b, 1.0)) {
        writer_ =
            RowWriter(gradient, classes_, scratch_, in, static_cast<T>(a_over_total / kExpScale<T>), static_cast<T>(b));
        if (pivot.index >= 0) writer_.replace(pivot.index, at_pivot);
        std::swap(scratch_, spare_);
      } else {
        write_in_double(in, gradient, a_over_total, b);
        if (pivot.index >= 0) gradient[pivot.index] = at_pivot;
      }
    }
    return {};
  }

  void write_in_double(const RowInput<T>& in, T* gradient, double a_over_total, double b) const {
    for (Index j = 0; j < classes_; ++j) {
      double value = scratch_[j] / kExpScale<T> * a_over_total;
      if constexpr (kDense != Dense::kNone) value -= b * static_cast<double>(dense_target_scalar<T, kDense>(in, j));
      gradient[j] = static_cast<T>(value);
    }
  }

  Pivot label_as_pivot(RowSum<T>& sum, const RowInput<T>& in, Index label) const {
    Pivot pivot{label, static_cast<double>(in.logits[label]), 0.0};
    if constexpr (kDense == Dense::kShared) {
      pivot.dense = in.dense[label];
      sum.target_sum = targets_.dense_sum;
      sum.target_dot += weighted(pivot.dense, pivot.logit - sum.origin);
    }
    return pivot;
  }

  double loss_of(const RowInput<T>& in, const RowSum<T>& sum, const RowTerms& terms, const Pivot& pivot,
                 double spike) const {
    if constexpr (kDense == Dense::kNone) return weighted(spike, terms.minus_log_p);
    if (kDense == Dense::kShared && has_dominant_class(sum, terms, pivot)) {
      // The dense targets' part would cancel relative to the label.
      RowSum<T> anew = sum;
      const Pivot top = largest_as_pivot<T, kDense>(anew, in, classes_);
      const RowTerms of_top = row_terms(anew, top);
      return weighted(spike, of_top.minus_log_p + (top.logit - pivot.logit)) + dense_loss(of_top, anew);
    }
    return weighted(spike, terms.minus_log_p) + dense_loss(terms, sum);
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
