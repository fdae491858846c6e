// The loss of rows of a middling number of classes that lie one after another: many at once as they lie, and those that
// are not ordinary one by one.
#pragma once

#include "loss_rows.hpp"
#include "rowwise.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

template <class T, bool kGradient>
void loss_as_they_lie(const LossProblem<T>& problem, Index begin, Index end, T* scratch) {
  RowwiseLoss<T, kGradient> loss(problem, scratch);
  const Index height = rowwise_rows(problem.classes, sizeof(T));
  for (Index row = begin; row < end; row += height)
    loss_of_rowwise_tile<2>(loss, row, std::min(row + height, end),
                            [&](Index first, Index last) { contiguous_loss(problem, first, last, scratch); });
  if (problem.stream) stream_fence();
}

template <class T>
BadDistribution loss_as_they_lie(const LossProblem<T>& problem, Index begin, Index end, T* scratch) {
  if (problem.gradient)
    loss_as_they_lie<T, true>(problem, begin, end, scratch);
  else
    loss_as_they_lie<T, false>(problem, begin, end, scratch);
  return {};
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
