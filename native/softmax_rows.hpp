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

  const T* divide_by_temperature(const T* logits) {
    if (problem_.temperature == 1.0) return logits;
    const T temperature = static_cast<T>(problem_.temperature);
    for (Index j = 0; j < classes_; ++j) divided_[j] = logits[j] / temperature;
    return divided_;
  }

  void one_row(Index row, const T* logits, T* output) {
    LabelSum unused;
    const RowInput<T> in{logits, nullptr, nullptr, nullptr};
    RowSum<T> sum = sum_row<T, Dense::kNone, kTerms>(unused, in, classes_, -1, scratch_, writer_);
    writer_.finish();
    if constexpr (kTerms) {
      const double total = row_terms(sum.rest, Pivot{}.gap).total;
      writer_ = RowWriter(output, classes_, scratch_, in, static_cast<T>(1.0 / total / kExpScale<T>), T{0});
      std::swap(scratch_, spare_);
    } else {
      const RowTerms terms = row_terms(sum.rest, largest_as_pivot<T, Dense::kNone>(sum, in, classes_).gap);
      if constexpr (kOutput == Output::kLogsumexp) {
        problem_.logsumexp[row] = logsumexp(terms, sum, logits);
      } else {
        const double above_maximum = std::isnan(terms.total)
                                         ? terms.total
                                         : terms.log_total + (static_cast<double>(sum.reference) - sum.maximum);
        for (Index j = 0; j < classes_; ++j) output[j] = (logits[j] - sum.maximum) - static_cast<T>(above_maximum);
      }
    }
  }

  // As SciPy's: -inf for nothing but -inf, +inf where there is one and no NaN.
  double logsumexp(const RowTerms& terms, const RowSum<T>& sum, const T* logits) const {
    if (!std::isnan(terms.total)) return terms.log_total + sum.reference;
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
