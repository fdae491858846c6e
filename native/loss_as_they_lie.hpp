// The loss of rows of a middling number of classes that lie one after another: many at once as they lie, and those that
// are not ordinary one by one.
#pragma once

#include "loss_rows.hpp"
#include "rowwise.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

template <class T>
BadDistribution loss_as_they_lie(const LossProblem<T>& problem, Index begin, Index end, T* scratch) {
  const auto one_by_one = [&](Index first, Index last) { contiguous_loss(problem, first, last, scratch); };
  if (problem.gradient)
    loss_of_rowwise_tiles<2, T, true>(problem, begin, end, scratch, one_by_one);
  else
    loss_of_rowwise_tiles<2, T, false>(problem, begin, end, scratch, one_by_one);
  return {};
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
