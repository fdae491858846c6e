// What is done with the logits before the softmax: v = softcap * tanh(z / temperature / softcap) + bias, or
// z / temperature + bias, and its derivatives.
//
// A gradient is as sensitive to v as v is large, so v is not rounded: it is the unevaluated sum of two numbers, `high`
// and `low`, with an error of 0.1 of a unit in the last place at most where there is a softcap, and far less otherwise.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "storage.hpp"
#include "tanh.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

// The softcap in use. A larger one could overflow, and caps no number whose exponential a T could hold.
template <class T>
constexpr int kLargestSoftcapExponent = sizeof(T) == 8 ? 900 : 100;

template <class T>
double softcap_of(const Transform<T>& transform) {
  return std::min(transform.softcap, std::ldexp(1.0, kLargestSoftcapExponent<T>));
}

// v of one logit, whose class is j.
template <class T>
Longer<T> transformed(const Transform<T>& transform, double z, Index j) {
  if (std::isinf(z)) return z;
  Longer<T> v = static_cast<Longer<T>>(z) / transform.temperature;
  if (transform.softcap != 0.0) {
    const Longer<T> softcap = softcap_of(transform);
    v = softcap * std::tanh(v / softcap);
  }
  return transform.bias ? v + transform.bias[j] : v;
}

// dv/dz there. A mask stays a mask, whatever the softcap.
template <class T>
double transform_slope(const Transform<T>& transform, double z) {
  const Longer<T> temperature = transform.temperature;
  if (transform.softcap == 0.0 || std::isinf(z)) return static_cast<double>(1 / temperature);
  const Longer<T> e = std::exp(-2 * std::abs(z / temperature / softcap_of(transform)));
  return static_cast<double>(4 * e / ((1 + e) * (1 + e)) / temperature);
}

// A vector of v = high + low, its slope dv/dz * temperature, and its curvature d2v/dz2 * temperature^2.
template <class T>
struct Transformed {
  Vec<T> high, low, slope, curvature;
};

// The transform of runs of logits.
//
// `low` is at most a few units in the last place of `high`, and 0 where |high| > kLargestWithLow. -inf stays -inf (and
// a bias of -inf makes it), +inf stays +inf, NaN stays NaN. No finite logit makes NaN, but one may make an infinity
// without a softcap: where logits over temperature may be too large for T, set the row's maximum as the origin, which
// is subtracted from the logits first. v is then relative to origin / temperature, and only -inf can come about.
template <class T>
class Transformer {
 public:
  explicit Transformer(const Transform<T>& transform)
      : bias_high_(transform.bias ? transform.bias_high : nullptr),
        bias_low_(transform.bias_low),
        has_softcap_(transform.softcap != 0.0) {
    // The factor of z, as a power of two and two numbers near 1: none of them can overflow.
    int exponent = 0, softcap_exponent = 0;
    double divisor = std::frexp(transform.temperature, &exponent), divisor_low = 0.0, dividend = 1.0;
    if (has_softcap_) {
      const double softcap = softcap_of(transform), temperature = divisor;
      const double mantissa = std::frexp(softcap, &softcap_exponent);
      divisor = temperature * mantissa;
      divisor_low = std::fma(temperature, mantissa, -divisor);
      dividend = 2.0;
      softcap_ = splat(static_cast<T>(softcap));
      softcap_low_ = splat(static_cast<T>(softcap - static_cast<double>(softcap_[0])));
      minus_twice_inverse_ = splat(static_cast<T>(-std::min(2.0 / softcap, std::ldexp(1.0, Limits::max_exponent - 4))));
    }
    const double factor = dividend / divisor;
    const double factor_low = (std::fma(-factor, divisor, dividend) - factor * divisor_low) / divisor;
    exponent = -(exponent + softcap_exponent);
    const int scale = std::clamp(exponent, Limits::min_exponent - 1, Limits::max_exponent - 1);
    // Beyond this every z but 0 is capped, or infinite, or none is more than a rounding error.
    const int rest = std::clamp(exponent - scale, -kLargestSoftcapExponent<T>, kLargestSoftcapExponent<T>);
    const T high = static_cast<T>(factor);
    scale_ = splat(static_cast<T>(std::ldexp(1.0, scale)));
    factor_ = splat(std::ldexp(high, rest));
    factor_low_ = splat(static_cast<T>(std::ldexp((factor - static_cast<double>(high)) + factor_low, rest)));
    minus_largest_ = -TanhTraits<T>::kLargestX / factor_;
  }

  // Only without a softcap.
  void set_origin(T origin) { origin_ = splat(origin); }

  // `count` adjacent logits, of the classes from first_class on. The outputs are filled up to the next multiple of
  // four vectors: high with -inf, the others with 0. slope and curvature may be null.
  void prepare(const char* logits, Storage storage, Index first_class, Index count, T* high, T* low, T* slope,
               T* curvature) const {
    const Output to{high, low, slope, curvature};
    if (!bias_high_) return run<Bias::kNone>(logits, storage, nullptr, nullptr, count, to);
    run<Bias::kEach>(logits, storage, bias_high_ + first_class, bias_low_ + first_class, count, to);
  }

  // The same of logits of one class.
  void prepare_class(const char* logits, Storage storage, Index one_class, Index count, T* high, T* low, T* slope,
                     T* curvature) const {
    const Output to{high, low, slope, curvature};
    if (!bias_high_) return run<Bias::kNone>(logits, storage, nullptr, nullptr, count, to);
    run<Bias::kOne>(logits, storage, bias_high_ + one_class, bias_low_ + one_class, count, to);
  }

 private:
  using Limits = std::numeric_limits<T>;
  using Bits = Vec<typename ExpTraits<T>::Bits>;
  enum class Bias { kNone, kEach, kOne };
  static constexpr int kVectors = 4;
  static constexpr Index kRun = kVectors * kLanes<T>;

  struct Output {
    T *high, *low, *slope, *curvature;
  };

  template <Bias kBias>
  void run(const char* logits, Storage storage, const T* bias, const T* bias_low, Index count, const Output& to) const {
    const T* z = reinterpret_cast<const T*>(logits);
    if (storage != kStorageOf<T>) {
      read_run(storage, logits, count, to.high);
      z = to.high;
    }
    if (has_softcap_)
      loop<true, kBias>(z, bias, bias_low, count, to);
    else
      loop<false, kBias>(z, bias, bias_low, count, to);
  }

  template <bool kSoftcap, Bias kBias>
  void loop(const T* z, const T* bias, const T* bias_low, Index count, const Output& lent_to) const {
    const Transformer own = *this;  // locals, which no store can alias
    const Output to = lent_to;
    const Index whole = count / kRun * kRun;
    for (Index j = 0; j < whole; j += kRun)
      own.group<kSoftcap, kBias>(z + j, kBias == Bias::kEach ? bias + j : bias,
                                 kBias == Bias::kEach ? bias_low + j : bias_low, to, j);
    if (whole == count) return;
    T z_rest[kRun], bias_rest[kRun] = {}, bias_low_rest[kRun] = {};
    std::fill(std::copy(z + whole, z + count, z_rest), z_rest + kRun, -Limits::infinity());
    if constexpr (kBias == Bias::kEach) {
      std::copy(bias + whole, bias + count, bias_rest);
      std::copy(bias_low + whole, bias_low + count, bias_low_rest);
      bias = bias_rest;
      bias_low = bias_low_rest;
    }
    own.group<kSoftcap, kBias>(z_rest, bias, bias_low, to, whole);
    std::fill(to.high + count, to.high + whole + kRun, -Limits::infinity());  // which a bias may have changed
    if (to.slope) std::fill(to.slope + count, to.slope + whole + kRun, T{0});
  }

  // Step by step, each for all vectors: one vector's chain of instructions is longer than a processor looks ahead.
  template <bool kSoftcap, Bias kBias>
  ALWAYS_INLINE void group(const T* z, const T* bias, const T* bias_low, const Output& to, Index j) const {
    Transformed<T> v[kVectors];
    if constexpr (kSoftcap) {
      PowerOfE<T> of_e[kVectors];
      TanhAndSlope<T> tanh[kVectors];
#pragma GCC unroll 4
      for (int u = 0; u < kVectors; ++u) of_e[u] = power_of_e<T>(argument(load(z + u * kLanes<T>)));
#pragma GCC unroll 4
      for (int u = 0; u < kVectors; ++u) tanh[u] = tanh_of_half<T>(of_e[u]);
#pragma GCC unroll 4
      for (int u = 0; u < kVectors; ++u) v[u] = capped(load(z + u * kLanes<T>), tanh[u]);
    } else {
#pragma GCC unroll 4
      for (int u = 0; u < kVectors; ++u) v[u] = scaled(load(z + u * kLanes<T>));
    }
#pragma GCC unroll 4
    for (int u = 0; u < kVectors; ++u) {
      const Index i = u * kLanes<T>;
      if constexpr (kBias == Bias::kNone) finish(v[u]);
      if constexpr (kBias == Bias::kEach) finish(v[u], load(bias + i), load(bias_low + i));
      if constexpr (kBias == Bias::kOne) finish(v[u], splat(*bias), splat(*bias_low));
      store(to.high + j + i, v[u].high);
      store(to.low + j + i, v[u].low);
      if (to.slope) store(to.slope + j + i, v[u].slope);
      if (to.curvature) store(to.curvature + j + i, v[u].curvature);
    }
  }

  static ALWAYS_INLINE Vec<T> absolute(Vec<T> v) { return (Vec<T>)((Bits)v & ~(Bits)splat(T{-0.0})); }

  // Where high is infinite, low is NaN up to here.
  static ALWAYS_INLINE void finish(Transformed<T>& v) {
    v.low = absolute(v.high) <= kLargestWithLow<T> ? v.low : Vec<T>{};
  }

  static ALWAYS_INLINE void finish(Transformed<T>& v, Vec<T> bias, Vec<T> bias_low) {
    const TwoPart<T> sum = two_sum<T>(v.high, bias);
    const auto small = absolute(sum.high) <= kLargestWithLow<T>;
    // After a cancellation low may be too large for the exponential.
    const TwoPart<T> v_sum = fast_two_sum<T>(sum.high, small ? sum.low + (v.low + bias_low) : Vec<T>{});
    v.high = v_sum.high;
    v.low = small ? v_sum.low : Vec<T>{};
  }

  ALWAYS_INLINE Transformed<T> scaled(Vec<T> z) const {
    const Vec<T> part = (z - origin_) * scale_;
    const TwoPart<T> u = two_product<T>(part, factor_);
    return {u.high, fused_multiply_add(part, factor_low_, u.low), splat(T{1}), Vec<T>{}};
  }

  // -|z|, scaled, to where its tanh is -1.
  ALWAYS_INLINE Vec<T> bounded(Vec<T> z) const { return keep_nan_max(minus_largest_, -absolute(z) * scale_); }

  // -2 |z| / (temperature * softcap)
  ALWAYS_INLINE TwoPart<T> argument(Vec<T> z) const {
    const Vec<T> part = bounded(z);
    const TwoPart<T> x = two_product<T>(part, factor_);
    return {x.high, fused_multiply_add(part, factor_low_, x.low)};
  }

  ALWAYS_INLINE Transformed<T> capped(Vec<T> z, const TanhAndSlope<T>& of_minus_z) const {
    const Bits flip = ~(Bits)z & (Bits)splat(T{-0.0});
    const Vec<T> t = (Vec<T>)((Bits)of_minus_z.tanh.high ^ flip), t_low = (Vec<T>)((Bits)of_minus_z.tanh.low ^ flip);
    const TwoPart<T> product = two_product<T>(t, softcap_);
    const Vec<T> low = fused_multiply_add(t_low, softcap_, fused_multiply_add(t, softcap_low_, product.low));
    // There sech^2 is no normal number, or nearly so.
    const Vec<T> slope = bounded(z) > minus_largest_ ? of_minus_z.slope : Vec<T>{};
    // A mask stays a mask: there v is z.
    const auto unbounded = absolute(z) == Limits::infinity();
    return {unbounded ? z : product.high, low, unbounded ? splat(T{1}) : slope, minus_twice_inverse_ * t * slope};
  }

  const T* bias_high_;
  const T* bias_low_;
  bool has_softcap_;
  Vec<T> scale_, factor_, factor_low_;  // z * scale_ * (factor_ + factor_low_) is u, or with a softcap 2 u / softcap
  Vec<T> origin_{}, minus_largest_;
  Vec<T> softcap_{}, softcap_low_{}, minus_twice_inverse_{};
};

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
