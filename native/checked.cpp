#include "checked.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "labels.hpp"

namespace softmaxloss {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::vector<double> doubles(const Reals& values, Index count) {
  std::vector<double> result;
  if (!values) return result;
  result.reserve(static_cast<std::size_t>(count));
  for (Index i = 0; i < count; ++i) result.push_back(values[i]);
  return result;
}

bool is_weight(double value) { return value >= 0.0 && std::isfinite(value); }

// The sum as numpy.sum adds: in pairs of pairs, down to runs of up to 128 in eight lanes. Else the last bit would
// differ.
double sum_in_pairs(const double* values, Index count) {
  constexpr Index kLanes = 8, kRun = 128;
  if (count > kRun) {
    const Index half = count / 2 / kLanes * kLanes;
    return sum_in_pairs(values, half) + sum_in_pairs(values + half, count - half);
  }
  double total = 0.0;
  Index i = 0;
  if (count >= kLanes) {
    double lanes[kLanes];
    for (; i < kLanes; ++i) lanes[i] = values[i];
    for (; i + kLanes <= count; i += kLanes)
      for (Index k = 0; k < kLanes; ++k) lanes[k] += values[i + k];
    total = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
  }
  for (; i < count; ++i) total += values[i];
  return total;
}

// The same of numbers that numpy.sum has to convert, which it does a buffer at a time.
template <class T>
double sum_as_doubles(const std::vector<T>& values) {
  constexpr std::size_t kBuffer = 8192;
  const std::vector<double> converted(values.begin(), values.end());
  double total = 0.0;
  for (std::size_t i = 0; i < converted.size(); i += kBuffer)
    total += sum_in_pairs(converted.data() + i, static_cast<Index>(std::min(kBuffer, converted.size() - i)));
  return total;
}

template <>
double sum_as_doubles(const std::vector<double>& values) {
  return sum_in_pairs(values.data(), static_cast<Index>(values.size()));
}

}  // namespace

Checked::Checked(const LossRequest& request) : shape_(request.shape), options_(request.options) {
  class_weight_.values = doubles(request.class_weight, shape_.classes);
  bias_ = doubles(request.logit_bias, shape_.classes);
  sample_weight_.values = doubles(request.sample_weight, shape_.rows());
  const bool all_invalid = !std::all_of(class_weight_.values.begin(), class_weight_.values.end(), is_weight) ||
                           !std::all_of(bias_.begin(), bias_.end(), [](double value) {
                             return value < std::numeric_limits<double>::infinity();  // false for NaN
                           });
  if (all_invalid) {
    class_weight_.values.clear();
    bias_.clear();
  }
  check_rows(request, all_invalid);
  bring_in_range(sample_weight_, class_weight_, options_.z_loss);
  recount();
}

void Checked::check_rows(const LossRequest& request, bool all_invalid) {
  const Index rows = shape_.rows();
  is_invalid_.assign(static_cast<std::size_t>(rows), false);
  if (request.labels) labels_.reserve(static_cast<std::size_t>(rows));
  for (Index row = 0; row < rows; ++row) {
    const double weight = sample_weight_ ? sample_weight_.values[static_cast<std::size_t>(row)] : 1.0;
    bool valid = !all_invalid && is_weight(weight);
    if (request.labels) {
      const Index label = request.labels[row];
      labels_.push_back(label);
      valid = label == options_.ignore_index || (valid && label >= 0 && label < shape_.classes);
      if (valid && !is_weight(weight)) sample_weight_.values[static_cast<std::size_t>(row)] = 0.0;
    }
    if (!valid) leave_out(row);
  }
}

void Checked::leave_out(Index row) {
  const auto i = static_cast<std::size_t>(row);
  if (is_invalid_[i]) return;
  is_invalid_[i] = true;
  invalid_.push_back(row);
  if (!labels_.empty()) {
    labels_[i] = options_.ignore_index;
    if (sample_weight_) sample_weight_.values[i] = 0.0;
    return;
  }
  if (!sample_weight_) sample_weight_.values.assign(static_cast<std::size_t>(shape_.rows()), 1.0);
  sample_weight_.values[i] = 0.0;
}

void Checked::recount() {
  const Index rows = shape_.rows();
  const bool is_mean = options_.reduction == Reduction::kMean, by_index = !labels_.empty();
  Index counted = rows - static_cast<Index>(invalid_.size());
  double loss_weight = 0.0, row_weight = 0.0;
  if (by_index) {
    const auto survey_with = [&](const double* of_classes) {
      return survey_labels(labels_.data(), rows, shape_.classes, options_.ignore_index, weights(), of_classes);
    };
    const LabelSurvey of_loss = survey_with(class_weight_.data());
    counted = of_loss.counted;
    loss_weight = row_weight = of_loss.weight;
    if (is_mean && options_.z_loss != 0.0 && class_weight_) row_weight = survey_with(nullptr).weight;
  } else {
    loss_weight = row_weight =
        sample_weight_ ? sum_in_pairs(sample_weight_.values.data(), rows) : static_cast<double>(counted);
  }

  // As the table in backends/kernel.py has it.
  scale_ = class_weight_.unit * sample_weight_.unit;
  if (is_mean) scale_ = counted && loss_weight != 0.0 ? (by_index ? 1.0 : class_weight_.unit) / loss_weight : kNan;
  gradient_scale_ = counted ? scale_ : 1.0;
  z_loss_ = options_.z_loss;
  if (!class_weight_ || z_loss_ == 0.0) return;
  if (is_mean && by_index)
    z_loss_ = row_weight != 0.0 ? z_loss_ * (loss_weight / row_weight) : 0.0;
  else
    z_loss_ /= class_weight_.unit;
}

template <class T>
ClassTargets<T>::ClassTargets(const LossRequest& request, const Checked& checked) {
  const double smoothing = request.options.label_smoothing;
  const std::vector<double>& weights = checked.class_weight().values;
  if (smoothing == 0.0 && weights.empty()) return;
  const Index classes = request.shape.classes;
  for (Index j = 0; j < classes; ++j) {
    const double weight = weights.empty() ? 1.0 : weights[static_cast<std::size_t>(j)];
    const double label_share = weight * (1.0 - smoothing);
    const double even_share = weight * (smoothing / static_cast<double>(classes));
    if (request.distribution) {
      scale_.push_back(static_cast<T>(label_share));
      shift_.push_back(static_cast<T>(even_share));
      continue;
    }
    spike_.push_back(label_share);
    if (smoothing != 0.0) dense_.push_back(static_cast<T>(even_share));
  }
  dense_sum_ = sum_as_doubles(dense_);
}

template <class T>
void ClassTargets<T>::put_into(Targets<T>& targets) const {
  const auto data = [](const auto& values) { return values.empty() ? nullptr : values.data(); };
  targets.spike = data(spike_);
  targets.dense = data(dense_);
  targets.dense_sum = dense_sum_;
  targets.distribution_scale = data(scale_);
  targets.distribution_shift = data(shift_);
}

template class ClassTargets<float>;
template class ClassTargets<double>;

}  // namespace softmaxloss
