// softmax, log_softmax and logsumexp of a range of rows.
#pragma once

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
        terms_(divided_ + scratch_row_length(classes_), classes_),
        source_({}, problem.logits.storage, nullptr, nullptr) {}

  void run(Index begin, Index end) {
    RowCursor logits(problem_.logits, begin);
    RowCursor output(problem_.output, begin);
    for (Index row = begin; row < end; ++row) {
      one_row(row, divide_by_temperature(reinterpret_cast<const T*>(logits.get())), output.get());
      logits.advance();
      output.advance();
    }
    writer_.finish();
    shared_line_.write();
    if constexpr (kStream) stream_fence();
  }

 private:
  static constexpr bool kTerms = kOutput == Output::kSoftmax;
  using Source = PlainSource<T>;
  using RowWriter = typename WriterOf<Source, Dense::kNone, kTerms, kStream>::type;

  // z / temperature; where a temperature near 0 would overflow, (z - max z) / temperature, which is the same softmax.
  const T* divide_by_temperature(const T* logits) {
    if (problem_.temperature == 1.0) return logits;
    constexpr double kLarge = 1e5;
    double maximum = maximum_of(logits, classes_);
    if (std::abs(maximum) / problem_.temperature < kLarge) maximum = 0.0;
    for (Index j = 0; j < classes_; ++j)
      divided_[j] = static_cast<T>((static_cast<double>(logits[j]) - maximum) / problem_.temperature);
    return divided_;
  }

  void one_row(Index row, const T* logits, char* output) {
    LabelSum unused;
    Pivot<T> pivot;
    source_.open(reinterpret_cast<const char*>(logits), classes_);
    RowSum<T> sum = sum_row<Dense::kNone, kTerms>(unused, source_, {}, classes_, pivot, terms_.get(), writer_);
    writer_.finish();
    RowTerms terms = row_terms(sum, pivot);
    if constexpr (kTerms) {
      const T scale = static_cast<T>(1.0 / terms.total / kExpScale<T>);
      writer_.begin({output, classes_, terms_.get(), {}, scale, T{0}}, shared_line_, source_.end(classes_));
      terms_.keep();
      return;
    }
    if (has_dominant_class(sum, terms, pivot)) {
      pivot = largest_as_pivot<Dense::kNone>(sum, source_, DenseTargets<T>{}, classes_);
      terms = row_terms(sum, pivot);
    }
    if constexpr (kOutput == Output::kLogsumexp) {
      problem_.logsumexp[row] = logsumexp(terms, sum, logits);
    } else {
      // Relative to the maximum, so that both terms of a logarithm are negative and do not cancel.
      const double lse = terms.lse + (static_cast<double>(sum.origin) - sum.maximum);
      const T above_maximum = static_cast<T>(std::isnan(terms.total) ? terms.total : lse);
      T* log_p = reinterpret_cast<T*>(output);
      for (Index j = 0; j < classes_; ++j) log_p[j] = (logits[j] - sum.maximum) - above_maximum;
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
  TermsInTurn<T> terms_;
  Source source_;
  RowWriter writer_;
  SharedLine<T> shared_line_;
};

template <class T>
void softmax_by_rows(const SoftmaxProblem<T>& problem, Index begin, Index end, T* scratch) {
  if (!problem.output)
    SoftmaxRows<T, Output::kLogsumexp, false>(problem, scratch).run(begin, end);
  else if (problem.logarithm)
    SoftmaxRows<T, Output::kLogSoftmax, false>(problem, scratch).run(begin, end);
  else if (problem.stream && worth_streaming<Dense::kNone, T>(problem.classes, false))
    SoftmaxRows<T, Output::kSoftmax, true>(problem, scratch).run(begin, end);
  else
    SoftmaxRows<T, Output::kSoftmax, false>(problem, scratch).run(begin, end);
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
