// Products and sums of several long vectors, each of which is read from memory once.
#pragma once

#include "problem.hpp"
#include "simd.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

// The sum of a[i] * b[i] over i in [0, count).
template <class T>
T dot(const T* a, const T* b, Index count) {
  constexpr int kSums = 4;  // as many as hide the time that an addition takes
  Vec<T> sums[kSums] = {};
  Index i = 0;
  for (; i + kSums * kLanes<T> <= count; i += kSums * kLanes<T>)
    for (int s = 0; s < kSums; ++s)
      sums[s] = fused_multiply_add(load(a + i + s * kLanes<T>), load(b + i + s * kLanes<T>), sums[s]);
  T total = sum_of_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < count; ++i) total = fused_multiply_add(a[i], b[i], total);
  return total;
}

// to[i] += factor * from[i] for i in [0, count).
template <class T>
void add_scaled(T factor, const T* from, T* to, Index count) {
  Index i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>)
    store(to + i, fused_multiply_add(splat(factor), load(from + i), load(to + i)));
  for (; i < count; ++i) to[i] = fused_multiply_add(factor, from[i], to[i]);
}

// sums[j] += the sum of column j of a matrix of `rows` rows, from the first on.
template <class T>
void add_columns(const T* matrix, Index rows, Index columns, double* sums) {
  for (const T* row = matrix; row != matrix + rows * columns; row += columns)
    for (Index j = 0; j < columns; ++j) sums[j] += static_cast<double>(row[j]);
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
