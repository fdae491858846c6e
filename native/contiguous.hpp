// The loop for rows whose classes lie side by side.
//
// A row is read once. Its terms e_j = exp(z_j - r) are summed and, where a gradient is wanted, kept in a scratch row;
// while the next row is read, the scratch is scaled and written out, so that arithmetic hides behind the stores.
// The reference r is near the maximum of the first few classes and the label. A row that exceeds it by too much is
// begun again with its true maximum.
#pragma once

#include "exp.hpp"
#include "row.hpp"
#include "rows.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

// What the targets t_j look like besides the spike at the label.
enum class Dense {
  kNone,
  kShared,    // one vector for all rows: label smoothing
  kRow,       // the row's own distribution
  kAffineRow  // the same, scaled and shifted by class
};

constexpr bool per_row(Dense dense) { return dense == Dense::kRow || dense == Dense::kAffineRow; }

constexpr int kVectorsPerGroup = 4;  // as many accumulators: enough to hide the latency of an addition
constexpr int kGroupsPerBlock = 16;  // additions into one accumulator before it is folded into doubles: the most that
                                     // rounding may cost is then 16 units, and about 4 in practice
template <class T>
constexpr Index kGroup = kVectorsPerGroup * kLanes<T>;

// One row's inputs; the same pointers, moved, are those of a group in it.
template <class T>
struct RowInput {
  const T* logits;
  const T* dense;
  const T* scale;
  const T* shift;

  RowInput at(Index j) const {
    return {logits + j, dense ? dense + j : nullptr, scale ? scale + j : nullptr, shift ? shift + j : nullptr};
  }
};

template <class T, Dense kDense>
ALWAYS_INLINE Vec<T> dense_target(const RowInput<T>& in, Index j) {
  if constexpr (kDense == Dense::kAffineRow)
    return fused_multiply_add(load(in.dense + j), load(in.scale + j), load(in.shift + j));
  return load(in.dense + j);
}

template <class T, Dense kDense>
ALWAYS_INLINE T dense_target_scalar(const RowInput<T>& in, Index j) {
  if constexpr (kDense == Dense::kAffineRow) return fused_multiply_add(in.dense[j], in.scale[j], in.shift[j]);
  return in.dense[j];
}

// A sum of vectors in more digits than T has: doubles for float, a compensated pair for double (Knuth's two-sum).
template <class T>
class WideSum;

template <>
class WideSum<float> {
 public:
  ALWAYS_INLINE void add(Vec<float> v) { total_ += __builtin_convertvector(v, Wide<float>); }
  double value() const {
    double lanes[kLanes<float>];
    std::memcpy(lanes, &total_, sizeof lanes);
    for (int half = kLanes<float> / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
  }

 private:
  Wide<float> total_{};
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
struct Block {
  Vec<T> sum[kVectorsPerGroup] = {};
  Vec<T> maximum[2] = {splat(-std::numeric_limits<T>::infinity()), splat(-std::numeric_limits<T>::infinity())};
  Vec<T> target_dot[2] = {};
  Vec<T> target_sum[2] = {};
  Vec<T> label_sum[2] = {};                                         // of a distribution as it was given
  Vec<T> minus_least = splat(-std::numeric_limits<T>::infinity());  // likewise
};

template <class T, Dense kDense, bool kStore>
ALWAYS_INLINE void add_group(Block<T>& block, const RowInput<T>& in, const ReferenceVectors<T>& reference,
                             Vec<T> origin, T* scratch) {
#pragma GCC unroll 4
  for (int u = 0; u < kVectorsPerGroup; ++u) {
    const Index j = u * kLanes<T>;
    const Vec<T> z = load(in.logits + j);
    block.maximum[u % 2] = keep_nan_max(block.maximum[u % 2], z);
    const Vec<T> e = scaled_exp<T>(z, reference);
    block.sum[u] += e;
    if constexpr (kStore) store(scratch + j, e);
    if constexpr (kDense != Dense::kNone) {
      const Vec<T> target = dense_target<T, kDense>(in, j);
      block.target_dot[u % 2] += target == T{0} ? Vec<T>{} : target * (z - origin);  // 0 * -inf counts as 0
      if constexpr (kDense == Dense::kAffineRow) block.target_sum[u % 2] += target;
      if constexpr (per_row(kDense)) {
        const Vec<T> q = load(in.dense + j);
        block.label_sum[u % 2] += q;
        block.minus_least = keep_nan_max(block.minus_least, -q);
      }
    }
  }
}

// Asks for the group of logits so many bytes on, the next row's too: the hardware's own prefetch stops at each page,
// and the stores of a gradient then wait (measured: 20 to 30% of the time of loss and gradient out of cache).
constexpr int kPrefetchBytes = 4096;

template <class T>
ALWAYS_INLINE void prefetch_group(const T* logits) {
  const char* ahead = reinterpret_cast<const char*>(logits) + kPrefetchBytes;
  for (int byte = 0; byte < kVectorsPerGroup * kVectorBytes; byte += 64) __builtin_prefetch(ahead + byte);
}

// A group that is short, or holds the pivot: a copy with -inf for what must not count.
template <class T>
struct PatchedGroup {
  T logits[kGroup<T>], dense[kGroup<T>], scale[kGroup<T>], shift[kGroup<T>];

  RowInput<T> fill(const RowInput<T>& in, Index size, Index pivot) {
    copy(logits, in.logits, size, pivot, -std::numeric_limits<T>::infinity());
    copy(dense, in.dense, size, pivot, T{0});
    copy(scale, in.scale, size, pivot, T{0});
    copy(shift, in.shift, size, pivot, T{0});
    return {logits, in.dense ? dense : nullptr, in.scale ? scale : nullptr, in.shift ? shift : nullptr};
  }

 private:
  static void copy(T* to, const T* from, Index size, Index pivot, T nothing) {
    if (!from) return;
    if (size == kGroup<T>)
      std::memcpy(to, from, sizeof(T) * kGroup<T>);
    else
      for (Index j = 0; j < kGroup<T>; ++j) to[j] = j < size ? from[j] : nothing;
    if (pivot >= 0 && pivot < size) to[pivot] = nothing;
  }
};

// The row before the last, on its way from its scratch to the gradient: a * e_j - b * t_j.
template <class T, Dense kDense, bool kStream>
class Writer {
 public:
  Writer() = default;
  Writer(T* out, Index classes, const T* scratch, const RowInput<T>& in, T a, T b)
      : out_(out), scratch_(scratch), in_(in), classes_(classes), a_(a), minus_b_(-b) {
    if constexpr (kStream) {
      // Only whole cache lines may go past the cache: a partial one costs a read.
      while (next_ < classes_ && reinterpret_cast<std::uintptr_t>(out_ + next_) % 64 != 0) write_scalar();
    }
  }

  // The entry at the pivot, known more exactly, takes the place of what the loop computes.
  void replace(Index j, T value) {
    replaced_ = j;
    replacement_ = value;
  }

  ALWAYS_INLINE void step() {
    if (next_ + kGroup<T> > classes_) return;
#pragma GCC unroll 4
    for (int u = 0; u < kVectorsPerGroup; ++u) write_vector<kStream>();
  }

  void finish() {
    while (next_ + kGroup<T> <= classes_) step();
    while (next_ + kLanes<T> <= classes_) write_vector<false>();
    while (next_ < classes_) write_scalar();
    if (replaced_ >= 0) write_replacement();
    replaced_ = -1;
  }

 private:
  ALWAYS_INLINE Vec<T> value_at(Index j) const {
    const Vec<T> e = load(scratch_ + j);
    if constexpr (kDense == Dense::kNone) return e * a_;
    return fused_multiply_add(e, splat(a_), dense_target<T, kDense>(in_, j) * minus_b_);
  }

  template <bool kPastCache>
  ALWAYS_INLINE void write_vector() {
    if constexpr (kPastCache)
      stream(out_ + next_, value_at(next_));
    else
      store(out_ + next_, value_at(next_));
    next_ += kLanes<T>;
  }

  void write_replacement() {
    constexpr Index kLine = 64 / sizeof(T);
    const Index line =
        replaced_ - static_cast<Index>(reinterpret_cast<std::uintptr_t>(out_ + replaced_) % 64 / sizeof(T));
    if (!kStream || line < 0 || line + kLine > classes_) {
      out_[replaced_] = replacement_;
      return;
    }
    // The line is past the cache already: to write all of it again is cheaper than to fetch it for one entry.
    T values[kLine];
    for (Index j = 0; j < kLine; j += kLanes<T>) store(values + j, value_at(line + j));
    values[replaced_ - line] = replacement_;
    for (Index j = 0; j < kLine; j += kLanes<T>) stream(out_ + line + j, load(values + j));
  }

  ALWAYS_INLINE void write_scalar() {
    if constexpr (kDense == Dense::kNone)
      out_[next_] = scratch_[next_] * a_;
    else
      out_[next_] = fused_multiply_add(scratch_[next_], a_, dense_target_scalar<T, kDense>(in_, next_) * minus_b_);
    ++next_;
  }

  T* out_ = nullptr;
  const T* scratch_ = nullptr;
  RowInput<T> in_{};
  Index classes_ = 0, next_ = 0, replaced_ = -1;
  T a_ = T{0}, minus_b_ = T{0}, replacement_ = T{0};
};

struct NoWriter {
  void step() {}
  void finish() {}
};

// A copy of a writer, given back at the end: a local that no store can alias, so that it stays in registers.
template <class W>
struct Borrowed {
  W& lender;
  W own = lender;
  ~Borrowed() { lender = own; }
};

template <class T>
inline T row_maximum(const T* z, Index classes) {
  T result = -std::numeric_limits<T>::infinity();
  Index j = 0;
  if (classes >= kGroup<T>) {
    Vec<T> m[kVectorsPerGroup];
    for (auto& v : m) v = splat(result);
    for (; j + kGroup<T> <= classes; j += kGroup<T>)
      for (int u = 0; u < kVectorsPerGroup; ++u) m[u] = keep_nan_max(load(z + j + u * kLanes<T>), m[u]);
    result = max_lane<T>(keep_nan_max(keep_nan_max(m[0], m[1]), keep_nan_max(m[2], m[3])));
  }
  for (; j < classes; ++j) result = z[j] > result ? z[j] : result;
  return result;
}

// What a per-row distribution adds up to, for its check.
struct LabelSum {
  double sum = 1.0;
  double least = 0.0;
};

// Sums a row relative to out.reference and out.origin. False if a class exceeds the reference by more than the slack.
template <class T, Dense kDense, bool kStore, class W>
bool sum_terms(RowSum<T>& out, LabelSum& labels, const RowInput<T>& in, Index classes, Index pivot, T* scratch,
               W& lent_writer) {
  Borrowed<W> borrowed{lent_writer};
  W& writer = borrowed.own;
  const ReferenceVectors<T> reference(out.reference);
  const Vec<T> origin = splat(out.origin);
  WideSum<T> sum, target_dot, target_sum, label_sum;
  T minus_least = -std::numeric_limits<T>::infinity();
  PatchedGroup<T> patched;

  for (Index begin = 0; begin < classes; begin += kGroupsPerBlock * kGroup<T>) {
    const Index end = begin + kGroupsPerBlock * kGroup<T> < classes ? begin + kGroupsPerBlock * kGroup<T> : classes;
    Block<T> block;
    Index j = begin;
    const auto whole_groups = [&](Index until) {
      for (; j + kGroup<T> <= until; j += kGroup<T>) {
        prefetch_group(in.logits + j);
        add_group<T, kDense, kStore>(block, in.at(j), reference, origin, scratch + j);
        writer.step();
      }
    };
    const auto patched_group = [&] {
      const Index size = end - j < kGroup<T> ? end - j : kGroup<T>;
      add_group<T, kDense, kStore>(block, patched.fill(in.at(j), size, pivot - j), reference, origin, scratch + j);
      writer.step();
      j += kGroup<T>;
    };
    if (pivot >= begin && pivot < end) {
      whole_groups(begin + (pivot - begin) / kGroup<T> * kGroup<T>);
      patched_group();
    }
    whole_groups(end);
    if (j < end) patched_group();

    const T maximum = max_lane<T>(keep_nan_max(block.maximum[0], block.maximum[1]));
    if (out.reference.below(maximum) > kReferenceSlack) return false;
    out.maximum = maximum > out.maximum ? maximum : out.maximum;
    sum.add((block.sum[0] + block.sum[1]) + (block.sum[2] + block.sum[3]));
    if constexpr (kDense != Dense::kNone) target_dot.add(block.target_dot[0] + block.target_dot[1]);
    if constexpr (kDense == Dense::kAffineRow) target_sum.add(block.target_sum[0] + block.target_sum[1]);
    if constexpr (per_row(kDense)) {
      label_sum.add(block.label_sum[0] + block.label_sum[1]);
      const T least = max_lane<T>(block.minus_least);
      minus_least = least > minus_least ? least : minus_least;
    }
  }
  out.rest = sum.value() / kExpScale<T>;
  out.target_dot = target_dot.value();
  if constexpr (per_row(kDense)) {
    labels.sum = label_sum.value();
    labels.least = -static_cast<double>(minus_least);
    out.target_sum = kDense == Dense::kAffineRow ? target_sum.value() : labels.sum;
  }
  return true;
}

template <class T, Dense kDense, bool kStore, class W>
RowSum<T> sum_row(LabelSum& labels, const RowInput<T>& in, Index classes, Index pivot, T* scratch, W& writer) {
  const T at_pivot = pivot >= 0 ? in.logits[pivot] : -std::numeric_limits<T>::infinity();
  const auto start_from = [&](T maximum) {
    RowSum<T> start;
    start.reference = Reference<T>::near(maximum > at_pivot ? maximum : at_pivot);
    start.origin = start.reference.origin != T{0} ? start.reference.origin : maximum > at_pivot ? maximum : at_pivot;
    start.maximum = at_pivot;
    return start;
  };
  RowSum<T> out = start_from(row_maximum(in.logits, classes < kGroup<T> ? classes : kGroup<T>));
  if (!sum_terms<T, kDense, kStore>(out, labels, in, classes, pivot, scratch, writer)) {
    out = start_from(row_maximum(in.logits, classes));
    sum_terms<T, kDense, kStore>(out, labels, in, classes, pivot, scratch, writer);
  }
  return out;
}

// Tells whether one class other than the row's pivot, if it has one, holds most of the total.
template <class T>
bool has_dominant_class(const RowSum<T>& sum, const RowTerms& terms, const Pivot& pivot) {
  return sum.maximum > pivot.logit && std::exp(sum.reference.below(sum.maximum)) > 0.5 * terms.total;
}

// Makes the largest class the pivot, and sums the row anew without it and relative to it.
template <class T, Dense kDense>
Pivot largest_as_pivot(RowSum<T>& sum, const RowInput<T>& in, Index classes) {
  Pivot pivot;
  while (!(in.logits[++pivot.index] == sum.maximum)) {
  }
  pivot.logit = sum.maximum;
  if constexpr (kDense != Dense::kNone) pivot.dense = dense_target_scalar<T, kDense>(in, pivot.index);
  sum.reference = Reference<T>::near(sum.maximum);
  sum.origin = sum.maximum;
  NoWriter nothing;
  LabelSum unused;
  const double target_sum = sum.target_sum;
  sum_terms<T, kDense, false>(sum, unused, in, classes, pivot.index, static_cast<T*>(nullptr), nothing);
  sum.target_sum = target_sum;
  return pivot;
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
