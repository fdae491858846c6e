// What a request's labels, weights and class options become for the kernels.
#pragma once

#include <vector>

#include "requests.hpp"
#include "weights.hpp"

namespace softmaxloss {

// Labels and weights with invalid rows taken out, and what the reduction makes of the rows that are left: see
// survey_labels, reduction_scale and z_loss_beside_the_cross_entropy in backends/kernel.py.
class Checked {
 public:
  explicit Checked(const LossRequest& request);

  // Of a row whose distribution is found to be none; after such rows, recount().
  void leave_out(Index row);
  void recount();

  const Index* labels() const { return labels_.empty() ? nullptr : labels_.data(); }
  const double* weights() const { return sample_weight_.data(); }
  const double* bias() const { return bias_.empty() ? nullptr : bias_.data(); }
  const Weights& class_weight() const { return class_weight_; }
  const std::vector<Index>& invalid_rows() const { return invalid_; }

  double scale() const { return scale_; }                    // of the rows' sum, or of each row
  double gradient_scale() const { return gradient_scale_; }  // of each row's gradient
  double z_loss() const { return z_loss_; }

 private:
  void check_rows(const LossRequest& request, bool all_invalid);

  Shape shape_;
  LossOptions options_;
  std::vector<Index> labels_, invalid_;
  std::vector<bool> is_invalid_;
  Weights sample_weight_, class_weight_;
  std::vector<double> bias_;
  double scale_ = 1.0, gradient_scale_ = 1.0, z_loss_ = 0.0;
};

// The labels' masses by class: see _targets in backends/kernel.py, and Targets.
template <class T>
class ClassTargets {
 public:
  ClassTargets(const LossRequest& request, const Checked& checked);
  void put_into(Targets<T>& targets) const;

 private:
  std::vector<double> spike_;
  std::vector<T> dense_, scale_, shift_;
  double dense_sum_ = 0.0;
};

}  // namespace softmaxloss
