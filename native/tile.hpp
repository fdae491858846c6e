// A tile: the logits of some rows, class by class, so that each lane of a vector is a row.
//
// Rows are packed into it in whatever way suits their layout in memory (strided.hpp, narrow.hpp), their losses are
// computed in it (tile_loss.hpp), and what that leaves behind is unpacked into a gradient.
#pragma once

#include <algorithm>
#include <limits>
#include <utility>

#include "problem.hpp"
#include "simd.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

constexpr int kClassesAtOnce = 4;  // that are read, or summed, together

// How a tile's labels are treated.
enum class TileKind {
  kPlain,    // their logits are taken out of the tile, row by row
  kFew,      // the same of few classes, where it is quicker to compare each class with the labels
  kSmoothed  // dense targets besides the labels; compared
};

constexpr bool compares(TileKind kind) { return kind != TileKind::kPlain; }

template <class T>
class Tile {
 public:
  Tile(T* memory, Index classes_)
      : classes(classes_),
        stride(tile_stride(classes_, sizeof(T))),
        capacity(tile_rows(classes_, sizeof(T))),
        staging(memory + classes_ * stride),
        ahead(reinterpret_cast<const char*>(memory)),
        data_(memory) {}

  T* of_class(Index j) { return data_ + j * stride; }
  const T* of_class(Index j) const { return data_ + j * stride; }

  const Index classes, stride, capacity;
  T* const staging;          // room for the tile's rows, one after another
  const T* dense = nullptr;  // the dense targets, or null for none

  // Where the logits of the next tile lie, and how many bytes apart its classes: asked for while this one is computed.
  // Until there is a next one, anywhere.
  const char* ahead;
  Index ahead_class_stride = 0;

  // One a row. Packing may fill a vector more than there are rows.
  static constexpr Index kRows = kMostTileRows + kLanes<T>;
  alignas(64) T maximum[kRows];  // found by packing
  alignas(64) typename IntegersOf<T>::Lane label[kRows];
  // The gradient is factor[i] * e - dense_factor[i] * dense[j], with e = of_class(j)[i], or at_label[i] where labels
  // are compared and j is one.
  alignas(64) T factor[kRows];
  alignas(64) T dense_factor[kRows];
  alignas(64) T at_label[kRows];

 private:
  T* const data_;
};

template <class T>
ALWAYS_INLINE Integers<T> load_integers(const typename IntegersOf<T>::Lane* p) {
  Integers<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// The gradient at one class, of the rows from `at` on.
template <class T, TileKind kKind>
class ClassGradient {
 public:
  ClassGradient(const Tile<T>& tile, Index j, Index at) : tile_(tile), terms_(tile.of_class(j)), j_(j), at_(at) {}

  ALWAYS_INLINE Vec<T> vector(Index i) const {
    i += at_;
    Vec<T> e = load(terms_ + i);
    const Vec<T> factor = load(tile_.factor + i);
    if constexpr (compares(kKind))
      e = load_integers<T>(tile_.label + i) == static_cast<Bits>(j_) ? load(tile_.at_label + i) : e;
    if constexpr (kKind != TileKind::kSmoothed) return e * factor;
    return fused_multiply_add(e, factor, load(tile_.dense_factor + i) * -tile_.dense[j_]);
  }

  T scalar(Index i) const {
    i += at_;
    const T e = compares(kKind) && tile_.label[i] == static_cast<Bits>(j_) ? tile_.at_label[i] : terms_[i];
    if constexpr (kKind != TileKind::kSmoothed) return e * tile_.factor[i];
    return fused_multiply_add(e, tile_.factor[i], tile_.dense_factor[i] * -tile_.dense[j_]);
  }

 private:
  using Bits = typename IntegersOf<T>::Lane;
  const Tile<T>& tile_;
  const T* terms_;
  Index j_, at_;
};

// A sum in each lane, in more digits than T has.
template <class T>
class LaneSums;

template <>
class LaneSums<float> {
 public:
  ALWAYS_INLINE void add(Vec<float> v) {
    lower_ += lower_as_doubles(v);
    upper_ += upper_as_doubles(v);
  }
  ALWAYS_INLINE Vec<float> value() const {
    return join(__builtin_convertvector(lower_, Half<Vec<float>>), __builtin_convertvector(upper_, Half<Vec<float>>),
                std::make_index_sequence<kLanes<float>>());
  }

 private:
  template <std::size_t... kLane>
  static ALWAYS_INLINE Vec<float> join(Half<Vec<float>> a, Half<Vec<float>> b, std::index_sequence<kLane...>) {
    return __builtin_shufflevector(a, b, kLane...);
  }
  Vec<double> lower_{}, upper_{};
};

template <>
class LaneSums<double> {
 public:
  // Knuth's two-sum.
  ALWAYS_INLINE void add(Vec<double> v) {
    const Vec<double> sum = total_ + v;
    const Vec<double> added = sum - total_;
    error_ += (total_ - (sum - added)) + (v - added);
    total_ = sum;
  }
  ALWAYS_INLINE Vec<double> value() const {
    const Vec<double> sum = total_ + error_;
    return error_ == error_ ? sum : total_;  // an infinite sum has an error of NaN
  }

 private:
  Vec<double> total_{}, error_{};
};

ALWAYS_INLINE void store_as_doubles(double* out, Vec<float> v) {
  store(out, lower_as_doubles(v));
  store(out + kLanes<double>, upper_as_doubles(v));
}
ALWAYS_INLINE void store_as_doubles(double* out, Vec<double> v) { store(out, v); }

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
