// softcap * tanh(z / (temperature * softcap)) of vectors of logits, and its derivatives.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "tanh.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

// The softcap in use. A larger one could overflow, and caps no number whose exponential a T could hold.
template <class T>
constexpr int kLargestSoftcapExponent = sizeof(T) == 8 ? 900 : 100;

// A vector of v = high + low, its slope dv/dz * temperature, and its curvature d2v/dz2 * temperature^2.
template <class T>
struct Transformed {
  Vec<T> high, low, slope, curvature;
};

// What logits are multiplied by: 1 / temperature, or with a softcap 2 / (temperature * softcap). It is a power of two
// and two numbers near 1, as none of these can overflow.
template <class T>
struct Factor {
  Factor(double temperature, double softcap) {
    using Limits = std::numeric_limits<T>;
    int exponent = 0, softcap_exponent = 0;
    double divisor = std::frexp(temperature, &exponent), divisor_low = 0.0, dividend = 1.0;
    if (softcap != 0.0) {
      const double first = divisor, second = std::frexp(softcap, &softcap_exponent);
      divisor = first * second;
      divisor_low = std::fma(first, second, -divisor);
      dividend = 2.0;
    }
    const double factor = dividend / divisor;
    const double factor_low = (std::fma(-factor, divisor, dividend) - factor * divisor_low) / divisor;
    exponent = -(exponent + softcap_exponent);
    const int power = std::clamp(exponent, Limits::min_exponent - 1, Limits::max_exponent - 1);
    // Beyond this every z but 0 is capped, or infinite, or none is more than a rounding error.
    const int rest = std::clamp(exponent - power, -kLargestSoftcapExponent<T>, kLargestSoftcapExponent<T>);
    const T rounded = static_cast<T>(factor);
    scale = splat(static_cast<T>(std::ldexp(1.0, power)));
    high = splat(std::ldexp(rounded, rest));
    low = splat(static_cast<T>(std::ldexp((factor - static_cast<double>(rounded)) + factor_low, rest)));
  }

  // `scaled` is z * scale.
  ALWAYS_INLINE TwoPart<T> times(Vec<T> scaled) const {
    const TwoPart<T> product = two_product<T>(scaled, high);
    return {product.high, fused_multiply_add(scaled, low, product.low)};
  }

  Vec<T> scale, high, low;
};

template <class T>
ALWAYS_INLINE Vec<T> absolute(Vec<T> v) {
  return (Vec<T>)((Integers<T>)v & ~(Integers<T>)splat(T{-0.0}));
}

// The derivatives that are asked for.
enum class Slopes { kNone, kFirst, kBoth };

// softcap * tanh(z / (temperature * softcap)) of groups of kVectors vectors. A mask stays a mask: there v is z, and so
// it is where z is NaN.
//
// Step by step, each for all vectors: one vector's chain of instructions is longer than a processor looks ahead.
template <class T>
class Softcap;

template <>
class Softcap<double> {
 public:
  Softcap(double temperature, double softcap)
      : factor_(temperature, softcap),
        minus_largest_(-kLargestX / factor_.high),
        softcap_(splat(softcap)),
        minus_twice_inverse_(splat(-std::min(2.0 / softcap, 0x1p1020))) {}

  template <int kVectors, Slopes kSlopes>
  ALWAYS_INLINE void apply(const double* z, Transformed<double>* v) const {
    PowerOfE of_e[kVectors];
    TanhAndSlope tanh[kVectors];
#pragma GCC unroll 4
    for (int u = 0; u < kVectors; ++u) of_e[u] = power_of_e(factor_.times(bounded(load(z + u * kLanes<double>))));
#pragma GCC unroll 4
    for (int u = 0; u < kVectors; ++u) tanh[u] = tanh_of_half(of_e[u]);
#pragma GCC unroll 4
    for (int u = 0; u < kVectors; ++u) v[u] = capped(load(z + u * kLanes<double>), tanh[u]);
  }

 private:
  using Bits = Integers<double>;

  // -|z|, scaled, to where its tanh is -1.
  ALWAYS_INLINE Vec<double> bounded(Vec<double> z) const {
    return keep_nan_max(minus_largest_, -absolute<double>(z) * factor_.scale);
  }

  ALWAYS_INLINE Transformed<double> capped(Vec<double> z, const TanhAndSlope& of_minus_z) const {
    const Bits flip = ~(Bits)z & (Bits)splat(-0.0);
    const Vec<double> t = (Vec<double>)((Bits)of_minus_z.tanh.high ^ flip);
    const Vec<double> t_low = (Vec<double>)((Bits)of_minus_z.tanh.low ^ flip);
    const TwoPart<double> product = two_product<double>(t, softcap_);
    const Vec<double> low = fused_multiply_add(t_low, softcap_, product.low);
    // There sech^2 is no normal number, or nearly so.
    const Vec<double> slope = bounded(z) > minus_largest_ ? of_minus_z.slope : Vec<double>{};
    const auto unbounded = absolute<double>(z) == std::numeric_limits<double>::infinity();
    return {unbounded ? z : product.high, low, unbounded ? splat(1.0) : slope, minus_twice_inverse_ * t * slope};
  }

  Factor<double> factor_;
  Vec<double> minus_largest_, softcap_, minus_twice_inverse_;
};

template <>
class Softcap<float> {
 public:
  Softcap(double temperature, double softcap) {
    constexpr double kTwiceLog2e = 0x1.71547652b82fep+1;
    // With more every z but 0 is capped.
    const double factor = std::min(kTwiceLog2e / temperature / softcap, 0x1p157);
    constexpr double kLeast = std::numeric_limits<float>::denorm_min(), kMost = std::numeric_limits<float>::max();
    factor_ = splat(-factor);
    minus_largest_ = splat(static_cast<float>(-std::clamp(0x1p8 / factor, kLeast, kMost)));
    quarter_ = splat(0.25 * softcap);
    minus_half_inverse_ = splat(static_cast<float>(-std::min(0.5 / softcap, 0x1p122)));

    // Only for a softcap that leaves tanh and sech^2 well within the range of floats.
    const bool plain = softcap > 0x1p-60 && softcap < 0x1p60 && factor > 0x1p-60 && factor < 0x1p60;
    const double plain_factor = plain ? 1.0 / temperature / softcap : 0.0;
    const double inverse_temperature = plain ? 1.0 / temperature : 0.0;
    const auto rounded = static_cast<float>(inverse_temperature);
    plain_factor_ = splat(static_cast<float>(plain_factor));
    inverse_temperature_ = {splat(rounded), splat(static_cast<float>(inverse_temperature - rounded))};
    inverse_ = splat(static_cast<float>(plain ? 1.0 / softcap : 0.0));
    largest_plain_ = std::bit_cast<std::int32_t>(plain ? static_cast<float>(kLargestPlainTanh / plain_factor) : 0.0f);
  }

  // Logits that are small by the softcap, as most are, cost half or less.
  template <int kVectors, Slopes kSlopes>
  ALWAYS_INLINE void apply(const float* z, Transformed<float>* v) const {
    Bits largest{};
#pragma GCC unroll 4
    for (int u = 0; u < kVectors; ++u) {
      const Bits bits = (Bits)absolute<float>(load(z + u * kLanes<float>));  // of infinity and NaN the largest
      largest = largest > bits ? largest : bits;
    }
    const Vec<float> beyond = largest > largest_plain_ ? splat(1.0f) : Vec<float>{};
    if (!any_above<float>(beyond, Vec<float>{})) {
      plain<kVectors, kSlopes>(z, v);
      return;
    }
    Doubles em[kVectors];
#pragma GCC unroll 4
    for (int u = 0; u < kVectors; ++u)
      em[u] = to_doubles(keep_nan_max(minus_largest_, minus_absolute(load(z + u * kLanes<float>))));
    less_one(em, factor_);
#pragma GCC unroll 4
    for (int u = 0; u < kVectors; ++u) v[u] = capped<kSlopes>(load(z + u * kLanes<float>), em[u]);
  }

 private:
  using Bits = Integers<float>;

  static ALWAYS_INLINE Vec<float> minus_absolute(Vec<float> z) { return (Vec<float>)((Bits)z | (Bits)splat(-0.0f)); }

  // The same where z is small: v = u - u w with u = z / temperature and w = 1 - tanh(y) / y, an eighth at most, for
  // y = u / softcap. Its rounding is then small beside v's.
  template <int kVectors, Slopes kSlopes>
  ALWAYS_INLINE void plain(const float* z, Transformed<float>* v) const {
#pragma GCC unroll 4
    for (int u = 0; u < kVectors; ++u) {
      const Vec<float> logits = load(z + u * kLanes<float>);
      const Vec<float> y = logits * plain_factor_, square = y * y;
      const TwoPart<float> divided = two_product<float>(logits, inverse_temperature_.high);
      const TwoPart<float> less = two_product<float>(divided.high, square * plain_tanh_lack(square));
      const TwoPart<float> difference = fast_two_sum<float>(divided.high, -less.high);
      const Vec<float> divided_low = fused_multiply_add(logits, inverse_temperature_.low, divided.low);
      v[u] = {difference.high, difference.low + (divided_low - less.low), Vec<float>{}, Vec<float>{}};
      if constexpr (kSlopes == Slopes::kNone) continue;
      const Vec<float> t = v[u].high * inverse_;
      v[u].slope = fused_multiply_add(-t, t, splat(1.0f));
      v[u].curvature = minus_half_inverse_ * (4.0f * t) * v[u].slope;
    }
  }

  // As many digits as a float has, but cut off, and the rest.
  static ALWAYS_INLINE TwoPart<float> in_two_parts(const Doubles& v) {
    constexpr std::int64_t kDigits = ~0x1fffffff;
    const Doubles cut{(Vec<double>)((Vec<std::int64_t>)v.lower & kDigits),
                      (Vec<double>)((Vec<std::int64_t>)v.upper & kDigits)};
    return {to_floats(cut), to_floats({v.lower - cut.lower, v.upper - cut.upper})};
  }

  template <Slopes kSlopes>
  ALWAYS_INLINE Transformed<float> capped(Vec<float> z, const Doubles& em) const {
    const Doubles r4{4.0 / (em.lower + 2.0), 4.0 / (em.upper + 2.0)};
    const Doubles t4{em.lower * r4.lower, em.upper * r4.upper};
    const TwoPart<float> v = in_two_parts({t4.lower * quarter_, t4.upper * quarter_});
    const Bits sign = (Bits)z & (Bits)splat(-0.0f);
    const auto finite = minus_absolute(z) >= std::numeric_limits<float>::lowest();
    Transformed<float> result{};
    result.high = finite ? (Vec<float>)((Bits)v.high ^ sign) : z;
    result.low = (Vec<float>)((Bits)v.low ^ sign);
    if constexpr (kSlopes == Slopes::kNone) return result;
    const Vec<float> r4_rounded = to_floats(r4);
    const Vec<float> slope = fused_multiply_add(r4_rounded * -0.25f, r4_rounded, r4_rounded);
    result.slope = finite ? slope : splat(1.0f);
    if constexpr (kSlopes == Slopes::kBoth)
      result.curvature = minus_half_inverse_ * (Vec<float>)((Bits)to_floats(t4) ^ sign) * slope;
    return result;
  }

  Vec<double> factor_, quarter_;
  Vec<float> minus_largest_, minus_half_inverse_;

  Vec<float> plain_factor_, inverse_;
  TwoPart<float> inverse_temperature_;
  std::int32_t largest_plain_;  // the bits of |z| up to where tanh is a polynomial
};

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
