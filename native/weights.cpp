#include "weights.hpp"

#include <algorithm>
#include <cmath>

namespace softmaxloss {
namespace {

constexpr int kOrdinary = 32;
constexpr int kLeast = -1010, kMost = 980, kMostZLoss = 900;

int exponent(double value) {
  int result = 0;
  std::frexp(value, &result);
  return result;
}

// Of the least weight above 0, and of the largest.
struct Exponents {
  int least = 0, most = 0;

  bool are_ordinary() const { return least >= -kOrdinary && most <= kOrdinary; }
  bool are_close() const { return most - least <= kOrdinary; }
};

Exponents exponents(const Weights& weights) {
  double most = 0.0;
  for (const double weight : weights.values) most = std::max(most, weight);
  if (most == 0.0) return {};
  double least = most;
  for (const double weight : weights.values)
    if (weight > 0.0) least = std::min(least, weight);
  return {exponent(least) - 1, exponent(most) - 1};
}

int unit_of(const Exponents& of, int parts) {
  if (of.are_ordinary()) return 0;
  const int lowest = kLeast / parts + of.most - of.least;
  return of.most - std::min(std::max(0, lowest), kMost / parts);
}

void divide(Weights& weights, int exponent) {
  weights.unit = std::ldexp(1.0, exponent);
  if (exponent == 0) return;
  for (double& weight : weights.values) weight = std::ldexp(weight, -exponent);
}

}  // namespace

void bring_in_range(Weights& of_rows, Weights& of_classes, double z_loss) {
  const Exponents by_row = exponents(of_rows), by_class = exponents(of_classes);
  const int parts = by_row.are_close() || by_class.are_close() ? 1 : 2;
  const int row_unit = unit_of(by_row, parts);
  int class_unit = 0;
  if (of_classes) {
    class_unit = unit_of(by_class, parts);
    if (z_loss != 0.0) class_unit = std::max(class_unit, exponent(z_loss) - kMostZLoss);
    class_unit = std::min(class_unit, kMost - row_unit);
  }
  divide(of_rows, row_unit);
  divide(of_classes, class_unit);
}

}  // namespace softmaxloss
