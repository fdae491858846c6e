#include "threads.hpp"

#include <omp.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace softmaxloss {
namespace {

#if defined(__SANITIZE_THREAD__)
constexpr Index kElementsWorthAThread = 1;  // races are looked for in the smallest of arrays
#else
// Waking a sleeping thread takes up to 100 us, summing so many elements about 10.
constexpr Index kElementsWorthAThread = 32768;
#endif

std::atomic<bool> forked{false};
thread_local bool works_alone = false;
std::atomic<int> num_threads{[] {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  return omp_get_max_threads();
}()};

}  // namespace

int get_num_threads() { return num_threads; }
void set_num_threads(int threads) { num_threads = threads; }
void work_alone() { works_alone = true; }

int threads_for(Index rows, Index elements_per_row) {
  if (forked || works_alone) return 1;
  const Index worth = rows * elements_per_row / kElementsWorthAThread;
  return static_cast<int>(std::max<Index>(1, std::min({Index{num_threads}, rows, worth})));
}

void parallel_rows(Index rows, int threads, const std::function<void(int, Index, Index)>& body, Index unit) {
  if (threads == 1) return body(0, 0, rows);
  const Index units = (rows + unit - 1) / unit;
  const auto part = [&](Index thread, Index team) {
    const auto start = [&](Index part) { return std::min(units * part / team * unit, rows); };
    body(static_cast<int>(thread), start(thread), start(thread + 1));
  };
#if defined(__SANITIZE_THREAD__)
  // ThreadSanitizer cannot see how libgomp, which is not built with it, starts and joins threads: whatever passes from
  // one to another would be a race to it.
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(part, thread, threads);
  part(0, threads);
  for (std::thread& other : others) other.join();
#else
#pragma omp parallel num_threads(threads)
  part(omp_get_thread_num(), omp_get_num_threads());  // the team may be smaller than asked for
#endif
}

}  // namespace softmaxloss
