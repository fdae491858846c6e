#include "labels.hpp"

#include <algorithm>
#include <atomic>

#include "driver.hpp"
#include "threads.hpp"

namespace softmaxloss {

bool all_are_classes(const Index* labels, Index rows, Index classes) {
  std::atomic<bool> all{true};
  parallel_rows(rows, threads_for(rows, 1), [&](int, Index begin, Index end) {
    std::uint64_t outside = 0;  // its sign bit tells of a label below 0 or above the last class
    for (Index i = begin; i < end; ++i) {
      const auto y = static_cast<std::uint64_t>(labels[i]);
      outside |= y | (static_cast<std::uint64_t>(classes - 1) - y);
    }
    if (outside >> 63 != 0) all = false;
  });
  return all;
}

LabelSurvey survey_labels(const Index* labels, Index rows, Index classes, Index ignore_index, const double* weights,
                          const double* class_weight) {
  const bool may_be_ignored = ignore_index >= 0 && ignore_index < classes;
  if (!weights && !class_weight && !may_be_ignored && all_are_classes(labels, rows, classes))
    return {-1, rows, static_cast<double>(rows)};
  Index counted = 0;
  CompensatedSum total;
  for (Index i = 0; i < rows; ++i) {
    // Read once: another thread may write to them.
    const Index y = *static_cast<const volatile Index*>(labels + i);
    if (y == ignore_index) continue;
    if (y < 0 || y >= classes) return {i, counted, 0.0};
    ++counted;
    if (weights || class_weight) total.add((weights ? weights[i] : 1.0) * (class_weight ? class_weight[y] : 1.0));
  }
  return {-1, counted, weights || class_weight ? total.value() : static_cast<double>(counted)};
}

}  // namespace softmaxloss
