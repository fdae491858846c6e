// The exponential of a vector, scaled by a power of two that keeps small terms of a sum alive.
//
// scaled_exp(t) = 2^kExpBias * e^t. A row's terms are taken relative to a reference that the row's maximum may exceed
// by up to kReferenceSlack; the bias keeps terms down to e^-115 (float) from underflowing, so that a sum of 10^5 of
// them is still right where the label's own term is all but 1.
//
// Method: n = round(t / ln 2), r = t - n ln 2 in [-ln 2 / 2, ln 2 / 2], e^r by a polynomial, 2^n by putting n in the
// exponent. n is read from the low bits of t * log2(e) + 1.5 * 2^(mantissa bits), which already hold the exponent's
// bias. Polynomials: minimax (float, relative error 0.06 * 2^-24 with degree 6) and Chebyshev interpolation
// (double, 0.15 * 2^-53 with degree 11), computed for this file.
#pragma once

#include "simd.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

template <class T>
struct ExpTraits;

template <>
struct ExpTraits<float> {
  using Bits = std::int32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr int kExponentBias = 127;
  static constexpr int kExpBias = 40;
  static constexpr float kMagic = 0x1.8p23f;
  // ln 2 in two parts: one rounded value would cost up to 5 units at |t| = 100. Without FMA the high part is short, so
  // that its product with n is exact.
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

// 2^kExpBias as a double, to undo the scale.
template <class T>
constexpr double kExpScale = static_cast<double>(std::uint64_t{1} << 40);
template <>
inline constexpr double kExpScale<double> = 0x1p400;

// How far a term may exceed its reference before the reference must rise: ln 2 * kExpBias, so that sums of 2^20
// terms at both limits stay finite.
template <class T>
constexpr T kReferenceSlack = static_cast<T>(0.69 * ExpTraits<T>::kExpBias);

template <class T>
ALWAYS_INLINE Vec<T> scaled_exp(Vec<T> t) {
  using E = ExpTraits<T>;
  constexpr T kLog2e = static_cast<T>(0x1.71547652b82fep+0);
  constexpr int kBias = E::kExponentBias + E::kExpBias;
  // Below this 2^n has exponent 0, that is 0.0: the result is an exact zero, for -inf too.
  constexpr T kLowest = static_cast<T>(-0x1.62e42fefa39efp-1 * kBias);
  const Vec<T> magic = splat<T>(E::kMagic + static_cast<T>(kBias));

  t = keep_nan_max(splat<T>(kLowest), t);
  const Vec<T> shifted = fused_multiply_add(t, splat<T>(kLog2e), magic);
  const Vec<T> n = shifted - magic;
  Vec<T> r = fused_multiply_add(n, splat<T>(-E::kLn2High), t);
  r = fused_multiply_add(n, splat<T>(-E::kLn2Low), r);

  Vec<T> p = splat<T>(E::kPolynomial[0]);
#pragma GCC unroll 16
  for (unsigned i = 1; i < sizeof E::kPolynomial / sizeof(T); ++i)
    p = fused_multiply_add(p, r, splat<T>(E::kPolynomial[i]));

  using Bits = Vec<typename E::Bits>;
  const Vec<T> power = (Vec<T>)((Bits)shifted << E::kMantissaBits);
  return fused_multiply_add(p, r * power, power);
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
