// How a row's gradient leaves its scratch: a * e_j - b * t_j, times dv/dz.
#pragma once

#include <utility>

#include "dense_targets.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

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

// One row's gradient: where it goes and what it is made of.
template <class T>
struct RowGradient {
  char* out;
  Index classes;
  const T* terms;  // e_j, padded to whole groups
  DenseTargets<T> targets;
  T a;
  T b;
  Index replaced = -1;  // the entry known more exactly, which takes the place of what the loop computes
  T replacement = T{0};
};

template <Dense kDense, class T>
ALWAYS_INLINE Vec<T> gradient_vector(const RowGradient<T>& row, Index j) {
  const Vec<T> e = load(row.terms + j);
  if constexpr (kDense == Dense::kNone) return e * row.a;
  return fused_multiply_add(e, splat(row.a), dense_target<T, kDense>(row.targets, j) * -row.b);
}

template <Dense kDense, class T>
ALWAYS_INLINE T gradient_scalar(const RowGradient<T>& row, Index j) {
  if constexpr (kDense == Dense::kNone) return row.terms[j] * row.a;
  return fused_multiply_add(row.terms[j], row.a, dense_target_scalar<T, kDense>(row.targets, j) * -row.b);
}

// Writes a row a group at a time, while the next one is read: the gradient of a DirectSource.
template <class T, Storage kStorage, Dense kDense, bool kStream>
class PipelinedWriter {
 public:
  PipelinedWriter() = default;
  explicit PipelinedWriter(const RowGradient<T>& row) : row_(row) {
    if constexpr (kStream) {
      // Only whole cache lines may go past the cache: a partial one, as this row shares with the next, costs a read.
      // Asked for now, it will be there when all the stores before have gone out in their order.
      __builtin_prefetch(row.out + row.classes * kSize - 1, 1);
      const auto past = static_cast<Index>(reinterpret_cast<std::uintptr_t>(row.out) % kLineBytes / kSize);
      if (past != 0) write_few(std::min(kLine - past, row.classes));
    }
  }

  ALWAYS_INLINE void step() {
    if (next_ + kGroup<T> > row_.classes) return;
#pragma GCC unroll 2
    for (int pair = 0; pair < kVectorsPerGroup / 2; ++pair) write_pair();
  }

  void finish() {
    while (next_ + kGroup<T> <= row_.classes) step();
    if constexpr (kStream)
      while (next_ + kLine <= row_.classes)
        for (int u = 0; u < kLine; u += kLanes<T>) write_vector<true>();
    write_few(row_.classes - next_);
    if (row_.replaced >= 0) write_replacement();
    row_ = {};
    next_ = 0;
  }

 private:
  static constexpr Index kSize = size_of(kStorage);
  static constexpr Index kLineBytes = 64;
  static constexpr Index kLine = kLineBytes / kSize;
  static_assert(!kStream || kStorage == kStorageOf<T>);

  char* at(Index j) const { return row_.out + j * kSize; }

  ALWAYS_INLINE void write_pair() {
    if constexpr (kStream) {
      write_vector<true>();
      write_vector<true>();
    } else {
      store_pair_as<T, kStorage>(at(next_), gradient_vector<kDense>(row_, next_),
                                 gradient_vector<kDense>(row_, next_ + kLanes<T>));
      next_ += 2 * kLanes<T>;
    }
  }

  template <bool kPastCache>
  ALWAYS_INLINE void write_vector() {
    const Vec<T> value = gradient_vector<kDense>(row_, next_);
    if constexpr (kPastCache)
      stream(reinterpret_cast<T*>(at(next_)), value);
    else
      store_as<T, kStorage>(at(next_), value);
    next_ += kLanes<T>;
  }

  void write_few(Index count) {
    for (; count >= kLanes<T>; count -= kLanes<T>) write_vector<false>();
    if (count == 0) return;
    if constexpr (kDense == Dense::kNone && kStorage == kStorageOf<T>) {
      store_first(reinterpret_cast<T*>(at(next_)), gradient_vector<kDense>(row_, next_), static_cast<int>(count));
      next_ += count;
    } else {
      for (; count > 0; --count, ++next_) {
        const T value = gradient_scalar<kDense>(row_, next_);
        write_run(kStorage, at(next_), 1, &value);
      }
    }
  }

  void write_replacement() {
    const Index j = row_.replaced;
    const Index line = j - static_cast<Index>(reinterpret_cast<std::uintptr_t>(at(j)) % kLineBytes / kSize);
    if (!kStream || line < 0 || line + kLine > row_.classes) {
      write_run(kStorage, at(j), 1, &row_.replacement);
      return;
    }
    if constexpr (kStream) {
      // The line is past the cache already: to write all of it again is cheaper than to fetch it for one entry.
      alignas(kLineBytes) T values[kLine];
      for (Index i = 0; i < kLine; i += kLanes<T>) store(values + i, gradient_vector<kDense>(row_, line + i));
      values[j - line] = row_.replacement;
      for (Index i = 0; i < kLine; i += kLanes<T>) stream(reinterpret_cast<T*>(at(line)) + i, load(values + i));
    }
  }

  RowGradient<T> row_{};
  Index next_ = 0;
};

// Writes value(j) for each class, a block at a time.
template <class T, class Value>
void write_blocks(Storage storage, char* out, Index classes, const Value& value) {
  alignas(kVectorBytes) T values[kBlock<T>];
  for (Index begin = 0; begin < classes; begin += kBlock<T>) {
    const Index count = std::min(kBlock<T>, classes - begin);
    for (Index i = 0; i < count; ++i) values[i] = value(begin + i);
    write_run(storage, out + begin * size_of(storage), count, values);
  }
}

template <class T>
void fill_row(Storage storage, char* out, Index classes, T value) {
  write_blocks<T>(storage, out, classes, [value](Index) { return value; });
}

// Writes a row of a PreparedSource, a block at a time, in the storage of its logits.
template <Dense kDense, class T>
void write_prepared(const RowGradient<T>& row, Storage storage, const T* slopes) {
  alignas(kVectorBytes) T values[kBlock<T>];
  for (Index begin = 0; begin < row.classes; begin += kBlock<T>) {
    const Index end = std::min(begin + kBlock<T>, row.classes);
    Index j = begin;
    for (; j + kLanes<T> <= end; j += kLanes<T>)
      store(values + (j - begin), gradient_vector<kDense>(row, j) * load(slopes + j));
    for (; j < end; ++j) values[j - begin] = gradient_scalar<kDense>(row, j) * slopes[j];
    if (row.replaced >= begin && row.replaced < end) values[row.replaced - begin] = row.replacement;
    write_run(storage, row.out + begin * size_of(storage), end - begin, values);
  }
}

// The writer that goes along while a source's rows are read.
template <class Source, Dense kDense, bool kWrites, bool kStream>
struct WriterOf {
  using type = NoWriter;
};
template <class T, Storage kStorage, Dense kDense, bool kStream>
struct WriterOf<DirectSource<T, kStorage>, kDense, true, kStream> {
  using type = PipelinedWriter<T, kStorage, kDense, kStream>;
};

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
