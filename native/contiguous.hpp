// The loop for rows whose classes lie side by side.
//
// A row is read once. Its terms e_j = exp(v_j - r) are summed and, where a gradient is wanted, kept in a scratch row;
// while the next row is read, the scratch is scaled and written out, so that arithmetic hides behind the stores.
// The reference r is near the maximum of the first few classes and the label. A row that exceeds it by too much is
// begun again with its true maximum.
#pragma once

#include "row.hpp"
#include "rows.hpp"
#include "sources.hpp"
#include "writers.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

// A sum of vectors in more digits than T has: doubles for float, a compensated pair for double (Knuth's two-sum).
template <class T>
class WideSum;

template <>
class WideSum<float> {
 public:
  ALWAYS_INLINE void add(Vec<float> v) {
    lower_ += lower_as_doubles(v);
    upper_ += upper_as_doubles(v);
  }
  ALWAYS_INLINE double value() const { return sum_of_lanes(lower_ + upper_); }

 private:
  Vec<double> lower_{}, upper_{};
};

template <>
class WideSum<double> {
 public:
  ALWAYS_INLINE void add(Vec<double> v) { two_sum(total_, error_, v); }
  double value() const {
    double sum = 0.0, error = 0.0;
    for (int i = 0; i < kLanes<double>; ++i) {
      two_sum(sum, error, total_[i]);
      error += error_[i];
    }
    return std::isfinite(error) ? sum + error : sum;
  }

 private:
  template <class V>
  static ALWAYS_INLINE void two_sum(V& total, V& error, V v) {
    const V sum = total + v;
    const V added = sum - total;
    error += (total - (sum - added)) + (v - added);
    total = sum;
  }
  Vec<double> total_{}, error_{};
};

// What one block of a row adds up to, lane by lane.
template <class T>
struct BlockSums {
  Vec<T> sum[kVectorsPerGroup] = {};
  Vec<T> target_dot[2] = {};
  Vec<T> target_sum[2] = {};
  Vec<T> label_sum[2] = {};  // of a distribution as it was given
};

// The largest of a row so far, lane by lane.
template <class T>
struct Extremes {
  Vec<T> maximum[2] = {splat(-std::numeric_limits<T>::infinity()), splat(-std::numeric_limits<T>::infinity())};
  Vec<T> minus_least = splat(-std::numeric_limits<T>::infinity());  // of a distribution as it was given
};

// Which classes of a group count: those from `first` on, but for the pivot.
template <class T>
class Counted {
 public:
  Counted(Index group, Index first, Index pivot)
      : first_(splat_integer(std::max<Index>(first - group, 0))), pivot_(splat_integer(in_group(pivot - group))) {}

  ALWAYS_INLINE Vec<T> only(int vector, Vec<T> value) const {
    const Integers<T> lane = lane_numbers<T>() + splat_integer(vector * kLanes<T>);
    return (lane >= first_) & (lane != pivot_) ? value : Vec<T>{};
  }

 private:
  static Integers<T> splat_integer(Index value) {
    return Integers<T>{} + static_cast<typename IntegersOf<T>::Lane>(value);
  }
  static Index in_group(Index lane) { return lane >= 0 && lane < kGroup<T> ? lane : -1; }
  Integers<T> first_, pivot_;
};

template <class T>
struct EveryClass {
  ALWAYS_INLINE Vec<T> only(int, Vec<T> value) const { return value; }
};

template <class T, Dense kDense, bool kStore, class Group, class Which>
ALWAYS_INLINE void add_group(BlockSums<T>& sums, Extremes<T>& extremes, const Group& group,
                             const DenseTargets<T>& targets, const ReferenceVectors<T>& reference, Vec<T> origin,
                             T* scratch, const Which& which) {
#pragma GCC unroll 4
  for (int u = 0; u < kVectorsPerGroup; ++u) {
    const Index j = u * kLanes<T>;
    const Vec<T> z = group.logits(j);
    extremes.maximum[u % 2] = keep_nan_max(extremes.maximum[u % 2], z);
    const Vec<T> e = group.exponential(j, z, reference);
    sums.sum[u] += which.only(u, e);
    if constexpr (kStore) store(scratch + j, e);
    if constexpr (kDense != Dense::kNone) {
      const Vec<T> target = which.only(u, dense_target<T, kDense>(targets, j));
      sums.target_dot[u % 2] += target == T{0} ? Vec<T>{} : target * group.above(j, z, origin);  // 0 * -inf is 0
      if constexpr (kDense == Dense::kAffineRow) sums.target_sum[u % 2] += target;
      if constexpr (per_row(kDense)) {
        const Vec<T> q = load(targets.dense + j);
        sums.label_sum[u % 2] += which.only(u, q);
        extremes.minus_least = keep_nan_max(extremes.minus_least, -q);
      }
    }
  }
}

// What a per-row distribution adds up to, for its check.
struct LabelSum {
  double sum = 1.0;
  double least = 0.0;
};

// Where the last group of a row begins. It may go back over classes that were in the group before.
template <class T>
constexpr Index last_group(Index classes) {
  return std::max(classes, kGroup<T>) - kGroup<T>;
}

// The largest v that a reference will do for.
template <class T>
T most_above(const Reference<T>& reference) {
  return static_cast<T>(reference.origin + reference.exponent * kLn2 + kReferenceSlack);
}

template <class T, class Block>
ALWAYS_INLINE Vec<T> group_maximum(const Block& block, Index group, Vec<T> maximum) {
  for (int u = 0; u < kVectorsPerGroup; ++u) maximum = keep_nan_max(block.group(group).logits(u * kLanes<T>), maximum);
  return maximum;
}

template <class Source, class T = typename Source::T>
T first_maximum(Source& source) {
  return max_lane<T>(group_maximum<T>(source.block(0), 0, splat(-std::numeric_limits<T>::infinity())));
}

template <class Source, class T = typename Source::T>
T row_maximum(Source& source, Index classes) {
  Vec<T> maximum = splat(-std::numeric_limits<T>::infinity());
  for (Index begin = 0; begin < classes; begin += kBlock<T>) {
    const auto block = source.block(std::min(begin, last_group<T>(classes)));
    for (Index j = begin; j < std::min(begin + kBlock<T>, classes); j += kGroup<T>)
      maximum = group_maximum<T>(block, std::min(j, last_group<T>(classes)), maximum);
  }
  return max_lane<T>(maximum);
}

// The bytes that are in use from one row to the next: logits, two rows of terms, and a row of labels or two.
template <Dense kDense, class T>
constexpr Index bytes_in_use(Index classes) {
  constexpr Index kRows = kDense == Dense::kNone ? 3 : per_row(kDense) ? 5 : 4;
  return kRows * classes * static_cast<Index>(sizeof(T));
}

// Sums a row relative to out.reference and out.origin. False if a class exceeds the reference by more than the slack.
template <Dense kDense, bool kStore, class Source, class W, class T = typename Source::T>
bool sum_terms(RowSum<T>& out, LabelSum& labels, Source& source, const DenseTargets<T>& targets, Index classes,
               Index pivot, T* terms, W& row_writer) {
  typename W::Loop writer(row_writer);
  const ReferenceVectors<T> reference(out.reference);
  const Vec<T> origin = splat(out.origin), limit = splat(most_above(out.reference));
  WideSum<T> sum, target_dot, target_sum, label_sum;
  Extremes<T> extremes;
  BlockSums<T> sums;
  const Into level = kStore ? prefetch_level(bytes_in_use<kDense, T>(classes)) : Into::kFirstLevel;

  for (Index begin = 0; begin < classes; begin += kBlock<T>) {
    const Index end = std::min(begin + kBlock<T>, classes);
    const auto block = source.block(std::min(begin, last_group<T>(classes)));
    Index j = begin;
    const auto whole_groups = [&](Index until) __attribute__((always_inline)) {
      for (; j < until; j += kGroup<T>) {
        block.prefetch(j, level);
        if constexpr (per_row(kDense))
          prefetch_group(reinterpret_cast<const char*>(targets.dense + j), kGroup<T> * sizeof(T), level);
        add_group<T, kDense, kStore>(sums, extremes, block.group(j), targets.from(j), reference, origin, terms + j,
                                     EveryClass<T>());
        writer.step();
      }
    };
    const auto counted_group = [&](Index group) __attribute__((always_inline)) {
      add_group<T, kDense, kStore>(sums, extremes, block.group(group), targets.from(group), reference, origin,
                                   terms + group, Counted<T>(group, j, pivot));
      writer.step();
      j += kGroup<T>;
    };
    const Index whole_end = begin + (end - begin) / kGroup<T> * kGroup<T>;
    if (pivot >= begin && pivot < whole_end) {
      whole_groups(begin + (pivot - begin) / kGroup<T> * kGroup<T>);
      counted_group(j);
    }
    whole_groups(whole_end);
    if (j < end) {
      if constexpr (Source::kHasRest && kDense == Dense::kNone) {
        add_group<T, kDense, kStore>(sums, extremes, block.rest(j, classes - j), targets, reference, origin, terms + j,
                                     Counted<T>(j, j, pivot));
        writer.step();
      } else {
        counted_group(last_group<T>(classes));
      }
    }

    if (any_above<T>(keep_nan_max(extremes.maximum[0], extremes.maximum[1]), limit)) return false;
    sum.add((sums.sum[0] + sums.sum[1]) + (sums.sum[2] + sums.sum[3]));
    if constexpr (kDense != Dense::kNone) target_dot.add(sums.target_dot[0] + sums.target_dot[1]);
    if constexpr (kDense == Dense::kAffineRow) target_sum.add(sums.target_sum[0] + sums.target_sum[1]);
    if constexpr (per_row(kDense)) label_sum.add(sums.label_sum[0] + sums.label_sum[1]);
    sums = {};
  }
  out.rest = sum.value() / kExpScale<T>;
  out.maximum = max_lane<T>(keep_nan_max(extremes.maximum[0], extremes.maximum[1]));
  if constexpr (kDense != Dense::kNone) out.target_dot = target_dot.value();
  if constexpr (per_row(kDense)) {
    labels.sum = label_sum.value();
    labels.least = -static_cast<double>(max_lane<T>(extremes.minus_least));
    out.target_sum = kDense == Dense::kAffineRow ? target_sum.value() : labels.sum;
  }
  return true;
}

template <Dense kDense, bool kStore, class Source, class W, class T = typename Source::T>
RowSum<T> sum_row(LabelSum& labels, Source& source, const DenseTargets<T>& targets, Index classes,
                  const Pivot<T>& pivot, T* terms, W& writer) {
  const T at_pivot = static_cast<T>(pivot.logit);
  RowSum<T> out;
  const auto start_from = [&](T maximum) {
    if (!(maximum > at_pivot)) maximum = at_pivot;
    out.reference = Reference<T>::near(maximum);
    out.origin = out.reference.origin != T{0} ? out.reference.origin : maximum;
  };
  start_from(first_maximum(source));
  if (!sum_terms<kDense, kStore>(out, labels, source, targets, classes, pivot.index, terms, writer)) {
    start_from(row_maximum(source, classes));
    sum_terms<kDense, kStore>(out, labels, source, targets, classes, pivot.index, terms, writer);
  }
  return out;
}

// Whether rows are long enough, several whole cache lines, to be written past the cache; in place only if they would
// not be there still.
template <Dense kDense, class T>
constexpr bool worth_streaming(Index classes, bool in_place) {
  constexpr Index kRowBytes = 1024;
  return classes * static_cast<Index>(sizeof(T)) >= kRowBytes &&
         !(in_place && fill_first_level(bytes_in_use<kDense, T>(classes)));
}

// Tells whether one class other than the row's pivot, if it has one, holds most of the total.
template <class T>
bool has_dominant_class(const RowSum<T>& sum, const RowTerms& terms, const Pivot<T>& pivot) {
  return sum.maximum > pivot.logit && std::exp(sum.reference.below(sum.maximum)) > 0.5 * terms.total;
}

// Makes the largest class the pivot, and sums the row anew without it and relative to it.
template <Dense kDense, class Source, class T = typename Source::T>
Pivot<T> largest_as_pivot(RowSum<T>& sum, Source& source, const DenseTargets<T>& targets, Index classes) {
  Pivot<T> pivot;
  while (++pivot.index + 1 < classes && source.logit(pivot.index) != sum.maximum) {
  }
  pivot.logit = source.value(pivot.index);
  if constexpr (kDense != Dense::kNone) pivot.dense = dense_target_scalar<T, kDense>(targets, pivot.index);
  sum.reference = Reference<T>::near(sum.maximum);
  sum.origin = sum.maximum;
  NoWriter nothing;
  LabelSum unused;
  const double target_sum = sum.target_sum;
  sum_terms<kDense, false>(sum, unused, source, targets, classes, pivot.index, static_cast<T*>(nullptr), nothing);
  sum.target_sum = target_sum;
  return pivot;
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
