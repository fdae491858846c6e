// Where the loop over a row finds its logits: as they lie, or prepared a block at a time.
#pragma once

#include <algorithm>
#include <limits>

#include "exp.hpp"
#include "storage.hpp"
#include "transform.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

constexpr int kVectorsPerGroup = 4;  // as many accumulators: enough to hide the latency of an addition
constexpr int kGroupsPerBlock = 16;  // additions into one accumulator before it is folded into doubles: the most that
                                     // rounding may cost is then 16 units, and about 4 in practice
template <class T>
constexpr Index kGroup = kVectorsPerGroup * kLanes<T>;
template <class T>
constexpr Index kBlock = kGroupsPerBlock * kGroup<T>;

// Where what is read next is to be fetched.
enum class Into { kFirstLevel, kSecondLevel };

// Asks for a group of numbers so many bytes on, the next row's too: the hardware's own prefetch stops at each page, and
// the stores of a gradient then wait (measured: 20 to 30% of the time of loss and gradient out of cache).
ALWAYS_INLINE void prefetch_group(const char* group, Index bytes, Into level = Into::kFirstLevel) {
  constexpr Index kAhead = 4096, kFurther = 8192;
  if (level == Into::kFirstLevel)
    for (Index byte = 0; byte < bytes; byte += 64) __builtin_prefetch(group + kAhead + byte);
  else
    for (Index byte = 0; byte < bytes; byte += 64) __builtin_prefetch(group + kFurther + byte, 0, 2);
}

// Loops keep some rows in a cache until their gradient is written: their terms, and labels. Where these leave little
// of the first level, what is fetched into it would push them out (measured: a fifth of the time); but where the second
// level has no room either, it would do so there.
constexpr bool fill_first_level(Index bytes) { return bytes > 18 * 1024; }
constexpr Into prefetch_level(Index bytes) {
  return fill_first_level(bytes) && bytes <= 768 * 1024 ? Into::kSecondLevel : Into::kFirstLevel;
}

template <class T>
inline T maximum_of(const T* z, Index count) {
  T result = -std::numeric_limits<T>::infinity();
  Index j = 0;
  if (count >= kGroup<T>) {
    Vec<T> m[kVectorsPerGroup];
    for (auto& v : m) v = splat(result);
    for (; j + kGroup<T> <= count; j += kGroup<T>)
      for (int u = 0; u < kVectorsPerGroup; ++u) m[u] = keep_nan_max(load(z + j + u * kLanes<T>), m[u]);
    result = max_lane<T>(keep_nan_max(keep_nan_max(m[0], m[1]), keep_nan_max(m[2], m[3])));
  }
  for (; j < count; ++j) result = z[j] > result ? z[j] : result;
  return result;
}

template <class T>
struct Keys {
  const T* high;
  const T* low;
};

// Logits as they lie, adjacent.
template <class Computed, Storage kStorage>
class DirectSource {
 public:
  using T = Computed;
  static constexpr bool kPrepared = false;
  static constexpr Index kSize = size_of(kStorage);

  class Group {
   public:
    explicit Group(const char* first) : first_(first) {}
    ALWAYS_INLINE Vec<T> logits(Index j) const { return load_as<T, kStorage>(first_ + j * kSize); }
    ALWAYS_INLINE Vec<T> exponential(Index, Vec<T> z, const ReferenceVectors<T>& reference) const {
      return scaled_exp<T>(z, reference);
    }
    ALWAYS_INLINE Vec<T> above(Index, Vec<T> z, Vec<T> origin) const { return z - origin; }

   private:
    const char* first_;
  };

  // The last logits of a row, and -inf after them.
  class Rest {
   public:
    Rest(const char* first, Index count) : first_(reinterpret_cast<const T*>(first)), count_(count) {}
    ALWAYS_INLINE Vec<T> logits(Index j) const { return load_first(first_ + j, count_ - j); }
    ALWAYS_INLINE Vec<T> exponential(Index, Vec<T> z, const ReferenceVectors<T>& reference) const {
      return scaled_exp<T>(z, reference);
    }

   private:
    const T* first_;
    Index count_;
  };
  static constexpr bool kHasRest = kHasPartialLoads && kStorage == kStorageOf<T>;

  class Block {
   public:
    explicit Block(const char* row) : row_(row) {}
    // The logits from j on.
    ALWAYS_INLINE Group group(Index j) const { return Group(row_ + j * kSize); }
    // The same where there are so many, fewer than a group.
    ALWAYS_INLINE Rest rest(Index j, Index count) const { return Rest(row_ + j * kSize, count); }
    ALWAYS_INLINE void prefetch(Index j, Into level) const {
      prefetch_group(row_ + j * kSize, kGroup<T> * kSize, level);
    }

   private:
    const char* row_;
  };

  DirectSource(const Transform<T>&, Storage, T* /*slopes*/, T* /*curvatures*/) {}

  void open(const char* row, Index classes) {
    row_ = row;
    if (classes >= kGroup<T>) return;
    // Whole groups may be read: what is missing is -inf.
    T logits[kGroup<T>];
    read_run(kStorage, row, classes, logits);
    std::fill(logits + classes, logits + kGroup<T>, -std::numeric_limits<T>::infinity());
    write_run(kStorage, short_row_, kGroup<T>, logits);
    row_ = short_row_;
  }

  Block block(Index) const { return Block(row_); }
  // What the classes from `begin` on are ordered by: high, and among equal ones low, if there is one.
  Keys<T> keys(Index begin, Index) const { return {reinterpret_cast<const T*>(row_) + begin, nullptr}; }
  T logit(Index j) const {
    T z;
    if constexpr (kStorage == kStorageOf<T>)
      std::memcpy(&z, row_ + j * kSize, sizeof z);
    else
      read_run(kStorage, row_ + j * kSize, 1, &z);
    return z;
  }
  Longer<T> value(Index j) const { return logit(j); }
  // Where the next row begins, if it follows this one.
  const char* end(Index classes) const { return row_ + classes * kSize; }
  double slope(Index) const { return 1.0; }
  double offset() const { return 0.0; }

 private:
  const char* row_ = nullptr;
  alignas(kVectorBytes) char short_row_[kGroup<T> * kSize];
};

template <class T>
using PlainSource = DirectSource<T, kStorageOf<T>>;

// Logits of any storage and under any transform: v, and dv/dz times the temperature, prepared a block at a time.
template <class Computed>
class PreparedSource {
 public:
  using T = Computed;
  static constexpr bool kPrepared = true, kHasRest = false;

  class Group {
   public:
    Group(const T* high, const T* low) : high_(high), low_(low) {}
    ALWAYS_INLINE Vec<T> logits(Index j) const { return load(high_ + j); }
    ALWAYS_INLINE Vec<T> exponential(Index j, Vec<T> z, const ReferenceVectors<T>& reference) const {
      return scaled_exp<T>(z, load(low_ + j), reference);
    }
    ALWAYS_INLINE Vec<T> above(Index j, Vec<T> z, Vec<T> origin) const { return (z - origin) + load(low_ + j); }

   private:
    const T *high_, *low_;
  };

  class Block {
   public:
    Block(const PreparedSource& source, Index begin) : source_(source), begin_(begin) {}
    ALWAYS_INLINE Group group(Index j) const {
      return Group(source_.high_ + (j - begin_), source_.low_ + (j - begin_));
    }
    ALWAYS_INLINE void prefetch(Index, Into) const {}

   private:
    const PreparedSource& source_;
    Index begin_;
  };

  // dv/dz and d2v/dz2, times the temperature and its square, of the whole row go to `slopes` and `curvatures`, or are
  // not made where these are null.
  PreparedSource(const Transform<T>& transform, Storage storage, T* slopes, T* curvatures)
      : transform_(transform), transformer_(transform), storage_(storage), slopes_(slopes), curvatures_(curvatures) {}

  void open(const char* row, Index classes) {
    row_ = row;
    classes_ = classes;
    prepared_ = -1;
    origin_ = origin();
    transformer_.set_origin(origin_);
  }

  Block block(Index begin) {
    prepare(begin);
    return Block(*this, begin);
  }
  // Without a bias v rises with z, and z is not rounded.
  Keys<T> keys(Index begin, Index count) {
    if (transform_.bias) {
      prepare(begin);
      return {high_, low_};
    }
    prepared_ = -1;
    read_run(storage_, row_ + begin * size_of(storage_), count, high_);
    return {high_, nullptr};
  }
  T logit(Index j) {
    prepare(j / kBlock<T> * kBlock<T>);
    return high_[j - prepared_];
  }
  Longer<T> value(Index j) {
    const Longer<T> v = transformed(transform_, raw(j) - static_cast<double>(origin_), j);
    return std::abs(v) <= kLargestWithLow<T> ? v : logit(j);  // what is summed is rounded there
  }
  const char* end(Index classes) const { return row_ + classes * size_of(storage_); }
  double slope(Index j) const { return transform_.temperature * transform_slope(transform_, raw(j)); }

  // What every v is short of.
  double offset() const { return origin_ / transform_.temperature; }

 private:
  void prepare(Index begin) {
    if (prepared_ == begin) return;
    const char* const from = row_ + begin * size_of(storage_);
    const Index count = std::min(kBlock<T>, classes_ - begin);
    prefetch_group(from, count * size_of(storage_), Into::kSecondLevel);
    transformer_.prepare(from, storage_, begin, count, high_, low_, slopes_ ? slopes_ + begin : nullptr,
                         curvatures_ ? curvatures_ + begin : nullptr);
    prepared_ = begin;
  }

  double raw(Index j) const {
    T z;
    read_run(storage_, row_ + j * size_of(storage_), 1, &z);
    return z;
  }

  T maximum() {
    T result = -std::numeric_limits<T>::infinity();
    for (Index begin = 0; begin < classes_; begin += kBlock<T>) {
      const Index count = std::min(kBlock<T>, classes_ - begin);
      read_run(storage_, row_ + begin * size_of(storage_), count, high_);
      result = std::max(result, maximum_of(high_, count));
    }
    return result;
  }

  // The row's maximum, where z / temperature may be too large for T without it.
  T origin() {
    constexpr double kLarge = 0x1p20;
    if (transform_.softcap != 0.0 || transform_.temperature >= 1.0) return T{0};
    const T most = maximum();
    const bool large = std::abs(static_cast<double>(most)) / transform_.temperature > kLarge;
    return large && std::isfinite(most) ? most : T{0};
  }

  const Transform<T>& transform_;
  Transformer<T> transformer_;
  Storage storage_;
  T* slopes_;
  T* curvatures_;
  const char* row_ = nullptr;
  Index classes_ = 0, prepared_ = -1;
  T origin_ = T{0};
  alignas(kVectorBytes) T high_[kBlock<T>], low_[kBlock<T>];
};

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
