// The loss of rows whose classes, few but a vector at least, lie side by side, as they lie: the terms of a tile of rows
// are one run of numbers.
//
// All are relative to one reference, near the tile's largest logit: a power of two, which cancels. A tile in which some
// row is too far below it, or is not ordinary for another reason, is left to tile_loss.hpp, which has a reference for
// each row. So that a row's answer does not depend on the threads, tiles begin at multiples of their height.
#pragma once

#include <algorithm>

#include "narrow.hpp"
#include "ordinary.hpp"
#include "sources.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

// The least sum of a row's terms, its own largest then is at most e^-43 of the tile's: what may be a normal number of
// its gradient is one among the terms.
template <class T>
constexpr T kLeastTotal = sizeof(T) == 8 ? T(0x1p12) : T(0x1p10);

template <class T, bool kGradient>
class RowwiseLoss {
 public:
  RowwiseLoss(const LossProblem<T>& problem, T* scratch)
      : problem_(problem),
        classes_(problem.classes),
        weighted_(problem.targets.spike || problem.weights),
        terms_(scratch),
        staging_(scratch + rowwise_scratch_elements(sizeof(T)) / 2) {
    if (!weighted_) std::fill_n(a_, kMostTileRows, ordinary_scale<T>(problem.gradient_scale));
  }

  // The rows [row, row + count), a tile; false, and no gradient is written, if some row is not ordinary.
  bool run(Index row, Index count) {
    const T* const logits = reinterpret_cast<const T*>(problem_.logits.data) + row * classes_;
    const auto reference = Reference<T>::near(maximum_of(logits, count * classes_));
    if (reference.origin != T{0}) return false;
    set_terms(logits, count, ReferenceVectors<T>(reference));
    if (!take_labels_out(row, count)) return false;
    if (weighted_) take_weights(row, count);
    Integers<T> ordinary = ~Integers<T>{};
    for (Index i = 0; i < count; i += kLanes<T>) ordinary &= finish(i);
    if (any_zero<T>(ordinary)) return false;
    set_loss(row, count);
    if constexpr (kGradient) write(row, count);
    return true;
  }

 private:
  static constexpr Index rounded_up(Index count, Index unit) { return (count + unit - 1) / unit * unit; }

  // Terms of 0 where there is no row, to the end of the last vector of rows.
  void set_terms(const T* logits, Index count, const ReferenceVectors<T>& reference) {
    const Index size = count * classes_, whole = size / kGroup<T> * kGroup<T>;
    const auto group = [&](const T* from, T* to) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (Index u = 0; u < kGroup<T>; u += kLanes<T>) store(to + u, scaled_exp<T>(load(from + u), reference));
    };
    constexpr Index kAhead = 4096 / sizeof(T), kLine = 64 / sizeof(T);  // bytes: see DirectSource
    for (Index j = 0; j < whole; j += kGroup<T>) {
      for (Index u = 0; u < kGroup<T>; u += kLine) __builtin_prefetch(logits + j + kAhead + u);
      group(logits + j, terms_ + j);
    }
    T rest[kGroup<T>];
    std::fill(std::copy(logits + whole, logits + size, rest), rest + kGroup<T>, -std::numeric_limits<T>::infinity());
    group(rest, terms_ + whole);
    const Index end = rounded_up(count, kLanes<T>) * classes_;
    if (whole + kGroup<T> < end) std::fill(terms_ + whole + kGroup<T>, terms_ + end, T{0});
  }

  // Takes the labels' terms out, so that the sums are over the others; an ignored row's are all 0 but the label's.
  // False for a label that is none.
  bool take_labels_out(Index row, Index count) {
    const Index* const labels = problem_.targets.labels + row;
    const Index ignored = problem_.targets.ignore_index;
    for (Index i = 0; i < count; ++i) {
      T* const terms = terms_ + i * classes_;
      Index label = labels[i];
      if (label == ignored) {
        label = 0;
        std::fill_n(terms, classes_, T{0});
        terms[0] = static_cast<T>(kExpScale<T>);
      } else if (static_cast<std::uint64_t>(label) >= static_cast<std::uint64_t>(classes_)) {
        return false;
      }
      of_label_[i] = terms[label];
      terms[label] = T{0};
      label_[i] = static_cast<std::int32_t>(label);
    }
    for (Index i = count; i < rounded_up(count, kLanes<T>); ++i) of_label_[i] = static_cast<T>(kExpScale<T>);
    return true;
  }

  void take_weights(Index row, Index count) {
    const double* const spike = problem_.targets.spike;
    for (Index i = 0; i < count; ++i) {
      const double weight = problem_.weights ? problem_.weights[row + i] : 1.0;
      loss_factor_[i] = spike ? weight * spike[label_[i]] : weight;
      a_[i] = ordinary_scale<T>(problem_.gradient_scale * loss_factor_[i]);
    }
    std::fill(a_ + count, a_ + rounded_up(count, kLanes<T>), T{0});
  }

  // The sums of a vector of rows, a quad of classes at a time. The last may go back over classes counted before, which
  // are masked.
  ALWAYS_INLINE Vec<T> sum(Index i) const {
    const Index step = kQuad<T> * classes_ * static_cast<Index>(sizeof(T));
    const char* const from = reinterpret_cast<const char*>(terms_ + i * classes_);
    const auto quads = [&](int k, Index j) __attribute__((always_inline)) {
      return load_quads<T>(from + (k * classes_ + j) * static_cast<Index>(sizeof(T)), step);
    };
    const Index last = classes_ - kQuad<T>, whole = (classes_ - 1) / kQuad<T> * kQuad<T>;
    Vec<T> sums[kQuad<T>] = {};
    for (Index j = 0; j < whole; j += kQuad<T>) {
#pragma GCC unroll 4
      for (int k = 0; k < kQuad<T>; ++k) sums[k] += quads(k, j);
    }
    const Integers<T> in_quad = lane_numbers<T>() & (Integers<T>{} + (kQuad<T> - 1));
    const Integers<T> counted = in_quad >= Integers<T>{} + static_cast<typename IntegersOf<T>::Lane>(whole - last);
#pragma GCC unroll 4
    for (int k = 0; k < kQuad<T>; ++k) sums[k] += counted ? quads(k, last) : Vec<T>{};
    transpose_quads(sums);
    if constexpr (kQuad<T> == 4)
      return (sums[0] + sums[1]) + (sums[2] + sums[3]);
    else
      return sums[0] + sums[1];
  }

  // The losses and factors of a vector of rows. Tells, lane by lane, which are ordinary.
  ALWAYS_INLINE Integers<T> finish(Index i) {
    const Vec<T> of_label = load(of_label_ + i), rest = sum(i), total = rest + of_label;
    const Vec<T> value = log1p<T>(rest / of_label);
    store(value_ + i, value);
    Integers<T> ordinary = is_ordinary_loss<T>(of_label, rest, value) & (total >= kLeastTotal<T>);
    if constexpr (kGradient) {
      const Vec<T> factor = load(a_ + i) / total;
      store(rest_ + i, rest);
      store(factor_ + i, factor);
      ordinary &= is_ordinary_factor<T>(factor);
    }
    return ordinary;
  }

  void set_loss(Index row, Index count) const {
    double* const loss = problem_.loss + row;
    for (Index i = 0; i < count; ++i)
      loss[i] = weighted_ ? value_[i] * loss_factor_[i] : static_cast<double>(value_[i]);
  }

  void write(Index row, Index count) {
    for (Index i = 0; i < count; ++i) terms_[i * classes_ + label_[i]] = T{0} - rest_[i];
    T* const gradient = reinterpret_cast<T*>(problem_.gradient.data) + row * classes_;
    T* const out = problem_.stream ? staging_ : gradient;
    for (Index i = 0; i < count; ++i) {
      const T* const from = terms_ + i * classes_;
      T* const to = out + i * classes_;
      const Vec<T> factor = splat(factor_[i]);
      for (Index j = 0; j + kLanes<T> <= classes_; j += kLanes<T>) store(to + j, load(from + j) * factor);
      const Index last = classes_ - kLanes<T>;
      store(to + last, load(from + last) * factor);
    }
    if (problem_.stream) stream_run(staging_, gradient, count * classes_);
  }

  const LossProblem<T>& problem_;
  const Index classes_;
  const bool weighted_;  // by class or row
  T* const terms_;
  T* const staging_;

  // One a row.
  static constexpr Index kRows = kMostTileRows + kLanes<T>;
  std::int32_t label_[kRows];
  alignas(64) T of_label_[kRows];  // its term
  alignas(64) T rest_[kRows];      // the sum of the others
  alignas(64) T value_[kRows];     // -log p of the label
  alignas(64) T a_[kRows];         // gradient_scale * weights
  alignas(64) T factor_[kRows];    // a / total
  double loss_factor_[kRows];
};

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
