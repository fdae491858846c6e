// The exponential of a vector, relative to a row's reference and scaled so that small terms of a sum stay alive; and
// the logarithm that turns such a sum into a loss.
//
// scaled_exp(z, r) = 2^kExpBias * e^(z - r). The reference r lies near the row's maximum, which may exceed it by up to
// kReferenceSlack; the bias keeps terms down to e^-132 (float) from underflowing, so that a sum of 10^5 of them is
// still right where the label's own term is all but 1.
//
// Method: r = R ln 2 for an integer R, so that z - r is never formed, nor rounded; n = round(z log2(e)),
// f = z log2(e) - n in [-1/2, 1/2], 2^f by a polynomial, 2^(n - R) by putting n - R in the exponent. It is read from
// the low bits of z * log2(e) + 1.5 * 2^(mantissa bits) - R, which already hold the exponent's bias. Where |z| is so
// large that n would not be exact, r is an origin that is subtracted first, and R is 0.
// Polynomials: minimax, computed for this file (relative error 0.04 * 2^-24 with degree 6 for float, 0.16 * 2^-53
// with degree 11 for double). Those of the logarithm are minimax too (0.02 of a unit in the last place).
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
  static constexpr float kLog2e = 0x1.715476p+0f;
  static constexpr float kLog2eLow = 0x1.4ae0cp-26f;
  static constexpr float kPolynomial[] = {0x1.41f4eap-13f, 0x1.5f3edep-10f, 0x1.3b2d58p-7f,
                                          0x1.c6aee8p-5f,  0x1.ebfbdcp-3f,  0x1.62e430p-1f};
  static constexpr float kLogPolynomial[] = {0x1.31e34cp-2f, 0x1.995eb6p-2f, 0x1.55557ap-1f};
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
  static constexpr double kLog2e = 0x1.71547652b82fep+0;
  static constexpr double kLog2eLow = 0x1.777d0ffda0d24p-56;
  static constexpr double kPolynomial[] = {0x1.c0638527edf34p-32, 0x1.e605f979c7a5dp-28, 0x1.b54167a0b9061p-24,
                                           0x1.62bfd49ed0adfp-20, 0x1.ffcbee3b0af8cp-17, 0x1.4309130961163p-13,
                                           0x1.5d87fe7bbbe07p-10, 0x1.3b2ab6fba1e1cp-7,  0x1.c6b08d7048f31p-5,
                                           0x1.ebfbdff82c598p-3,  0x1.62e42fefa39f3p-1};
  static constexpr double kLogPolynomial[] = {0x1.2f06355979b5fp-3, 0x1.39a1a6e05cda7p-3, 0x1.74663fa321262p-3,
                                              0x1.c71c5206028d7p-3, 0x1.24924941f5034p-2, 0x1.999999997fd76p-2,
                                              0x1.5555555555592p-1};
};

// More digits than T has, where there is such a type.
template <class T>
using Longer = std::conditional_t<sizeof(T) == 8, long double, double>;

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
    using D = ExpTraits<double>;
    return ((z - origin) - exponent * D::kLn2High) - exponent * D::kLn2Low;
  }
  double below(long double z) const {
    return static_cast<double>((z - origin) - exponent * 0x1.62e42fefa39ef35793c7673007e6p-1L);
  }
};

// A reference as scaled_exp takes it: one for all lanes, or each lane's own.
template <class T>
struct ReferenceVectors {
  explicit ReferenceVectors(const Reference<T>& reference)
      : origin(splat(reference.origin)),
        magic(splat(E::kMagic + static_cast<T>(kBias - reference.exponent))),
        lowest(splat(static_cast<T>((reference.exponent - kBias) * kLn2))),
        has_origin(reference.origin != T{0}) {
    // Else compilers compare the origin with 0 again for each vector.
    asm("" : "+r"(has_origin));
  }

  // What Reference::near makes of each lane. A lane of NaN makes what is computed with it NaN.
  static ALWAYS_INLINE ReferenceVectors per_lane(Vec<T> maximum) {
    constexpr T kLargest = static_cast<T>(E::kLargestExponent * kLn2);
    constexpr T kLowest = std::numeric_limits<T>::lowest();
    const auto is_near = (maximum <= kLargest) & (maximum >= -kLargest);
    const Vec<T> near = is_near ? maximum : Vec<T>{};
    const Vec<T> exponent = fused_multiply_add(near, splat(static_cast<T>(1.0 / kLn2)), splat(E::kMagic)) - E::kMagic;
    const Vec<T> finite = maximum < kLowest ? splat(kLowest) : maximum;
    bool all_near = true;
    for (int i = 0; i < kLanes<T>; ++i) all_near &= is_near[i] != 0;
    return {is_near ? Vec<T>{} : finite, (E::kMagic + static_cast<T>(kBias)) - exponent,
            (exponent - static_cast<T>(kBias)) * static_cast<T>(kLn2), !all_near};
  }

  // R, a whole number.
  ALWAYS_INLINE Vec<T> exponent() const { return (E::kMagic + static_cast<T>(kBias)) - magic; }

  using E = ExpTraits<T>;
  static constexpr int kBias = E::kExponentBias + E::kExpBias;
  Vec<T> origin;
  Vec<T> magic;
  Vec<T> lowest;    // from here down 2^n has exponent 0, that is 0.0: the result is an exact zero, for -inf too
  bool has_origin;  // one that is not 0, in any lane

 private:
  ReferenceVectors(Vec<T> origin_, Vec<T> magic_, Vec<T> lowest_, bool has_origin_)
      : origin(origin_), magic(magic_), lowest(lowest_), has_origin(has_origin_) {}
};

// 2^n 2^f, where `shifted` holds n in its low bits: 2^f = 1 + f P(f), P by Horner's rule.
template <class T>
ALWAYS_INLINE Vec<T> exp2_of_reduced(Vec<T> f, Vec<T> shifted) {
  using E = ExpTraits<T>;
  using Bits = Vec<typename E::Bits>;
  const Vec<T> power = (Vec<T>)((Bits)shifted << E::kMantissaBits);
  Vec<T> p = splat(E::kPolynomial[0]);
#pragma GCC unroll 16
  for (unsigned i = 1; i < sizeof E::kPolynomial / sizeof(T); ++i)
    p = fused_multiply_add(p, f, splat(E::kPolynomial[i]));
  return fused_multiply_add(p, f * power, power);
}

// t log2(e) - n.
template <class T>
ALWAYS_INLINE Vec<T> reduced(Vec<T> t, Vec<T> n) {
  using E = ExpTraits<T>;
  if constexpr (kHasFma) return fused_multiply_add(t, splat(E::kLog2eLow), fused_multiply_add(t, splat(E::kLog2e), -n));
  return ((t - n * E::kLn2High) - n * E::kLn2Low) * E::kLog2e;
}

template <class T>
ALWAYS_INLINE Vec<T> scaled_exp(Vec<T> z, const ReferenceVectors<T>& reference) {
  if (reference.has_origin) z -= reference.origin;
  const Vec<T> t = keep_nan_max(reference.lowest, z);
  const Vec<T> shifted = fused_multiply_add(t, splat(ExpTraits<T>::kLog2e), reference.magic);
  return exp2_of_reduced<T>(reduced<T>(t, shifted - reference.magic), shifted);
}

// The same of high + low, a sum that T cannot hold: low is no more than a few units in high's last place, and 0 where
// |high| is beyond kLargestWithLow, -inf included.
template <class T>
constexpr T kLargestWithLow = sizeof(T) == 8 ? T(0x1p53) : T(0x1p24);

template <class T>
ALWAYS_INLINE Vec<T> scaled_exp(Vec<T> high, Vec<T> low, const ReferenceVectors<T>& reference) {
  constexpr T kLog2e = ExpTraits<T>::kLog2e;
  Vec<T> t = high;
  if (reference.has_origin) {
    t -= reference.origin;
    // low may be too large for the polynomial, but the difference is exact, where the result is not 0.
    const auto far = reference.origin != T{0};
    t = far ? t + low : t;
    low = far ? Vec<T>{} : low;
  }
  t = keep_nan_max(reference.lowest, t);
  const Vec<T> shifted = fused_multiply_add(t, splat(kLog2e), reference.magic);
  const Vec<T> f = fused_multiply_add(low, splat(kLog2e), reduced<T>(t, shifted - reference.magic));
  return exp2_of_reduced<T>(f, shifted);
}

// log(1 + x) for x >= 0, to about a unit in the last place, however small or large x is; NaN stays NaN.
// Method (FreeBSD's log1p): 1 + x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)]; s = f / (2 + f);
// log(1 + f) = f - (f^2/2 - s (f^2/2 + R(s^2))). What the rounding of 1 + x lost comes back as lost / (1 + x).
template <class T>
ALWAYS_INLINE Vec<T> log1p(Vec<T> x) {
  using E = ExpTraits<T>;
  using Bits = Vec<typename E::Bits>;
  constexpr typename E::Bits kOne = typename E::Bits{E::kExponentBias} << E::kMantissaBits;
  constexpr T kSqrtHalf = static_cast<T>(0x1.6a09e667f3bcdp-1);
  constexpr typename E::Bits kFraction = (typename E::Bits{1} << E::kMantissaBits) - 1;
  constexpr T kIntegers = static_cast<T>(typename E::Bits{1} << E::kMantissaBits);  // its low bits are an integer

  const Vec<T> u = x + T{1};
  const Vec<T> lost = x < T{1} ? x - (u - T{1}) : T{1} - (u - x);
  // Unsigned, for the bits of an infinity or NaN may leave the range.
  using Unsigned = Vec<std::make_unsigned_t<typename E::Bits>>;
  const Bits shifted = (Bits)((Unsigned)u + (Unsigned)(kOne - (Bits)splat(kSqrtHalf)));
  const Vec<T> k = (Vec<T>)((shifted >> E::kMantissaBits) | (Bits)splat(kIntegers)) - (kIntegers + E::kExponentBias);
  const Vec<T> reduced = (Vec<T>)((shifted & kFraction) + (Bits)splat(kSqrtHalf)) - T{1};
  const auto is_small = k == T{0};
  const Vec<T> f = is_small ? x : reduced;
  const Vec<T> correction = is_small ? Vec<T>{} : lost / u;

  const Vec<T> s = f / (f + T{2});
  const Vec<T> z = s * s;
  Vec<T> r = splat<T>(E::kLogPolynomial[0]);
#pragma GCC unroll 8
  for (unsigned i = 1; i < sizeof E::kLogPolynomial / sizeof(T); ++i)
    r = fused_multiply_add(r, z, splat<T>(E::kLogPolynomial[i]));
  const Vec<T> half_square = T{0.5} * f * f;
  const Vec<T> rest =
      fused_multiply_add(s, half_square + r * z, fused_multiply_add(k, splat<T>(E::kLn2Low), correction));
  const Vec<T> result = fused_multiply_add(k, splat<T>(E::kLn2High), f - (half_square - rest));
  return x <= std::numeric_limits<T>::max() ? result : x;
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
