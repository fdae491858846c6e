#include "driver.hpp"

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <vector>

#include "dispatch.hpp"
#include "threads.hpp"

namespace softmaxloss {
namespace {

constexpr std::size_t kCacheLine = 64;
constexpr Index kTileBytes = 128 * 1024;  // a tile of logits and one of labels fit a core's second-level cache
constexpr Index kTileRows = 64;           // four cache lines of neighbours where the class axis is strided

template <class T>
class AlignedBuffer {
 public:
  explicit AlignedBuffer(Index size)
      : data_(
            static_cast<T*>(::operator new(sizeof(T) * static_cast<std::size_t>(size), std::align_val_t{kCacheLine}))) {
  }
  T* get() const { return data_.get(); }

 private:
  struct Delete {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t{kCacheLine}); }
  };
  std::unique_ptr<T, Delete> data_;
};

// Memory for each thread, laid out before the threads start: an allocation that fails must throw outside them.
template <class T>
class PerThread {
 public:
  PerThread(int threads, Index size) : size_((size + 15) / 16 * 16), buffer_(threads * size_) {}
  T* of(int thread) const { return buffer_.get() + thread * size_; }

 private:
  Index size_;
  AlignedBuffer<T> buffer_;
};

template <class T>
Index row_offset(const Rows<T>& rows, Index row) {
  Index offset = 0;
  for (int axis = rows.dimensions - 1; axis >= 0; --axis) {
    offset += row % rows.shape[axis] * rows.strides[axis];
    row /= rows.shape[axis];
  }
  return offset;
}

template <class T>
bool adjacent(const Rows<T>& rows, Index classes) {
  return !rows || rows.class_stride == 1 || classes == 1;
}

// Rows that lie one after another in a tile.
template <class T>
Rows<T> tile_rows(T* data, Index rows, Index classes) {
  Rows<T> tile;
  tile.data = data;
  tile.dimensions = 1;
  tile.shape[0] = rows;
  tile.strides[0] = classes;
  return tile;
}

// Calls copy(element in the array, its place in the tile) in the order that is kinder to the array.
template <class T, class Copy>
void for_each_in_tile(const Rows<T>& rows, Index first_row, Index count, Index classes, const Copy& copy) {
  Index offsets[kTileRows];
  for (Index i = 0; i < count; ++i) offsets[i] = row_offset(rows, first_row + i);
  const bool class_is_innermost = count < 2 || std::abs(rows.class_stride) < std::abs(offsets[1] - offsets[0]);
  if (class_is_innermost) {
    for (Index i = 0; i < count; ++i)
      for (Index j = 0; j < classes; ++j) copy(rows.data[offsets[i] + j * rows.class_stride], i * classes + j);
  } else {
    for (Index j = 0; j < classes; ++j)
      for (Index i = 0; i < count; ++i) copy(rows.data[offsets[i] + j * rows.class_stride], i * classes + j);
  }
}

template <class T>
void gather(const Rows<const T>& rows, Index first_row, Index count, Index classes, T* tile) {
  for_each_in_tile(rows, first_row, count, classes, [tile](const T& element, Index place) { tile[place] = element; });
}

template <class T>
void scatter(const T* tile, const Rows<T>& rows, Index first_row, Index count, Index classes) {
  for_each_in_tile(rows, first_row, count, classes, [tile](T& element, Index place) { element = tile[place]; });
}

Index tile_height(Index classes, std::size_t element) {
  return std::clamp<Index>(kTileBytes / (classes * static_cast<Index>(element)), 1, kTileRows);
}

void keep_first(BadDistribution& first, const BadDistribution& other) {
  if (other.row >= 0 && (first.row < 0 || other.row < first.row)) first = other;
}

template <class T>
BadDistribution loss_by_tiles(const LossProblem<T>& problem, Index begin, Index end, T* scratch, T* tiles) {
  const Index height = tile_height(problem.classes, sizeof(T));
  T* const logits = tiles;
  T* const distribution = tiles + height * problem.classes;
  BadDistribution bad;
  for (Index row = begin; row < end && bad.row < 0; row += height) {
    const Index count = std::min(height, end - row);
    LossProblem<T> tile = problem;
    gather(problem.logits, row, count, problem.classes, logits);
    tile.logits = tile_rows<const T>(logits, count, problem.classes);
    if (problem.targets.distribution) {
      gather(problem.targets.distribution, row, count, problem.classes, distribution);
      tile.targets.distribution = tile_rows<const T>(distribution, count, problem.classes);
    }
    if (problem.targets.labels) tile.targets.labels += row;
    if (problem.weights) tile.weights += row;
    tile.loss += row;
    tile.stream = false;
    if (problem.gradient) tile.gradient = tile_rows(logits, count, problem.classes);
    bad = kernels<T>().loss(tile, 0, count, scratch);
    if (bad.row >= 0)
      bad.row += row;
    else if (problem.gradient)
      scatter(logits, problem.gradient, row, count, problem.classes);
  }
  return bad;
}

template <class T>
void softmax_by_tiles(const SoftmaxProblem<T>& problem, Index begin, Index end, T* scratch, T* tiles) {
  const Index height = tile_height(problem.classes, sizeof(T));
  for (Index row = begin; row < end; row += height) {
    const Index count = std::min(height, end - row);
    SoftmaxProblem<T> tile = problem;
    gather(problem.logits, row, count, problem.classes, tiles);
    tile.logits = tile_rows<const T>(tiles, count, problem.classes);
    if (problem.logsumexp) tile.logsumexp += row;
    tile.stream = false;
    if (problem.output) tile.output = tile_rows(tiles, count, problem.classes);
    kernels<T>().softmax(tile, 0, count, scratch);
    if (problem.output) scatter(tiles, problem.output, row, count, problem.classes);
  }
}

}  // namespace

template <class T>
BadDistribution run_loss(const LossProblem<T>& problem, Index rows) {
  if (rows == 0) return {};
  const Index classes = problem.classes;
  const bool direct = adjacent(problem.logits, classes) && adjacent(problem.targets.distribution, classes) &&
                      adjacent(problem.gradient, classes);
  const int threads = threads_for(rows, classes);
  const PerThread<T> scratch(threads, kScratchRows * scratch_row_length(classes));
  const PerThread<T> tiles(direct ? 0 : threads, 2 * tile_height(classes, sizeof(T)) * classes);
  std::vector<BadDistribution> bad(static_cast<std::size_t>(threads));
  parallel_rows(rows, threads, [&](int thread, Index begin, Index end) {
    bad[static_cast<std::size_t>(thread)] =
        direct ? kernels<T>().loss(problem, begin, end, scratch.of(thread))
               : loss_by_tiles(problem, begin, end, scratch.of(thread), tiles.of(thread));
  });
  BadDistribution first;
  for (const BadDistribution& of_thread : bad) keep_first(first, of_thread);
  return first;
}

template <class T>
void run_softmax(const SoftmaxProblem<T>& problem, Index rows) {
  if (rows == 0) return;
  const Index classes = problem.classes;
  const bool direct = adjacent(problem.logits, classes) && adjacent(problem.output, classes);
  const int threads = threads_for(rows, classes);
  const PerThread<T> scratch(threads, kScratchRows * scratch_row_length(classes));
  const PerThread<T> tiles(direct ? 0 : threads, tile_height(classes, sizeof(T)) * classes);
  parallel_rows(rows, threads, [&](int thread, Index begin, Index end) {
    if (direct)
      kernels<T>().softmax(problem, begin, end, scratch.of(thread));
    else
      softmax_by_tiles(problem, begin, end, scratch.of(thread), tiles.of(thread));
  });
}

template <class T>
BadDistribution check_distribution(const Rows<const T>& distribution, Index classes, Index rows, double tolerance) {
  const int threads = threads_for(rows, classes);
  std::vector<BadDistribution> bad(static_cast<std::size_t>(threads));
  parallel_rows(rows, threads, [&](int thread, Index begin, Index end) {
    BadDistribution& of_thread = bad[static_cast<std::size_t>(thread)];
    for (Index row = begin; row < end && of_thread.row < 0; ++row) {
      const T* q = distribution.data + row_offset(distribution, row);
      double total = 0.0, least = 0.0;
      for (Index j = 0; j < classes; ++j) {
        const double value = q[j * distribution.class_stride];
        total += value;
        least = std::min(least, value);
      }
      if (!is_distribution(total, least, tolerance)) of_thread = {row, total, least};
    }
  });
  BadDistribution first;
  for (const BadDistribution& of_thread : bad) keep_first(first, of_thread);
  return first;
}

double sum(const double* values, Index count) {
  constexpr Index kBlock = 512;
  constexpr Index kLanes = 8;
  CompensatedSum total;
  for (Index begin = 0; begin < count; begin += kBlock) {
    double lanes[kLanes] = {};
    const Index end = std::min(begin + kBlock, count);
    for (Index i = begin; i < end; ++i) lanes[i % kLanes] += values[i];
    for (const double lane : lanes) total.add(lane);
  }
  return total.value();
}

template BadDistribution run_loss(const LossProblem<float>&, Index);
template BadDistribution run_loss(const LossProblem<double>&, Index);
template void run_softmax(const SoftmaxProblem<float>&, Index);
template void run_softmax(const SoftmaxProblem<double>&, Index);
template BadDistribution check_distribution(const Rows<const float>&, Index, Index, double);
template BadDistribution check_distribution(const Rows<const double>&, Index, Index, double);

}  // namespace softmaxloss
