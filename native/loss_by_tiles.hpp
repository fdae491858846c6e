// The loss of rows in any layout, a tile at a time: index labels, and no transform of the logits.
#pragma once

#include "narrow.hpp"
#include "rowwise.hpp"
#include "tile_loss.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

template <class Byte>
bool classes_are_adjacent(const RowsOf<Byte>& rows, Index classes) {
  return classes > 1 && rows.class_stride == size_of(rows.storage);
}

template <class T>
void pack(Tile<T>& tile, const Runs<const char>& runs, Index row, Index count) {
  const bool adjacent = classes_are_adjacent(runs.rows(), tile.classes);
  runs.for_each(row, count, [&](const char* from, Index at, Index size) {
    if (adjacent)
      pack_one_by_one(tile, runs.rows(), from, runs.stride(), at, size);
    else
      pack_side_by_side(tile, runs.rows(), from, runs.stride(), at, size);
  });
}

template <class T, TileKind kKind>
void unpack(const Tile<T>& tile, const Runs<char>& runs, Index row, Index count, bool past_cache) {
  const bool adjacent = classes_are_adjacent(runs.rows(), tile.classes);
  runs.for_each(row, count, [&](char* to, Index at, Index size) {
    if (adjacent)
      unpack_one_by_one<T, kKind>(tile, runs.rows(), to, runs.stride(), at, size, past_cache);
    else
      unpack_side_by_side<T, kKind>(tile, runs.rows(), to, runs.stride(), at, size, past_cache);
  });
}

// How many rows the first tile leaves out so that the tiles after it begin where a cache line does.
template <class T>
Index rows_before_line(const Runs<char>& gradient, Index row) {
  if (!gradient.rows() || gradient.stride() != sizeof(T)) return 0;
  return static_cast<Index>(reinterpret_cast<std::uintptr_t>(gradient.start_of(row)) % 64 / sizeof(T));
}

// The loss of the first of `count` rows without packing them, where their layout allows it; no row after `end` is
// touched. (Without FMA a term may depend on the reference in its last bit.) Returns how many those are: none, if they
// are for a tile.
template <class T, class Loss>
Index unpacked_loss(Loss& loss, const Runs<const char>& logits, Index classes, Index row, Index count, Index end) {
  const ConstRows& rows = logits.rows();
  if (rows.storage != kStorageOf<T> || !kHasFma) return 0;
  const Index left = logits.left(row), in_run = std::min(count, left), whole = in_run / kLanes<T> * kLanes<T>;
  // Whole vectors of rows; but a tile is not cut short for that where the next one would begin within a line.
  if (whole == 0 || (whole < in_run && in_run == count)) return 0;
  const char* const from = logits.start_of(row);
  if (classes_are_adjacent(rows, classes)) {
    if (classes > kQuad<T> || !OneByOne<T>::may_read(logits.stride(), classes, whole, std::min(left, end - row)))
      return 0;
    return loss.run_unpacked(row, whole, OneByOne<T>(from, logits.stride(), classes, whole)) ? whole : 0;
  }
  if (logits.stride() != sizeof(T)) return 0;
  const char* const next = logits.start_of(std::min(row + whole, end - 1));
  return loss.run_unpacked(row, whole, SideBySide<T>(rows, from, classes, whole, next)) ? whole : 0;
}

// (Tiles are computed one after another: packing the next one while one is computed, or while the one before is
// unpacked, was measured and gains nothing; reads amid writes past the cache cost 30%.)
template <class T, TileKind kKind, bool kGradient>
void loss_by_tiles(const LossProblem<T>& problem, Index begin, Index end, T* scratch) {
  Tile<T> tile(scratch, problem.classes);
  TileLoss<T, kKind, kGradient> loss(problem, tile);
  const Runs<const char> logits(problem.logits);
  const Runs<char> gradient(problem.gradient);
  Index most = tile.capacity - rows_before_line<T>(gradient, begin);
  for (Index row = begin, count; row < end; row += count, most = tile.capacity) {
    const Index left = std::min(most, end - row);
    count = 0;
    if constexpr (kKind == TileKind::kFew) count = unpacked_loss<T>(loss, logits, problem.classes, row, left, end);
    if (count == 0) {
      count = left;
      pack(tile, logits, row, count);
      if (row + count < end && logits.stride() == sizeof(T)) {
        tile.ahead = logits.start_of(row + count);
        tile.ahead_class_stride = problem.logits.class_stride;
      }
      loss.run(row, count);
    }
    if constexpr (kGradient) unpack<T, kKind>(tile, gradient, row, count, problem.stream);
  }
  if (problem.stream) stream_fence();
}

// Up to how many classes comparing each with the labels is quicker than taking the labels' logits out one by one
// (measured with vectors of 32 and 64 bytes); rows side by side are not packed then, which is worth more.
constexpr Index kFewClasses = 16, kFewSideBySide = 64;

template <class T, bool kGradient>
void loss_of_kind(const LossProblem<T>& problem, Index begin, Index end, T* scratch) {
  if (problem.targets.dense)
    loss_by_tiles<T, TileKind::kSmoothed, kGradient>(problem, begin, end, scratch);
  else if (problem.classes <= (classes_are_adjacent(problem.logits, problem.classes) ? kFewClasses : kFewSideBySide))
    loss_by_tiles<T, TileKind::kFew, kGradient>(problem, begin, end, scratch);
  else
    loss_by_tiles<T, TileKind::kPlain, kGradient>(problem, begin, end, scratch);
}

// From so many classes on, rows as they lie are quicker than tiles (measured), or at least not slower.
template <class T>
constexpr Index kFewestRowwiseClasses = kPermutes ? 5 : kLanes<T>;

// Whether rows of adjacent classes lie one after another: those that rowwise.hpp takes.
template <class T, class Byte>
bool lie_in_a_row(const RowsOf<Byte>& rows, Index classes) {
  const Runs<Byte> runs(rows);
  return classes >= kFewestRowwiseClasses<T> && classes <= kMostRowwiseClasses && classes_are_adjacent(rows, classes) &&
         runs.are_one() && runs.stride() == classes * size_of(rows.storage);
}

template <class T, bool kGradient>
void loss_of_tiles(const LossProblem<T>& problem, Index begin, Index end, T* scratch) {
  const Index classes = problem.classes;
  const bool rowwise = !problem.targets.dense && problem.formula.is_cross_entropy() &&
                       lie_in_a_row<T>(problem.logits, classes) &&
                       (!kGradient || lie_in_a_row<T>(problem.gradient, classes));
  const auto by_kind = [&](Index first, Index last) { loss_of_kind<T, kGradient>(problem, first, last, scratch); };
  if (!rowwise) return by_kind(begin, end);
  loss_of_rowwise_tiles<4, T, kGradient>(problem, begin, end, scratch, by_kind);
}

template <class T>
BadDistribution tiled_loss(const LossProblem<T>& problem, Index begin, Index end, T* scratch) {
  if (problem.gradient)
    loss_of_tiles<T, true>(problem, begin, end, scratch);
  else
    loss_of_tiles<T, false>(problem, begin, end, scratch);
  return {};
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
