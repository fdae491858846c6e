// The kernels of one instruction set: this file is compiled once for each, with SOFTMAXLOSS_ISA naming it.
#include "instruction_sets.hpp"
#include "loss_rows.hpp"
#include "softmax_rows.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

Kernels<float> float_kernels() { return {loss<float>, softmax<float>}; }
Kernels<double> double_kernels() { return {loss<double>, softmax<double>}; }

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
