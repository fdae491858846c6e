// What the kernels are asked: plain data, shared by every instruction set's copy of them.
#pragma once

#include <cstdint>

namespace softmaxloss {

using Index = std::int64_t;

constexpr int kMaxDimensions = 32;  // NumPy 1's limit; NumPy 2's 64 is refused at the door

// Rows laid out in memory: any number of leading axes, and a class axis; strides count elements.
template <class T>
struct Rows {
  T* data = nullptr;
  int dimensions = 0;  // leading axes, the class axis not counted
  Index shape[kMaxDimensions] = {};
  Index strides[kMaxDimensions] = {};
  Index class_stride = 1;

  explicit operator bool() const { return data != nullptr; }
};

// The labels of a loss. A row's target is t_j = spike * [j == label] + dense_j, where `dense` is nothing, one vector
// shared by all rows (label smoothing), or the row's own distribution q_j, scaled and shifted by class if asked.
// Then CE = sum_j t_j * -log p_j and dCE/dz_j = p_j * sum(t) - t_j.
template <class T>
struct Targets {
  const Index* labels = nullptr;  // one a row; or null
  Index ignore_index = -100;
  const double* spike = nullptr;  // (classes,): class_weight * (1 - eps); null means 1
  const T* dense = nullptr;       // (classes,): class_weight * eps / C
  double dense_sum = 0.0;
  Rows<const T> distribution;
  const T* distribution_scale = nullptr;  // (classes,): class_weight * (1 - eps); null, like the next, means q as it is
  const T* distribution_shift = nullptr;  // (classes,): class_weight * eps / C
  double tolerance = 1e-3;                // how far from 1 a distribution may sum
};

// A row's label distribution that is not one: its row, what it sums to, and its least entry.
struct BadDistribution {
  Index row = -1;
  double sum = 1.0;
  double least = 0.0;
};

inline bool is_distribution(double sum, double least, double tolerance) {
  return sum - 1.0 <= tolerance && sum - 1.0 >= -tolerance && least >= 0.0;  // false for NaN
}

template <class T>
struct LossProblem {
  Index classes = 0;
  Rows<const T> logits;
  Targets<T> targets;
  const double* weights = nullptr;  // one a row; null means 1
  double gradient_scale = 1.0;      // the gradient of row i is multiplied by gradient_scale * weights[i]
  double* loss = nullptr;           // out: weights[i] * CE_i
  Rows<T> gradient;                 // out, may be the logits; or null
  bool stream = false;              // write the gradient past the cache
};

template <class T>
struct SoftmaxProblem {
  Index classes = 0;
  Rows<const T> logits;
  double temperature = 1.0;
  bool logarithm = false;
  double* logsumexp = nullptr;  // out; or null
  Rows<T> output;               // out, may be the logits; or null
  bool stream = false;
};

// Memory for one thread: `scratch` holds kScratchRows rows of scratch_row_length(classes) elements, aligned to 64
// bytes.
constexpr int kScratchRows = 3;
constexpr Index scratch_row_length(Index classes) {
  return (classes + 127) / 64 * 64;  // the loops write whole groups of up to 64 elements
}

template <class T>
struct Kernels {
  // Rows [begin, end). Returns the first bad distribution met, if any (the rows after it are left out).
  BadDistribution (*loss)(const LossProblem<T>&, Index begin, Index end, T* scratch);
  void (*softmax)(const SoftmaxProblem<T>&, Index begin, Index end, T* scratch);
};

}  // namespace softmaxloss
