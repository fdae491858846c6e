// Stores past the cache take whole lines of memory.
#pragma once

#include <algorithm>

#include "simd.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

constexpr Index kLineBytes = 64;

// The cache line that one row's end and the next one's start share. Only whole lines may go past the cache, for the
// rest of a partial one would have to be read: the end of a row waits here for what follows it in memory, and both for
// the end of the next row, as values just stored cannot be loaded as one vector before the stores are done.
template <class T>
class SharedLine {
 public:
  static constexpr Index kCount = kLineBytes / static_cast<Index>(sizeof(T));

  // Where the first values of a row that begins within a line are to be put: as many as complete the line.
  T* complete(char* out) {
    const auto past = static_cast<Index>(reinterpret_cast<std::uintptr_t>(out) % kLineBytes) / kSize;
    if (out != line_ + end_ * kSize) {
      write();
      line_ = out - past * kSize;
      first_ = past;
    }
    end_ = kCount;
    return values() + past;
  }

  // Where the last values of a row are to be put, so many from the start of a line.
  T* begin(char* line, Index count) {
    line_ = line;
    first_ = 0;
    end_ = count;
    return values();
  }

  void write() {
    T* const line = reinterpret_cast<T*>(line_);
    if (first_ == 0 && end_ == kCount)
      for (Index i = 0; i < kCount; i += kLanes<T>) stream(line + i, load(values() + i));
    else
      std::copy(values() + first_, values() + end_, line + first_);
    first_ = end_ = 0;
  }

 private:
  static constexpr Index kSize = sizeof(T);
  T* values() { return values_ + kCount; }  // another line before and after them may be written over

  // All in one page: a store across two is slow enough to be seen.
  alignas(4 * kLineBytes) T values_[3 * kCount];
  Index first_ = 0, end_ = 0;  // those that are there
  char* line_ = nullptr;
};

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
