#include "driver.hpp"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "dispatch.hpp"
#include "gather.hpp"
#include "threads.hpp"

namespace softmaxloss {
namespace {

constexpr std::size_t kCacheLine = 64;
constexpr Index kTileBytes = 128 * 1024;  // a tile of logits and one of labels fit a core's second-level cache

struct Memory {
  void* data = nullptr;
  std::size_t bytes = 0;
};

// Some megabytes of the last call, for the next: asked for anew in every call, amid what callers allocate, they leave
// gaps in the heap that add up to several times as much.
class Spare {
 public:
  // Returns memory of so many bytes at least, or none.
  Memory take(std::size_t bytes) {
    const std::unique_lock lock(mutex_,
                                std::try_to_lock);  // not waited for: a forked child may find it locked for good
    return lock && bytes <= memory_.bytes ? std::exchange(memory_, {}) : Memory{};
  }

  // Keeps memory if there is none as large; returns what is to be freed.
  Memory give(Memory memory) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock && memory.bytes > memory_.bytes) std::swap(memory, memory_);
    return memory;
  }

 private:
  std::mutex mutex_;
  Memory memory_;
};

template <class T>
class AlignedBuffer {
 public:
  explicit AlignedBuffer(Index size) {
    const std::size_t bytes = sizeof(T) * static_cast<std::size_t>(size);
    if (bytes >= kLeastSpare) memory_ = spare().take(bytes);
    if (!memory_.data) memory_ = {::operator new(bytes, std::align_val_t{kCacheLine}), bytes};
  }
  ~AlignedBuffer() {
    if (memory_.bytes >= kLeastSpare && memory_.bytes <= kMostSpare) memory_ = spare().give(memory_);
    ::operator delete(memory_.data, std::align_val_t{kCacheLine});
  }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  T* get() const { return static_cast<T*>(memory_.data); }

 private:
  static constexpr std::size_t kLeastSpare = std::size_t{1} << 20, kMostSpare = std::size_t{16} << 20;
  static Spare& spare() {
    static Spare one;
    return one;
  }

  Memory memory_;
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

Index tile_height(Index classes, std::size_t element) {
  return std::clamp<Index>(kTileBytes / (classes * static_cast<Index>(element)), 1, kTileRows);
}

BadDistribution first_of(const std::vector<BadDistribution>& of_threads) {
  BadDistribution first;
  for (const BadDistribution& other : of_threads)
    if (other.row >= 0 && (first.row < 0 || other.row < first.row)) first = other;
  return first;
}

// The part of a problem that a tile holds: its rows come from `tiles`, where its gradient goes too.
template <class T>
LossProblem<T> tile_of(const LossProblem<T>& problem, Index row, Index count, T* tiles) {
  const Index classes = problem.classes;
  LossProblem<T> tile = problem;
  tile.logits = gathered(problem.logits, row, count, classes, tiles);
  tile.targets.distribution =
      gathered(problem.targets.distribution, row, count, classes, tiles + tile_height(classes, sizeof(T)) * classes);
  if (problem.targets.labels) tile.targets.labels += row;
  if (problem.weights) tile.weights += row;
  if (problem.loss) tile.loss += row;
  if (problem.gradient) tile.gradient = dense_rows<char>(tiles, problem.gradient.storage, count, classes);
  tile.stream = false;
  return tile;
}

template <class T>
BadDistribution gathered_loss(const LossProblem<T>& problem, Index row, Index count, T* scratch, T* tiles) {
  const LossProblem<T> tile = tile_of(problem, row, count, tiles);
  const BadDistribution bad = kernels<T>().loss(tile, 0, count, scratch);
  if (bad.row < 0 && problem.gradient) scatter(tiles, problem.gradient, row, count, problem.classes);
  return bad;
}

template <class T>
BadDistribution gathered_hessian(const HessianProblem<T>& problem, Index row, Index count, T* scratch, T* tiles) {
  const Index classes = problem.loss.classes;
  const LossProblem<T> loss = tile_of(problem.loss, row, count, tiles);
  T* const vector = tiles + 2 * tile_height(classes, sizeof(T)) * classes;
  const HessianProblem<T> tile{loss, gathered(problem.vector, row, count, classes, vector)};
  const BadDistribution bad = kernels<T>().hessian(tile, 0, count, scratch);
  if (bad.row < 0) scatter(tiles, problem.loss.gradient, row, count, classes);
  return bad;
}

template <class T>
BadDistribution gathered_statistics(const StatisticsProblem<T>& problem, Index row, Index count, T* scratch, T* tiles) {
  StatisticsProblem<T> tile = problem;
  tile.logits = gathered(problem.logits, row, count, problem.classes, tiles);
  if (problem.labels) tile.labels += row;
  if (problem.loss) tile.loss += row;
  if (problem.rank) tile.rank += row;
  tile.logsumexp += row;
  tile.prediction += row;
  kernels<T>().statistics(tile, 0, count, scratch);
  return {};
}

template <class T>
BadDistribution gathered_softmax(const SoftmaxProblem<T>& problem, Index row, Index count, T* scratch, T* tiles) {
  SoftmaxProblem<T> tile = problem;
  tile.logits = gathered(problem.logits, row, count, problem.classes, tiles);
  if (problem.logsumexp) tile.logsumexp += row;
  if (problem.output) tile.output = dense_rows<char>(tiles, problem.output.storage, count, problem.classes);
  tile.stream = false;
  kernels<T>().softmax(tile, 0, count, scratch);
  if (problem.output) scatter(tiles, problem.output, row, count, problem.classes);
  return {};
}

// Runs rows(begin, end, scratch) on each thread, `begin` a multiple of `unit`.
template <class T, class RunRows>
BadDistribution run(Index rows, Index classes, Index scratch_elements, const RunRows& run_rows, Index unit = 1) {
  if (rows == 0) return {};
  const int threads = threads_for(rows, classes);
  const PerThread<T> scratch(threads, scratch_elements);
  std::vector<BadDistribution> bad(static_cast<std::size_t>(threads));
  const auto body = [&](int thread, Index begin, Index end) {
    bad[static_cast<std::size_t>(thread)] = run_rows(begin, end, scratch.of(thread));
  };
  parallel_rows(rows, threads, body, unit);
  return first_of(bad);
}

// The same where no array is gathered; else runs tile(row, count, scratch, tiles) for one tile after another, in which
// there is room for so many arrays.
template <class T, class RunRows, class RunTile>
BadDistribution run_or_gather(Index rows, Index classes, int gathered, const RunRows& run_rows, const RunTile& run_tile,
                              Index more_scratch = 0) {
  const Index scratch_elements = kScratchRows * scratch_row_length(classes) + more_scratch;
  if (gathered == 0) return run<T>(rows, classes, scratch_elements, run_rows);
  const Index height = tile_height(classes, sizeof(T));
  return run<T>(rows, classes, scratch_elements + gathered * height * classes,
                [&](Index begin, Index end, T* scratch) -> BadDistribution {
                  for (Index row = begin; row < end; row += height) {
                    BadDistribution bad =
                        run_tile(row, std::min(height, end - row), scratch, scratch + scratch_elements);
                    bad.row += row;
                    if (bad.row >= row) return bad;
                  }
                  return {};
                });
}

// Whether many rows at once are quicker than one after another, or the kernels' only way.
template <class T>
bool suits_tiles(const LossProblem<T>& problem, Index rows) {
  constexpr Index kFewClasses = 64, kManyClasses = 65536, kFewRows = 16;
  if (problem.targets.distribution || !problem.transform.is_identity() || rows < kFewRows) return false;
  return adjacent(problem.logits, problem.classes) && adjacent(problem.gradient, problem.classes)
             ? problem.classes <= kFewClasses
             : problem.classes <= kManyClasses;
}

// Whether rows of adjacent classes lie one after another.
template <class Byte>
bool one_after_another(const RowsOf<Byte>& rows, Index classes) {
  Index stride = classes * size_of(rows.storage);
  for (int axis = rows.dimensions - 1; axis >= 0; stride *= rows.shape[axis--])
    if (rows.shape[axis] > 1 && rows.strides[axis] != stride) return false;
  return adjacent(rows, classes);
}

// Whether there are too many classes for tiles, but rows of labels alone that are quicker many at once.
template <class T>
bool suits_rows_as_they_lie(const LossProblem<T>& problem, Index rows) {
  constexpr Index kMostClasses = kMostRowwiseRow / sizeof(T), kFewRows = 16;
  return problem.classes > kMostRowwiseClasses && problem.classes <= kMostClasses && rows >= kFewRows &&
         !problem.targets.dense && !problem.targets.distribution && problem.transform.is_identity() &&
         problem.formula.is_cross_entropy() && one_after_another(problem.logits, problem.classes) &&
         (!problem.gradient || one_after_another(problem.gradient, problem.classes));
}

template <class T>
bool adjacent(const LossProblem<T>& problem) {
  return adjacent(problem.logits, problem.classes) && adjacent(problem.targets.distribution, problem.classes) &&
         adjacent(problem.gradient, problem.classes);
}

}  // namespace

template <class T>
BadDistribution run_loss(const LossProblem<T>& problem, Index rows) {
  if (suits_tiles(problem, rows)) {
    const Index classes = problem.classes, size = sizeof(T);
    return run<T>(
        rows, classes, std::max(tile_scratch_elements(classes, size), rowwise_scratch_elements(size)),
        [&](Index begin, Index end, T* scratch) { return kernels<T>().tiled_loss(problem, begin, end, scratch); },
        rowwise_rows(classes, size));
  }
  if (suits_rows_as_they_lie(problem, rows)) {
    const Index classes = problem.classes, size = sizeof(T);
    return run<T>(
        rows, classes, std::max(kScratchRows * scratch_row_length(classes), rowwise_scratch_elements(size)),
        [&](Index begin, Index end, T* scratch) { return kernels<T>().loss_as_they_lie(problem, begin, end, scratch); },
        rowwise_rows(classes, size));
  }
  return run_or_gather<T>(
      rows, problem.classes, adjacent(problem) ? 0 : 2,
      [&](Index begin, Index end, T* scratch) { return kernels<T>().loss(problem, begin, end, scratch); },
      [&](Index row, Index count, T* scratch, T* tiles) { return gathered_loss(problem, row, count, scratch, tiles); });
}

template <class T>
BadDistribution run_hessian(const HessianProblem<T>& problem, Index rows) {
  return run_or_gather<T>(
      rows, problem.loss.classes, adjacent(problem.loss) && adjacent(problem.vector, problem.loss.classes) ? 0 : 3,
      [&](Index begin, Index end, T* scratch) { return kernels<T>().hessian(problem, begin, end, scratch); },
      [&](Index row, Index count, T* scratch, T* tiles) {
        return gathered_hessian(problem, row, count, scratch, tiles);
      });
}

template <class T>
void run_statistics(const StatisticsProblem<T>& problem, Index rows) {
  run_or_gather<T>(
      rows, problem.classes, adjacent(problem.logits, problem.classes) ? 0 : 1,
      [&](Index begin, Index end, T* scratch) {
        kernels<T>().statistics(problem, begin, end, scratch);
        return BadDistribution{};
      },
      [&](Index row, Index count, T* scratch, T* tiles) {
        return gathered_statistics(problem, row, count, scratch, tiles);
      });
}

template <class T>
void run_softmax(const SoftmaxProblem<T>& problem, Index rows) {
  run_or_gather<T>(
      rows, problem.classes,
      adjacent(problem.logits, problem.classes) && adjacent(problem.output, problem.classes) ? 0 : 1,
      [&](Index begin, Index end, T* scratch) {
        kernels<T>().softmax(problem, begin, end, scratch);
        return BadDistribution{};
      },
      [&](Index row, Index count, T* scratch, T* tiles) {
        return gathered_softmax(problem, row, count, scratch, tiles);
      },
      softmax_takes_tiles(problem) ? tile_scratch_elements(problem.classes, sizeof(T)) : 0);
}

template <class T>
BadDistribution check_distribution(const ConstRows& distribution, Index classes, Index rows, double tolerance) {
  return run<T>(rows, classes, 0, [&](Index begin, Index end, T*) {
    return kernels<T>().check(distribution, classes, begin, end, tolerance);
  });
}

template <class T>
void run_class_blocks(const ClassBlocksProblem<T>& problem, Index classes) {
  const int threads = threads_for(classes, problem.size * problem.size + problem.rows);
  const PerThread<T> scratch(threads, class_block_scratch_elements(problem.size));
  parallel_rows(classes, threads, [&](int thread, Index begin, Index end) {
    kernels<T>().class_blocks(problem, begin, end, scratch.of(thread));
  });
}

template <class T>
void run_solve_blocks(const ClassBlocksProblem<T>& problem, T* vectors, Index classes) {
  parallel_rows(classes, threads_for(classes, problem.size * problem.size),
                [&](int, Index begin, Index end) { kernels<T>().solve_blocks(problem, vectors, begin, end); });
}

double sum(const double* values, Index count) {
  constexpr Index kBlock = 512, kLanes = 8;
  const Index blocks = (count + kBlock - 1) / kBlock;
  std::vector<double> of_blocks(static_cast<std::size_t>(blocks));
  const auto add_blocks = [&](int, Index first, Index last) {
    for (Index block = first; block < last; ++block) {
      double lanes[kLanes] = {};
      const Index end = std::min((block + 1) * kBlock, count);
      Index i = block * kBlock;
      for (; i + kLanes <= end; i += kLanes)
        for (Index lane = 0; lane < kLanes; ++lane) lanes[lane] += values[i + lane];
      for (Index lane = 0; i + lane < end; ++lane) lanes[lane] += values[i + lane];
      for (Index half = kLanes / 2; half > 0; half /= 2)
        for (Index lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
      of_blocks[static_cast<std::size_t>(block)] = lanes[0];
    }
  };
  parallel_rows(blocks, threads_for(blocks, kBlock), add_blocks);
  CompensatedSum total;
  for (const double block : of_blocks) total.add(block);
  return total.value();
}

#define SOFTMAXLOSS_INSTANTIATE(T)                                         \
  template BadDistribution run_loss(const LossProblem<T>&, Index);         \
  template BadDistribution run_hessian(const HessianProblem<T>&, Index);   \
  template void run_statistics(const StatisticsProblem<T>&, Index);        \
  template void run_softmax(const SoftmaxProblem<T>&, Index);              \
  template void run_class_blocks(const ClassBlocksProblem<T>&, Index);     \
  template void run_solve_blocks(const ClassBlocksProblem<T>&, T*, Index); \
  template BadDistribution check_distribution<T>(const ConstRows&, Index, Index, double);

SOFTMAXLOSS_INSTANTIATE(float)
SOFTMAXLOSS_INSTANTIATE(double)

}  // namespace softmaxloss
