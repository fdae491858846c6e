// The exponential of a vector, relative to a row's reference and scaled so that small terms of a sum stay alive.
//
// scaled_exp(z, r) = 2^kExpBias * e^(z - r). The reference r lies near the row's maximum, which may exceed it by up to
// kReferenceSlack; the bias keeps terms down to e^-132 (float) from underflowing, so that a sum of 10^5 of them is
// still right where the label's own term is all but 1.
//
// Method: r = R ln 2 for an integer R, so that z - r is never formed, nor rounded; n = round(z / ln 2),
// f = z - n ln 2 in [-ln 2 / 2, ln 2 / 2], e^f by a polynomial, 2^(n - R) by putting n - R in the exponent. It is read
// from the low bits of z * log2(e) + 1.5 * 2^(mantissa bits) - R, which already hold the exponent's bias. Where |z| is
// so large that n would not be exact, r is an origin that is subtracted first, and R is 0.
// Polynomials: minimax (float, relative error 0.06 * 2^-24 with degree 6) and Chebyshev interpolation (double,
// 0.15 * 2^-53 with degree 11), computed for this file.
#pragma once

#include <cmath>
#include <limits>

#include "simd.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

template <class T>
struct ExpTraits;

template <>
struct ExpTraits<float> {
  using Bits = std::int32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr int kExponentBias = 127;
  static constexpr int kExpBias = 64;
  static constexpr float kMagic = 0x1.8p23f;
  // ln 2 in two parts, and how large n may be: without FMA the high part is short, so that its product with n is exact.
  static constexpr int kLargestExponent = kHasFma ? 1 << 18 : 1 << 11;
  static constexpr float kLn2High = kHasFma ? 0x1.62e43p-1f : 0x1.62ep-1f;
  static constexpr float kLn2Low = kHasFma ? -0x1.05c61p-29f : 0x1.0bfbe8p-15f;
  static constexpr float kPolynomial[] = {0x1.6a2434p-10f, 0x1.1239e2p-7f, 0x1.5558f2p-5f,
                                          0x1.555492p-3f,  0x1.fffffcp-2f, 1.0f};
};

template <>
struct ExpTraits<double> {
  using Bits = std::int64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr int kExponentBias = 1023;
  static constexpr int kExpBias = 400;
  static constexpr double kMagic = 0x1.8p52;
  static constexpr int kLargestExponent = 1 << 18;
  static constexpr double kLn2High = 0x1.62e42fee00000p-1;
  static constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kPolynomial[] = {0x1.af38a9b0ec855p-26,
                                           0x1.289185613a3d6p-22,
                                           0x1.71de0dae63bb3p-19,
                                           0x1.a019b90d2ae7ap-16,
                                           0x1.a01a01a7c41d5p-13,
                                           0x1.6c16c1788bd90p-10,
                                           0x1.11111111109b3p-7,
                                           0x1.5555555553d63p-5,
                                           0x1.5555555555556p-3,
                                           0x1.0000000000001p-1,
                                           1.0};
};

constexpr double kLn2 = 0x1.62e42fefa39efp-1;

// 2^kExpBias as a double, to undo the scale.
template <class T>
constexpr double kExpScale = 0x1p64;
template <>
inline constexpr double kExpScale<double> = 0x1p400;

// How far a class may exceed the reference before the reference must rise: not further than the rounding of such a gap
// may cost (8 units), and sums of 2^20 terms stay finite.
constexpr int kReferenceSlack = 15;

// What a row's terms are relative to: r = origin + exponent * ln 2.
template <class T>
struct Reference {
  T origin = T{0};
  int exponent = 0;

  // A reference within ln 2 / 2 of z.
  static Reference near(T z) {
    using E = ExpTraits<T>;
    if (std::abs(z) <= static_cast<T>(E::kLargestExponent * kLn2))
      return {T{0}, static_cast<int>(std::nearbyint(static_cast<double>(z) / kLn2))};
    // It must be finite from below: -inf - -inf is NaN.
    return {z == -std::numeric_limits<T>::infinity() ? std::numeric_limits<T>::lowest() : z, 0};
  }

  // z - r; the product with the high part of ln 2 is exact.
  double below(double z) const {
    using E = ExpTraits<double>;
    return ((z - origin) - exponent * E::kLn2High) - exponent * E::kLn2Low;
  }
};

// A reference as scaled_exp takes it.
template <class T>
struct ReferenceVectors {
  explicit ReferenceVectors(const Reference<T>& reference)
      : origin(splat(reference.origin)),
        magic(splat(E::kMagic + static_cast<T>(kBias - reference.exponent))),
        lowest(splat(static_cast<T>((reference.exponent - kBias) * kLn2))) {}

  using E = ExpTraits<T>;
  static constexpr int kBias = E::kExponentBias + E::kExpBias;
  Vec<T> origin;
  Vec<T> magic;
  Vec<T> lowest;  // from here down 2^n has exponent 0, that is 0.0: the result is an exact zero, for -inf too
};

template <class T>
ALWAYS_INLINE Vec<T> scaled_exp(Vec<T> z, const ReferenceVectors<T>& reference) {
  using E = ExpTraits<T>;
  constexpr T kLog2e = static_cast<T>(0x1.71547652b82fep+0);

  const Vec<T> t = keep_nan_max(reference.lowest, z - reference.origin);
  const Vec<T> shifted = fused_multiply_add(t, splat<T>(kLog2e), reference.magic);
  const Vec<T> n = shifted - reference.magic;
  Vec<T> f = fused_multiply_add(n, splat<T>(-E::kLn2High), t);
  f = fused_multiply_add(n, splat<T>(-E::kLn2Low), f);

  Vec<T> p = splat<T>(E::kPolynomial[0]);
#pragma GCC unroll 16
  for (unsigned i = 1; i < sizeof E::kPolynomial / sizeof(T); ++i)
    p = fused_multiply_add(p, f, splat<T>(E::kPolynomial[i]));

  using Bits = Vec<typename E::Bits>;
  const Vec<T> power = (Vec<T>)((Bits)shifted << E::kMantissaBits);
  return fused_multiply_add(p, f * power, power);
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
