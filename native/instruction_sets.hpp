// The instruction sets that the kernels are compiled for: a line here, one in CMakeLists.txt, one in dispatch.cpp.
#pragma once

#include "problem.hpp"

#define SOFTMAXLOSS_DECLARE(isa) \
  namespace softmaxloss::isa {   \
  template <class T>             \
  Kernels<T> kernels();          \
  template <>                    \
  Kernels<float> kernels();      \
  template <>                    \
  Kernels<double> kernels();     \
  }

SOFTMAXLOSS_DECLARE(baseline)
SOFTMAXLOSS_DECLARE(avx2)
SOFTMAXLOSS_DECLARE(avx512)

#undef SOFTMAXLOSS_DECLARE
