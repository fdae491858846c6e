// A vector of floats or doubles as wide as the instruction set this file is compiled for.
//
// Arithmetic is the compiler's own vector extension; only what it cannot say (a fused multiply-add that is never
// split, a maximum that lets NaN through, a store past the cache) is an intrinsic. Everything here lives in a
// namespace named for the instruction set, so that the copies of one source never meet in the linker.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace softmaxloss::SOFTMAXLOSS_ISA {

using Index = std::int64_t;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

#if defined(__FMA__) || defined(__aarch64__)
constexpr bool kHasFma = true;
#else
constexpr bool kHasFma = false;
#endif

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VectorOf<T>::type;

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
ALWAYS_INLINE Vec<T> splat(T value) {
  return value - Vec<T>{};  // x - 0 is x for every x, so this is a plain broadcast
}

template <class T>
ALWAYS_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
ALWAYS_INLINE void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

ALWAYS_INLINE float fused_multiply_add(float a, float b, float c) {
  if constexpr (kHasFma) return __builtin_fmaf(a, b, c);
  return a * b + c;
}
ALWAYS_INLINE double fused_multiply_add(double a, double b, double c) {
  if constexpr (kHasFma) return __builtin_fma(a, b, c);
  return a * b + c;
}

// keep_nan_max(a, b) is b where either is NaN: a running maximum goes first, a value whose NaN must live second.
#if defined(__AVX512F__)
ALWAYS_INLINE Vec<float> fused_multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return _mm512_fmadd_ps(a, b, c);
}
ALWAYS_INLINE Vec<double> fused_multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm512_fmadd_pd(a, b, c);
}
// The plain _mm512_max_* of GCC 12 warn of an uninitialised operand; a full mask is the same instruction.
ALWAYS_INLINE Vec<float> keep_nan_max(Vec<float> a, Vec<float> b) { return _mm512_mask_max_ps(a, 0xffff, a, b); }
ALWAYS_INLINE Vec<double> keep_nan_max(Vec<double> a, Vec<double> b) { return _mm512_mask_max_pd(a, 0xff, a, b); }
ALWAYS_INLINE void stream(float* p, Vec<float> v) { _mm512_stream_ps(p, v); }
ALWAYS_INLINE void stream(double* p, Vec<double> v) { _mm512_stream_pd(p, v); }
#elif defined(__AVX2__)
ALWAYS_INLINE Vec<float> fused_multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return _mm256_fmadd_ps(a, b, c);
}
ALWAYS_INLINE Vec<double> fused_multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm256_fmadd_pd(a, b, c);
}
ALWAYS_INLINE Vec<float> keep_nan_max(Vec<float> a, Vec<float> b) { return _mm256_max_ps(a, b); }
ALWAYS_INLINE Vec<double> keep_nan_max(Vec<double> a, Vec<double> b) { return _mm256_max_pd(a, b); }
ALWAYS_INLINE void stream(float* p, Vec<float> v) { _mm256_stream_ps(p, v); }
ALWAYS_INLINE void stream(double* p, Vec<double> v) { _mm256_stream_pd(p, v); }
#elif defined(__x86_64__)
ALWAYS_INLINE Vec<float> fused_multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) { return a * b + c; }
ALWAYS_INLINE Vec<double> fused_multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) { return a * b + c; }
ALWAYS_INLINE Vec<float> keep_nan_max(Vec<float> a, Vec<float> b) { return _mm_max_ps(a, b); }
ALWAYS_INLINE Vec<double> keep_nan_max(Vec<double> a, Vec<double> b) { return _mm_max_pd(a, b); }
ALWAYS_INLINE void stream(float* p, Vec<float> v) { _mm_stream_ps(p, v); }
ALWAYS_INLINE void stream(double* p, Vec<double> v) { _mm_stream_pd(p, v); }
#else
template <class V>
ALWAYS_INLINE V fused_multiply_add_lanes(V a, V b, V c) {
  for (unsigned i = 0; i < sizeof(V) / sizeof(a[0]); ++i) a[i] = fused_multiply_add(a[i], b[i], c[i]);
  return a;
}
ALWAYS_INLINE Vec<float> fused_multiply_add(Vec<float> a, Vec<float> b, Vec<float> c) {
  return fused_multiply_add_lanes(a, b, c);
}
ALWAYS_INLINE Vec<double> fused_multiply_add(Vec<double> a, Vec<double> b, Vec<double> c) {
  return fused_multiply_add_lanes(a, b, c);
}
ALWAYS_INLINE Vec<float> keep_nan_max(Vec<float> a, Vec<float> b) { return a > b ? a : b; }
ALWAYS_INLINE Vec<double> keep_nan_max(Vec<double> a, Vec<double> b) { return a > b ? a : b; }
ALWAYS_INLINE void stream(float* p, Vec<float> v) { store(p, v); }
ALWAYS_INLINE void stream(double* p, Vec<double> v) { store(p, v); }
#endif

// Makes the streamed stores visible to other threads.
ALWAYS_INLINE void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// The lower or upper half of a vector of doubles' or floats' lanes, as a vector half as wide.
template <class V>
struct HalfOf {
  typedef std::remove_reference_t<decltype(std::declval<V>()[0])> Lane;
  typedef Lane type __attribute__((vector_size(sizeof(V) / 2)));
};
template <class V>
using Half = typename HalfOf<V>::type;

template <int kFirst, class V, int... kLane>
ALWAYS_INLINE Half<V> lanes_from(V v, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(v, v, (kFirst + kLane)...);
}
template <class V>
ALWAYS_INLINE Half<V> lower(V v) {
  constexpr int kCount = sizeof(V) / sizeof(v[0]) / 2;
  return lanes_from<0>(v, std::make_integer_sequence<int, kCount>());
}
template <class V>
ALWAYS_INLINE Half<V> upper(V v) {
  constexpr int kCount = sizeof(V) / sizeof(v[0]) / 2;
  return lanes_from<kCount>(v, std::make_integer_sequence<int, kCount>());
}

// The halves of a vector of floats as doubles. (GCC 12 converts vectors of four lanes one by one.)
#if defined(__AVX2__) && !defined(__AVX512F__)
ALWAYS_INLINE Vec<double> lower_as_doubles(Vec<float> v) { return _mm256_cvtps_pd(_mm256_castps256_ps128(v)); }
ALWAYS_INLINE Vec<double> upper_as_doubles(Vec<float> v) { return _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)); }
#elif defined(__x86_64__) && !defined(__AVX2__)
ALWAYS_INLINE Vec<double> lower_as_doubles(Vec<float> v) { return _mm_cvtps_pd(v); }
ALWAYS_INLINE Vec<double> upper_as_doubles(Vec<float> v) { return _mm_cvtps_pd(_mm_movehl_ps(v, v)); }
#else
ALWAYS_INLINE Vec<double> lower_as_doubles(Vec<float> v) { return __builtin_convertvector(lower(v), Vec<double>); }
ALWAYS_INLINE Vec<double> upper_as_doubles(Vec<float> v) { return __builtin_convertvector(upper(v), Vec<double>); }
#endif

// As many integers as a vector of T has lanes, each as wide as a lane.
template <class T>
struct IntegersOf {
  typedef std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t> Lane;
  typedef Lane type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Integers = typename IntegersOf<T>::type;

// 0, 1, 2, ...
template <class T>
ALWAYS_INLINE Integers<T> lane_numbers() {
  Integers<T> lanes{};
  for (int i = 0; i < kLanes<T>; ++i) lanes[i] = i;
  return lanes;
}

// In each lane the lane of v that the index names. Where the instruction set has none, kPermutes is false.
#if defined(__AVX512F__)
constexpr bool kPermutes = true;
template <class T>
ALWAYS_INLINE Vec<T> lanes_at(Vec<T> v, Integers<T> index) {
  if constexpr (sizeof(T) == 4) return _mm512_maskz_permutexvar_ps(0xffff, (__m512i)index, (__m512)v);
  if constexpr (sizeof(T) == 8) return _mm512_maskz_permutexvar_pd(0xff, (__m512i)index, (__m512d)v);
}
#elif defined(__AVX2__)
constexpr bool kPermutes = true;
template <class T>
ALWAYS_INLINE Vec<T> lanes_at(Vec<T> v, Integers<T> index) {
  if constexpr (sizeof(T) == 8) {
    const __m256i twice = _mm256_slli_epi64((__m256i)index, 1);  // in halves of lanes: 2 i and 2 i + 1 for i
    index = (Integers<T>)_mm256_add_epi32(_mm256_or_si256(twice, _mm256_slli_epi64(twice, 32)),
                                          _mm256_set1_epi64x(std::int64_t{1} << 32));
  }
  return (Vec<T>)_mm256_permutevar8x32_ps((__m256)v, (__m256i)index);
}
#else
constexpr bool kPermutes = false;
#endif

// The address sanitizer does not see loads under a mask: for it, the numbers are looked at one by one.
template <class T>
ALWAYS_INLINE void look_at_first([[maybe_unused]] const T* p, [[maybe_unused]] Index count) {
#if defined(__SANITIZE_ADDRESS__)
  for (Index i = 0; i < std::min<Index>(count, kLanes<T>); ++i)
    static_cast<void>(*reinterpret_cast<const volatile char*>(p + i));
#endif
}

// The first `count` numbers at p, of which no others are touched, and -inf after them; `count` may be 0 or less, or
// more than there are lanes. Where the instruction set has no such load, kHasPartialLoads is false.
#if defined(__AVX512F__)
constexpr bool kHasPartialLoads = true;
template <class T>
ALWAYS_INLINE Vec<T> load_first(const T* p, Index count) {
  look_at_first(p, count);
  constexpr T kFill = -std::numeric_limits<T>::infinity();
  const auto lanes = static_cast<unsigned>(std::clamp<Index>(count, 0, kLanes<T>));
  const auto mask = (1u << lanes) - 1;
  if constexpr (sizeof(T) == 4) return _mm512_mask_loadu_ps(splat(kFill), static_cast<__mmask16>(mask), p);
  if constexpr (sizeof(T) == 8) return _mm512_mask_loadu_pd(splat(kFill), static_cast<__mmask8>(mask), p);
}
#elif defined(__AVX2__)
constexpr bool kHasPartialLoads = true;
template <class T>
ALWAYS_INLINE Vec<T> load_first(const T* p, Index count) {
  look_at_first(p, count);
  constexpr T kFill = -std::numeric_limits<T>::infinity();
  using Lane = typename IntegersOf<T>::Lane;
  const Integers<T> mask = lane_numbers<T>() < Integers<T>{} + static_cast<Lane>(std::min<Index>(count, kLanes<T>));
  Vec<T> v;
  if constexpr (sizeof(T) == 4) v = (Vec<T>)_mm256_maskload_ps(p, (__m256i)mask);
  if constexpr (sizeof(T) == 8) v = (Vec<T>)_mm256_maskload_pd(p, (__m256i)mask);
  return mask ? v : splat(kFill);
}
#else
constexpr bool kHasPartialLoads = false;
#endif

// Halves against each other until one lane is left: a chain over all lanes would cost the latency of each.
template <class V, class Combine>
ALWAYS_INLINE auto reduce(V v, const Combine& combine) {
  if constexpr (sizeof(V) == sizeof(v[0])) {
    return v[0];
  } else {
    return reduce(combine(lower(v), upper(v)), combine);
  }
}

// NaN lanes are left out, or give NaN.
template <class T>
ALWAYS_INLINE T max_lane(Vec<T> v) {
  return reduce(v, [](auto a, auto b) { return a > b ? a : b; });
}

template <class V>
ALWAYS_INLINE auto sum_of_lanes(V v) {
  return reduce(v, [](auto a, auto b) { return a + b; });
}

// Tells whether a lane of v is above the limit; NaN is not.
template <class T>
ALWAYS_INLINE bool any_above(Vec<T> v, Vec<T> limit) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_cmp_ps_mask((__m512)v, (__m512)limit, _CMP_GT_OQ) != 0;
  if constexpr (sizeof(T) == 8) return _mm512_cmp_pd_mask((__m512d)v, (__m512d)limit, _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, (__m256)limit, _CMP_GT_OQ)) != 0;
  if constexpr (sizeof(T) == 8) return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)v, (__m256d)limit, _CMP_GT_OQ)) != 0;
#else
  for (int i = 0; i < kLanes<T>; ++i)
    if (v[i] > limit[i]) return true;
  return false;
#endif
}

// The base-2 logarithm of how many entries a table has that look_up takes; 0 where there is no instruction for it.
#if defined(__AVX512F__)
template <class T>
constexpr int kTableBits = sizeof(T) == 4 ? 5 : 4;
#elif defined(__AVX2__)
template <class T>
constexpr int kTableBits = sizeof(T) == 4 ? 3 : 0;
#else
template <class T>
constexpr int kTableBits = 0;
#endif

// The table's entries that the low bits of each lane name.
#if defined(__AVX512F__)
template <class T>
ALWAYS_INLINE Integers<T> look_up(const typename IntegersOf<T>::Lane* table, Integers<T> index) {
  const __m512i low = _mm512_loadu_si512(table), high = _mm512_loadu_si512(table + kLanes<T>);
  if constexpr (sizeof(T) == 4) return (Integers<T>)_mm512_permutex2var_epi32(low, (__m512i)index, high);
  if constexpr (sizeof(T) == 8) return (Integers<T>)_mm512_permutex2var_epi64(low, (__m512i)index, high);
}
#elif defined(__AVX2__)
template <class T>
ALWAYS_INLINE Integers<T> look_up(const typename IntegersOf<T>::Lane* table, Integers<T> index) {
  static_assert(sizeof(T) == 4);
  const __m256i entries = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(table));
  return (Integers<T>)_mm256_permutevar8x32_epi32(entries, (__m256i)index);
}
#endif

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
