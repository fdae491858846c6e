// Whether rows are distributions, without a loss.
#pragma once

#include "rows.hpp"
#include "sources.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

ALWAYS_INLINE Vec<double> sum_as_doubles(Vec<float> v) { return lower_as_doubles(v) + upper_as_doubles(v); }
ALWAYS_INLINE Vec<double> sum_as_doubles(Vec<double> v) { return v; }

// What numbers sum to, and the least of them and 0.
struct SumAndLeast {
  double sum = 0.0, least = 0.0;

  template <class T>
  void add_adjacent(const T* values, Index count) {
    Vec<double> sums[2] = {};
    Vec<T> minus_least[2] = {};
    Index j = 0;
    for (; j + 2 * kLanes<T> <= count; j += 2 * kLanes<T>) {
      prefetch_group(reinterpret_cast<const char*>(values + j), 2 * kVectorBytes);
      for (int u = 0; u < 2; ++u) {
        const Vec<T> v = load(values + j + u * kLanes<T>);
        sums[u] += sum_as_doubles(v);
        minus_least[u] = keep_nan_max(minus_least[u], -v);
      }
    }
    sum += sum_of_lanes(sums[0] + sums[1]);
    least = std::min(least, -static_cast<double>(max_lane<T>(keep_nan_max(minus_least[0], minus_least[1]))));
    add(values + j, 1, count - j);
  }

  template <class T>
  void add(const T* values, Index stride, Index count) {
    for (Index j = 0; j < count; ++j) {
      const double value = values[j * stride];
      sum += value;
      least = std::min(least, value);
    }
  }
};

template <class T>
BadDistribution check(const ConstRows& distribution, Index classes, Index begin, Index end, double tolerance) {
  RowCursor cursor(distribution, begin);
  const Index stride = distribution.class_stride / static_cast<Index>(sizeof(T));
  for (Index row = begin; row < end; ++row) {
    const T* const q = reinterpret_cast<const T*>(cursor.get());
    SumAndLeast found;
    if (stride == 1)
      found.add_adjacent(q, classes);
    else
      found.add(q, stride, classes);
    if (!is_distribution(found.sum, found.least, tolerance)) return {row, found.sum, found.least};
    cursor.advance();
  }
  return {};
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
