// The exponential of a vector, relative to a row's reference and scaled so that small terms of a sum stay alive; and
// the logarithm that turns such a sum into a loss.
//
// scaled_exp(z, r) = 2^kExpBias * e^(z - r). The reference r lies near the row's maximum, which may exceed it by up to
// kReferenceSlack; the bias keeps terms down to e^-132 (float) from underflowing, so that a sum of 10^5 of them is
// still right where the label's own term is all but 1.
//
// Method: r = R ln 2 for an integer R, so that z - r is never formed, nor rounded. n = z / ln 2 rounded to whole
// multiples of 2^-b, f = z - n ln 2; 2^(n - R) is an entry of a table of 2^b numbers with the whole part of n - R added
// to its exponent, e^f a polynomial. All of n is read from the low bits of z / ln 2 + 1.5 * 2^(mantissa bits - b) - R,
// which already hold the exponent's bias. Where |z| is so large that n would not be exact, r is an origin that is
// subtracted first, and R is 0. An instruction set that looks up lanes in a register has a table, and needs a
// polynomial of half the degree or less.
// For float ln 2 is rounded: every term is e^(z - r) to the power kStretch<T>, 1 - 3e-9. Only differences of logits
// matter, and to them that is less than the rounding of z itself. What is compared with such terms is stretched too.
// Polynomials: minimax, but for a factor common to all terms, computed for this file: relative error 0.3 * 2^-24 of
// degree 3 with 8 entries, 0.9 * 2^-24 of degree 2 with 32, 0.2 * 2^-24 of degree 6 with none; for double
// 0.07 * 2^-53 of degree 6 with 16, 0.13 * 2^-53 of degree 11 with none. Those of the logarithm are minimax too (0.02
// of a unit in the last place).
#pragma once

#include <array>
#include <bit>
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
  static constexpr float kToInteger = 0x1.8p23f;  // added and subtracted again, it rounds to a whole number
  // ln 2 in two parts, and how large n may be: without FMA the high part is short, so that its product with n is exact.
  static constexpr int kLargestExponent = kHasFma ? 1 << 16 : 1 << 11;
  static constexpr float kLn2High = kHasFma ? 0x1.62e43p-1f : 0x1.62ep-1f;
  static constexpr float kLn2Low = kHasFma ? -0x1.05c61p-29f : 0x1.0bfbe8p-15f;
  static constexpr float kLog2e = 0x1.715476p+0f;
  static constexpr float kLn2 = 0x1.62e430p-1f, kLn2Rest = 0.0f;
  static constexpr auto kPolynomial = [] {
    if constexpr (kTableBits<float> == 5)
      return std::array{0x1.ffff0ap-2f, 0x1.0000f6p+0f};
    else if constexpr (kTableBits<float> == 3)
      return std::array{0x1.554d20p-3f, 0x1.000a42p-1f, 0x1p+0f};
    else
      return std::array{0x1.6ab928p-10f, 0x1.126d64p-7f, 0x1.55589cp-5f, 0x1.55540ap-3f, 0x1.fffffap-2f, 0x1p+0f};
  }();
  static constexpr float kLogPolynomial[] = {0x1.31e34cp-2f, 0x1.995eb6p-2f, 0x1.55557ap-1f};
};

template <>
struct ExpTraits<double> {
  using Bits = std::int64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr int kExponentBias = 1023;
  static constexpr int kExpBias = 400;
  static constexpr double kToInteger = 0x1.8p52;
  static constexpr int kLargestExponent = 1 << 13;
  static constexpr double kLn2High = 0x1.62e42fee00000p-1;
  static constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kLog2e = 0x1.71547652b82fep+0;
  static constexpr double kLn2 = 0x1.62e42fefa39efp-1, kLn2Rest = 0x1.abc9e3b39803fp-56;
  static constexpr auto kPolynomial = [] {
    if constexpr (kTableBits<double> == 4)
      return std::array{0x1.6c15631b3c846p-10, 0x1.11126f43b9459p-7, 0x1.555555589f974p-5,
                        0x1.555555540480dp-3,  0x1.fffffffffffaap-2, 0x1.000000000000ap+0};
    else
      return std::array{0x1.ad65dbdc41bb7p-26,
                        0x1.28b3465fbe0cbp-22,
                        0x1.71df45a92d639p-19,
                        0x1.a0199298773fbp-16,
                        0x1.a01a010fe8acbp-13,
                        0x1.6c16c1879609bp-10,
                        0x1.1111111130fe0p-7,
                        0x1.555555554f30cp-5,
                        0x1.55555555554a1p-3,
                        0x1.0000000000010p-1,
                        0x1p+0};
  }();
  static constexpr double kLogPolynomial[] = {0x1.2f06355979b5fp-3, 0x1.39a1a6e05cda7p-3, 0x1.74663fa321262p-3,
                                              0x1.c71c5206028d7p-3, 0x1.24924941f5034p-2, 0x1.999999997fd76p-2,
                                              0x1.5555555555592p-1};
};

// 2^(i / 32).
constexpr std::array<double, 32> kPowers = {
    0x1.0000000000000p+0, 0x1.059b0d3158574p+0, 0x1.0b5586cf9890fp+0, 0x1.11301d0125b51p+0, 0x1.172b83c7d517bp+0,
    0x1.1d4873168b9aap+0, 0x1.2387a6e756238p+0, 0x1.29e9df51fdee1p+0, 0x1.306fe0a31b715p+0, 0x1.371a7373aa9cbp+0,
    0x1.3dea64c123422p+0, 0x1.44e086061892dp+0, 0x1.4bfdad5362a27p+0, 0x1.5342b569d4f82p+0, 0x1.5ab07dd485429p+0,
    0x1.6247eb03a5585p+0, 0x1.6a09e667f3bcdp+0, 0x1.71f75e8ec5f74p+0, 0x1.7a11473eb0187p+0, 0x1.82589994cce13p+0,
    0x1.8ace5422aa0dbp+0, 0x1.93737b0cdc5e5p+0, 0x1.9c49182a3f090p+0, 0x1.a5503b23e255dp+0, 0x1.ae89f995ad3adp+0,
    0x1.b7f76f2fb5e47p+0, 0x1.c199bdd85529cp+0, 0x1.cb720dcef9069p+0, 0x1.d5818dcfba487p+0, 0x1.dfc97337b9b5fp+0,
    0x1.ea4afa2a490dap+0, 0x1.f50765b6e4540p+0};

// The entries 2^(i / 2^b) as bits, less the bias of the exponent and less i where it will be added with n.
template <class T>
struct ExpTable {
  using Bits = typename ExpTraits<T>::Bits;
  static constexpr int kEntries = 1 << kTableBits<T>;
  static constexpr auto kValues = [] {
    std::array<Bits, kEntries> values{};
    for (Bits i = 0; i < kEntries; ++i) {
      const T power = static_cast<T>(kPowers[static_cast<std::size_t>(i) * (kPowers.size() / kEntries)]);
      values[static_cast<std::size_t>(i)] =
          std::bit_cast<Bits>(power) - std::bit_cast<Bits>(T{1}) - (i << (ExpTraits<T>::kMantissaBits - kTableBits<T>));
    }
    return values;
  }();
};

// More digits than T has, where there is such a type.
template <class T>
using Longer = std::conditional_t<sizeof(T) == 8, long double, double>;

constexpr double kLn2 = 0x1.62e42fefa39efp-1;

constexpr long double kLongLn2 = 0x1.62e42fefa39ef35793c7673007e6p-1L;

// 2^n e^(z - n ln 2) for an ln 2 that is short of the true one, or beyond it, is e^z to this power.
template <class T>
constexpr Longer<T> kStretch =
    kHasFma ? static_cast<Longer<T>>(1.0L + (kLongLn2 - ExpTraits<T>::kLn2 - ExpTraits<T>::kLn2Rest) / kLongLn2)
            : Longer<T>{1};

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

  // z - r, stretched as the terms are.
  double below(Longer<T> z) const {
    return static_cast<double>((z - origin) * kStretch<T> - exponent * static_cast<Longer<T>>(kLongLn2));
  }
};

// A reference as scaled_exp takes it: one for all lanes, or each lane's own.
template <class T>
struct ReferenceVectors {
  explicit ReferenceVectors(const Reference<T>& reference)
      : origin(splat(reference.origin)),
        magic(splat(kMagic + static_cast<T>(kBias - reference.exponent))),
        lowest(splat(static_cast<T>((reference.exponent - kBias + 1) * kLn2))),
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
    const Vec<T> exponent =
        fused_multiply_add(near, splat(static_cast<T>(1.0 / kLn2)), splat(E::kToInteger)) - E::kToInteger;
    const Vec<T> finite = maximum < kLowest ? splat(kLowest) : maximum;
    bool all_near = true;
    for (int i = 0; i < kLanes<T>; ++i) all_near &= is_near[i] != 0;
    return {is_near ? Vec<T>{} : finite, (kMagic + static_cast<T>(kBias)) - exponent,
            (exponent - static_cast<T>(kBias - 1)) * static_cast<T>(kLn2), !all_near};
  }

  // R, a whole number.
  ALWAYS_INLINE Vec<T> exponent() const { return (kMagic + static_cast<T>(kBias)) - magic; }

  using E = ExpTraits<T>;
  static constexpr int kBias = E::kExponentBias + E::kExpBias;
  static constexpr T kMagic = E::kToInteger / (1 << kTableBits<T>);
  Vec<T> origin;
  Vec<T> magic;
  Vec<T> lowest;    // from here down, -inf included, the result is an exact zero: 2^n may have no exponent of its own
  bool has_origin;  // one that is not 0, in any lane

 private:
  ReferenceVectors(Vec<T> origin_, Vec<T> magic_, Vec<T> lowest_, bool has_origin_)
      : origin(origin_), magic(magic_), lowest(lowest_), has_origin(has_origin_) {}
};

// 2^n e^f, where `shifted` holds n in its low bits: e^f = 1 + f P(f), P by Horner's rule. 0 from `lowest` down.
template <class T>
ALWAYS_INLINE Vec<T> exp_of_reduced(Vec<T> f, Vec<T> shifted, Vec<T> t, Vec<T> lowest) {
  using E = ExpTraits<T>;
  using Bits = Vec<typename E::Bits>;
  Bits power = (Bits)shifted << (E::kMantissaBits - kTableBits<T>);
  if constexpr (kTableBits<T> != 0) power += look_up<T>(ExpTable<T>::kValues.data(), (Bits)shifted);
  Vec<T> p = splat(E::kPolynomial[0]);
#pragma GCC unroll 16
  for (unsigned i = 1; i < E::kPolynomial.size(); ++i) p = fused_multiply_add(p, f, splat(E::kPolynomial[i]));
  const Vec<T> e = fused_multiply_add(p, f * (Vec<T>)power, (Vec<T>)power);
  return t <= lowest ? Vec<T>{} : e;
}

// z - n ln 2.
template <class T>
ALWAYS_INLINE Vec<T> reduced(Vec<T> z, Vec<T> n) {
  using E = ExpTraits<T>;
  if constexpr (kHasFma) {
    const Vec<T> f = fused_multiply_add(n, splat(-E::kLn2), z);
    return E::kLn2Rest == T{0} ? f : fused_multiply_add(n, splat(-E::kLn2Rest), f);
  }
  return (z - n * E::kLn2High) - n * E::kLn2Low;
}

template <class T>
ALWAYS_INLINE Vec<T> scaled_exp(Vec<T> z, const ReferenceVectors<T>& reference) {
  if (reference.has_origin) z -= reference.origin;
  const Vec<T> shifted = fused_multiply_add(z, splat(ExpTraits<T>::kLog2e), reference.magic);
  return exp_of_reduced<T>(reduced<T>(z, shifted - reference.magic), shifted, z, reference.lowest);
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
  const Vec<T> shifted = fused_multiply_add(t, splat(kLog2e), reference.magic);
  const Vec<T> f = reduced<T>(t, shifted - reference.magic) + low;
  return exp_of_reduced<T>(f, shifted, t, reference.lowest);
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
