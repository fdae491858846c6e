// What is told of each row of a range: its loss, logsumexp, largest class and the label's rank.
#pragma once

#include "contiguous.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

template <class Source>
class StatisticsRows {
 public:
  using T = typename Source::T;

  explicit StatisticsRows(const StatisticsProblem<T>& problem)
      : problem_(problem),
        classes_(problem.classes),
        source_(problem.transform, problem.logits.storage, nullptr, nullptr) {}

  void run(Index begin, Index end) {
    RowCursor logits(problem_.logits, begin);
    for (Index row = begin; row < end; ++row) {
      source_.open(logits.get(), classes_);
      one_row(row);
      logits.advance();
    }
  }

 private:
  // The label, -1 without one.
  Index label_of(Index row) const {
    if (!problem_.labels) return -1;
    const Index label = problem_.labels[row];
    return label >= 0 && label < classes_ ? label : -1;
  }

  // With the largest class as pivot, whatever the label: neither its logarithm nor another class's cancels.
  void one_row(Index row) {
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    NoWriter nothing;
    LabelSum unused;
    const Index largest = first_largest(), label = label_of(row);
    const Pivot<T> pivot{largest, source_.value(largest), 0.0};
    const RowSum<T> sum = sum_row<Dense::kNone, false>(unused, source_, DenseTargets<T>{}, classes_, pivot,
                                                       static_cast<T*>(nullptr), nothing);
    const RowTerms terms = row_terms(sum, pivot);
    const bool has_answer = !std::isnan(terms.total);
    problem_.logsumexp[row] = has_answer ? terms.lse + sum.origin + source_.offset() : kNan;
    problem_.prediction[row] = has_answer ? largest : first_nan_or(largest);
    if (!problem_.labels) return;
    if (label < 0 || !has_answer) {
      problem_.loss[row] = kNan;
    } else {
      const double gap = label == largest ? 0.0 : static_cast<double>(pivot.logit - source_.value(label));
      problem_.loss[row] = terms.minus_log_p + gap;
    }
    problem_.rank[row] = label < 0 ? -1 : classes_above(label);
  }

  // Calls body(keys, begin, count) for each block of the row.
  template <class Body>
  void for_blocks(const Body& body) {
    for (Index begin = 0; begin < classes_; begin += kBlock<T>) {
      const Index count = std::min(kBlock<T>, classes_ - begin);
      body(source_.keys(begin, count), begin, count);
    }
  }

  Index classes_above(Index label) {
    const Index block = label / kBlock<T> * kBlock<T>;
    const Keys<T> of_label = source_.keys(block, std::min(kBlock<T>, classes_ - block));
    const T high = of_label.high[label - block], low = of_label.low ? of_label.low[label - block] : T{0};
    Index above = 0;
    for_blocks([&](const Keys<T>& keys, Index, Index count) {
      for (Index j = 0; j < count; ++j) above += keys.high[j] > high;
      if (!keys.low) return;
      for (Index j = 0; j < count; ++j) above += (keys.high[j] == high) & (keys.low[j] > low);
    });
    return above;
  }

  Index first_largest() {
    T high = -std::numeric_limits<T>::infinity(), low = T{0};
    Index first = 0;
    for_blocks([&](const Keys<T>& keys, Index begin, Index count) {
      const T maximum = maximum_of(keys.high, count);
      if (!(maximum > high) && !(keys.low && maximum == high)) return;
      for (Index j = 0; j < count; ++j) {
        const T rest = keys.low ? keys.low[j] : T{0};
        if (keys.high[j] < high || (keys.high[j] == high && rest <= low)) continue;
        high = keys.high[j];
        low = rest;
        first = begin + j;
        if (!keys.low && high == maximum) return;
      }
    });
    return first;
  }

  Index first_nan_or(Index largest) {
    Index first = -1;
    for_blocks([&](const Keys<T>& keys, Index begin, Index count) {
      for (Index j = 0; j < count && first < 0; ++j)
        if (std::isnan(keys.high[j])) first = begin + j;
    });
    return first >= 0 ? first : largest;
  }

  const StatisticsProblem<T>& problem_;
  Index classes_;
  Source source_;
};

template <class T>
void statistics(const StatisticsProblem<T>& problem, Index begin, Index end, T*) {
  if (problem.transform.is_identity() && problem.logits.storage == kStorageOf<T>)
    StatisticsRows<PlainSource<T>>(problem).run(begin, end);
  else
    StatisticsRows<PreparedSource<T>>(problem).run(begin, end);
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
