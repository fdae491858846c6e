// Whole calls as a framework makes them: contiguous arrays, and options as they were given, become what was asked for.
//
// This does for callers that have no Python, and may hold traced values of which nobody has checked anything, what
// backends/kernel.py does for NumPy, to the same bits. Nothing is refused: a row that is invalid has a NaN loss and
// gradient, and counts in no mean's divisor.
#pragma once

#include <functional>

#include "problem.hpp"

namespace softmaxloss {

// Numbers of either precision; absent where `data` is null.
struct Reals {
  const void* data = nullptr;
  bool is_double = false;

  explicit operator bool() const { return data != nullptr; }
  double operator[](Index i) const {
    return is_double ? static_cast<const double*>(data)[i] : static_cast<double>(static_cast<const float*>(data)[i]);
  }
};

struct Integers {
  const void* data = nullptr;
  bool is_long = false;  // 64 bits, else 32

  explicit operator bool() const { return data != nullptr; }
  Index operator[](Index i) const {
    return is_long ? static_cast<const std::int64_t*>(data)[i] : static_cast<const std::int32_t*>(data)[i];
  }
};

// Logits of shape (before, classes, after): whatever their class axis was, it is the one in the middle.
struct Shape {
  Index before = 1, classes = 1, after = 1;
  Storage storage = Storage::kFloat32;

  Index rows() const { return before * after; }
};

enum class Reduction { kNone, kSum, kMean };

struct LossOptions {
  Reduction reduction = Reduction::kMean;
  Index ignore_index = -100;
  double label_smoothing = 0.0;
  double temperature = 1.0;
  double softcap = 0.0;  // 0 means none
  double z_loss = 0.0;
  double focal_gamma = 0.0;
  double poly_epsilon = 0.0;
  double tolerance = 1e-3;  // how far from 1 a distribution may sum
};

// Answers are float or double, as the logits are computed in; a gradient is like the logits.
struct LossRequest {
  Shape shape;
  const void* logits = nullptr;
  Integers labels;                     // (before, after); or none, and
  const void* distribution = nullptr;  // (before, classes, after), of what is computed in
  Reals sample_weight;                 // (before, after)
  Reals class_weight;                  // (classes,)
  Reals logit_bias;                    // (classes,)
  const void* vector = nullptr;        // like a distribution; then `gradient` is the Hessian times it
  LossOptions options;
  void* loss = nullptr;      // out: (before, after) for kNone, else one number; or null
  void* gradient = nullptr;  // out; or null
};

struct StatisticsRequest {
  Shape shape;
  const void* logits = nullptr;
  Integers labels;  // or none, and neither `loss` nor `rank`
  Reals logit_bias;
  double temperature = 1.0;
  double softcap = 0.0;
  void* loss = nullptr;  // out, each (before, after)
  void* logsumexp = nullptr;
  std::int32_t* prediction = nullptr;
  std::int32_t* rank = nullptr;
};

// float and double only.
struct SoftmaxRequest {
  Shape shape;
  const void* logits = nullptr;
  double temperature = 1.0;
  bool logarithm = false;
  void* output = nullptr;     // out, like the logits; or null, and
  void* logsumexp = nullptr;  // out, (before, after)
};

void answer(const LossRequest& request);
void answer(const StatisticsRequest& request);
void answer(const SoftmaxRequest& request);

// Calls body(i) for each of so many requests, in parallel where each is too small to use several threads. What a body
// throws is thrown again here.
void for_each_request(Index count, const Shape& shape, const std::function<void(Index)>& body);

// How another module reaches these in this one, whose settings hold for all: a capsule of that name, `requests`.
struct Requests {
  void (*loss)(const LossRequest&) = &answer;
  void (*statistics)(const StatisticsRequest&) = &answer;
  void (*softmax)(const SoftmaxRequest&) = &answer;
  void (*for_each)(Index count, const Shape& shape, const std::function<void(Index)>& body) = &for_each_request;
};

}  // namespace softmaxloss
