// What is done with the logits before the softmax: v = softcap * tanh(z / temperature / softcap) + bias, or
// z / temperature + bias, and its derivatives.
//
// A gradient is as sensitive to v as v is large, so v is not rounded: it is the unevaluated sum of two numbers, `high`
// and `low`, with an error of a quarter of a unit in the last place at most where there is a softcap, far less
// otherwise.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "softcap.hpp"
#include "storage.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

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
        has_softcap_(transform.softcap != 0.0),
        factor_(transform.temperature, 0.0),
        softcap_(transform.temperature, softcap_of(transform)) {}

  // Only without a softcap.
  void set_origin(T origin) { origin_ = splat(origin); }

  // `count` adjacent logits, of the classes from first_class on. The outputs are filled up to the next multiple of
  // four vectors: high with -inf, the others with 0. slope and curvature may be null.
  void prepare(const char* logits, Storage storage, Index first_class, Index count, T* high, T* low, T* slope,
               T* curvature) const {
    const Output to{high, low, slope, curvature};
    if (!bias_high_) return run<false>(logits, storage, nullptr, nullptr, count, to);
    run<true>(logits, storage, bias_high_ + first_class, bias_low_ + first_class, count, to);
  }

 private:
  using Limits = std::numeric_limits<T>;
  static constexpr int kVectors = 4;
  static constexpr Index kRun = kVectors * kLanes<T>;

  struct Output {
    T *high, *low, *slope, *curvature;
  };

  template <bool kBias>
  void run(const char* logits, Storage storage, const T* bias, const T* bias_low, Index count, const Output& to) const {
    const T* z = reinterpret_cast<const T*>(logits);
    if (storage != kStorageOf<T>) {
      read_run(storage, logits, count, to.high);
      z = to.high;
    }
    if (!has_softcap_)
      loop<false, kBias, Slopes::kBoth>(z, bias, bias_low, count, to);
    else if (to.curvature)
      loop<true, kBias, Slopes::kBoth>(z, bias, bias_low, count, to);
    else if (to.slope)
      loop<true, kBias, Slopes::kFirst>(z, bias, bias_low, count, to);
    else
      loop<true, kBias, Slopes::kNone>(z, bias, bias_low, count, to);
  }

  template <bool kSoftcap, bool kBias, Slopes kSlopes>
  void loop(const T* z, const T* bias, const T* bias_low, Index count, const Output& lent_to) const {
    const Transformer own = *this;  // locals, which no store can alias
    const Output to = lent_to;
    const Index whole = count / kRun * kRun;
    for (Index j = 0; j < whole; j += kRun)
      own.group<kSoftcap, kBias, kSlopes>(z + j, kBias ? bias + j : nullptr, kBias ? bias_low + j : nullptr, to, j);
    if (whole == count) return;
    T z_rest[kRun], bias_rest[kRun] = {}, bias_low_rest[kRun] = {};
    std::fill(std::copy(z + whole, z + count, z_rest), z_rest + kRun, T{0});
    if constexpr (kBias) {
      std::copy(bias + whole, bias + count, bias_rest);
      std::copy(bias_low + whole, bias_low + count, bias_low_rest);
      bias = bias_rest;
      bias_low = bias_low_rest;
    }
    own.group<kSoftcap, kBias, kSlopes>(z_rest, bias, bias_low, to, whole);
    const Index end = whole + kRun;
    std::fill(to.high + count, to.high + end, -Limits::infinity());
    std::fill(to.low + count, to.low + end, T{0});
    if (to.slope) std::fill(to.slope + count, to.slope + end, T{0});
    if (to.curvature) std::fill(to.curvature + count, to.curvature + end, T{0});
  }

  template <bool kSoftcap, bool kBias, Slopes kSlopes>
  ALWAYS_INLINE void group(const T* z, const T* bias, const T* bias_low, const Output& to, Index j) const {
    Transformed<T> v[kVectors];
    if constexpr (kSoftcap) {
      softcap_.template apply<kVectors, kSlopes>(z, v);
    } else {
#pragma GCC unroll 4
      for (int u = 0; u < kVectors; ++u) v[u] = scaled(load(z + u * kLanes<T>));
    }
#pragma GCC unroll 4
    for (int u = 0; u < kVectors; ++u) {
      const Index i = u * kLanes<T>;
      if constexpr (kBias)
        finish(v[u], load(bias + i), load(bias_low + i));
      else
        finish(v[u]);
      store(to.high + j + i, v[u].high);
      store(to.low + j + i, v[u].low);
      if (kSlopes != Slopes::kNone && to.slope) store(to.slope + j + i, v[u].slope);
      if (kSlopes == Slopes::kBoth && to.curvature) store(to.curvature + j + i, v[u].curvature);
    }
  }

  // Where high is infinite, low is NaN up to here.
  static ALWAYS_INLINE void finish(Transformed<T>& v) {
    v.low = absolute<T>(v.high) <= kLargestWithLow<T> ? v.low : Vec<T>{};
  }

  static ALWAYS_INLINE void finish(Transformed<T>& v, Vec<T> bias, Vec<T> bias_low) {
    const TwoPart<T> sum = two_sum<T>(v.high, bias);
    const auto small = absolute<T>(sum.high) <= kLargestWithLow<T>;
    // After a cancellation low may be too large for the exponential.
    const TwoPart<T> v_sum = fast_two_sum<T>(sum.high, small ? sum.low + (v.low + bias_low) : Vec<T>{});
    v.high = v_sum.high;
    v.low = small ? v_sum.low : Vec<T>{};
  }

  ALWAYS_INLINE Transformed<T> scaled(Vec<T> z) const {
    const TwoPart<T> u = factor_.times((z - origin_) * factor_.scale);
    return {u.high, u.low, splat(T{1}), Vec<T>{}};
  }

  const T* bias_high_;
  const T* bias_low_;
  bool has_softcap_;
  Factor<T> factor_;    // without a softcap
  Softcap<T> softcap_;  // not in use without one
  Vec<T> origin_{};
};

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
