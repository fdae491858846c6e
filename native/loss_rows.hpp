// The softmax loss of a range of rows, with or without its gradient.
#pragma once

#include <type_traits>

#include "contiguous.hpp"
#include "pending_losses.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

// Whether scalar / scale, a scalar of a row's gradient, keeps its digits in T: not where weights are far from 1.
template <class T>
bool fits(double scalar, double scale) {
  const double magnitude = std::abs(scalar);
  const bool too_small = magnitude < std::numeric_limits<T>::min() * scale && magnitude > 0.0;
  return !too_small && !(magnitude > std::numeric_limits<T>::max() * scale);  // NaN fits
}

// Calls body(row, label, targets) for each row, its logits open in `source`, until a bad distribution is met; for a row
// without an answer of its own fill(row, value) instead, and after each advance().
template <Dense kDense, class Source, class Advance, class Fill, class Body, class T = typename Source::T>
BadDistribution for_each_row(const LossProblem<T>& problem, Source& source, Index begin, Index end,
                             const Advance& advance, const Fill& fill, const Body& body) {
  const Targets<T>& targets = problem.targets;
  RowCursor logits(problem.logits, begin), distribution(targets.distribution, begin);
  BadDistribution bad;
  for (Index row = begin; row < end && bad.row < 0; ++row) {
    const Index label = per_row(kDense) ? -1 : targets.labels[row];
    if (!per_row(kDense) && label == targets.ignore_index) {
      fill(row, T{0});
    } else if (!per_row(kDense) && (label < 0 || label >= problem.classes)) {
      // Labels were checked before: another thread has written over them since.
      fill(row, std::numeric_limits<T>::quiet_NaN());
    } else {
      source.open(logits.get(), problem.classes);
      const T* dense = kDense == Dense::kShared ? targets.dense : reinterpret_cast<const T*>(distribution.get());
      bad = body(row, label, {dense, targets.distribution_scale, targets.distribution_shift});
    }
    logits.advance();
    distribution.advance();
    advance();
  }
  return bad;
}

enum class Gradient { kNone, kCached, kStreamed };

template <class Source, Dense kDense, Gradient kGradient>
class LossRows {
 public:
  using T = typename Source::T;

  LossRows(const LossProblem<T>& problem, T* scratch)
      : problem_(problem),
        targets_(problem.targets),
        classes_(problem.classes),
        slopes_(scratch + 2 * scratch_row_length(problem.classes)),
        source_(problem.transform, problem.logits.storage, kGradient == Gradient::kNone ? nullptr : slopes_, nullptr),
        terms_(scratch, problem.classes),
        pending_(problem) {}

  BadDistribution run(Index begin, Index end) {
    RowCursor gradient(problem_.gradient, begin);
    pending_.start(begin);
    const BadDistribution bad = for_each_row<kDense>(
        problem_, source_, begin, end, [&] { gradient.advance(); },
        [&](Index row, T value) { fill(row, gradient.get(), value); },
        [&](Index row, Index label, const DenseTargets<T>& targets) {
          return one_row(row, label, targets, gradient.get());
        });
    writer_.finish();
    shared_line_.write();
    if constexpr (kStream) stream_fence();
    if (later()) pending_.finish(end);
    return bad;
  }

 private:
  static constexpr bool kWrites = kGradient != Gradient::kNone;
  static constexpr bool kStream = kGradient == Gradient::kStreamed;
  using RowWriter = typename WriterOf<Source, kDense, kWrites, kStream>::type;

  // Whether rows need their logarithms for nothing but their losses.
  bool later() const { return kDense == Dense::kNone && !Source::kPrepared && problem_.formula.is_cross_entropy(); }

  // A row without an answer of its own: loss and gradient are `value`.
  void fill(Index row, char* gradient, T value) {
    if (later())
      pending_.add(row, static_cast<double>(value), 0.0);  // log(1 + 0) = 0
    else
      problem_.loss[row] = value;
    if constexpr (kWrites) fill_row(problem_.gradient.storage, gradient, classes_, value);
  }

  BadDistribution one_row(Index row, Index label, const DenseTargets<T>& given, char* gradient) {
    const double spike = per_row(kDense) ? 0.0 : targets_.spike ? targets_.spike[label] : 1.0;
    const double weight = problem_.weights ? problem_.weights[row] : 1.0;
    ShortTargets<T> copies;
    const DenseTargets<T> targets = classes_ < kGroup<T> ? copies.of(given, classes_) : given;

    LabelSum labels;
    Pivot<T> pivot;
    if constexpr (!per_row(kDense)) pivot = Pivot<T>{label, source_.value(label), 0.0};
    RowSum<T> sum = sum_row<kDense, kWrites>(labels, source_, targets, classes_, pivot, terms_.get(), writer_);
    writer_.finish();
    if (per_row(kDense) && !is_distribution(labels.sum, labels.least, targets_.tolerance))
      return {row, labels.sum, labels.least};

    if constexpr (kDense == Dense::kShared) {
      pivot.dense = targets.dense[label];
      sum.target_sum = targets_.dense_sum;
    }
    if (later()) {
      if (finish_later(row, sum, pivot, weight, spike, gradient)) return {};
      pending_.skip(row);
    }
    RowTerms terms = row_terms(sum, pivot);
    const double scratch_total = terms.total;  // relative to the reference of the terms
    if constexpr (per_row(kDense)) {
      if (has_dominant_class(sum, terms, pivot)) {
        pivot = largest_as_pivot<kDense>(sum, source_, targets, classes_);
        terms = row_terms(sum, pivot);
      }
    }
    const double lse = terms.lse + sum.origin + source_.offset();
    const double cross_entropy = cross_entropy_of(targets, sum, terms, pivot, spike);
    const RowScalars scalars = row_scalars(problem_.formula, terms, cross_entropy, spike, lse);
    problem_.loss[row] = weighted(weight, scalars.value);
    if constexpr (kWrites) {
      const double scale = problem_.gradient_scale * weight / problem_.transform.temperature;
      const double b = scale * scalars.b, c = scale * scalars.c;
      const double a_over_total = (b * (spike + sum.target_sum) + c) / scratch_total;
      double at_pivot = 0.0;
      if (pivot.index >= 0)
        at_pivot = source_.slope(pivot.index) *
                   (pivot_gradient(terms, spike, sum.target_sum, pivot.dense, b) + c * terms.share);
      write({gradient, classes_, terms_.get(), given, T{0}, T{0}, pivot.index, static_cast<T>(at_pivot)}, a_over_total,
            b);
    }
    return {};
  }

  // A row whose loss is its cross-entropy, its logarithm left for later; false where there is no such loss.
  ALWAYS_INLINE bool finish_later(Index row, const RowSum<T>& sum, const Pivot<T>& pivot, double weight, double spike,
                                  char* gradient) {
    const double gap = sum.reference.below(pivot.logit);
    if (!(gap > kLowestGap && sum.rest <= std::numeric_limits<double>::max())) return false;
    pending_.add(row, sum.rest, gap);
    if constexpr (kWrites) {
      const ReferenceVectors<T> reference(sum.reference);
      const double of_pivot = scaled_exp<T>(splat(static_cast<T>(pivot.logit)), reference)[0] / kExpScale<T>;
      const double a = problem_.gradient_scale * weight * spike / (sum.rest + of_pivot);
      terms_.get()[pivot.index] = static_cast<T>(-sum.rest * kExpScale<T>);  // p - 1 = -rest / total
      write({gradient, classes_, terms_.get()}, a, 0.0);
    }
    return true;
  }

  // Writes a row's gradient, or has it written while the next one is read.
  void write(RowGradient<T> row, double a_over_total, double b) {
    row.a = static_cast<T>(a_over_total / kExpScale<T>);
    row.b = static_cast<T>(b);
    if (!fits<T>(a_over_total, kExpScale<T>) || !fits<T>(b, 1.0)) {
      write_in_double(row, a_over_total, b);
    } else if constexpr (Source::kPrepared && !kStream) {
      write_prepared<kDense>(row, problem_.gradient.storage, slopes_);
    } else {
      if constexpr (Source::kPrepared) {
        finish_prepared<kDense>(row, terms_.get(), slopes_);
        row = {row.out, classes_, row.terms, {}, T{1}};
      }
      writer_.begin(row, shared_line_, source_.end(classes_));
      terms_.keep();
    }
  }

  void write_in_double(const RowGradient<T>& row, double a_over_total, double b) const {
    write_blocks<T>(problem_.gradient.storage, row.out, classes_, [&](Index j) {
      if (j == row.replaced) return row.replacement;
      double value = row.terms[j] / kExpScale<T> * a_over_total;
      if constexpr (kDense != Dense::kNone)
        value -= b * static_cast<double>(dense_target_scalar<T, kDense>(row.targets, j));
      if constexpr (Source::kPrepared) value *= slopes_[j];
      return static_cast<T>(value);
    });
  }

  double cross_entropy_of(const DenseTargets<T>& targets, const RowSum<T>& sum, const RowTerms& terms,
                          const Pivot<T>& pivot, double spike) {
    if constexpr (kDense == Dense::kNone) return weighted(spike, terms.minus_log_p);
    if (kDense == Dense::kShared && has_dominant_class(sum, terms, pivot)) {
      // The dense targets' part would cancel relative to the label.
      RowSum<T> anew = sum;
      const Pivot<T> top = largest_as_pivot<kDense>(anew, source_, targets, classes_);
      const RowTerms of_top = row_terms(anew, top);
      return weighted(spike, of_top.minus_log_p + static_cast<double>(top.logit - pivot.logit)) +
             dense_loss(of_top, anew, top);
    }
    return weighted(spike, terms.minus_log_p) + dense_loss(terms, sum, pivot);
  }

  const LossProblem<T>& problem_;
  const Targets<T>& targets_;
  Index classes_;
  T* slopes_;
  Source source_;
  TermsInTurn<T> terms_;
  RowWriter writer_;
  SharedLine<T> shared_line_;
  PendingLosses<T> pending_;
};

template <class Source, Dense kDense, class T>
BadDistribution loss_of_targets(const LossProblem<T>& problem, Index begin, Index end, T* scratch) {
  if (!problem.gradient) return LossRows<Source, kDense, Gradient::kNone>(problem, scratch).run(begin, end);
  if constexpr (std::is_same_v<Source, PlainSource<T>> || Source::kPrepared)
    if (problem.stream && problem.gradient.storage == kStorageOf<T> &&
        worth_streaming<kDense, T>(problem.classes, problem.gradient.data == problem.logits.data))
      return LossRows<Source, kDense, Gradient::kStreamed>(problem, scratch).run(begin, end);
  return LossRows<Source, kDense, Gradient::kCached>(problem, scratch).run(begin, end);
}

template <class Source, class T>
BadDistribution loss_of_source(const LossProblem<T>& problem, Index begin, Index end, T* scratch) {
  const Targets<T>& targets = problem.targets;
  if (targets.distribution_scale) return loss_of_targets<Source, Dense::kAffineRow>(problem, begin, end, scratch);
  if (targets.distribution) return loss_of_targets<Source, Dense::kRow>(problem, begin, end, scratch);
  if (targets.dense) return loss_of_targets<Source, Dense::kShared>(problem, begin, end, scratch);
  return loss_of_targets<Source, Dense::kNone>(problem, begin, end, scratch);
}

// Rows whose classes lie side by side.
template <class T>
BadDistribution contiguous_loss(const LossProblem<T>& problem, Index begin, Index end, T* scratch) {
  const bool sparse_targets = !problem.targets.dense && !problem.targets.distribution;
  if (problem.transform.is_identity()) {
    if (problem.logits.storage == kStorageOf<T>) return loss_of_source<PlainSource<T>>(problem, begin, end, scratch);
    if constexpr (sizeof(T) == 4) {
      if (sparse_targets && problem.logits.storage == Storage::kFloat16)
        return loss_of_targets<DirectSource<T, Storage::kFloat16>, Dense::kNone>(problem, begin, end, scratch);
      if (sparse_targets && problem.logits.storage == Storage::kBFloat16)
        return loss_of_targets<DirectSource<T, Storage::kBFloat16>, Dense::kNone>(problem, begin, end, scratch);
    }
  }
  return loss_of_source<PreparedSource<T>>(problem, begin, end, scratch);
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
