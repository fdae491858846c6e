// What a problem refers to besides the caller's arrays, and how its gradient is written.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "problem.hpp"

namespace softmaxloss {

// A transform, and the parts of its bias.
template <class T>
class OwnedTransform {
 public:
  OwnedTransform(double temperature, double softcap, const double* bias, Index classes)
      : transform_{temperature, softcap, bias, nullptr, nullptr} {
    if (!bias) return;
    for (Index j = 0; j < classes; ++j) {
      constexpr double kMost = std::numeric_limits<T>::max();
      const double value = bias[j];
      high_.push_back(static_cast<T>(std::isfinite(value) ? std::clamp(value, -kMost, kMost) : value));
      low_.push_back(std::abs(value) < kMost ? static_cast<T>(value - static_cast<double>(high_.back())) : T{0});
    }
    transform_.bias_high = high_.data();
    transform_.bias_low = low_.data();
  }
  const Transform<T>& get() const { return transform_; }

 private:
  Transform<T> transform_;
  std::vector<T> high_, low_;
};

// Streamed stores pay where the gradient would not be found in a cache anyway: where it and the logits together exceed
// a usual third-level cache, 32 MiB. (Measured: a fifth quicker from there on, and as quick or slower below.)
inline bool worth_streaming(Index elements, Storage storage) {
  constexpr Index kHalfCacheBytes = 16 * 1024 * 1024;
  return elements * size_of(storage) >= kHalfCacheBytes;
}

template <class T>
bool may_stream(const LossProblem<T>& problem, Index rows) {
  constexpr Index kFewClasses = kMostRowwiseRow / sizeof(T);  // in the cache still when they are written over
  const bool in_rows = problem.gradient.class_stride == size_of(problem.gradient.storage);
  return (problem.gradient.data != problem.logits.data || (in_rows && problem.classes > kFewClasses)) &&
         reinterpret_cast<std::uintptr_t>(problem.gradient.data) % sizeof(T) == 0 &&
         worth_streaming(rows * problem.classes, problem.logits.storage);
}

}  // namespace softmaxloss
