// Rows whose few classes lie side by side: between memory and a tile, transposed a few rows and classes at a time.
#pragma once

#include <utility>

#include "strided.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

constexpr int kQuadBytes = 16;  // what every instruction set here shuffles cheaply
template <class T>
constexpr int kQuad = kQuadBytes / static_cast<int>(sizeof(T));
constexpr int kQuads = kVectorBytes / kQuadBytes;  // in a vector

template <class T>
struct QuadOf {
  typedef T type __attribute__((vector_size(kQuadBytes)));
};
template <class T>
using Quad = typename QuadOf<T>::type;

// Two vectors' quads, their lower (kUpper = 0) or upper halves interleaved in units of kUnit elements.
template <class T, int kUnit, int kUpper, std::size_t... kLane>
ALWAYS_INLINE Vec<T> interleaved(Vec<T> a, Vec<T> b, std::index_sequence<kLane...>) {
  constexpr auto source = [](std::size_t lane) {
    const int quad = static_cast<int>(lane) / kQuad<T>, in_quad = static_cast<int>(lane) % kQuad<T>;
    const int unit = in_quad / kUnit, in_unit = in_quad % kUnit;
    const int half = kUpper * kQuad<T> / 2;
    return (unit % 2 ? kLanes<T> : 0) + quad * kQuad<T> + half + unit / 2 * kUnit + in_unit;
  };
  return __builtin_shufflevector(a, b, source(kLane)...);
}
template <class T, int kUnit, int kUpper>
ALWAYS_INLINE Vec<T> interleaved(Vec<T> a, Vec<T> b) {
  return interleaved<T, kUnit, kUpper>(a, b, std::make_index_sequence<kLanes<T>>());
}

// Transposes, in each quad by itself, as many vectors as a quad has elements.
ALWAYS_INLINE void transpose_quads(Vec<float> (&v)[4]) {
  const Vec<float> a = interleaved<float, 1, 0>(v[0], v[1]), b = interleaved<float, 1, 1>(v[0], v[1]);
  const Vec<float> c = interleaved<float, 1, 0>(v[2], v[3]), d = interleaved<float, 1, 1>(v[2], v[3]);
  v[0] = interleaved<float, 2, 0>(a, c);
  v[1] = interleaved<float, 2, 1>(a, c);
  v[2] = interleaved<float, 2, 0>(b, d);
  v[3] = interleaved<float, 2, 1>(b, d);
}
ALWAYS_INLINE void transpose_quads(Vec<double> (&v)[2]) {
  const Vec<double> low = interleaved<double, 1, 0>(v[0], v[1]);
  v[1] = interleaved<double, 1, 1>(v[0], v[1]);
  v[0] = low;
}

// The even (kOdd = 0) or odd quads of two vectors, one after the other.
template <class T, int kOdd, std::size_t... kLane>
ALWAYS_INLINE Vec<T> quads_in_turn(Vec<T> a, Vec<T> b, std::index_sequence<kLane...>) {
  constexpr auto source = [](std::size_t lane) {
    const int quad = 2 * (static_cast<int>(lane) / kQuad<T>)+kOdd;  // of both vectors' in a row
    return quad * kQuad<T> + static_cast<int>(lane) % kQuad<T>;
  };
  return __builtin_shufflevector(a, b, source(kLane)...);
}

// Lanes hold sums of kRows rows, each in parts: of some rows in a, of as many others in b. The parts of both, half as
// many, so that in the end there is a lane for each row, in their order.
template <class T, int kRows>
ALWAYS_INLINE Vec<T> sums_side_by_side(Vec<T> a, Vec<T> b) {
  if constexpr (kRows < kQuad<T>) {
    return interleaved<T, kRows, 0>(a, b) + interleaved<T, kRows, 1>(a, b);
  } else {
    constexpr auto lanes = std::make_index_sequence<kLanes<T>>();
    return quads_in_turn<T, 0>(a, b, lanes) + quads_in_turn<T, 1>(a, b, lanes);
  }
}

// A vector of the quads at p, p + step, ...
template <class T>
ALWAYS_INLINE Vec<T> load_quads(const char* p, Index step) {
#if defined(__AVX512F__)
  const auto quad = [&](int k) { return _mm_loadu_ps(reinterpret_cast<const float*>(p + k * step)); };
  __m512 v = _mm512_castps128_ps512(quad(0));
  v = _mm512_maskz_insertf32x4(0xffff, v, quad(1), 1);
  v = _mm512_maskz_insertf32x4(0xffff, v, quad(2), 2);
  return (Vec<T>)_mm512_maskz_insertf32x4(0xffff, v, quad(3), 3);
#elif defined(__AVX2__)
  const auto quad = [&](int k) { return _mm_loadu_ps(reinterpret_cast<const float*>(p + k * step)); };
  return (Vec<T>)_mm256_insertf128_ps(_mm256_castps128_ps256(quad(0)), quad(1), 1);
#else
  (void)step;
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
#endif
}

template <int kWhich, class T>
ALWAYS_INLINE void store_quad(T* p, Vec<T> v) {
#if defined(__AVX512F__)
  _mm_storeu_ps(reinterpret_cast<float*>(p), _mm512_maskz_extractf32x4_ps(0xf, (__m512)v, kWhich));
#elif defined(__AVX2__)
  _mm_storeu_ps(reinterpret_cast<float*>(p), _mm256_extractf128_ps((__m256)v, kWhich));
#else
  std::memcpy(p, &v, sizeof v);
#endif
}

// Where a block of kQuad classes begins: the last goes back over classes that were there before. Rows of fewer classes
// are one block, which reaches into the next row.
template <class T>
ALWAYS_INLINE Index block_start(Index j, Index classes) {
  return std::max<Index>(std::min(j, classes - kQuad<T>), 0);
}

// Packs a vector of rows: reads no further than kQuad elements from the last one's start, or its end.
template <class T>
ALWAYS_INLINE void pack_vector_of_rows(Tile<T>& tile, const char* from, Index row_stride, Index at) {
  Vec<T> maximum = splat(-std::numeric_limits<T>::infinity());
  for (Index block = 0; block < tile.classes; block += kQuad<T>) {
    const Index j = block_start<T>(block, tile.classes);
    Vec<T> v[kQuad<T>];
#pragma GCC unroll 4
    for (int k = 0; k < kQuad<T>; ++k)
      v[k] = load_quads<T>(from + k * row_stride + j * static_cast<Index>(sizeof(T)), kQuad<T> * row_stride);
    transpose_quads(v);
#pragma GCC unroll 4
    for (int k = 0; k < kQuad<T>; ++k) {
      if (j + k == tile.classes) break;
      store(tile.of_class(j + k) + at, v[k]);
      maximum = keep_nan_max(maximum, v[k]);
    }
  }
  store(tile.maximum + at, maximum);
}

// Puts a run of rows with adjacent classes into the tile from row `at` on; the rows after it may be overwritten.
template <class T>
void pack_one_by_one(Tile<T>& tile, const ConstRows& rows, const char* from, Index row_stride, Index at, Index count) {
  const Index size = size_of(rows.storage);
  const bool as_one = row_stride == tile.classes * size;
  const Index dense_stride = tile.classes * static_cast<Index>(sizeof(T));
  Index i = 0;
  if (rows.storage == kStorageOf<T> && (as_one || tile.classes >= kQuad<T>)) {
    const Index reaches_past = tile.classes < kQuad<T> ? kQuad<T> : 0;  // rows whose last block leaves the run
    for (; i + kLanes<T> + reaches_past <= count; i += kLanes<T>)
      pack_vector_of_rows(tile, from + i * row_stride, row_stride, at + i);
  }
  if (i == count) return;
  from += i * row_stride;
  if (as_one)
    read_run(rows.storage, from, (count - i) * tile.classes, tile.staging);
  else
    for (Index k = 0; k < count - i; ++k)
      read_run(rows.storage, from + k * row_stride, tile.classes, tile.staging + k * tile.classes);
  const char* staged = reinterpret_cast<const char*>(tile.staging);
  for (; i < count; i += kLanes<T>, staged += kLanes<T> * dense_stride)
    pack_vector_of_rows(tile, staged, dense_stride, at + i);
}

// Whole vectors of rows of no more classes than a quad, which TileLoss takes from memory.
template <class T>
class OneByOne {
 public:
  OneByOne(const char* from, Index row_stride, Index classes, Index count)
      : from_(from), row_stride_(row_stride), classes_(classes), count_(count) {}

  // Whether there are rows enough after these for their last one's quad to reach into: later ones in memory, too.
  static bool may_read(Index row_stride, Index classes, Index count, Index rows) {
    return row_stride >= classes * static_cast<Index>(sizeof(T)) && count + kQuad<T> <= rows;
  }

  T guess() const { return maximum_of(reinterpret_cast<const T*>(from_), classes_); }

  template <class F>
  ALWAYS_INLINE void for_each_piece(const F& f) const {
    if (classes_ == 2) pieces<2>(f);
    if constexpr (kQuad<T> == 4) {
      if (classes_ == 3) pieces<3>(f);
      if (classes_ == 4) pieces<4>(f);
    }
  }

 private:
  template <int kClasses, class F>
  ALWAYS_INLINE void pieces(const F& f) const {
    constexpr Index kAhead = 2048;
    for (Index i = 0; i < count_; i += kLanes<T>) {
      const char* const from = from_ + i * row_stride_;
      Vec<T> v[kQuad<T>], z[kClasses];
#pragma GCC unroll 4
      for (int k = 0; k < kQuad<T>; ++k) v[k] = load_quads<T>(from + k * row_stride_, kQuad<T> * row_stride_);
      transpose_quads(v);
#pragma GCC unroll 4
      for (int u = 0; u < kClasses; ++u) {
        z[u] = v[u];
        __builtin_prefetch(from + kAhead + u * kVectorBytes);
      }
      f.template operator()<kClasses>(0, i, z);
    }
  }

  const char* const from_;
  const Index row_stride_, classes_, count_;
};

template <class T, std::size_t... kWhich>
ALWAYS_INLINE void store_quads(T* out, Index classes, const Vec<T> (&v)[kQuad<T>], std::index_sequence<kWhich...>) {
  const auto quad = [&]<std::size_t kOne>() __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int k = 0; k < kQuad<T>; ++k)
      store_quad<static_cast<int>(kOne)>(out + (static_cast<Index>(kOne) * kQuad<T> + k) * classes, v[k]);
  };
  // Rows in order: where there are fewer classes than a quad, each row puts right what the one before wrote past its
  // end.
  (quad.template operator()<kWhich>(), ...);
}

// Writes the gradient of a vector of rows into the staging, one row after another.
template <class T, TileKind kKind>
ALWAYS_INLINE void unpack_vector_of_rows(const Tile<T>& tile, Index at, T* out) {
  for (Index block = 0; block < tile.classes; block += kQuad<T>) {
    const Index j = block_start<T>(block, tile.classes);
    Vec<T> v[kQuad<T>];
#pragma GCC unroll 4
    for (int k = 0; k < kQuad<T>; ++k)
      v[k] = ClassGradient<T, kKind>(tile, std::min(j + k, tile.classes - 1), at).vector(0);
    transpose_quads(v);
    store_quads<T>(out + j, tile.classes, v, std::make_index_sequence<kQuads>());
  }
}

// Copies a run; whole cache lines go past the cache.
template <class T>
void stream_run(const T* from, T* to, Index count) {
  constexpr Index kLine = 64 / sizeof(T);
  const auto past = static_cast<Index>(reinterpret_cast<std::uintptr_t>(to) % 64 / sizeof(T));
  const Index head = std::min(past == 0 ? 0 : kLine - past, count);
  Index i = head;
  std::copy_n(from, head, to);
  for (; i + kLine <= count; i += kLine) {
#pragma GCC unroll 4
    for (int u = 0; u < kLine; u += kLanes<T>) stream(to + i + u, load(from + i + u));
  }
  std::copy_n(from + i, count - i, to + i);
}

// Takes a run of rows with adjacent classes, from row `at` of the tile on, to where their gradient belongs.
template <class T, TileKind kKind>
void unpack_one_by_one(const Tile<T>& tile, const Rows& rows, char* to, Index row_stride, Index at, Index count,
                       bool past_cache) {
  const bool as_one = row_stride == tile.classes * size_of(rows.storage);
  const bool direct = rows.storage == kStorageOf<T> && as_one && reinterpret_cast<std::uintptr_t>(to) % sizeof(T) == 0;
  Index i = 0;
  if (direct && !past_cache) {
    const Index reaches_past = tile.classes < kQuad<T> ? kQuad<T> : 0;  // rows whose last block leaves the run
    for (; i + kLanes<T> + reaches_past <= count; i += kLanes<T>)
      unpack_vector_of_rows<T, kKind>(tile, at + i, reinterpret_cast<T*>(to) + i * tile.classes);
    if (i == count) return;
    to += i * row_stride;
    at += i;
    count -= i;
  }
  for (i = 0; i < count; i += kLanes<T>) unpack_vector_of_rows<T, kKind>(tile, at + i, tile.staging + i * tile.classes);
  if (!as_one) {
    for (i = 0; i < count; ++i)
      write_run(rows.storage, to + i * row_stride, tile.classes, tile.staging + i * tile.classes);
  } else if (past_cache && direct) {
    stream_run(tile.staging, reinterpret_cast<T*>(to), count * tile.classes);
  } else {
    write_run(rows.storage, to, count * tile.classes, tile.staging);
  }
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
