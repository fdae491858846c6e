#include "threads.hpp"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <thread>

#include "pool.hpp"

namespace softmaxloss {
namespace {

#if defined(__SANITIZE_THREAD__)
constexpr Index kElementsWorthAThread = 1;  // races are looked for in the smallest of arrays
#else
// Waking a sleeping thread takes up to 100 us, summing so many elements about 10.
constexpr Index kElementsWorthAThread = 32768;
#endif

// What OMP_NUM_THREADS says, which users set for all their libraries; else a thread for each processor there is for us.
int default_threads() {
  if (const char* const given = std::getenv("OMP_NUM_THREADS")) {
    const long threads = std::strtol(given, nullptr, 10);  // of a list, the first
    if (threads > 0) return static_cast<int>(std::min(threads, 1024L));
  }
#if defined(__linux__)
  cpu_set_t processors;
  if (sched_getaffinity(0, sizeof processors, &processors) == 0) return std::max(1, CPU_COUNT(&processors));
#endif
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

std::atomic<bool> forked{false};
thread_local bool works_alone = false;
std::atomic<int> num_threads{[] {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  return default_threads();
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
  const auto start = [&](Index part) { return std::min(units * part / threads * unit, rows); };
  Pool::instance().run(threads, [&](int part) { body(part, start(part), start(part + 1)); });
}

}  // namespace softmaxloss
