#include "labels.hpp"

#include <algorithm>

#include "driver.hpp"

namespace softmaxloss {

LabelSurvey survey_labels(const Index* labels, Index rows, Index classes, Index ignore_index, const double* weights,
                          const double* class_weight) {
  constexpr Index kBlock = 1024;
  Index counted = 0;
  CompensatedSum total;
  const bool may_skip = !weights && !class_weight && (ignore_index < 0 || ignore_index >= classes);
  for (Index begin = 0; begin < rows; begin += kBlock) {
    const Index size = std::min(kBlock, rows - begin);
    Index block[kBlock];  // read once: another thread may write to them
    std::copy_n(labels + begin, size, block);
    std::uint64_t outside = 0;  // its sign bit tells of a label below 0 or above the last class
    for (Index i = 0; i < size; ++i) {
      const auto y = static_cast<std::uint64_t>(block[i]);
      outside |= y | (static_cast<std::uint64_t>(classes - 1) - y);
    }
    if (may_skip && outside >> 63 == 0) {
      counted += size;
      continue;
    }
    for (Index i = 0; i < size; ++i) {
      const Index y = block[i];
      if (y == ignore_index) continue;
      if (y < 0 || y >= classes) return {begin + i, counted, 0.0};
      ++counted;
      if (weights || class_weight)
        total.add((weights ? weights[begin + i] : 1.0) * (class_weight ? class_weight[y] : 1.0));
    }
  }
  return {-1, counted, weights || class_weight ? total.value() : static_cast<double>(counted)};
}

}  // namespace softmaxloss
