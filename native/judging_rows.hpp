// What evaluation needs of each row besides its loss: the largest class, the label's rank, and the probabilities' sum,
// largest and distance from the label. Each row's answers are the same whatever rows are around it.
//
// Rows of few classes are transposed, so that each lane of a vector is a row; longer ones are read as they lie, once
// for the largest score and once for the rest. The label is left out of the sums: where it has nearly all of the
// probability, what the others have keeps its digits.
#pragma once

#include "narrow.hpp"
#include "sources.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

// e^(z - r), no scale left.
template <class T>
ALWAYS_INLINE Vec<T> relative_exp(Vec<T> z, const ReferenceVectors<T>& reference) {
  return scaled_exp<T>(z, reference) * static_cast<T>(1.0 / kExpScale<T>);
}

// A logarithm of a probability above this is none: its exponential need not be right, nor finite.
template <class T>
constexpr T kMostLogProbability = T{1};

template <class T, Scores kKind>
class FewJudged {
 public:
  explicit FewJudged(const JudgingProblem<T>& problem) : problem_(problem), classes_(problem.classes) {}

  void run(Index begin, Index end) {
    for (Index row = begin; row < end; row += kLanes<T>) {
      const Index count = std::min<Index>(kLanes<T>, end - row);
      const T* from = problem_.scores + row * classes_;
      // A quad of a shorter row reaches into the rows after it.
      const bool reaches_past = (end - row - count + 1) * classes_ < kQuad<T>;
      if (count < kLanes<T> || reaches_past) from = staged(from, count);
      load_rows(from);
      judge(row, from, count);
    }
  }

 private:
  using Lane = typename IntegersOf<T>::Lane;

  const T* staged(const T* from, Index count) {
    std::fill(std::copy_n(from, count * classes_, staging_), staging_ + kLanes<T> * classes_ + kQuad<T>, T{0});
    return staging_;
  }

  // Puts each class's scores of all rows into a vector.
  ALWAYS_INLINE void load_rows(const T* from) {
    const char* const bytes = reinterpret_cast<const char*>(from);
    const Index row_bytes = classes_ * static_cast<Index>(sizeof(T));
    for (Index block = 0; block < classes_; block += kQuad<T>) {
      const Index j = block_start<T>(block, classes_);
      Vec<T> v[kQuad<T>];
#pragma GCC unroll 4
      for (int k = 0; k < kQuad<T>; ++k)
        v[k] = load_quads<T>(bytes + k * row_bytes + j * static_cast<Index>(sizeof(T)), kQuad<T> * row_bytes);
      transpose_quads(v);
#pragma GCC unroll 4
      for (int k = 0; k < kQuad<T>; ++k) values_[j + k] = v[k];
    }
  }

  ALWAYS_INLINE void judge(Index row, const T* from, Index count) {
    alignas(64) Lane labels[kLanes<T>] = {};
    alignas(64) T of_labels[kLanes<T>] = {};
    for (Index i = 0; i < count; ++i) {
      const Index label = std::clamp<Index>(problem_.labels[row + i], 0, classes_ - 1);
      labels[i] = static_cast<Lane>(label);
      of_labels[i] = from[i * classes_ + label];
    }
    const Vec<T> own = load(of_labels);
    const Integers<T> label = load_integers<T>(labels);
    Vec<T> top = values_[0], least = values_[0];
    Integers<T> first{}, ahead{};
    for (Index j = 0; j < classes_; ++j) {
      const Vec<T> v = values_[j];
      const Integers<T> larger = v > top, at = Integers<T>{} + static_cast<Lane>(j);
      top = larger ? v : top;
      first = larger ? at : first;
      least = v < least ? v : least;
      ahead -= (v > own) | ((v == own) & (at < label));
    }
    const auto reference =
        kKind == Scores::kLogits ? ReferenceVectors<T>::per_lane(top) : ReferenceVectors<T>(Reference<T>{});
    const auto probability = [&](Vec<T> v) __attribute__((always_inline)) {
      return kKind == Scores::kProbabilities ? v : relative_exp<T>(v, reference);
    };
    Vec<T> others{}, squares{};
    for (Index j = 0; j < classes_; ++j) {
      const Integers<T> at = Integers<T>{} + static_cast<Lane>(j);
      const Vec<T> p = at == label ? Vec<T>{} : probability(values_[j]);
      others += p;
      squares += p * p;
    }
    const Vec<T> of_label = probability(own), total = others + of_label;
    const Vec<T> missed = kKind == Scores::kLogits ? others : T{1} - of_label;
    Vec<T> confidence = probability(top), brier = squares + missed * missed, sum = total;
    if constexpr (kKind == Scores::kLogits) {
      confidence /= total;
      brier /= total * total;
    }
    if constexpr (kKind == Scores::kLogProbabilities)
      sum = top > kMostLogProbability<T> ? splat(std::numeric_limits<T>::infinity()) : sum;
    for (Index i = 0; i < count; ++i) {
      problem_.sum[row + i] = static_cast<double>(sum[i]);
      problem_.least[row + i] = static_cast<double>(least[i]);
    }
    if (!problem_.prediction) return;
    for (Index i = 0; i < count; ++i) {
      problem_.prediction[row + i] = static_cast<Index>(first[i]);
      problem_.rank[row + i] = static_cast<Index>(ahead[i]);
      problem_.confidence[row + i] = static_cast<double>(confidence[i]);
      problem_.brier[row + i] = static_cast<double>(brier[i]);
    }
  }

  const JudgingProblem<T>& problem_;
  const Index classes_;
  Vec<T> values_[kMostFewJudged + kQuad<T>];
  T staging_[kMostFewJudged * kLanes<T> + kQuad<T>];
};

template <class T, Scores kKind>
class LongJudged {
 public:
  explicit LongJudged(const JudgingProblem<T>& problem) : problem_(problem), classes_(problem.classes) {}

  void run(Index begin, Index end) {
    for (Index row = begin; row < end; ++row) judge(row, problem_.scores + row * classes_);
  }

 private:
  // What a part of the row without the label adds up to.
  struct Sums {
    double others = 0.0, squares = 0.0;
    T least = std::numeric_limits<T>::infinity();
    Index ahead = 0;
  };

  void judge(Index row, const T* scores) {
    const Index label = std::clamp<Index>(problem_.labels[row], 0, classes_ - 1);
    const T own = scores[label], top = maximum_of(scores, classes_);
    const ReferenceVectors<T> reference(kKind == Scores::kLogits ? Reference<T>::near(top) : Reference<T>{});
    Sums sums;
    // Of equal scores the lower index is ahead.
    add(sums, scores, label, reference, own, [](auto v, auto limit) { return v >= limit; });
    add(sums, scores + label + 1, classes_ - label - 1, reference, own, [](auto v, auto limit) { return v > limit; });
    const double of_label = probability_of(own, reference), total = sums.others + of_label;
    problem_.sum[row] = kKind == Scores::kLogProbabilities && top > kMostLogProbability<T>
                            ? std::numeric_limits<double>::infinity()
                            : total;
    problem_.least[row] = static_cast<double>(std::min(sums.least, own));
    if (!problem_.prediction) return;
    const double scale = kKind == Scores::kLogits ? 1.0 / total : 1.0;
    const double missed = kKind == Scores::kLogits ? sums.others : 1.0 - of_label;
    problem_.prediction[row] = sums.ahead == 0 ? label : first_equal(scores, top);
    problem_.rank[row] = sums.ahead;
    problem_.confidence[row] = probability_of(top, reference) * scale;
    problem_.brier[row] = (sums.squares + missed * missed) * scale * scale;
  }

  static ALWAYS_INLINE Vec<T> probability(Vec<T> v, const ReferenceVectors<T>& reference) {
    return kKind == Scores::kProbabilities ? v : relative_exp<T>(v, reference);
  }
  static double probability_of(T v, const ReferenceVectors<T>& reference) {
    return static_cast<double>(probability(splat(v), reference)[0]);
  }

  template <class IsAhead>
  static void add(Sums& sums, const T* scores, Index count, const ReferenceVectors<T>& reference, T own,
                  const IsAhead& is_ahead) {
    constexpr Index kStep = 2 * kLanes<T>, kPart = 1024;  // of which T's digits are enough for the sum
    const Vec<T> limit = splat(own);
    const Index whole = count / kStep * kStep;
    Vec<T> least = splat(sums.least);
    Integers<T> ahead{};
    for (Index begin = 0; begin < whole; begin += kPart) {
      Vec<T> others[2] = {}, squares[2] = {};
      for (Index j = begin; j < std::min(begin + kPart, whole); j += kStep) {
#pragma GCC unroll 2
        for (int u = 0; u < 2; ++u) {
          const Vec<T> v = load(scores + j + u * kLanes<T>), p = probability(v, reference);
          others[u] += p;
          squares[u] = fused_multiply_add(p, p, squares[u]);
          ahead -= is_ahead(v, limit);
          if constexpr (kKind == Scores::kProbabilities) least = v < least ? v : least;
        }
      }
      sums.others += static_cast<double>(sum_of_lanes(others[0] + others[1]));
      sums.squares += static_cast<double>(sum_of_lanes(squares[0] + squares[1]));
    }
    sums.least = reduce(least, [](auto a, auto b) { return a < b ? a : b; });
    sums.ahead += static_cast<Index>(sum_of_lanes(ahead));
    T rest[kStep];
    std::fill(std::copy(scores + whole, scores + count, rest), rest + kStep,
              kKind == Scores::kProbabilities ? T{0} : -std::numeric_limits<T>::infinity());
    for (Index j = 0; j < kStep; j += kLanes<T>) {
      const Vec<T> p = probability(load(rest + j), reference);
      sums.others += static_cast<double>(sum_of_lanes(p));
      sums.squares += static_cast<double>(sum_of_lanes(p * p));
    }
    for (Index j = whole; j < count; ++j) {
      sums.least = std::min(sums.least, scores[j]);
      sums.ahead += is_ahead(scores[j], own);
    }
  }

  // 0 where there is none.
  Index first_equal(const T* scores, T value) const {
    constexpr Index kPart = 64;
    for (Index begin = 0; begin < classes_; begin += kPart) {
      const Index end = std::min(begin + kPart, classes_);
      bool some = false;
      for (Index j = begin; j < end; ++j) some |= scores[j] == value;
      if (some) return std::find(scores + begin, scores + end, value) - scores;
    }
    return 0;
  }

  const JudgingProblem<T>& problem_;
  const Index classes_;
};

template <class T, Scores kKind>
void judge_kind(const JudgingProblem<T>& problem, Index begin, Index end) {
  if (problem.classes <= kMostFewJudged)
    FewJudged<T, kKind>(problem).run(begin, end);
  else
    LongJudged<T, kKind>(problem).run(begin, end);
}

template <class T>
void judge(const JudgingProblem<T>& problem, Index begin, Index end) {
  switch (problem.kind) {
    case Scores::kLogits:
      return judge_kind<T, Scores::kLogits>(problem, begin, end);
    case Scores::kLogProbabilities:
      return judge_kind<T, Scores::kLogProbabilities>(problem, begin, end);
    case Scores::kProbabilities:
      return judge_kind<T, Scores::kProbabilities>(problem, begin, end);
  }
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
