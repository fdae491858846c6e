// tanh of half a number with more digits than a vector's numbers have, and sech^2 to a few units in its last place.
//
// float is computed in double, but for small numbers; double in unevaluated sums of two numbers, `high` and `low`, as
// are the steps on the way to them. Either way the error is 0.1 of a unit in the last place of `high` at most, of small
// floats a quarter.
//
// Method for float, where |y| = |x| / 2 <= 5/8: tanh(y) = y - y^3 P(y^2), and sech^2(y) = 1 - tanh^2(y).
// Elsewhere, where x >= 0: x / ln 2 = n + g, 2^g - 1 = g Q(g), and with em = e^x - 1 = 2^n g Q(g) + (2^n - 1)
// and r = 1 / (2 + em), tanh(x / 2) = em r, right even where it is next to 0, and sech^2(x / 2) = 4 r (1 - r), right
// even where tanh is all but 1.
// Method for double, where x <= 0: x = n ln 2 + f, e^f - 1 = f + f^2/2 + f^3 P(f), em = 2^n (e^f - 1) + (2^n - 1), and
// tanh(x / 2) = em / (2 + em): no step cancels. With e = em + 1, sech^2(x / 2) = 4 e / (1 + e)^2.
// All are minimax, and computed for this file. The relative errors are 2^-32 (Q), 2^-24.6 (float's P), and 2^-61, which
// double's P adds to e^f - 1.
#pragma once

#include <iterator>

#include "exp.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

// The digits of a number that leave products of two exact.
template <class T>
constexpr std::conditional_t<sizeof(T) == 8, std::int64_t, std::int32_t> kUpperHalf = ~0xfff;
template <>
inline constexpr std::int64_t kUpperHalf<double> = ~0x7ffffff;

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
    const Vec<T> a_high = (Vec<T>)((Bits)a & kUpperHalf<T>), a_low = a - a_high;
    const Vec<T> b_high = (Vec<T>)((Bits)b & kUpperHalf<T>), b_low = b - b_high;
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
struct PowerOfE {
  TwoPart<double> grown;
  Vec<double> power;  // 2^n
};

constexpr double kLargestX = 708.7;  // 2^n, or f, may be out of range from here on

// For x in [-kLargestX, 0].
ALWAYS_INLINE PowerOfE power_of_e(TwoPart<double> x) {
  using E = ExpTraits<double>;
  // With FMA ln 2 may have all digits.
  constexpr double kLn2High = kHasFma ? 0x1.62e42fefa39efp-1 : E::kLn2High;
  constexpr double kLn2Low = kHasFma ? 0x1.abc9e3b39803fp-56 : E::kLn2Low;
  constexpr double kPolynomial[] = {
      0x1.1f92d42b248e3p-29, 0x1.af5e97b3c46d0p-26, 0x1.27e4c7b6ebda1p-22, 0x1.71ddf86e21f0fp-19, 0x1.a01a01af6a2afp-16,
      0x1.a01a01afd88b0p-13, 0x1.6c16c16c14a6fp-10, 0x1.111111110f6d6p-7,  0x1.5555555555559p-5,  0x1.5555555555559p-3};
  constexpr double kLog2e = 0x1.71547652b82fep+0;
  const Vec<double> magic = splat(E::kToInteger + E::kExponentBias);
  const Vec<double> shifted = fused_multiply_add(x.high, splat(kLog2e), magic);
  const Vec<double> n = shifted - magic;
  TwoPart<double> f{fused_multiply_add(n, splat(-kLn2High), x.high), x.low};
  if constexpr (kHasFma) {
    f.low = fused_multiply_add(n, splat(-kLn2Low), x.low);
  } else {
    // The low part of ln 2 is not so small.
    f = two_sum<double>(f.high, n * -kLn2Low);
    f.low += x.low;
  }

  // 2 P(f), by pairs of coefficients: a shorter chain than Horner's.
  constexpr int kCount = sizeof kPolynomial / sizeof(double);
  const auto coefficient = [&](int i) { return splat(2 * kPolynomial[i]); };
  const Vec<double> square = f.high * f.high;
  Vec<double> p = coefficient(0);
  if constexpr (kCount % 2 == 0) p = fused_multiply_add(p, f.high, coefficient(1));
#pragma GCC unroll 8
  for (int i = 2 - kCount % 2; i < kCount; i += 2)
    p = fused_multiply_add(p, square, fused_multiply_add(coefficient(i), f.high, coefficient(i + 1)));

  const TwoPart<double> half_square = two_product<double>(0.5 * f.high, f.high);
  const Vec<double> cube = f.high * half_square.high;
  const Vec<double> rest = fused_multiply_add(cube, p, half_square.high);
  const Vec<double> rest_low = fused_multiply_add(cube, p, half_square.high - rest) + half_square.low;
  TwoPart<double> grown = fast_two_sum<double>(f.high, rest);
  grown.low += rest_low + fused_multiply_add(f.low, grown.high, f.low);
  return {grown, (Vec<double>)((Vec<std::int64_t>)shifted << E::kMantissaBits)};
}

struct TanhAndSlope {
  TwoPart<double> tanh;
  Vec<double> slope;  // sech^2
};

// tanh(x / 2), given e^x for x <= 0.
ALWAYS_INLINE TanhAndSlope tanh_of_half(const PowerOfE& of_e) {
  const Vec<double> power = of_e.power;
  const Vec<double> less = power - 1.0, lost = power - (less + 1.0);
  TwoPart<double> em = fast_two_sum<double>(less, power * of_e.grown.high);
  em.low = fused_multiply_add(power, of_e.grown.low, em.low + lost);
  TwoPart<double> divisor = fast_two_sum<double>(splat(2.0), em.high);
  divisor.low += em.low;

  const Vec<double> inverse = 1.0 / divisor.high;
  const Vec<double> quotient = em.high * inverse;
  const Vec<double> rest =
      fused_multiply_add(-quotient, divisor.low, exact_difference<double>(em.high, quotient, divisor.high) + em.low);

  // The inverse is wrong by its own rounding and by what divisor.low leaves out; squared, by twice that.
  const Vec<double> e = fused_multiply_add(power, of_e.grown.high + of_e.grown.low, power);
  const Vec<double> error =
      fused_multiply_add(-inverse, divisor.low, exact_difference<double>(splat(1.0), inverse, divisor.high));
  const Vec<double> slope = (e * inverse) * (4.0 * inverse);
  return {{quotient, rest * inverse}, fused_multiply_add(slope, error + error, slope)};
}

// The halves of a vector of floats, as doubles.
struct Doubles {
  Vec<double> lower, upper;
};

ALWAYS_INLINE Doubles to_doubles(Vec<float> v) { return {lower_as_doubles(v), upper_as_doubles(v)}; }

ALWAYS_INLINE Vec<float> to_floats(Doubles v) {
#if defined(__AVX512F__)
  const __m512 lower = _mm512_castps256_ps512(_mm512_maskz_cvtpd_ps(0xff, v.lower));
  return _mm512_maskz_insertf32x8(0xffff, lower, _mm512_maskz_cvtpd_ps(0xff, v.upper), 1);
#elif defined(__AVX2__)
  return _mm256_set_m128(_mm256_cvtpd_ps(v.upper), _mm256_cvtpd_ps(v.lower));
#elif defined(__x86_64__)
  return _mm_movelh_ps(_mm_cvtpd_ps(v.lower), _mm_cvtpd_ps(v.upper));
#else
  const Half<Vec<float> > halves[2] = {__builtin_convertvector(v.lower, Half<Vec<float> >),
                                       __builtin_convertvector(v.upper, Half<Vec<float> >)};
  Vec<float> floats;
  std::memcpy(&floats, halves, sizeof floats);
  return floats;
#endif
}

constexpr double kLargestPlainTanh = 0.625;

// (1 - tanh(y) / y) / y^2 for |y| <= kLargestPlainTanh, of y^2.
ALWAYS_INLINE Vec<float> plain_tanh_lack(Vec<float> square) {
  constexpr float kPolynomial[] = {-0x1.2c869ep-9f, 0x1.116acap-7f,  -0x1.64a996p-6f,
                                   0x1.ba08c8p-5f,  -0x1.1110eap-3f, 0x1.555556p-2f};
  Vec<float> p = splat(kPolynomial[0]);
#pragma GCC unroll 8
  for (unsigned i = 1; i < std::size(kPolynomial); ++i) p = fused_multiply_add(p, square, splat(kPolynomial[i]));
  return p;
}

// Makes z into e^x - 1 for x = z * factor * ln 2, where z * factor is in [0, 1000]. The vectors go step by step: a
// processor does not look far enough ahead to interleave them.
template <int kVectors>
ALWAYS_INLINE void less_one(Doubles (&z)[kVectors], Vec<double> factor) {
  using E = ExpTraits<double>;
  constexpr double kPolynomial[] = {0x1.ffcbda9d1848cp-17, 0x1.443f61f61593ep-13, 0x1.5d88bdb345837p-10,
                                    0x1.3b2a1c3675497p-7,  0x1.c6b08cb166e98p-5,  0x1.ebfbe0452ffedp-3,
                                    0x1.62e42fefd32c5p-1};
  const Vec<double> magic = splat(E::kToInteger + E::kExponentBias);
  Doubles g[kVectors], q[kVectors], power[kVectors];
  const auto reduce = [&](Vec<double> z, Vec<double>& g, Vec<double>& power) {
    const Vec<double> shifted = fused_multiply_add(z, factor, magic);
    g = fused_multiply_add(z, factor, magic - shifted);
    power = (Vec<double>)((Vec<std::int64_t>)shifted << E::kMantissaBits);
  };
#pragma GCC unroll 4
  for (int u = 0; u < kVectors; ++u) {
    reduce(z[u].lower, g[u].lower, power[u].lower);
    reduce(z[u].upper, g[u].upper, power[u].upper);
    q[u] = {splat(kPolynomial[0]), splat(kPolynomial[0])};
  }
#pragma GCC unroll 8
  for (int i = 1; i < 7; ++i) {
#pragma GCC unroll 4
    for (int u = 0; u < kVectors; ++u)
      q[u] = {fused_multiply_add(q[u].lower, g[u].lower, splat(kPolynomial[i])),
              fused_multiply_add(q[u].upper, g[u].upper, splat(kPolynomial[i]))};
  }
#pragma GCC unroll 4
  for (int u = 0; u < kVectors; ++u)
    z[u] = {fused_multiply_add(power[u].lower * g[u].lower, q[u].lower, power[u].lower - 1.0),
            fused_multiply_add(power[u].upper * g[u].upper, q[u].upper, power[u].upper - 1.0)};
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
