// Rows whose loss and gradient can be computed in T, many at once: most. The others are for row.hpp, in double.
#pragma once

#include <cmath>
#include <limits>

#include "exp.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

// Bounds within which they are computed without underflow, overflow, or loss of digits; e_j are scaled by 2^kExpBias,
// and a sum of them is below 2^(kExpBias + 21).
template <class T>
struct Ordinary;
template <>
struct Ordinary<float> {
  static constexpr float kLeastPivot = 0x1p-41f;  // rest / e_y is below 2^126
  static constexpr float kLeastRest = 0x1p-50f;   // rest / e_y is a normal number
  static constexpr double kLeastScale = 0x1p-41;  // a / total is a normal number
  static constexpr double kMostScale = 0x1p100;
};
template <>
struct Ordinary<double> {
  static constexpr double kLeastPivot = 0x1p-600;
  static constexpr double kLeastRest = 0x1p-600;
  static constexpr double kLeastScale = 0x1p-600;
  static constexpr double kMostScale = 0x1p1000;
};

// A factor of a gradient, NaN where it is not ordinary.
template <class T>
T ordinary_scale(double scale) {
  const double magnitude = std::abs(scale);
  const bool within = magnitude >= Ordinary<T>::kLeastScale && magnitude <= Ordinary<T>::kMostScale;
  return within || magnitude == 0.0 ? static_cast<T>(scale) : std::numeric_limits<T>::quiet_NaN();
}

// Lane by lane, of rows with index labels: whether a loss -log p is ordinary, of the label's term and the others' sum.
template <class T>
ALWAYS_INLINE Integers<T> is_ordinary_loss(Vec<T> of_pivot, Vec<T> rest, Vec<T> value) {
  return (of_pivot >= Ordinary<T>::kLeastPivot) & (value <= std::numeric_limits<T>::max()) &
         ((rest >= Ordinary<T>::kLeastRest) | (rest == T{0}));
}

template <class T>
ALWAYS_INLINE Integers<T> is_ordinary_factor(Vec<T> factor) {
  constexpr T kMost = std::numeric_limits<T>::max();
  return (factor <= kMost) & (factor >= -kMost);
}

template <class T>
ALWAYS_INLINE bool any_zero(Integers<T> lanes) {
  bool zero = false;
  for (int i = 0; i < kLanes<T>; ++i) zero |= lanes[i] == 0;
  return zero;
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
