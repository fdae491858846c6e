// Numbers as arrays hold them, read into vectors of float or double and written back.
//
// float16 and bfloat16 are rounded to nearest, ties to even; subnormals are kept, too large a number becomes an
// infinity, and NaN stays NaN. Both widen to float exactly. Where the instruction set has no conversion, integer
// arithmetic on the bits gives the same bits.
#pragma once

#include <algorithm>

#include "problem.hpp"
#include "simd.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

using Words = Vec<std::uint32_t>;

#if defined(__AVX512F__) || defined(__F16C__)
constexpr bool kHasFloat16 = true;
#else
constexpr bool kHasFloat16 = false;
#endif

// As many 16-bit numbers as a vector has floats.
typedef std::uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));

ALWAYS_INLINE Halves load_halves(const void* p) {
  Halves h;
  std::memcpy(&h, p, sizeof h);
  return h;
}

// The 16-bit numbers in the low halves of the words, whose high halves are 0.
ALWAYS_INLINE Halves narrow(Words words) {
#if defined(__AVX512F__)
  return (Halves)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)words);
#elif defined(__AVX2__)
  const __m256i w = (__m256i)words;
  return (Halves)_mm_packus_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
#elif defined(__x86_64__)
  // SSE2 only packs signed numbers: each is sign-extended first.
  const __m128i w = _mm_srai_epi32(_mm_slli_epi32((__m128i)words, 16), 16);
  const __m128i packed = _mm_packs_epi32(w, w);
  Halves h;
  std::memcpy(&h, &packed, sizeof h);
  return h;
#else
  return __builtin_convertvector(words, Halves);
#endif
}

ALWAYS_INLINE void store_narrow(void* p, Words words) {
  const Halves h = narrow(words);
  std::memcpy(p, &h, sizeof h);
}

// The same for two vectors, whose numbers follow one another.
ALWAYS_INLINE void store_narrow(void* p, Words first, Words second) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i packed = _mm256_packus_epi32((__m256i)first, (__m256i)second);  // quarters in the order 0 2 1 3
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
#elif defined(__x86_64__) && !defined(__AVX2__)
  const auto extended = [](Words w) { return _mm_srai_epi32(_mm_slli_epi32((__m128i)w, 16), 16); };
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm_packs_epi32(extended(first), extended(second)));
#else
  store_narrow(p, first);
  store_narrow(static_cast<char*>(p) + sizeof(Halves), second);
#endif
}

ALWAYS_INLINE Words widen(Halves h) {
#if defined(__AVX512F__)
  return (Words)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)h);
#elif defined(__AVX2__)
  return (Words)_mm256_cvtepu16_epi32((__m128i)h);
#else
  return __builtin_convertvector(h, Words);
#endif
}

ALWAYS_INLINE Vec<float> from_bfloat16(Halves h) { return (Vec<float>)(widen(h) << 16); }

ALWAYS_INLINE Words to_bfloat16(Vec<float> v) {
  const Words bits = (Words)v;
  const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Words nan = ((bits >> 16) & 0x8000) | 0x7fc0;
  return v == v ? rounded : nan;
}

// float16 by integer arithmetic: for instruction sets that cannot convert it.
ALWAYS_INLINE Vec<float> widen_float16(Halves h) {
  constexpr std::uint32_t kRebias = 112u << 23;  // the exponents' biases differ by 112
  const Words half = widen(h);
  const Words magnitude = (half & 0x7fff) << 13;
  const Words normal = magnitude + kRebias;
  // A subnormal is given an implicit one, which is then taken off.
  const Words least_normal = Words{} + (113u << 23);
  const Words subnormal = (Words)((Vec<float>)(magnitude + least_normal) - (Vec<float>)least_normal);
  const Words special = magnitude | 0x7f800000 | ((magnitude > (0x7c00u << 13)) & 0x00400000);
  const Words finite = magnitude < (0x0400u << 13) ? subnormal : normal;
  return (Vec<float>)((magnitude < (0x7c00u << 13) ? finite : special) | (half & 0x8000) << 16);
}

ALWAYS_INLINE Words narrow_float16(Vec<float> v) {
  constexpr std::uint32_t kRebias = 112u << 23;
  const Words bits = (Words)v;
  const Words magnitude = bits & 0x7fffffff;
  const Words normal = (magnitude - kRebias + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Below 2^-14 the sum with 1/2, whose last place is the least float16, does the rounding.
  const Words half = (Words)(Vec<float>{} + 0.5f);
  const Words subnormal = (Words)((Vec<float>)magnitude + (Vec<float>)half) - half;
  const Words nan = ((magnitude >> 13) & 0x3ff) | 0x7e00;
  const Words large = magnitude > 0x7f800000u ? nan : Words{} + 0x7c00u;
  const Words finite = magnitude < (113u << 23) ? subnormal : normal;
  return (magnitude < 0x47800000u ? finite : large) | (bits >> 16 & 0x8000);
}

ALWAYS_INLINE Vec<float> from_float16(const void* p) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtph_ps(0xffff, (__m256i)load_halves(p));
#elif defined(__F16C__)
  return _mm256_cvtph_ps((__m128i)load_halves(p));
#else
  return widen_float16(load_halves(p));
#endif
}

ALWAYS_INLINE void store_float16(void* p, Vec<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
  store_narrow(p, narrow_float16(v));
#endif
}

// One vector of T from, or to, as many adjacent numbers of a storage. T = float has all but kFloat64, T = double that.
template <class T, Storage kStorage>
ALWAYS_INLINE Vec<T> load_as(const void* p) {
  static_assert((sizeof(T) == 8) == (kStorage == Storage::kFloat64));
  if constexpr (kStorage == Storage::kFloat16) return from_float16(p);
  if constexpr (kStorage == Storage::kBFloat16) return from_bfloat16(load_halves(p));
  if constexpr (kStorage == kStorageOf<T>) {
    Vec<T> v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
}

template <class T, Storage kStorage>
ALWAYS_INLINE void store_as(void* p, Vec<T> v) {
  static_assert((sizeof(T) == 8) == (kStorage == Storage::kFloat64));
  if constexpr (kStorage == Storage::kFloat16) store_float16(p, v);
  if constexpr (kStorage == Storage::kBFloat16) store_narrow(p, to_bfloat16(v));
  if constexpr (kStorage == kStorageOf<T>) std::memcpy(p, &v, sizeof v);
}

// Two vectors, whose numbers follow one another.
template <class T, Storage kStorage>
ALWAYS_INLINE void store_pair_as(void* p, Vec<T> first, Vec<T> second) {
  if constexpr (kStorage == Storage::kBFloat16) {
    store_narrow(p, to_bfloat16(first), to_bfloat16(second));
  } else if constexpr (kStorage == Storage::kFloat16 && !kHasFloat16) {
    store_narrow(p, narrow_float16(first), narrow_float16(second));
  } else {
    store_as<T, kStorage>(p, first);
    store_as<T, kStorage>(static_cast<char*>(p) + kLanes<T> * size_of(kStorage), second);
  }
}

// Calls f.template operator()<storage>() with one of the storages that are computed in T.
template <class T, class F>
ALWAYS_INLINE void for_storage(Storage storage, const F& f) {
  if constexpr (sizeof(T) == 8) {
    f.template operator()<Storage::kFloat64>();
  } else if (storage == Storage::kFloat16) {
    f.template operator()<Storage::kFloat16>();
  } else if (storage == Storage::kBFloat16) {
    f.template operator()<Storage::kBFloat16>();
  } else {
    f.template operator()<Storage::kFloat32>();
  }
}

// Reads `count` adjacent numbers; `to` is not part of `from`.
template <class T>
void read_run(Storage storage, const char* from, Index count, T* to) {
  if (storage == kStorageOf<T>) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(T));
    return;
  }
  for_storage<T>(storage, [&]<Storage kStorage>() {
    constexpr Index kSize = size_of(kStorage);
    Index j = 0;
    for (; j + kLanes<T> <= count; j += kLanes<T>) store(to + j, load_as<T, kStorage>(from + j * kSize));
    if (j == count) return;
    alignas(64) char numbers[kLanes<T> * kSize] = {};
    alignas(64) T wide[kLanes<T>];
    std::memcpy(numbers, from + j * kSize, static_cast<std::size_t>((count - j) * kSize));
    store(wide, load_as<T, kStorage>(numbers));
    std::copy_n(wide, count - j, to + j);
  });
}

// Writes `count` adjacent numbers; `to` is not part of `from`.
template <class T>
void write_run(Storage storage, char* to, Index count, const T* from) {
  if (storage == kStorageOf<T>) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(T));
    return;
  }
  for_storage<T>(storage, [&]<Storage kStorage>() {
    constexpr Index kSize = size_of(kStorage);
    Index j = 0;
    for (; j + 2 * kLanes<T> <= count; j += 2 * kLanes<T>)
      store_pair_as<T, kStorage>(to + j * kSize, load(from + j), load(from + j + kLanes<T>));
    while (j < count) {
      const Index size = std::min<Index>(count - j, kLanes<T>);
      alignas(64) T wide[kLanes<T>] = {};
      alignas(64) char numbers[kLanes<T> * kSize];
      std::copy_n(from + j, size, wide);
      store_as<T, kStorage>(numbers, load(wide));
      std::memcpy(to + j * kSize, numbers, static_cast<std::size_t>(size * kSize));
      j += size;
    }
  });
}

constexpr Index kStridedChunk = 64;

// The same of numbers `stride` bytes apart: gathered by chunks, then converted as a run.
template <class T>
void read_run(Storage storage, const char* from, Index stride, Index count, T* to) {
  const Index size = size_of(storage);
  if (stride == size) return read_run(storage, from, count, to);
  if (size == sizeof(T)) {
    for (Index j = 0; j < count; ++j) std::memcpy(to + j, from + j * stride, sizeof(T));
    return;
  }
  std::uint16_t numbers[kStridedChunk];
  for (Index j = 0; j < count; j += kStridedChunk) {
    const Index end = std::min(count - j, kStridedChunk);
    for (Index i = 0; i < end; ++i) std::memcpy(numbers + i, from + (j + i) * stride, sizeof numbers[0]);
    read_run(storage, reinterpret_cast<const char*>(numbers), end, to + j);
  }
}

template <class T>
void write_run(Storage storage, char* to, Index stride, Index count, const T* from) {
  const Index size = size_of(storage);
  if (stride == size) return write_run(storage, to, count, from);
  if (size == sizeof(T)) {
    for (Index j = 0; j < count; ++j) std::memcpy(to + j * stride, from + j, sizeof(T));
    return;
  }
  std::uint16_t numbers[kStridedChunk];
  for (Index j = 0; j < count; j += kStridedChunk) {
    const Index end = std::min(count - j, kStridedChunk);
    write_run(storage, reinterpret_cast<char*>(numbers), end, from + j);
    for (Index i = 0; i < end; ++i) std::memcpy(to + (j + i) * stride, numbers + i, sizeof numbers[0]);
  }
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
