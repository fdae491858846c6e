// Blocks of a Hessian, one for each class, as upper Cholesky factors, and the systems of equations that they stand for.
//
// A block is small enough for the second-level cache, and there are many: each is made and factored by one thread. All
// is done along the rows of upper triangles, a whole number of vectors long; what is below the diagonal is of no
// account while a factor is made, and 0 in the end.
#pragma once

#include <cmath>

#include "problem.hpp"
#include "simd.hpp"
#include "vectors.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

template <class T>
constexpr Index whole_vectors(Index count) {
  return count / kLanes<T> * kLanes<T>;
}

// to[j] += scale * from[j] for the vectors from that of `first` on.
template <class T>
ALWAYS_INLINE void add_multiple(T scale, const T* from, T* to, Index first, Index size) {
  const Index start = whole_vectors<T>(first);
  add_scaled(scale, from + start, to + start, size - start);
}

// The rows [first, size) of a matrix += sign * the sum of v v^T, for `kBlockPanel` vectors that lie one after the
// other; `first` is a multiple of kBlockPanel. As many rows are taken at once, so that each number read is used as
// often.
template <class T>
ALWAYS_INLINE void add_outer_products(T sign, const T* vectors, T* matrix, Index first, Index size) {
  for (Index i = first; i < size; i += kBlockPanel) {
    Vec<T> scales[kBlockPanel][kBlockPanel];
    for (Index row = 0; row < kBlockPanel; ++row)
      for (Index r = 0; r < kBlockPanel; ++r) scales[row][r] = splat(sign * vectors[r * size + i + row]);
    for (Index j = whole_vectors<T>(i); j < size; j += kLanes<T>) {
      Vec<T> sums[kBlockPanel];
      for (Index row = 0; row < kBlockPanel; ++row) sums[row] = load(matrix + (i + row) * size + j);
      for (Index r = 0; r < kBlockPanel; ++r) {
        const Vec<T> vector = load(vectors + r * size + j);
        for (Index row = 0; row < kBlockPanel; ++row) sums[row] = fused_multiply_add(scales[row][r], vector, sums[row]);
      }
      for (Index row = 0; row < kBlockPanel; ++row) store(matrix + (i + row) * size + j, sums[row]);
    }
  }
}

// Tells whether the matrix was positive definite; else what was made of it is of no use.
template <class T>
bool factor_in_place(T* matrix, Index size) {
  for (Index first = 0; first < size; first += kBlockPanel) {
    T* const panel = matrix + first * size;
    for (Index r = 0; r < kBlockPanel; ++r) {
      T* const row = panel + r * size;
      for (Index q = 0; q < r; ++q) add_multiple(-panel[q * size + first + r], panel + q * size, row, first + r, size);
      const T pivot = row[first + r];
      if (!(pivot > T{0})) return false;
      const Vec<T> inverse = splat(T{1} / std::sqrt(pivot));
      for (Index j = whole_vectors<T>(first + r); j < size; j += kLanes<T>) store(row + j, load(row + j) * inverse);
    }
    add_outer_products(T{-1}, panel, matrix, first + kBlockPanel, size);
  }
  for (Index i = 0; i < size; ++i) std::fill_n(matrix + i * size, i, T{0});
  return true;
}

template <class T>
class ClassBlocks {
 public:
  ClassBlocks(const ClassBlocksProblem<T>& problem, T* scratch)
      : problem_(problem), size_(problem.size), block_(scratch), panel_(scratch + size_ * size_) {}

  void run(Index k) {
    std::fill_n(block_, size_ * size_, T{0});
    const double rest = add_unsure_rows(k);
    for (Index i = 0; i < size_; ++i) {
      add_multiple(static_cast<T>(rest), problem_.of_all + i * size_, block_ + i * size_, i, size_);
      block_[i * size_ + i] += problem_.penalties[i];
    }
    set_factor(problem_.factors + k * size_ * size_);
  }

 private:
  // Returns what all other rows weigh together.
  double add_unsure_rows(Index k) {
    const T* const curvatures = problem_.curvatures + k * problem_.rows;
    double rest = 0.0;
    Index waiting = 0;
    std::fill_n(panel_, kBlockPanel * size_, T{0});
    for (Index i = 0; i < problem_.rows; ++i) {
      const T weight = curvatures[i] * problem_.weights[i];
      if (!(weight > T{0} && curvatures[i] >= problem_.least)) {
        rest += static_cast<double>(weight);
        continue;
      }
      set_features(i, std::sqrt(weight), panel_ + waiting * size_);
      if (++waiting < kBlockPanel) continue;
      add_outer_products(T{1}, panel_, block_, 0, size_);
      waiting = 0;
    }
    std::fill_n(panel_ + waiting * size_, (kBlockPanel - waiting) * size_, T{0});
    add_outer_products(T{1}, panel_, block_, 0, size_);
    return rest;
  }

  void set_features(Index i, T root, T* to) const {
    const T* const row = problem_.features + i * problem_.count;
    for (Index j = 0; j < problem_.count; ++j) to[j] = (row[j] - problem_.mean[j]) * problem_.scale[j] * root;
    to[problem_.count] = problem_.intercept_scale * root;
  }

  // With as much added to the diagonal as rounding asks for, entry by entry: features may be very unlike in size. Of
  // the diagonal alone, where they repeat each other.
  void set_factor(T* factor) const {
    constexpr T kRounding = 8 * std::numeric_limits<T>::epsilon();
    T largest{0};
    for (Index i = 0; i <= problem_.count; ++i) largest = std::max(largest, block_[i * size_ + i]);
    const T least = kRounding * kRounding * largest + std::numeric_limits<T>::min();
    for (const T share : {kRounding, 100 * kRounding, 10000 * kRounding}) {
      std::copy_n(block_, size_ * size_, factor);
      for (Index i = 0; i < size_; ++i) factor[i * size_ + i] += share * factor[i * size_ + i] + least;
      if (factor_in_place(factor, size_)) return;
    }
    std::fill_n(factor, size_ * size_, T{0});
    for (Index i = 0; i < size_; ++i) factor[i * size_ + i] = std::sqrt(std::abs(block_[i * size_ + i]) + least);
  }

  const ClassBlocksProblem<T>& problem_;
  Index size_;
  T* block_;
  T* panel_;
};

template <class T>
void class_blocks(const ClassBlocksProblem<T>& problem, Index begin, Index end, T* scratch) {
  ClassBlocks<T> blocks(problem, scratch);
  for (Index k = begin; k < end; ++k) blocks.run(k);
}

// The vectors [begin, end): each b becomes the x of U^T U x = b.
template <class T>
void solve_blocks(const ClassBlocksProblem<T>& problem, T* vectors, Index begin, Index end) {
  const Index size = problem.size;
  for (Index k = begin; k < end; ++k) {
    const T* const factor = problem.factors + k * size * size;
    T* const x = vectors + k * size;
    for (Index i = 0; i < size; ++i) {
      const T solved = x[i] / factor[i * size + i];
      add_multiple(-solved, factor + i * size, x, i, size);
      x[i] = solved;
    }
    for (Index i = size; i-- > 0;) {
      const T* const row = factor + i * size;
      const T known = x[i];
      x[i] = T{0};
      Vec<T> sums[2] = {};
      Index j = whole_vectors<T>(i);
      for (; j + 2 * kLanes<T> <= size; j += 2 * kLanes<T>)
        for (Index v = 0; v < 2; ++v)
          sums[v] = fused_multiply_add(load(row + j + v * kLanes<T>), load(x + j + v * kLanes<T>), sums[v]);
      if (j < size) sums[0] = fused_multiply_add(load(row + j), load(x + j), sums[0]);
      x[i] = (known - sum_of_lanes(sums[0] + sums[1])) / row[i];
    }
  }
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
