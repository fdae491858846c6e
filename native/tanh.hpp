// tanh of half a number with more digits than a vector's numbers have, and sech^2 to a few units in its last place.
//
// Method: x = n ln 2 + f, e^f - 1 = f + f^2/2 + f^3 P(f), and with em = e^x - 1 = 2^n (e^f - 1) + (2^n - 1),
// tanh(x / 2) = em / (2 + em): for x <= 0 no step cancels. With e = em + 1, sech^2(x / 2) = 4 e / (1 + e)^2, right
// even where tanh is all but -1. Results are unevaluated sums of two numbers, `high` and `low`, as are the steps on the
// way to them; their error is 0.1 of a unit in the last place of `high`.
// P is minimax with regard to what it adds to e^f - 1: to 2^-31 of it (float), 2^-61 (double); computed for this file.
#pragma once

#include "exp.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

template <class T>
struct TanhTraits;

template <>
struct TanhTraits<float> {
  static constexpr float kLargestX = 87.6f;  // 2^n, or f, may be out of range from here on
  // With FMA ln 2 may have all digits.
  static constexpr float kLn2High = ExpTraits<float>::kLn2High;
  static constexpr float kLn2Low = ExpTraits<float>::kLn2Low;
  static constexpr float kPolynomial[] = {0x1.a1896ap-13f, 0x1.6d40fap-10f, 0x1.1110a4p-7f, 0x1.5554f2p-5f,
                                          0x1.555556p-3f};
  static constexpr std::int32_t kUpperHalf = ~0xfff;  // the digits of a number that leave products of two exact
};

template <>
struct TanhTraits<double> {
  static constexpr double kLargestX = 708.7;
  static constexpr double kLn2High = kHasFma ? 0x1.62e42fefa39efp-1 : ExpTraits<double>::kLn2High;
  static constexpr double kLn2Low = kHasFma ? 0x1.abc9e3b39803fp-56 : ExpTraits<double>::kLn2Low;
  static constexpr double kPolynomial[] = {
      0x1.1f92d42b248e3p-29, 0x1.af5e97b3c46d0p-26, 0x1.27e4c7b6ebda1p-22, 0x1.71ddf86e21f0fp-19, 0x1.a01a01af6a2afp-16,
      0x1.a01a01afd88b0p-13, 0x1.6c16c16c14a6fp-10, 0x1.111111110f6d6p-7,  0x1.5555555555559p-5,  0x1.5555555555559p-3};
  static constexpr std::int64_t kUpperHalf = ~0x7ffffff;
};

// A sum that is not carried out.
template <class T>
struct TwoPart {
  Vec<T> high, low;
};

template <class T>
ALWAYS_INLINE TwoPart<T> two_sum(Vec<T> a, Vec<T> b) {
  const Vec<T> sum = a + b;
  const Vec<T> added = sum - a;
  return {sum, (a - (sum - added)) + (b - added)};
}

// The same where |a| >= |b| or a == 0.
template <class T>
ALWAYS_INLINE TwoPart<T> fast_two_sum(Vec<T> a, Vec<T> b) {
  const Vec<T> sum = a + b;
  return {sum, b - (sum - a)};
}

template <class T>
ALWAYS_INLINE TwoPart<T> two_product(Vec<T> a, Vec<T> b) {
  const Vec<T> product = a * b;
  if constexpr (kHasFma) {
    return {product, fused_multiply_add(a, b, -product)};
  } else {
    using Bits = Vec<typename ExpTraits<T>::Bits>;  // Dekker's, but split by a mask, which cannot overflow
    const Vec<T> a_high = (Vec<T>)((Bits)a & TanhTraits<T>::kUpperHalf), a_low = a - a_high;
    const Vec<T> b_high = (Vec<T>)((Bits)b & TanhTraits<T>::kUpperHalf), b_low = b - b_high;
    return {product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low};
  }
}

// a - b * c, where it is small: exact.
template <class T>
ALWAYS_INLINE Vec<T> exact_difference(Vec<T> a, Vec<T> b, Vec<T> c) {
  if constexpr (kHasFma) return fused_multiply_add(-b, c, a);
  const TwoPart<T> product = two_product<T>(b, c);
  return (a - product.high) - product.low;
}

// e^x = 2^n * (1 + grown).
template <class T>
struct PowerOfE {
  TwoPart<T> grown;
  Vec<T> power;  // 2^n
};

// For x in [-kLargestX, 0].
template <class T>
ALWAYS_INLINE PowerOfE<T> power_of_e(TwoPart<T> x) {
  using Traits = TanhTraits<T>;
  using Bits = Vec<typename ExpTraits<T>::Bits>;
  constexpr T kLog2e = static_cast<T>(0x1.71547652b82fep+0);
  const Vec<T> magic = splat(ExpTraits<T>::kMagic + static_cast<T>(ExpTraits<T>::kExponentBias));
  const Vec<T> shifted = fused_multiply_add(x.high, splat(kLog2e), magic);
  const Vec<T> n = shifted - magic;
  TwoPart<T> f{fused_multiply_add(n, splat(-Traits::kLn2High), x.high), x.low};
  if constexpr (kHasFma) {
    f.low = fused_multiply_add(n, splat(-Traits::kLn2Low), x.low);
  } else {
    // The low part of ln 2 is not so small.
    f = two_sum<T>(f.high, n * -Traits::kLn2Low);
    f.low += x.low;
  }

  // 2 P(f), by pairs of coefficients: a shorter chain than Horner's.
  constexpr int kCount = sizeof Traits::kPolynomial / sizeof(T);
  const auto coefficient = [](int i) { return splat(2 * Traits::kPolynomial[i]); };
  const Vec<T> square = f.high * f.high;
  Vec<T> p = coefficient(0);
  if constexpr (kCount % 2 == 0) p = fused_multiply_add(p, f.high, coefficient(1));
#pragma GCC unroll 8
  for (int i = 2 - kCount % 2; i < kCount; i += 2)
    p = fused_multiply_add(p, square, fused_multiply_add(coefficient(i), f.high, coefficient(i + 1)));

  const TwoPart<T> half_square = two_product<T>(T{0.5} * f.high, f.high);
  const Vec<T> cube = f.high * half_square.high;
  const Vec<T> rest = fused_multiply_add(cube, p, half_square.high);
  const Vec<T> rest_low = fused_multiply_add(cube, p, half_square.high - rest) + half_square.low;
  TwoPart<T> grown = fast_two_sum<T>(f.high, rest);
  grown.low += rest_low + fused_multiply_add(f.low, grown.high, f.low);
  return {grown, (Vec<T>)((Bits)shifted << ExpTraits<T>::kMantissaBits)};
}

template <class T>
struct TanhAndSlope {
  TwoPart<T> tanh;
  Vec<T> slope;  // sech^2
};

// tanh(x / 2), given e^x for x <= 0.
template <class T>
ALWAYS_INLINE TanhAndSlope<T> tanh_of_half(const PowerOfE<T>& of_e) {
  const Vec<T> power = of_e.power;
  const Vec<T> less = power - T{1}, lost = power - (less + T{1});
  TwoPart<T> em = fast_two_sum<T>(less, power * of_e.grown.high);
  em.low = fused_multiply_add(power, of_e.grown.low, em.low + lost);
  TwoPart<T> divisor = fast_two_sum<T>(splat(T{2}), em.high);
  divisor.low += em.low;

  const Vec<T> inverse = T{1} / divisor.high;
  const Vec<T> quotient = em.high * inverse;
  const Vec<T> rest =
      fused_multiply_add(-quotient, divisor.low, exact_difference<T>(em.high, quotient, divisor.high) + em.low);

  // The inverse is wrong by its own rounding and by what divisor.low leaves out; squared, by twice that.
  const Vec<T> e = fused_multiply_add(power, of_e.grown.high + of_e.grown.low, power);
  const Vec<T> error =
      fused_multiply_add(-inverse, divisor.low, exact_difference<T>(splat(T{1}), inverse, divisor.high));
  const Vec<T> slope = (e * inverse) * (T{4} * inverse);
  return {{quotient, rest * inverse}, fused_multiply_add(slope, error + error, slope)};
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
