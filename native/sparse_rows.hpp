// Products of a sparse matrix with one that has few columns: classes, of which whole vectors are held in registers
// while the numbers that are stored are gone through.
//
// The classes are taken in pieces of up to four vectors. The last vector of a piece ends where that ends, and may have
// some classes in common with the one before; where there are fewer classes than lanes, vectors are narrower.
#pragma once

#include <algorithm>
#include <cstring>

#include "problem.hpp"
#include "simd.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

template <class T, int kWidth>
struct Lanes {
  typedef T type __attribute__((vector_size(kWidth * sizeof(T))));
};
template <class T>
struct Lanes<T, 1> {
  typedef T type;
};

// Some adjacent classes of a row of the dense matrix, at least kWidth.
template <class T, int kWidth, int kVectors>
struct Piece {
  using V = typename Lanes<T, kWidth>::type;
  static constexpr int kCount = kVectors;
  struct Values {
    V of[kVectors] = {};
  };

  explicit Piece(Index classes) {
    for (int v = 0; v < kVectors; ++v) first[v] = std::min<Index>(v * kWidth, classes - kWidth);
  }
  Values load(const T* row) const {
    Values values;
    for (int v = 0; v < kVectors; ++v) std::memcpy(&values.of[v], row + first[v], sizeof(V));
    return values;
  }
  void store(T* row, const Values& values) const {
    for (int v = 0; v < kVectors; ++v) std::memcpy(row + first[v], &values.of[v], sizeof(V));
  }
  static ALWAYS_INLINE void add_multiple(T factor, const Values& from, Values& to) {
    for (int v = 0; v < kVectors; ++v) to.of[v] += factor * from.of[v];
  }

  Index first[kVectors];
};

// body(piece) of so many classes, at most four times kWidth.
template <class T, int kWidth, class Body>
void with_piece(Index classes, const Body& body) {
  if constexpr (kWidth > 1) {
    if (classes < kWidth) return with_piece<T, kWidth / 2>(classes, body);
  }
  if (classes <= kWidth) return body(Piece<T, kWidth, 1>(classes));
  if (classes <= 2 * kWidth) return body(Piece<T, kWidth, 2>(classes));
  if (classes <= 3 * kWidth) return body(Piece<T, kWidth, 3>(classes));
  body(Piece<T, kWidth, 4>(classes));
}

// body(piece, first class) for pieces of about equally many classes, none of which is in two of them.
template <class T, class Body>
void for_pieces(Index classes, const Body& body) {
  const Index count = (classes + 4 * kLanes<T> - 1) / (4 * kLanes<T>);
  for (Index k = 0; k < count; ++k) {
    const Index first = classes * k / count;
    with_piece<T, kLanes<T>>(classes * (k + 1) / count - first, [&](const auto& piece) { body(piece, first); });
  }
}

// The numbers that a sparse matrix stores, and the row of a dense matrix that each of them goes with. Held in a
// variable where they are used: in a problem they might change with whatever is written, as far as a compiler can tell.
template <class T, class I, class Row>
class Numbers {
 public:
  Numbers(const SparseProblem<T, I>& problem, Row* rows, Index end)
      : columns_(problem.columns),
        values_(problem.values),
        rows_(rows),
        classes_(problem.classes),
        last_(problem.starts[end] - 1) {}

  T value(I k) const { return values_[k]; }
  Row* row(I k) const { return rows_ + static_cast<Index>(columns_[k]) * classes_; }

  // Rows may be anywhere: one that takes several vectors is looked for some time before it is needed. (The processor
  // finds the rest of it; to name all its lines took longer.)
  template <int kVectors>
  void prefetch(I k) const {
    constexpr I kAhead = 12;
    if constexpr (kVectors > 1) __builtin_prefetch(row(last_ - k > kAhead ? k + kAhead : last_));
  }

 private:
  const I* columns_;
  const T* values_;
  Row* rows_;
  Index classes_;
  I last_;
};

// Rows [begin, end) of the product.
template <class T, class I>
void sparse_product(const SparseProblem<T, I>& problem, Index begin, Index end) {
  for_pieces<T>(problem.classes, [&](const auto classes, Index first) {
    const Numbers<T, I, const T> numbers(problem, problem.dense + first, end);
    for (Index i = begin; i < end; ++i) {
      typename decltype(classes)::Values sums;
      if (problem.less_row) classes.add_multiple(-problem.less_column[i], classes.load(problem.less_row + first), sums);
      const I stop = problem.starts[i + 1];
      for (I k = problem.starts[i]; k < stop; ++k) {
        numbers.template prefetch<decltype(classes)::kCount>(k);
        classes.add_multiple(numbers.value(k), classes.load(numbers.row(k)), sums);
      }
      classes.store(problem.out + i * problem.classes + first, sums);
    }
  });
}

// Adds to `out` what rows [begin, end) have in the product of the transposed matrix.
template <class T, class I>
void add_transposed_product(const SparseProblem<T, I>& problem, Index begin, Index end) {
  for_pieces<T>(problem.classes, [&](const auto classes, Index first) {
    const Numbers<T, I, T> numbers(problem, problem.out + first, end);
    for (Index i = begin; i < end; ++i) {
      const auto row = classes.load(problem.dense + i * problem.classes + first);
      const I stop = problem.starts[i + 1];
      for (I k = problem.starts[i]; k < stop; ++k) {
        numbers.template prefetch<decltype(classes)::kCount>(k);
        auto sums = classes.load(numbers.row(k));
        classes.add_multiple(numbers.value(k), row, sums);
        classes.store(numbers.row(k), sums);
      }
    }
  });
}

// A number without its sign as an integer: of two, the larger is the larger number's, and NaN is the largest of all.
template <class T>
ALWAYS_INLINE auto magnitude_bits(T value) {
  typename IntegersOf<T>::Lane bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits & std::numeric_limits<decltype(bits)>::max();
}

// The largest derivative in magnitude, by coefficients as they are and by scaled ones: see LargestProblem.
template <class T>
T largest_derivative(const LargestProblem<T>& problem, Index begin, Index end) {
  typename IntegersOf<T>::Lane largest = 0;
  for (Index i = begin; i < end; ++i) {
    const T* const row = problem.centred + i * problem.classes;
    const T scale = problem.scale[i], mean = problem.mean[i];
    for (Index j = 0; j < problem.classes; ++j) {
      largest = std::max(largest, magnitude_bits(row[j] * scale));
      largest = std::max(largest, magnitude_bits(row[j] + mean * problem.by_intercept[j]));
    }
  }
  T found;
  std::memcpy(&found, &largest, sizeof found);
  return found;
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
