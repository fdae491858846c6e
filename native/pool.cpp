#include "pool.hpp"

#include <chrono>
#include <system_error>
#include <thread>

namespace softmaxloss {
namespace {

// To wake a thread takes about as long.
constexpr std::chrono::microseconds kAwake{100};

thread_local bool has_a_part = false;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Pool& Pool::instance() {
  static Pool* const pool = new Pool;
  return *pool;
}

void Pool::run(int parts, const std::function<void(int)>& part) {
  std::unique_lock<std::mutex> lock(busy_, std::defer_lock);
  if (has_a_part || !lock.try_lock()) {
    for (int i = 0; i < parts; ++i) part(i);
    return;
  }
  start_threads(parts - 1);
  part_ = &part;
  unfinished_.store(parts);
  state_.store({state_.load().work + 1, static_cast<std::uint16_t>(parts), 0});
  if (asleep_.load() > 0) {
    const std::lock_guard<std::mutex> guard(mutex_);
    wake_.notify_all();
  }
  while (take_part()) {
  }
  for (int spins = 0; unfinished_.load() > 0; ++spins) {
    constexpr int kSpins = 1000;
    if (spins < kSpins)
      pause();
    else
      std::this_thread::yield();
  }
}

void Pool::start_threads(int count) {
  try {
    for (; threads_ < count; ++threads_) std::thread(&Pool::serve, this).detach();
  } catch (const std::system_error&) {
    // There are no more: those that there are do the work.
  }
}

void Pool::serve() {
  for (;;) {
    wait_for_parts();
    while (take_part()) {
    }
  }
}

bool Pool::take_part() noexcept {
  State seen = state_.load();
  State taken;
  do {
    if (!seen.has_parts()) return false;
    taken = seen;
    ++taken.next;
  } while (!state_.compare_exchange_weak(seen, taken));
  has_a_part = true;
  (*part_)(seen.next);  // which stays until this part has been finished
  has_a_part = false;
  unfinished_.fetch_sub(1);
  return true;
}

void Pool::wait_for_parts() {
  const auto until = std::chrono::steady_clock::now() + kAwake;
  do {
    constexpr int kPausesBetween = 32;
    for (int i = 0; i < kPausesBetween; ++i) {
      if (state_.load().has_parts()) return;
      pause();
    }
  } while (std::chrono::steady_clock::now() < until);
  std::unique_lock<std::mutex> lock(mutex_);
  asleep_.fetch_add(1);
  wake_.wait(lock, [this] { return state_.load().has_parts(); });
  asleep_.fetch_sub(1);
}

}  // namespace softmaxloss
