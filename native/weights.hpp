// Weights within a double's range, for callers that have no Python: backends/weights.py says why and how.
#pragma once

#include <vector>

#include "problem.hpp"

namespace softmaxloss {

// Weights, empty for none, from which a power of two may have been taken out.
struct Weights {
  std::vector<double> values;
  double unit = 1.0;

  explicit operator bool() const { return !values.empty(); }
  const double* data() const { return values.empty() ? nullptr : values.data(); }
};

// `in_range` of backends/weights.py.
void bring_in_range(Weights& of_rows, Weights& of_classes, double z_loss);

}  // namespace softmaxloss
