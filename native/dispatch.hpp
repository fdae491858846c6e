// Which instruction set's kernels run.
#pragma once

#include <string>
#include <vector>

#include "problem.hpp"

namespace softmaxloss {

// Those this machine can run, best first.
std::vector<std::string> supported_instruction_sets();

// The one in use: the best, or the one that the environment variable SOFTMAXLOSS_INSTRUCTION_SET names.
const std::string& instruction_set();

// Throws std::invalid_argument for a name that is not among the supported ones.
void set_instruction_set(const std::string& name);

template <class T>
const Kernels<T>& kernels();

}  // namespace softmaxloss
