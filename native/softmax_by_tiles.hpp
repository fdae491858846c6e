// softmax and log_softmax of rows of few classes, a tile at a time: as TileLoss, with no label.
#pragma once

#include "loss_by_tiles.hpp"
#include "softmax_rows.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

template <class T, bool kLogarithm>
class SoftmaxByTiles {
 public:
  SoftmaxByTiles(const SoftmaxProblem<T>& problem, T* scratch)
      : problem_(problem),
        classes_(problem.classes),
        tile_(scratch, classes_),
        of_one_row_(scratch + tile_scratch_elements(classes_, sizeof(T))) {}

  void run(Index begin, Index end) {
    const Runs<const char> logits(problem_.logits);
    const Runs<char> output(problem_.output);
    for (Index row = begin, count; row < end; row += count) {
      count = std::min(tile_.capacity, end - row);
      pack(tile_, logits, row, count);
      pad(count);
      for (Index i = 0; i < count; i += kLanes<T>) {
        const Integers<T> ordinary = kLogarithm ? logarithms(i) : probabilities(i);
        if (any_zero<T>(ordinary))
          for (Index k = i; k < std::min(i + kLanes<T>, count); ++k)
            if (!ordinary[k - i]) redo(row + k, k);
      }
      unpack<T, TileKind::kPlain>(tile_, output, row, count, problem_.stream);
    }
    if (problem_.stream) stream_fence();
  }

 private:
  using Sums = Vec<T>[kClassesAtOnce];

  // The lanes past the last row hold nothing that would be slow.
  void pad(Index count) {
    const Index end = (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    for (Index j = 0; j < classes_; ++j) std::fill(tile_.of_class(j) + count, tile_.of_class(j) + end, T{0});
    std::fill(tile_.maximum + count, tile_.maximum + end, T{0});
  }

  // From logits to terms and the factor that makes them probabilities. Tells, lane by lane, which rows are ordinary.
  ALWAYS_INLINE Integers<T> probabilities(Index i) {
    const auto reference = ReferenceVectors<T>::per_lane(load(tile_.maximum + i));
    Sums sums = {};
    for_each_class(i, sums, [&](T* place, Vec<T>& sum) __attribute__((always_inline)) {
      const Vec<T> e = scaled_exp<T>(load(place), reference);
      store(place, e);
      sum += e;
    });
    const Vec<T> factor = T{1} / total(sums);
    store(tile_.factor + i, factor);
    return (factor > T{0}) & is_ordinary_factor<T>(factor);
  }

  // From logits to logarithms of probabilities, relative to the maximum, so that both terms are negative and do not
  // cancel; the sum leaves one largest class out, so that it has its digits where that is nearly all there is.
  ALWAYS_INLINE Integers<T> logarithms(Index i) {
    const Vec<T> maximum = load(tile_.maximum + i);
    const auto reference = ReferenceVectors<T>::per_lane(maximum);
    Sums sums = {};
    Integers<T> left_out{};
    for_each_class(i, sums, [&](T* place, Vec<T>& sum) __attribute__((always_inline)) {
      const Vec<T> z = load(place), e = scaled_exp<T>(z, reference);
      const Integers<T> is_top = (z == maximum) & ~left_out;
      left_out |= is_top;
      sum += is_top ? Vec<T>{} : e;
    });
    const Vec<T> rest = total(sums), of_top = scaled_exp<T>(maximum, reference), lse = log1p<T>(rest / of_top);
    const Integers<T> ordinary = is_ordinary_loss<T>(of_top, rest, lse);
    for (Index j = 0; j < classes_; ++j) {
      T* const place = tile_.of_class(j) + i;
      store(place, (load(place) - maximum) - lse);
    }
    store(tile_.factor + i, splat(T{1}));
    return ordinary;
  }

  template <class F>
  ALWAYS_INLINE void for_each_class(Index i, Sums& sums, const F& f) {
    T* place = tile_.of_class(0) + i;
    Index left = classes_;
    for (; left >= kClassesAtOnce; left -= kClassesAtOnce, place += kClassesAtOnce * tile_.stride) {
#pragma GCC unroll 4
      for (int u = 0; u < kClassesAtOnce; ++u) f(place + u * tile_.stride, sums[u]);
    }
    for (; left > 0; --left, place += tile_.stride) f(place, sums[0]);
  }

  static ALWAYS_INLINE Vec<T> total(const Sums& sums) { return (sums[0] + sums[1]) + (sums[2] + sums[3]); }

  // A row as those of many classes are computed. Its logits are where they came from, and not yet written over.
  void redo(Index row, Index i) {
    constexpr auto kOutput = kLogarithm ? Output::kLogSoftmax : Output::kSoftmax;
    T result[kMostTiledSoftmax];
    const RowCursor logits(problem_.logits, row);
    SoftmaxProblem<T> one = problem_;
    one.logits = dense_rows<const char>(reinterpret_cast<const T*>(logits.get()), kStorageOf<T>, 1, classes_);
    one.output = dense_rows<char>(result, kStorageOf<T>, 1, classes_);
    SoftmaxRows<T, kOutput, false>(one, of_one_row_).run(0, 1);
    for (Index j = 0; j < classes_; ++j) tile_.of_class(j)[i] = result[j];
    tile_.factor[i] = T{1};
  }

  const SoftmaxProblem<T>& problem_;
  const Index classes_;
  Tile<T> tile_;
  T* const of_one_row_;
};

template <class T>
void softmax(const SoftmaxProblem<T>& problem, Index begin, Index end, T* scratch) {
  if (!softmax_takes_tiles(problem))
    softmax_by_rows(problem, begin, end, scratch);
  else if (problem.logarithm)
    SoftmaxByTiles<T, true>(problem, scratch).run(begin, end);
  else
    SoftmaxByTiles<T, false>(problem, scratch).run(begin, end);
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
