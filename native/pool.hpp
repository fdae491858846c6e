// Threads that take parts of some work beside the one that has it.
//
// Not OpenMP's: its threads stay awake for milliseconds after each region, and keep cores from those of BLAS or PyTorch
// who come next, as theirs do from ours; and its regions wait for every thread of the team, even one that has no core.
// These sleep soon, and whoever has the work takes what they have not begun.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>

namespace softmaxloss {

class Pool {
 public:
  // The only one: it is never destroyed, for its threads wait until the process ends.
  static Pool& instance();

  // Calls part(i) for each i in [0, parts), fewer than 2^16, on this thread and others, and returns once all have
  // returned. While there is other work here, and in a part of it, that is this thread alone. What a part throws ends
  // the process: the others have its work still.
  void run(int parts, const std::function<void(int)>& part);

 private:
  using Number = std::uint32_t;

  // Which work there is, of how many parts, and the first that nobody has taken: one number, so that a part is taken
  // only of the work that it was seen to belong to.
  struct State {
    Number work = 0;
    std::uint16_t parts = 0, next = 0;
    bool has_parts() const { return next < parts; }
  };
  static_assert(std::atomic<State>::is_always_lock_free);

  void start_threads(int count);
  void serve();
  bool take_part() noexcept;
  void wait_for_parts();

  std::mutex busy_;  // held while there is work
  int threads_ = 0;
  const std::function<void(int)>* part_ = nullptr;
  std::atomic<State> state_{};
  std::atomic<int> unfinished_{0};

  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int> asleep_{0};
};

}  // namespace softmaxloss
