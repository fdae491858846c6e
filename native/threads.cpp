#include "threads.hpp"

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>

namespace softmaxloss {
namespace {

// Waking a sleeping thread takes up to 100 us, summing so many elements about 10.
constexpr Index kElementsWorthAThread = 32768;

std::atomic<bool> forked{false};
std::atomic<int> num_threads{[] {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  return omp_get_max_threads();
}()};

}  // namespace

int get_num_threads() { return num_threads; }
void set_num_threads(int threads) { num_threads = threads; }

int threads_for(Index rows, Index elements_per_row) {
  if (forked) return 1;
  const Index worth = rows * elements_per_row / kElementsWorthAThread;
  return static_cast<int>(std::max<Index>(1, std::min({Index{num_threads}, rows, worth})));
}

void parallel_rows(Index rows, int threads, const std::function<void(int, Index, Index)>& body) {
  if (threads == 1) return body(0, 0, rows);
#pragma omp parallel num_threads(threads)
  {
    // The team may be smaller than asked for.
    const Index team = omp_get_num_threads(), thread = omp_get_thread_num();
    body(static_cast<int>(thread), rows * thread / team, rows * (thread + 1) / team);
  }
}

}  // namespace softmaxloss
