// Index labels, before the kernels meet them.
#pragma once

#include "problem.hpp"

namespace softmaxloss {

// Whether all labels are classes.
bool all_are_classes(const Index* labels, Index rows, Index classes);

struct LabelSurvey {
  Index bad;      // the position of the first label that is neither a class nor ignore_index; -1 where there is none
  Index counted;  // how many are classes
  double weight;  // the sum of weights[i] * class_weight[label i] over these
};

// Null weights count as 1.
LabelSurvey survey_labels(const Index* labels, Index rows, Index classes, Index ignore_index, const double* weights,
                          const double* class_weight);

}  // namespace softmaxloss
