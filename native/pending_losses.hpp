// Losses -log p of rows one after another, their logarithms taken many at a time.
#pragma once

#include <algorithm>

#include "exp.hpp"
#include "problem.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

// Until its logarithm is taken, the sum of a row's other terms stands where its loss belongs.
template <class T>
class PendingLosses {
 public:
  explicit PendingLosses(const LossProblem<T>& problem) : problem_(problem) {}

  // The first row is this one.
  void start(Index row) { begin_ = row; }

  // The loss of a row is log(1 + rest / e^gap), times its weights.
  ALWAYS_INLINE void add(Index row, double rest, double gap) {
    if (row - begin_ == kMost) finish(row);
    problem_.loss[row] = rest;
    gap_[row - begin_] = gap;
  }

  // The loss of a row is set by others.
  void skip(Index row) {
    finish(row);
    begin_ = row + 1;
  }

  // Sets the losses of all rows before `end`.
  void finish(Index end) {
    double* const loss = problem_.loss + begin_;
    const Index count = end - begin_;
    Index i = 0;
    for (; i + kLanes<double> <= count; i += kLanes<double>) take_logarithms(loss + i, gap_ + i);
    if (i < count) {
      double rest[kLanes<double>] = {};
      std::copy(loss + i, loss + count, rest);
      take_logarithms(rest, gap_ + i);
      std::copy_n(rest, count - i, loss + i);
    }
    if (problem_.targets.spike)
      for (i = 0; i < count; ++i) loss[i] *= spike(problem_.targets.labels[begin_ + i]);
    if (problem_.weights)
      for (i = 0; i < count; ++i) loss[i] *= problem_.weights[begin_ + i];
    begin_ = end;
  }

 private:
  static constexpr Index kMost = 64;

  static ALWAYS_INLINE void take_logarithms(double* loss, const double* gap) {
    const ReferenceVectors<double> reference{Reference<double>()};
    const Vec<double> of_pivot = scaled_exp<double>(load(gap), reference) * (1.0 / kExpScale<double>);
    store(loss, log1p<double>(load(loss) / of_pivot));
  }

  double spike(Index label) const {
    return label >= 0 && label < problem_.classes ? problem_.targets.spike[label] : 1.0;  // else the loss is 0 or NaN
  }

  const LossProblem<T>& problem_;
  Index begin_ = 0;
  alignas(64) double gap_[kMost] = {};
};

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
