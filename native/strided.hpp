// Rows that lie side by side, as in (N, C, H, W): between memory and a tile, one class after another.
#pragma once

#include "sources.hpp"
#include "storage.hpp"
#include "tile.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

// The runs of rows that are evenly spaced in memory: the innermost leading axes, as far as memory lets them be one.
template <class Byte>
class Runs {
 public:
  explicit Runs(const RowsOf<Byte>& rows) : rows_(rows), outer_axes_(rows.dimensions) {
    while (outer_axes_ > 0) {
      const int axis = outer_axes_ - 1;
      const bool joins = length_ == 1 || rows.strides[axis] == length_ * stride_ || rows.shape[axis] == 1;
      if (!joins) break;
      if (length_ == 1) stride_ = rows.strides[axis];
      length_ *= rows.shape[axis];
      --outer_axes_;
    }
  }

  const RowsOf<Byte>& rows() const { return rows_; }
  Index stride() const { return stride_; }  // bytes from a row to the next of its run
  bool are_one() const { return outer_axes_ == 0; }
  Index left(Index row) const { return length_ - row % length_; }  // how many follow in its run, itself included

  Byte* start_of(Index row) const {
    Byte* start = rows_.data + row % length_ * stride_;
    Index run = row / length_;
    for (int axis = outer_axes_ - 1; axis >= 0; --axis) {
      start += run % rows_.shape[axis] * rows_.strides[axis];
      run /= rows_.shape[axis];
    }
    return start;
  }

  // Calls f(where row `row + done` is, done, how many rows follow it in its run, itself included) for each run.
  template <class F>
  void for_each(Index row, Index count, const F& f) const {
    for (Index done = 0; done < count;) {
      const Index size = std::min(left(row + done), count - done);
      f(start_of(row + done), done, size);
      done += size;
    }
  }

 private:
  const RowsOf<Byte>& rows_;
  int outer_axes_;
  Index length_ = 1, stride_ = 0;
};

// Whole vectors of rows, which TileLoss takes from memory a few classes at a time.
template <class T>
class SideBySide {
 public:
  // Some rows of one run; after them `next` will be read.
  SideBySide(const ConstRows& rows, const char* from, Index classes, Index count, const char* next)
      : logits_(reinterpret_cast<const T*>(from)),
        next_(reinterpret_cast<const T*>(next)),
        step_(rows.class_stride / static_cast<Index>(sizeof(T))),
        classes_(classes),
        count_(count) {}

  T guess() const { return maximum_of(logits_, count_); }

  // Calls f(first class, row, logits of some classes) for all of them, a class's before the next one's.
  template <class F>
  ALWAYS_INLINE void for_each_piece(const F& f) const {
    Index j = 0;
    for (; j + kClassesAtOnce <= classes_; j += kClassesAtOnce) pieces<kClassesAtOnce>(j, f);
    for (; j < classes_; ++j) pieces<1>(j, f);
  }

 private:
  template <int kClasses, class F>
  ALWAYS_INLINE void pieces(Index j, const F& f) const {
    const T *from[kClasses], *ahead[kClasses];
    for (int u = 0; u < kClasses; ++u) {
      const Index k = j + u + kClassesAtOnce;
      from[u] = logits_ + (j + u) * step_;
      ahead[u] = k < classes_ ? logits_ + k * step_ : next_ + (k - classes_) * step_;
    }
    for (Index i = 0; i < count_; i += kLanes<T>) {
      Vec<T> z[kClasses];
#pragma GCC unroll 4
      for (int u = 0; u < kClasses; ++u) {
        __builtin_prefetch(ahead[u] + i);
        z[u] = load(from[u] + i);
      }
      f.template operator()<kClasses>(j, i, z);
    }
  }

  const T* const logits_;
  const T* const next_;
  const Index step_, classes_, count_;
};

// Raises maxima to values.
template <class T>
void raise(T* maximum, const T* values, Index count) {
  Index i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) store(maximum + i, keep_nan_max(load(maximum + i), load(values + i)));
  for (; i < count; ++i) maximum[i] = maximum[i] > values[i] ? maximum[i] : values[i];
}

// Some classes of a run of rows, on their way from memory into the tile.
template <class T>
struct ClassRun {
  const char* from;
  Index class_stride;  // bytes
  Index ahead;         // bytes from here to what is packed next: asked for now
  T* to;
  Index stride;
  T* maximum;
  Index count;
};

template <int kClasses, class T>
ALWAYS_INLINE void pack_vector(const ClassRun<T>& run, Index i) {
  Vec<T> largest = load(run.maximum + i);
#pragma GCC unroll 4
  for (int u = 0; u < kClasses; ++u) {
    const Vec<T> z = load(reinterpret_cast<const T*>(run.from + u * run.class_stride) + i);
    store(run.to + u * run.stride + i, z);
    largest = keep_nan_max(largest, z);
  }
  store(run.maximum + i, largest);
}

// (By value: what is stored could be a part of a `run` elsewhere, which would be read again for each vector.)
template <int kClasses, class T>
void pack_classes(ClassRun<T> run) {
  constexpr Index kLine = 64 / sizeof(T);
  Index i = 0;
  for (; i + kLine <= run.count; i += kLine) {
#pragma GCC unroll 4
    for (int u = 0; u < kClasses; ++u)
      __builtin_prefetch(reinterpret_cast<const T*>(run.from + run.ahead + u * run.class_stride) + i);
#pragma GCC unroll 4
    for (int k = 0; k < kLine; k += kLanes<T>) pack_vector<kClasses>(run, i + k);
  }
  for (; i + kLanes<T> <= run.count; i += kLanes<T>) pack_vector<kClasses>(run, i);
  if (i == run.count) return;
  if (run.count >= kLanes<T>) return pack_vector<kClasses>(run, run.count - kLanes<T>);
  for (i = 0; i < run.count; ++i) {
    for (int u = 0; u < kClasses; ++u) {
      const T z = reinterpret_cast<const T*>(run.from + u * run.class_stride)[i];
      run.to[u * run.stride + i] = z;
      run.maximum[i] = run.maximum[i] > z ? run.maximum[i] : z;
    }
  }
}

// Puts a run of rows into the tile from row `at` on.
template <class T>
void pack_side_by_side(Tile<T>& tile, const ConstRows& rows, const char* from, Index row_stride, Index at,
                       Index count) {
  T* const maximum = tile.maximum + at;
  std::fill_n(maximum, count, -std::numeric_limits<T>::infinity());
  const bool direct = rows.storage == kStorageOf<T> && row_stride == sizeof(T);
  const Index size = count * static_cast<Index>(sizeof(T));
  for (Index j = 0; j < tile.classes;) {
    const int classes = direct && j + kClassesAtOnce <= tile.classes ? kClassesAtOnce : 1;
    const char* const start = from + j * rows.class_stride;
    // Next are the classes after these, or the first classes of the next tile.
    const Index ahead = j + 2 * classes <= tile.classes ? classes * rows.class_stride : size - j * rows.class_stride;
    T* const to = tile.of_class(j) + at;
    if (!direct) read_run(rows.storage, start, row_stride, count, to);
    if (classes == kClassesAtOnce)
      pack_classes<kClassesAtOnce>(ClassRun<T>{start, rows.class_stride, ahead, to, tile.stride, maximum, count});
    else if (direct)
      pack_classes<1>(ClassRun<T>{start, rows.class_stride, ahead, to, tile.stride, maximum, count});
    else
      raise(maximum, to, count);
    j += classes;
  }
}

// Writes a class of a run of rows; whole cache lines go past the cache if asked.
template <class T, class Gradient>
void write_class(const Gradient& gradient, T* out, Index count, bool past_cache) {
  constexpr Index kLine = 64 / sizeof(T);
  Index i = 0;
  if (past_cache) {
    const auto past = static_cast<Index>(reinterpret_cast<std::uintptr_t>(out) % 64 / sizeof(T));
    for (const Index head = std::min(past == 0 ? 0 : kLine - past, count); i < head; ++i) out[i] = gradient.scalar(i);
    for (; i + kLine <= count; i += kLine) {
#pragma GCC unroll 4
      for (int u = 0; u < kLine; u += kLanes<T>) stream(out + i + u, gradient.vector(i + u));
    }
  }
  for (; i + kLanes<T> <= count; i += kLanes<T>) store(out + i, gradient.vector(i));
  for (; i < count; ++i) out[i] = gradient.scalar(i);
}

// Takes a run of rows, from row `at` of the tile on, to where their gradient belongs. One class after another: several
// streams of writes past the cache at once would be slow.
template <class T, TileKind kKind>
void unpack_side_by_side(const Tile<T>& tile, const Rows& rows, char* to, Index row_stride, Index at, Index count,
                         bool past_cache) {
  // Short pieces that share their first and last lines with others are not worth it.
  constexpr Index kLongEnough = 1024;
  past_cache &= rows.class_stride % 64 == 0 || count * static_cast<Index>(sizeof(T)) >= kLongEnough;
  for (Index j = 0; j < tile.classes; ++j) {
    const ClassGradient<T, kKind> gradient(tile, j, at);
    char* const out = to + j * rows.class_stride;
    if (rows.storage == kStorageOf<T> && row_stride == sizeof(T)) {
      const bool aligned = reinterpret_cast<std::uintptr_t>(out) % sizeof(T) == 0;
      write_class(gradient, reinterpret_cast<T*>(out), count, past_cache && aligned);
    } else {
      alignas(64) T values[kMostTileRows];
      write_class<T>(gradient, values, count, false);
      write_run(rows.storage, out, row_stride, count, values);
    }
  }
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
