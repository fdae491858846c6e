// The Hessian of the softmax loss of a range of rows, times a vector.
//
// With d_j = dv_j/dz_j * vector_j, the change of v along the vector, and mu = sum_j p_j d_j, a row's gradient
// g_j = b (p_j sum(t) - t_j) + c p_j, c = 2 z_loss lse, changes by
//
//     (b sum(t) + c) p_j (d_j - mu) + 2 z_loss mu p_j + k (p_j - [j = label]),    k = spike * db/dL * (mu - d_label)
//
// Every d_j is taken relative to that of the row's largest class: where that class has nearly all the probability,
// mu would else cancel. A softcap adds the change of dv/dz itself, times g_j.
#pragma once

#include "loss_rows.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

template <class Source, Dense kDense>
class HessianRows {
 public:
  using T = typename Source::T;

  HessianRows(const HessianProblem<T>& problem, T* scratch)
      : problem_(problem.loss),
        vector_(problem.vector),
        targets_(problem.loss.targets),
        classes_(problem.loss.classes),
        scratch_(scratch),
        direction_(scratch + scratch_row_length(classes_)),
        slopes_(direction_ + scratch_row_length(classes_)),
        curvatures_(slopes_ + scratch_row_length(classes_)),
        source_(problem_.transform, problem_.logits.storage, slopes_, curvatures_) {}

  BadDistribution run(Index begin, Index end) {
    RowCursor vector(vector_, begin), product(problem_.gradient, begin);
    const auto advance = [&] {
      vector.advance();
      product.advance();
    };
    const auto fill = [&](Index, T value) { fill_row(problem_.gradient.storage, product.get(), classes_, value); };
    return for_each_row<kDense>(
        problem_, source_, begin, end, advance, fill, [&](Index row, Index label, const DenseTargets<T>& targets) {
          return one_row(row, label, targets, reinterpret_cast<const T*>(vector.get()), product.get());
        });
  }

 private:
  static constexpr bool kBent = Source::kPrepared;  // dv/dz need not be 1

  BadDistribution one_row(Index row, Index label, const DenseTargets<T>& given, const T* vector, char* product) {
    const double spike = per_row(kDense) ? 0.0 : targets_.spike ? targets_.spike[label] : 1.0;
    const double weight = problem_.weights ? problem_.weights[row] : 1.0;
    ShortTargets<T> copies;
    const DenseTargets<T> targets = classes_ < kGroup<T> ? copies.of(given, classes_) : given;

    NoWriter nothing;
    LabelSum labels;
    Pivot<T> pivot;
    if constexpr (!per_row(kDense)) pivot = Pivot<T>{label, source_.value(label), 0.0};
    RowSum<T> sum = sum_row<kDense, true>(labels, source_, targets, classes_, pivot, scratch_, nothing);
    if (per_row(kDense) && !is_distribution(labels.sum, labels.least, targets_.tolerance))
      return {row, labels.sum, labels.least};
    if constexpr (kDense == Dense::kShared) {
      pivot.dense = targets.dense[label];
      sum.target_sum = targets_.dense_sum;
    }
    const RowTerms terms = row_terms(sum, pivot);
    const RowScalars scalars =
        row_scalars(problem_.formula, terms, 0.0, spike, terms.lse + sum.origin + source_.offset());

    const double largest = change_along(vector, largest_class(sum.maximum));
    const double mu = set_direction(vector, static_cast<T>(largest)) / (terms.total * kExpScale<T>);
    const double temperature = problem_.transform.temperature;
    const double scale = problem_.gradient_scale * weight / (temperature * temperature);
    const double a = scale * (scalars.b * (spike + sum.target_sum) + scalars.c), b = scale * scalars.b;
    const double z_part = scale * 2.0 * problem_.formula.z_loss * (mu + largest);
    const double at_label = label >= 0 ? direction_[label] : 0.0;
    double k = 0.0;
    if (terms.rest_share > 0.0)
      k = scale * spike * scalar_slope_times_rest(problem_.formula, terms) * ((mu - at_label) / terms.rest_share);

    Pieces pieces{a, z_part + k - a * mu, terms.total * kExpScale<T>, b};
    double exact = 0.0;
    if (label >= 0) {
      exact = terms.share * (a * (at_label - mu) + z_part) - k * terms.rest_share;
      if constexpr (kBent) {
        const double gradient =
            pivot_gradient(terms, spike, sum.target_sum, pivot.dense, b) + scale * scalars.c * terms.share;
        exact = exact * slopes_[label] + gradient * (curvatures_[label] * static_cast<double>(vector[label]));
      }
    }
    write(targets, vector, pieces, label, static_cast<T>(exact), product);
    return {};
  }

  // Of a row's product: p_j (a d_j + constant), p_j = e_j / total; and of its gradient, a p_j - b t_j.
  struct Pieces {
    double a;
    double constant;
    double total;
    double b;
  };

  Index largest_class(T maximum) {
    for (Index j = 0; j < classes_; ++j)
      if (source_.logit(j) == maximum) return j;
    return 0;
  }

  double change_along(const T* vector, Index j) const {
    return kBent ? static_cast<double>(vector[j]) * slopes_[j] : static_cast<double>(vector[j]);
  }

  // Sets d_j relative to that of the largest class; gives sum_j e_j d_j.
  double set_direction(const T* vector, T largest) {
    for (Index j = 0; j < classes_; ++j) direction_[j] = (kBent ? vector[j] * slopes_[j] : vector[j]) - largest;
    WideSum<T> sum;
    Index j = 0;
    for (; j + kLanes<T> <= classes_; j += kLanes<T>) sum.add(load(scratch_ + j) * load(direction_ + j));
    Vec<T> rest{};
    for (int lane = 0; j < classes_; ++j, ++lane) rest[lane] = scratch_[j] * direction_[j];
    sum.add(rest);
    return sum.value();
  }

  void write(const DenseTargets<T>& targets, const T* vector, const Pieces& pieces, Index label, T at_label,
             char* product) const {
    const T a = static_cast<T>(pieces.a), constant = static_cast<T>(pieces.constant);
    const T inverse = static_cast<T>(1.0 / pieces.total), b = static_cast<T>(pieces.b);
    write_blocks<T>(problem_.gradient.storage, product, classes_, [&](Index j) {
      if (j == label) return at_label;
      const T p = scratch_[j] * inverse;
      const T change = p * (a * direction_[j] + constant);
      if constexpr (!kBent) return change;
      T gradient = a * p;
      if constexpr (kDense != Dense::kNone) gradient -= b * dense_target_scalar<T, kDense>(targets, j);
      return change * slopes_[j] + gradient * (curvatures_[j] * vector[j]);
    });
  }

  const LossProblem<T>& problem_;
  const ConstRows& vector_;
  const Targets<T>& targets_;
  Index classes_;
  T* scratch_;    // e_j
  T* direction_;  // d_j
  T* slopes_;
  T* curvatures_;
  Source source_;
};

template <class Source, class T>
BadDistribution hessian_of_source(const HessianProblem<T>& problem, Index begin, Index end, T* scratch) {
  const Targets<T>& targets = problem.loss.targets;
  if (targets.distribution_scale) return HessianRows<Source, Dense::kAffineRow>(problem, scratch).run(begin, end);
  if (targets.distribution) return HessianRows<Source, Dense::kRow>(problem, scratch).run(begin, end);
  if (targets.dense) return HessianRows<Source, Dense::kShared>(problem, scratch).run(begin, end);
  return HessianRows<Source, Dense::kNone>(problem, scratch).run(begin, end);
}

template <class T>
BadDistribution hessian(const HessianProblem<T>& problem, Index begin, Index end, T* scratch) {
  if (problem.loss.transform.is_identity() && problem.loss.logits.storage == kStorageOf<T>)
    return hessian_of_source<PlainSource<T>>(problem, begin, end, scratch);
  return hessian_of_source<PreparedSource<T>>(problem, begin, end, scratch);
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
