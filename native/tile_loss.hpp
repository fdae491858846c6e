// The loss of the rows in a tile. What is left in the tile is the gradient but for a factor for each row, which
// unpacking multiplies by on the way out. A row's result depends on nothing but the row.
#pragma once

#include <algorithm>
#include <limits>

#include "exp.hpp"
#include "ordinary.hpp"
#include "row.hpp"
#include "tile.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

// From the logits in a tile to losses, and a tile from which the gradient is unpacked.
template <class T, TileKind kKind, bool kGradient>
class TileLoss {
 public:
  TileLoss(const LossProblem<T>& problem, Tile<T>& tile)
      : problem_(problem),
        targets_(problem.targets),
        tile_(tile),
        classes_(problem.classes),
        weighted_(kSmoothed || targets_.spike || problem.weights) {
    tile.dense = targets_.dense;
    if (!weighted_) std::fill_n(a_, tile.capacity, ordinary_scale<T>(problem.gradient_scale));
  }

  // The tile holds the rows [row, row + count).
  void run(Index row, Index count) {
    pad(count);
    take_labels(row, count);

    for (Index i = 0; i < count; i += kLanes<T>) sum(i);
    const Integers<T> ordinary = finish(row, count);
    if constexpr (kGradient && !compares(kKind))
      for (Index i = 0; i < count; ++i) tile_.of_class(tile_.label[i])[i] = tile_.at_label[i];

    if (!problem_.formula.is_cross_entropy()) {
      for (Index i = 0; i < count; ++i) redo(row, i);
    } else if (any_zero<T>(ordinary)) {
      for (Index i = 0; i < count; ++i)
        if (!ordinary_[i]) redo(row, i);
    }
  }

  // The same of whole vectors of rows that are not in the tile: `unpacked` reads their logits from memory, once. (So
  // sums and reading overlap, which packing first and then summing do not.) All terms are relative to one reference, a
  // power of two, somewhat above the largest logit of the rows before. Returns whether it is above these rows' logits
  // too, and so near that it cancels to the last bit; else nothing has been done.
  template <class Unpacked>
  bool run_unpacked(Index row, Index count, const Unpacked& unpacked) {
    static_assert(kKind == TileKind::kFew);
    if (!problem_.formula.is_cross_entropy()) return false;
    const Index* const labels = targets_.labels + row;
    const bool all_labelled = read_labels(labels, count) >= 0;
    if (weighted_) take_weights(row, count);
    if (!(std::abs(largest_) <= std::numeric_limits<T>::max())) largest_ = unpacked.guess();
    auto reference = Reference<T>::near(largest_);
    if (reference.origin != T{0}) return forget();
    reference.exponent += kExponentsAbove;

    largest_ = sum_unpacked(count, unpacked, ReferenceVectors<T>(reference));
    if (!(largest_ <= static_cast<T>(reference.exponent * kLn2))) return false;
    Integers<T> same = ~Integers<T>{};
    for (Index i = 0; i < count; i += kLanes<T>)
      same &= (load(rest_ + i) >= static_cast<T>(Ordinary<T>::kLeastRest)) | (load_integers<T>(tile_.label + i) < 0);
    if (any_zero<T>(same) || (!all_labelled && !take_ignored(labels, count))) return false;
    same = finish(row, count);
    if constexpr (kGradient)  // a term that is too small for T is one of an entry that is
      for (Index i = 0; i < count; i += kLanes<T>) {
        const Vec<T> factor = load(tile_.factor + i);
        same &= (factor <= kMostFactor) & (factor >= -kMostFactor);
      }
    return !any_zero<T>(same);
  }

 private:
  using Bits = typename IntegersOf<T>::Lane;
  static constexpr bool kSmoothed = kKind == TileKind::kSmoothed;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();
  static constexpr int kExponentsAbove = 11;
  static constexpr T kMostFactor = std::numeric_limits<T>::epsilon() / 4;
  static constexpr Index kRows = Tile<T>::kRows;

  // The lanes past the last row hold nothing that would be slow.
  void pad(Index count) {
    const Index end = (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    if (count == end) return;
    for (Index j = 0; j < classes_; ++j) std::fill(tile_.of_class(j) + count, tile_.of_class(j) + end, T{0});
    for (Index i = count; i < end; ++i) {
      tile_.maximum[i] = pivot_[i] = spike_[i] = T{0};
      tile_.label[i] = 0;
      if (weighted_) a_[i] = b_[i] = T{0};
    }
  }

  // Labels, -1 for none. Returns one less than 0 if there is none somewhere.
  Bits read_labels(const Index* labels, Index count) {
    const auto classes = static_cast<std::uint64_t>(classes_);
    Bits least = 0;
    for (Index i = 0; i < count; ++i) {
      const Index label = labels[i];
      tile_.label[i] = static_cast<std::uint64_t>(label) < classes ? static_cast<Bits>(label) : Bits{-1};
      least = std::min(least, tile_.label[i]);
    }
    if (static_cast<std::uint64_t>(targets_.ignore_index) >= classes) return least;
    for (Index i = 0; i < count; ++i)
      if (labels[i] == targets_.ignore_index) tile_.label[i] = -1;
    return Bits{-1};
  }

  void take_labels(Index row, Index count) {
    const Index* const labels = targets_.labels + row;
    const Bits least = read_labels(labels, count);
    if (weighted_) take_weights(row, count);
    if (least < 0) {
      for (Index i = 0; i < count; ++i)
        if (tile_.label[i] < 0) take_no_label(i, labels[i] == targets_.ignore_index);
    }
    if constexpr (!compares(kKind)) take_labels_out(count);
  }

  // An ignored row, whose label is made all there is: then its loss and gradient are 0. Or one whose label another
  // thread has written over since the labels were checked: it has no answer.
  void take_no_label(Index i, bool ignored) {
    const T others = !ignored ? std::numeric_limits<T>::quiet_NaN() : kSmoothed ? T{0} : -kInfinity;
    for (Index j = 0; j < classes_; ++j) tile_.of_class(j)[i] = others;
    tile_.maximum[i] = tile_.of_class(0)[i] = ignored ? T{0} : others;
    tile_.label[i] = 0;
    spike_[i] = T{1};
    if (weighted_) loss_factor_[i] = a_[i] = b_[i] = T{0};
  }

  void take_weights(Index row, Index count) {
    const double dense_sum = kSmoothed ? targets_.dense_sum : 0.0;
    for (Index i = 0; i < count; ++i) {
      const double spike = spike_of(std::max<Index>(tile_.label[i], 0)), weight = weight_of(row + i);
      loss_factor_[i] = kSmoothed ? weight : weight * spike;
      if constexpr (kSmoothed) spike_[i] = static_cast<T>(spike);
      if constexpr (kGradient) {
        const double b = problem_.gradient_scale * weight;
        a_[i] = ordinary_scale<T>(b * (spike + dense_sum));
        if constexpr (kSmoothed) b_[i] = ordinary_scale<T>(b);
      }
    }
  }

  double spike_of(Index label) const { return targets_.spike ? targets_.spike[label] : 1.0; }
  double weight_of(Index row) const { return problem_.weights ? problem_.weights[row] : 1.0; }

  // Takes the labels' logits out of the tile, so that the sums are over the others.
  void take_labels_out(Index count) {
    const Index stride = tile_.stride;
    T* const tile = tile_.of_class(0);
    for (Index i = 0; i < count; ++i) {
      T& logit = tile[tile_.label[i] * stride + i];
      pivot_[i] = logit;
      logit = -kInfinity;
    }
  }

  // The sums of a vector of rows. (What is made of them is a loop of its own: its long chains of dependent operations
  // then overlap from one vector to the next.)
  ALWAYS_INLINE void sum(Index i) {
    const Vec<T> maximum = load(tile_.maximum + i);
    const auto reference = ReferenceVectors<T>::per_lane(maximum);
    if constexpr (kKind == TileKind::kPlain) store(rest_ + i, sum_others(i, reference));
    if constexpr (kKind == TileKind::kFew) store(rest_ + i, sum_few(i, reference));
    if constexpr (kSmoothed) sum_smoothed(i, maximum, reference);
    store(of_pivot_ + i, scaled_exp<T>(load(pivot_ + i), reference));
    if constexpr (kSmoothed) store(of_top_ + i, scaled_exp<T>(maximum, reference));
  }

  // From the sums to losses and factors. Tells which lanes are ordinary in all vectors of rows.
  Integers<T> finish(Index row, Index count) {
    double* const loss = problem_.loss + row;
    const bool in_place = !weighted_ && count % kLanes<T> == 0;
    Integers<T> ordinary = ~Integers<T>{};
    for (Index i = 0; i < count; i += kLanes<T>) ordinary &= finish_vector(i, (in_place ? loss : loss_) + i);
    if (weighted_)
      for (Index i = 0; i < count; ++i) loss[i] = loss_[i] * loss_factor_[i];
    else if (!in_place)
      std::copy_n(loss_, count, loss);
    return ordinary;
  }

  // The losses and factors of a vector of rows. Tells, lane by lane, which are ordinary.
  ALWAYS_INLINE Integers<T> finish_vector(Index i, double* loss) {
    const T dense_sum = static_cast<T>(targets_.dense_sum);
    const Vec<T> of_pivot = load(of_pivot_ + i);
    Vec<T> rest = load(rest_ + i);
    if constexpr (kSmoothed) {
      const Vec<T> of_top = load(of_top_ + i);
      // The largest classes were left out. All but one of them are other than the largest, all but the label than it.
      const Vec<T> tops = load(tops_ + i);
      const Integers<T> is_top = load(pivot_ + i) == load(tile_.maximum + i);
      const Vec<T> rest_of_top = rest + (is_top ? tops * of_top : (tops - T{1}) * of_top + of_pivot);
      store(rest_of_top_ + i, rest_of_top);
      rest += tops == T{0} ? Vec<T>{} : tops * of_top;
      store(rest_ + i, rest);
    }
    Vec<T> value = log1p<T>(rest / of_pivot);
    if constexpr (kSmoothed) {
      const Vec<T> lse = log1p<T>(load(rest_of_top_ + i) / load(of_top_ + i));
      value = load(spike_ + i) * value + (dense_sum * lse - load(target_dot_ + i));
    }
    store_as_doubles(loss, value);

    Integers<T> ordinary = is_ordinary_loss<T>(of_pivot, rest, value);
    std::memcpy(has_loss_ + i, &ordinary, sizeof ordinary);
    if constexpr (kGradient) {
      const Vec<T> factor = load(a_ + i) / (rest + of_pivot);
      store(tile_.factor + i, factor);
      ordinary &= is_ordinary_factor<T>(factor);
      if constexpr (kSmoothed) {
        // b (sum(t) p_y - t_y) = factor * at_label - b dense_y, with 1 - p_y = rest / total.
        const Vec<T> b = load(b_ + i), spike = load(spike_ + i);
        store(tile_.at_label + i, (dense_sum * of_pivot - spike * rest) / (spike + dense_sum));
        store(tile_.dense_factor + i, b);
        ordinary &= (b == b) & (spike + dense_sum > T{0});
      } else {
        store(tile_.at_label + i, T{0} - rest);  // b (p_y - 1) = factor * -rest
      }
    }
    std::memcpy(ordinary_ + i, &ordinary, sizeof ordinary);
    return ordinary;
  }

  static constexpr Index kClassesPerBlock = 64;  // additions before a sum is folded into one with more digits
  static constexpr int kUnroll = kClassesAtOnce;

  // Sums block(first class, how many) over blocks of classes.
  template <class F>
  ALWAYS_INLINE Vec<T> sum_blocks(const F& block) const {
    if (classes_ <= kClassesPerBlock) return block(0, classes_);
    LaneSums<T> total;
    for (Index begin = 0; begin < classes_; begin += kClassesPerBlock)
      total.add(block(begin, std::min(kClassesPerBlock, classes_ - begin)));
    return total.value();
  }

  static ALWAYS_INLINE Vec<T> term(T* place, Vec<T> z, const ReferenceVectors<T>& reference) {
    const Vec<T> e = scaled_exp<T>(z, reference);
    if constexpr (kGradient) store(place, e);
    return e;
  }

  // From logits to terms, in place; returns their sum. The labels are not in the tile.
  ALWAYS_INLINE Vec<T> sum_others(Index i, const ReferenceVectors<T>& reference) {
    const Index stride = tile_.stride;
    return sum_blocks([&](Index begin, Index count) __attribute__((always_inline)) {
      T* p = tile_.of_class(begin) + i;
      const Index ahead_stride = tile_.ahead_class_stride;
      const char* ahead = tile_.ahead + begin * ahead_stride + i * static_cast<Index>(sizeof(T));
      Vec<T> sum[kUnroll] = {};
      for (; count >= kUnroll; count -= kUnroll, p += kUnroll * stride, ahead += kUnroll * ahead_stride) {
#pragma GCC unroll 4
        for (int u = 0; u < kUnroll; ++u) {
          __builtin_prefetch(ahead + u * ahead_stride, 0, 2);
          sum[u] += term(p + u * stride, load(p + u * stride), reference);
        }
      }
      for (; count > 0; --count, p += stride) sum[0] += term(p, load(p), reference);
      return (sum[0] + sum[1]) + (sum[2] + sum[3]);
    });
  }

  // The sums of rows that are not in the tile, whose terms go there. Returns the largest logit.
  template <class Unpacked>
  T sum_unpacked(Index count, const Unpacked& unpacked, const ReferenceVectors<T>& reference) {
    std::fill_n(rest_, count, T{0});
    std::fill_n(of_pivot_, count, T{0});
    Vec<T> largest[kUnroll];
    std::fill_n(largest, kUnroll, splat(-kInfinity));
    unpacked.for_each_piece(
        [&]<int kClasses>(Index j, Index i, const Vec<T>(&z)[kClasses]) __attribute__((always_inline)) {
          const Integers<T> label = load_integers<T>(tile_.label + i);
          Vec<T> rest = load(rest_ + i), of_pivot = load(of_pivot_ + i);
#pragma GCC unroll 4
          for (int u = 0; u < kClasses; ++u) {
            largest[u] = keep_nan_max(z[u], largest[u]);  // NaN makes a sum NaN: it is left out here
            const Vec<T> e = term(tile_.of_class(j + u) + i, z[u], reference);
            const Integers<T> is_label = label == static_cast<Bits>(j + u);
            of_pivot = is_label ? e : of_pivot;
            rest += is_label ? Vec<T>{} : e;
          }
          store(rest_ + i, rest);
          store(of_pivot_ + i, of_pivot);
        });
    return max_lane<T>(keep_nan_max(keep_nan_max(largest[0], largest[1]), keep_nan_max(largest[2], largest[3])));
  }

  // Ignored rows have a loss and gradient of 0. False where a row has no label for another reason.
  bool take_ignored(const Index* labels, Index count) {
    for (Index i = 0; i < count; ++i) {
      if (tile_.label[i] >= 0) continue;
      if (labels[i] != targets_.ignore_index) return false;
      if constexpr (kGradient)
        for (Index j = 0; j < classes_; ++j) tile_.of_class(j)[i] = T{0};
      tile_.label[i] = 0;
      rest_[i] = T{0};
      of_pivot_[i] = static_cast<T>(kExpScale<T>);
      if (weighted_) loss_factor_[i] = a_[i] = T{0};
    }
    return true;
  }

  bool forget() {
    largest_ = std::numeric_limits<T>::quiet_NaN();
    return false;
  }

  // The same where the labels are still in the tile; their logits go to pivot_.
  ALWAYS_INLINE Vec<T> sum_few(Index i, const ReferenceVectors<T>& reference) {
    const Index stride = tile_.stride;
    const Integers<T> label = load_integers<T>(tile_.label + i);
    T* p = tile_.of_class(0) + i;
    Vec<T> pivot{}, sum{};
    for (Index j = 0; j < classes_; ++j, p += stride) {
      const Vec<T> z = load(p);
      const Integers<T> is_label = label == static_cast<Bits>(j);
      pivot = is_label ? z : pivot;
      sum += term(p, is_label ? splat(-kInfinity) : z, reference);
    }
    store(pivot_ + i, pivot);
    return sum;
  }

  // The same with dense targets: of the classes that are neither the label nor as large as the largest. Where the
  // largest is not the label, both the loss relative to the label and the one relative to the largest class need a sum
  // without it that has not lost its digits.
  ALWAYS_INLINE void sum_smoothed(Index i, Vec<T> maximum, const ReferenceVectors<T>& reference) {
    const Integers<T> label = load_integers<T>(tile_.label + i);
    LaneSums<T> target_dot;
    Vec<T> pivot{}, tops{};
    store(rest_ + i, sum_blocks([&](Index begin, Index count) __attribute__((always_inline)) {
            T* p = tile_.of_class(begin) + i;
            Vec<T> sum{}, dot{};
            for (Index j = begin; j < begin + count; ++j, p += tile_.stride) {
              const Vec<T> z = load(p);
              const Vec<T> e = term(p, z, reference);
              const Integers<T> is_label = label == static_cast<Bits>(j), is_top = z == maximum;
              pivot = is_label ? z : pivot;
              sum += is_label | is_top ? Vec<T>{} : e;
              tops += is_top & ~is_label ? splat(T{1}) : Vec<T>{};
              if (targets_.dense[j] != T{0}) dot = fused_multiply_add(z - maximum, splat(targets_.dense[j]), dot);
            }
            target_dot.add(dot);
            return sum;
          }));
    store(pivot_ + i, pivot);
    store(tops_ + i, tops);
    store(target_dot_ + i, target_dot.value());
  }

  static Reference<T> reference_of(T maximum) {
    const auto reference = ReferenceVectors<T>::per_lane(splat(maximum));
    return {reference.origin[0], static_cast<int>(reference.exponent()[0])};
  }

  // A row by the formula of row.hpp, in double.
  void redo(Index row, Index i) {
    if (targets_.labels[row + i] == targets_.ignore_index) {
      tile_.factor[i] = tile_.dense_factor[i] = T{0};
      return;
    }
    const Index label = tile_.label[i];
    const double spike = spike_of(label), weight = weight_of(row + i);

    RowSum<T> sum;
    sum.reference = reference_of(tile_.maximum[i]);
    sum.maximum = sum.origin = tile_.maximum[i];
    sum.rest = std::isnan(pivot_[i]) ? pivot_[i] : rest_[i] / kExpScale<T>;  // NaN at the label makes all of it NaN
    Pivot<T> pivot{label, pivot_[i], 0.0};
    if constexpr (kSmoothed) {
      sum.target_sum = targets_.dense_sum;
      sum.target_dot = target_dot_[i];
      pivot.dense = targets_.dense[label];
    }
    const RowTerms terms = row_terms(sum, pivot);
    RowTerms of_top = terms;
    double cross_entropy = weighted(spike, terms.minus_log_p);
    if constexpr (kSmoothed) {
      RowSum<T> without_top = sum;
      without_top.rest = rest_of_top_[i] / kExpScale<T>;
      const Pivot<T> top{-1, sum.maximum, 0.0};  // no class of its own: target_dot leaves none out
      of_top = row_terms(without_top, top);
      cross_entropy += dense_loss(of_top, sum, top);
    }
    const RowScalars scalars = row_scalars(problem_.formula, terms, cross_entropy, spike, of_top.lse + sum.origin);
    // The same loss with and without a gradient: where only the gradient is out of bounds, it stays.
    if (!has_loss_[i] || !problem_.formula.is_cross_entropy()) problem_.loss[row + i] = weighted(weight, scalars.value);
    if constexpr (kGradient) {
      const double scale = problem_.gradient_scale * weight;
      const double b = scale * scalars.b;
      const double a = b * (spike + sum.target_sum) + scale * scalars.c;
      for (Index j = 0; j < classes_; ++j) {
        T& entry = tile_.of_class(j)[i];
        double value = entry / kExpScale<T> * (a / terms.total);
        if constexpr (kSmoothed) value -= b * targets_.dense[j];
        entry = static_cast<T>(value);
      }
      T& at_label = compares(kKind) ? tile_.at_label[i] : tile_.of_class(label)[i];
      at_label = static_cast<T>(pivot_gradient(terms, spike, sum.target_sum, pivot.dense, b) +
                                scale * scalars.c * terms.share);
      tile_.factor[i] = T{1};
      tile_.dense_factor[i] = T{0};
    }
  }

  const LossProblem<T>& problem_;
  const Targets<T>& targets_;
  Tile<T>& tile_;
  const Index classes_;
  const bool weighted_;                              // by class or row; smoothed labels count as such
  T largest_ = std::numeric_limits<T>::quiet_NaN();  // logit of the rows before, if they were not in the tile

  // One a row.
  alignas(64) T pivot_[kRows];  // the label's logit
  alignas(64) T spike_[kRows];
  alignas(64) T a_[kRows];  // gradient_scale * weight * sum(t); NaN where T is too small for it
  alignas(64) T b_[kRows];  // gradient_scale * weight; likewise
  alignas(64) double loss_factor_[kRows];
  alignas(64) double loss_[kRows];
  alignas(64) T rest_[kRows];
  alignas(64) T of_pivot_[kRows];
  alignas(64) Bits has_loss_[kRows];  // whether the loss is ordinary, and whether the gradient is too
  alignas(64) Bits ordinary_[kRows];
  // With dense targets: how many classes other than the label are as large as the largest, the largest's term, the sum
  // without it, and sum_j dense_j (z_j - maximum).
  alignas(64) T tops_[kRows];
  alignas(64) T of_top_[kRows];
  alignas(64) T rest_of_top_[kRows];
  alignas(64) T target_dot_[kRows];
};

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
