// The instruction sets that the kernels are compiled for: a line here, one in CMakeLists.txt, one in dispatch.cpp.
#pragma once

#include "problem.hpp"

#define SOFTMAXLOSS_DECLARE(isa)    \
  namespace softmaxloss::isa {      \
  Kernels<float> float_kernels();   \
  Kernels<double> double_kernels(); \
  }

SOFTMAXLOSS_DECLARE(baseline)
#if defined(__x86_64__)
SOFTMAXLOSS_DECLARE(avx2)
SOFTMAXLOSS_DECLARE(avx512)
#endif

#undef SOFTMAXLOSS_DECLARE
