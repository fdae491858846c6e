// softmax, log_softmax and logsumexp of a range of rows.
#pragma once

#include <utility>

#include "contiguous.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

enum class Output { kLogsumexp, kLogSoftmax, kSoftmax };

template <class T, Output kOutput, bool kStream>
class SoftmaxRows {
 public:
  SoftmaxRows(const SoftmaxProblem<T>& problem, T* scratch)
      : problem_(problem),
        classes_(problem.classes),
        divided_(scratch),
        scratch_(divided_ + scratch_row_length(classes_)),
        spare_(scratch_ + scratch_row_length(classes_)) {}

  void run(Index begin, Index end) {
    RowCursor<const T> logits(problem_.logits, begin);
    RowCursor<T> output(problem_.output, begin);
    for (Index row = begin; row < end; ++row) {
      one_row(row, divide_by_temperature(logits.get()), output.get());
      logits.advance();
      output.advance();
    }
    writer_.finish();
    if constexpr (kStream) stream_fence();
  }

 private:
  static constexpr bool kTerms = kOutput == Output::kSoftmax;
  using RowWriter = std::conditional_t<kTerms, Writer<T, Dense::kNone, kStream>, NoWriter>;

  // z / temperature; where a temperature near 0 would overflow, (z - max z) / temperature, which is the same softmax.
  const T* divide_by_temperature(const T* logits) {
    if (problem_.temperature == 1.0) return logits;
    constexpr double kLarge = 1e5;
    double maximum = row_maximum(logits, classes_);
    if (std::abs(maximum) / problem_.temperature < kLarge) maximum = 0.0;
    for (Index j = 0; j < classes_; ++j)
      divided_[j] = static_cast<T>((static_cast<double>(logits[j]) - maximum) / problem_.temperature);
    return divided_;
  }

  void one_row(Index row, const T* logits, T* output) {
    LabelSum unused;
    const RowInput<T> in{logits, nullptr, nullptr, nullptr};
    RowSum<T> sum = sum_row<T, Dense::kNone, kTerms>(unused, in, classes_, -1, scratch_, writer_);
    writer_.finish();
    Pivot pivot;
    RowTerms terms = row_terms(sum, pivot);
    if constexpr (kTerms) {
      writer_ = RowWriter(output, classes_, scratch_, in, static_cast<T>(1.0 / terms.total / kExpScale<T>), T{0});
      std::swap(scratch_, spare_);
      return;
    }
    if (has_dominant_class(sum, terms, pivot)) {
      pivot = largest_as_pivot<T, Dense::kNone>(sum, in, classes_);
      terms = row_terms(sum, pivot);
    }
    if constexpr (kOutput == Output::kLogsumexp) {
      problem_.logsumexp[row] = logsumexp(terms, sum, logits);
    } else {
      // Relative to the maximum, so that both terms of a logarithm are negative and do not cancel.
      const double lse = terms.lse + (static_cast<double>(sum.origin) - sum.maximum);
      const T above_maximum = static_cast<T>(std::isnan(terms.total) ? terms.total : lse);
      for (Index j = 0; j < classes_; ++j) output[j] = (logits[j] - sum.maximum) - above_maximum;
    }
  }

  // As SciPy's: -inf for nothing but -inf, +inf where there is one and no NaN.
  double logsumexp(const RowTerms& terms, const RowSum<T>& sum, const T* logits) const {
    if (!std::isnan(terms.total)) return terms.lse + sum.origin;
    for (Index j = 0; j < classes_; ++j)
      if (std::isnan(logits[j])) return std::numeric_limits<double>::quiet_NaN();
    return sum.maximum;
  }

  const SoftmaxProblem<T>& problem_;
  Index classes_;
  T* divided_;
  T* scratch_;
  T* spare_;
  RowWriter writer_;
};

template <class T>
void softmax(const SoftmaxProblem<T>& problem, Index begin, Index end, T* scratch) {
  if (!problem.output)
    SoftmaxRows<T, Output::kLogsumexp, false>(problem, scratch).run(begin, end);
  else if (problem.logarithm)
    SoftmaxRows<T, Output::kLogSoftmax, false>(problem, scratch).run(begin, end);
  else if (problem.stream)
    SoftmaxRows<T, Output::kSoftmax, true>(problem, scratch).run(begin, end);
  else
    SoftmaxRows<T, Output::kSoftmax, false>(problem, scratch).run(begin, end);
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
