// How many threads run, and a loop over rows that uses them.
#pragma once

#include <functional>

#include "problem.hpp"

namespace softmaxloss {

int get_num_threads();
void set_num_threads(int threads);

// From now on the calling thread uses no other: it is one of several that have parts of some work each.
void work_alone();

// How many threads parallel_rows will use for so many rows of so many elements: one where the work is too small to
// wake another, and in a forked child, where there are none of the threads that its parent had.
int threads_for(Index rows, Index elements_per_row);

// body(thread, begin, end) over [0, rows), in as many contiguous ranges as there are threads, each of which begins at a
// multiple of `unit`.
void parallel_rows(Index rows, int threads, const std::function<void(int thread, Index begin, Index end)>& body,
                   Index unit = 1);

}  // namespace softmaxloss
