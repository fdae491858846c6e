// The kernels of one instruction set: this file is compiled once for each, with SOFTMAXLOSS_ISA naming it.
#include "hessian_rows.hpp"
#include "instruction_sets.hpp"
#include "loss_rows.hpp"
#include "softmax_rows.hpp"
#include "statistics_rows.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

Kernels<float> float_kernels() { return {contiguous_loss<float>, hessian<float>, statistics<float>, softmax<float>}; }
Kernels<double> double_kernels() {
  return {contiguous_loss<double>, hessian<double>, statistics<double>, softmax<double>};
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
