// How a row's gradient leaves its scratch: a * e_j - b * t_j, times dv/dz.
#pragma once

#include <type_traits>
#include <utility>

#include "dense_targets.hpp"
#include "lines.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

struct NoWriter {
  struct Loop {
    explicit Loop(NoWriter&) {}
    void step() {}
  };
  void finish() {}
};

// One row's gradient: where it goes and what it is made of.
template <class T>
struct RowGradient {
  char* out = nullptr;
  Index classes = 0;
  const T* terms = nullptr;  // e_j, padded to whole groups
  DenseTargets<T> targets{};
  T a = T{0};
  T b = T{0};
  Index replaced = -1;  // the entry known more exactly, which takes the place of what is computed here
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

// Two rows of terms, each from the start of a cache line on: one is filled while the other is written out.
template <class T>
class TermsInTurn {
 public:
  TermsInTurn(T* memory, Index classes) : filled_(memory), other_(memory + scratch_row_length(classes)) {}
  T* get() const { return filled_; }
  void keep() { std::swap(filled_, other_); }

 private:
  T *filled_, *other_;
};

// A field of an object, loaded by itself: a compiler would load several as one vector, which has to wait until those
// just stored have reached the cache, behind all stores before them.
template <class V>
ALWAYS_INLINE V by_itself(const V& field) {
  V value = field;
#if defined(__aarch64__)
  if constexpr (std::is_floating_point_v<V>)
    asm("" : "+w"(value));
  else
    asm("" : "+r"(value));
#elif defined(__x86_64__)
  if constexpr (std::is_floating_point_v<V>)
    asm("" : "+x"(value));
  else
    asm("" : "+r"(value));
#endif
  return value;
}

// Writes a row a group at a time, while the next one is read: the gradient of a DirectSource.
template <class T, Storage kStorage, Dense kDense, bool kStream>
class PipelinedWriter {
  static constexpr Index kSize = size_of(kStorage);
  static constexpr Index kLine = kLineBytes / kSize;
  static_assert(!kStream || kStorage == kStorageOf<T>);

 public:
  // `reading` is where the numbers begin that are read meanwhile.
  void begin(const RowGradient<T>& row, SharedLine<T>& shared, const char* reading) {
    row_ = loaded(row);
    shared_ = &shared;
    next_ = 0;
    wait_ = kStream ? groups_to_wait(row.out, reading) : 0;
    if (row.classes < kLine) return;
    const auto past = static_cast<Index>(reinterpret_cast<std::uintptr_t>(row.out) % kLineBytes) / kSize;
    if constexpr (kStream) {
      if (past == 0) return;
      next_ = kLine - past;
      T* const to = shared.complete(row.out);
      for (Index j = 0; j < next_; j += kLanes<T>) store(to + j, gradient_vector<kDense>(row, j));
      if (row.replaced >= 0 && row.replaced < next_) to[row.replaced] = row.replacement;
    } else {
      // Stores that cross cache lines take twice as long: a few twice, and then the others from a line's start on.
      next_ = kLine - past;
      for (Index j = 0; j < kLine; j += kLanes<T>)
        store_as<T, kStorage>(row.out + j * kSize, gradient_vector<kDense>(row, j));
    }
  }

  // What a loop needs of the writer, as locals, which no store can alias: they stay in registers.
  class Loop {
   public:
    explicit Loop(PipelinedWriter& writer)
        : writer_(writer), row_(loaded(writer.row_)), next_(by_itself(writer.next_)), wait_(by_itself(writer.wait_)) {}
    ~Loop() { writer_.next_ = next_; }

    ALWAYS_INLINE void step() {
      if (next_ + kGroup<T> > row_.classes || wait_-- > 0) return;
#pragma GCC unroll 4
      for (int vector = 0; vector < kVectorsPerGroup; vector += 2) write_pair();
    }

    ALWAYS_INLINE void write_pair() {
      if constexpr (kStream) {
        write_vector();
        write_vector();
      } else {
        const Vec<T> first = vector(), second = vector();
        store_pair_as<T, kStorage>(row_.out + (next_ - 2 * kLanes<T>)*kSize, first, second);
      }
    }

    ALWAYS_INLINE void write_vector() {
      const Vec<T> value = vector();
      stream(reinterpret_cast<T*>(row_.out) + (next_ - kLanes<T>), value);
    }

    bool has(Index count) const { return next_ + count <= row_.classes; }

   private:
    ALWAYS_INLINE Vec<T> vector() {
      next_ += kLanes<T>;
      return gradient_vector<kDense>(row_, next_ - kLanes<T>);
    }

    PipelinedWriter& writer_;
    const RowGradient<T> row_;
    Index next_, wait_;
  };

  void finish() {
    {
      wait_ = 0;
      Loop loop(*this);
      while (loop.has(kGroup<T>)) loop.step();
      if constexpr (kStream)
        while (loop.has(kLine))
          for (Index j = 0; j < kLine; j += kLanes<T>) loop.write_vector();
    }
    if constexpr (kStream) {
      if (shared_) shared_->write();
      if (next_ < row_.classes) hold_rest();
      if (row_.replaced >= 0) write_replaced();
    } else {
      write_rest();
      if (row_.replaced >= 0) write_run(kStorage, at(row_.replaced), 1, &row_.replacement);
    }
    row_ = {};
    next_ = 0;
  }

 private:
  static ALWAYS_INLINE RowGradient<T> loaded(const RowGradient<T>& row) {
    RowGradient<T> result{by_itself(row.out), by_itself(row.classes), by_itself(row.terms), {}, by_itself(row.a), T{0}};
    if constexpr (kDense != Dense::kNone) {
      result.targets = {by_itself(row.targets.dense), by_itself(row.targets.scale), by_itself(row.targets.shift)};
      result.b = by_itself(row.b);
    }
    result.replaced = by_itself(row.replaced);
    result.replacement = by_itself(row.replacement);
    return result;
  }

  // A load waits for the stores before it that are on their way to an address which differs by a multiple of 4096, as
  // far as a processor can tell. Where writing is just so far ahead of reading, it is held back by some groups.
  static Index groups_to_wait(const char* writing, const char* reading) {
    constexpr std::uintptr_t kPage = 4096, kOnTheirWay = 512, kLoad = 64;
    const std::uintptr_t ahead =
        (reinterpret_cast<std::uintptr_t>(writing) - reinterpret_cast<std::uintptr_t>(reading)) % kPage;
    return ahead == 0 || ahead > kOnTheirWay ? 0 : static_cast<Index>((ahead + kLoad) / (kGroup<T> * kSize) + 1);
  }

  char* at(Index j) const { return row_.out + j * kSize; }

  // What is less than a line, up to the row's last class and not beyond; values before it may be written again.
  void hold_rest() {
    const Index count = row_.classes - next_;
    T* const end = shared_->begin(at(next_), count) + count;
    for (Index back = kLine; back > 0; back -= kLanes<T>)
      store(end - back, gradient_vector<kDense>(row_, row_.classes - back));
    if (row_.replaced >= next_) end[row_.replaced - row_.classes] = row_.replacement;
  }

  // A line with the replaced entry, which is past the cache already: to write all of it again is cheaper than to fetch
  // it for that one.
  void write_replaced() {
    const Index j = row_.replaced;
    const Index line = j - static_cast<Index>(reinterpret_cast<std::uintptr_t>(at(j)) % kLineBytes) / kSize;
    if (line < 0 || j >= next_) return;  // in a shared line
    alignas(kLineBytes) T values[kLine];
    for (Index i = 0; i < kLine; i += kLanes<T>) store(values + i, gradient_vector<kDense>(row_, line + i));
    values[j - line] = row_.replacement;
    for (Index i = 0; i < kLine; i += kLanes<T>) stream(reinterpret_cast<T*>(at(line)) + i, load(values + i));
  }

  void write_rest() {
    const auto write_vector = [&](Index j) { store_as<T, kStorage>(at(j), gradient_vector<kDense>(row_, j)); };
    for (; next_ + kLanes<T> <= row_.classes; next_ += kLanes<T>) write_vector(next_);
    if (next_ == row_.classes) return;
    if (row_.classes >= kLanes<T>) return write_vector(row_.classes - kLanes<T>);
    for (; next_ < row_.classes; ++next_) {
      const T value = gradient_scalar<kDense>(row_, next_);
      write_run(kStorage, at(next_), 1, &value);
    }
  }

  RowGradient<T> row_;
  Index next_ = 0, wait_ = 0;
  SharedLine<T>* shared_ = nullptr;
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

// Makes the terms of a row of a PreparedSource its gradient.
template <Dense kDense, class T>
void finish_prepared(const RowGradient<T>& row, T* terms, const T* slopes) {
  Index j = 0;
  for (; j + kLanes<T> <= row.classes; j += kLanes<T>)
    store(terms + j, gradient_vector<kDense>(row, j) * load(slopes + j));
  for (; j < row.classes; ++j) terms[j] = gradient_scalar<kDense>(row, j) * slopes[j];
  if (row.replaced >= 0) terms[row.replaced] = row.replacement;
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
template <class T, Dense kDense>
struct WriterOf<PreparedSource<T>, kDense, true, true> {
  using type = PipelinedWriter<T, kStorageOf<T>, Dense::kNone, true>;  // of what finish_prepared makes
};

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
