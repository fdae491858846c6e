// The loss of rows whose classes, not many, lie side by side, as they lie: the terms of a tile of rows are one run of
// numbers.
//
// All are relative to one reference, near the tile's largest logit: a power of two, which cancels. A row that is too
// far below it, or is not ordinary for another reason, is left to those that have a reference for each row. So that a
// row's answer does not depend on the threads, tiles begin at multiples of their height.
#pragma once

#include <algorithm>

#include "narrow.hpp"
#include "ordinary.hpp"
#include "sources.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

// The least sum of a row's terms, its own largest then is at most e^-43 of the tile's: what may be a normal number of
// its gradient is one among the terms. (Times the gradient's scale, if that is above 1.)
template <class T>
constexpr T kLeastTotal = sizeof(T) == 8 ? T(0x1p12) : T(0x1p10);

template <class T, bool kGradient>
class RowwiseLoss {
 public:
  RowwiseLoss(const LossProblem<T>& problem, T* scratch)
      : problem_(problem),
        classes_(problem.classes),
        weighted_(problem.targets.spike || problem.weights),
        permutes_(kPermutes && problem.classes <= kMostRowwiseClasses),
        terms_(scratch),
        staging_(scratch + rowwise_scratch_elements(sizeof(T)) / 2),
        last_((problem.classes - 1) / kLanes<T> * kLanes<T>),
        in_last_(lane_numbers<T>() < Integers<T>{} + static_cast<Lane>(problem.classes - last_)) {
    for (Lane row = 0, i = 0; permutes_ && row < kLanes<T>; ++row)
      for (Index j = 0; j < classes_; ++j) row_of_[i++] = row;
    if (!weighted_) std::fill_n(a_, kMostTileRows, ordinary_scale<T>(problem.gradient_scale));
  }

  // The rows [row, row + count), a tile. If some row is not ordinary, nothing is written, and the first such is
  // returned; else `count`.
  Index run(Index row, Index count) {
    const T* const logits = logits_of(row, count);
    const auto reference = Reference<T>::near(maximum_of(logits, count * classes_));
    if (reference.origin != T{0}) return -1;
    set_terms(logits, count, ReferenceVectors<T>(reference), to_be_written(row));
    const Index labelled = take_labels_out(row, count);
    if (labelled < count) return labelled;
    if (weighted_) take_weights(row, count);
    Integers<T> ordinary = ~Integers<T>{};
    for (Index i = 0; i < count; i += kLanes<T>) ordinary &= finish(i);
    if (any_zero<T>(ordinary)) {
      const Index first = std::find(ordinary_, ordinary_ + count, Lane{0}) - ordinary_;
      if (first < count) return first;
    }
    set_loss(row, count);
    if constexpr (kGradient) write(row, count);
    return count;
  }

 private:
  using Lane = typename IntegersOf<T>::Lane;

  static constexpr Index rounded_up(Index count, Index unit) { return (count + unit - 1) / unit * unit; }

  const T* logits_of(Index row, Index count) const {
    const Storage storage = problem_.logits.storage;
    const char* const logits = problem_.logits.data + row * classes_ * size_of(storage);
    if (storage == kStorageOf<T>) return reinterpret_cast<const T*>(logits);
    read_run(storage, logits, count * classes_, staging_);
    return staging_;
  }

  // What will be written, to be fetched in time: the gradient, unless it goes past the cache.
  const char* to_be_written(Index row) const {
    if (!kGradient || problem_.stream) return reinterpret_cast<const char*>(terms_);
    return problem_.gradient.data + row * classes_ * size_of(problem_.gradient.storage);
  }

  // Terms of 0 where there is no row, to the end of the last vector of rows.
  void set_terms(const T* logits, Index count, const ReferenceVectors<T>& reference, const char* written) {
    const Index size = count * classes_, whole = size / kGroup<T> * kGroup<T>;
    const auto group = [&](const T* from, T* to) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (Index u = 0; u < kGroup<T>; u += kLanes<T>) store(to + u, scaled_exp<T>(load(from + u), reference));
    };
    const Index ahead = rowwise_rows(classes_, sizeof(T)) * classes_;  // a tile: the next one is asked for
    constexpr Index kLine = 64 / sizeof(T);
    for (Index j = 0; j < whole; j += kGroup<T>) {
      for (Index u = j; u < j + kGroup<T>; u += kLine) {
        __builtin_prefetch(logits + ahead + u);
        if constexpr (kGradient) __builtin_prefetch(reinterpret_cast<const T*>(written) + u, 1);
      }
      group(logits + j, terms_ + j);
    }
    T rest[kGroup<T>];
    std::fill(std::copy(logits + whole, logits + size, rest), rest + kGroup<T>, -std::numeric_limits<T>::infinity());
    group(rest, terms_ + whole);
    const Index end = rounded_up(count, kLanes<T>) * classes_;
    if (whole + kGroup<T> < end) std::fill(terms_ + whole + kGroup<T>, terms_ + end, T{0});
  }

  // Takes the labels' terms out, so that the sums are over the others; an ignored row's are all 0 but the label's.
  // Returns the first row whose label is none, or `count`.
  Index take_labels_out(Index row, Index count) {
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
        return i;
      }
      of_label_[i] = terms[label];
      terms[label] = T{0};
      label_[i] = static_cast<std::int32_t>(label);
    }
    for (Index i = count; i < rounded_up(count, kLanes<T>); ++i) of_label_[i] = static_cast<T>(kExpScale<T>);
    return count;
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

  // Vectors of which lane by lane adds up to a row's sum.
  ALWAYS_INLINE Vec<T> parts_of_sum(const T* row) const {
    constexpr Index kSums = 4;  // of many vectors: rounding errors of equal terms have one sign
    Vec<T> sum = in_last_ ? load(row + last_) : Vec<T>{};
    Index j = 0;
    if (last_ >= 2 * kSums * kLanes<T>) {
      Vec<T> sums[kSums] = {};
      for (; j + kSums * kLanes<T> <= last_; j += kSums * kLanes<T>)
        for (Index u = 0; u < kSums; ++u) sums[u] += load(row + j + u * kLanes<T>);
      sum += (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
    for (; j < last_; j += kLanes<T>) sum += load(row + j);
    return sum;
  }

  // The sums of kRows rows, each in as many lanes as there are vectors for each row, in the order of the rows.
  template <int kRows>
  ALWAYS_INLINE Vec<T> sums(const T* row) const {
    if constexpr (kRows == 1)
      return parts_of_sum(row);
    else
      return sums_side_by_side<T, kRows / 2>(sums<kRows / 2>(row), sums<kRows / 2>(row + kRows / 2 * classes_));
  }

  // The losses and factors of a vector of rows. Tells, lane by lane, which are ordinary.
  ALWAYS_INLINE Integers<T> finish(Index i) {
    const Vec<T> of_label = load(of_label_ + i), rest = sums<kLanes<T>>(terms_ + i * classes_);
    const Vec<T> total = rest + of_label;
    const Vec<T> value = log1p<T>(rest / of_label);
    store(value_ + i, value);
    Integers<T> ordinary = is_ordinary_loss<T>(of_label, rest, value) & (total >= kLeastTotal<T>);
    if constexpr (kGradient) {
      const Vec<T> a = load(a_ + i), factor = a / total;
      store(rest_ + i, rest);
      store(factor_ + i, factor);
      ordinary &= is_ordinary_factor<T>(factor) & (total >= a * kLeastTotal<T>)&(total >= a * -kLeastTotal<T>);
    }
    std::memcpy(ordinary_ + i, &ordinary, sizeof ordinary);
    return ordinary;
  }

  void set_loss(Index row, Index count) const {
    double* const loss = problem_.loss + row;
    for (Index i = 0; i < count; ++i)
      loss[i] = weighted_ ? value_[i] * loss_factor_[i] : static_cast<double>(value_[i]);
  }

  void write(Index row, Index count) {
    for (Index i = 0; i < count; ++i) terms_[i * classes_ + label_[i]] = T{0} - rest_[i];
    const Storage storage = problem_.gradient.storage;
    char* const out = problem_.gradient.data + row * classes_ * size_of(storage);
    T* const gradient = reinterpret_cast<T*>(out);
    const bool directly = storage == kStorageOf<T> && !problem_.stream;
    const Index size = count * classes_, direct = directly ? count / kLanes<T> * kLanes<T> : 0;
    for (Index i = 0; i < count; i += kLanes<T>) scale_rows(i, (i < direct ? gradient : staging_) + i * classes_);
    if (storage != kStorageOf<T>)
      write_run(storage, out, size, staging_);
    else if (problem_.stream)
      stream_run(staging_, gradient, size);
    else
      std::memcpy(gradient + direct * classes_, staging_ + direct * classes_,
                  static_cast<std::size_t>(size - direct * classes_) * sizeof(T));
  }

  // Writes a vector of rows, which is as many vectors as there are classes.
  ALWAYS_INLINE void scale_rows(Index i, T* out) const {
    const T* const from = terms_ + i * classes_;
    if constexpr (kPermutes) {
      if (permutes_) {
        const Vec<T> factors = load(factor_ + i);
        for (Index j = 0; j < kLanes<T> * classes_; j += kLanes<T>)
          store(out + j, load(from + j) * lanes_at<T>(factors, load_integers<T>(row_of_ + j)));
        return;
      }
    }
    for (Index begin = 0; begin < kLanes<T> * classes_; begin += classes_) {
      const Vec<T> factor = splat(factor_[i++]);
      const auto scale = [&](Index j) { store(out + j, load(from + j) * factor); };
      for (Index j = 0; j + kLanes<T> <= classes_; j += kLanes<T>) scale(begin + j);
      scale(begin + classes_ - kLanes<T>);  // once more, where the row is no whole vectors
    }
  }

  const LossProblem<T>& problem_;
  const Index classes_;
  const bool weighted_;  // by class or row
  const bool permutes_;  // factors into the lanes of their rows
  T* const terms_;
  T* const staging_;
  const Index last_;  // where a row's last vector begins
  const Integers<T> in_last_;
  alignas(64) Lane row_of_[kMostRowwiseClasses * kLanes<T>];  // that an element of a vector of rows is in

  // One a row.
  static constexpr Index kRows = kMostTileRows + kLanes<T>;
  std::int32_t label_[kRows];
  alignas(64) T of_label_[kRows];  // its term
  alignas(64) T rest_[kRows];      // the sum of the others
  alignas(64) T value_[kRows];     // -log p of the label
  alignas(64) T a_[kRows];         // gradient_scale * weights
  alignas(64) T factor_[kRows];    // a / total
  alignas(64) Lane ordinary_[kRows];
  double loss_factor_[kRows];
};

// A tile of them. Rows that are not ordinary are computed by `others`, by themselves, unless they are as many as the
// attempts, or one is so large that no reference serves the tile: the rest then do not depend on them, to the last bit.
template <int kAttempts, class T, bool kGradient, class Others>
void loss_of_rowwise_tile(RowwiseLoss<T, kGradient>& loss, Index begin, Index end, const Others& others) {
  for (int found = 0; found < kAttempts && begin < end; ++found) {
    const Index ordinary = loss.run(begin, end - begin);
    if (ordinary == end - begin) return;
    if (ordinary < 0 || (ordinary > 0 && loss.run(begin, ordinary) < ordinary)) break;
    others(begin + ordinary, begin + ordinary + 1);
    begin += ordinary + 1;
  }
  if (begin < end) others(begin, end);
}

template <int kAttempts, class T, bool kGradient, class Others>
void loss_of_rowwise_tiles(const LossProblem<T>& problem, Index begin, Index end, T* scratch, const Others& others) {
  RowwiseLoss<T, kGradient> loss(problem, scratch);
  const Index height = rowwise_rows(problem.classes, sizeof(T));
  for (Index row = begin; row < end; row += height)
    loss_of_rowwise_tile<kAttempts>(loss, row, std::min(row + height, end), others);
  if (problem.stream) stream_fence();
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
