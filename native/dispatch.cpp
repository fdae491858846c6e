#include "dispatch.hpp"

#include <stdexcept>

#include "instruction_sets.hpp"

namespace softmaxloss {
namespace {

struct InstructionSet {
  std::string name;
  bool supported;
  Kernels<float> f32;
  Kernels<double> f64;
};

const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = [] {
    std::vector<InstructionSet> all;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
    all.push_back({"avx512", avx512, avx512::float_kernels(), avx512::double_kernels()});
    all.push_back({"avx2", avx2, avx2::float_kernels(), avx2::double_kernels()});
#endif
    all.push_back({"baseline", true, baseline::float_kernels(), baseline::double_kernels()});
    return all;
  }();
  return sets;
}

const InstructionSet* best() {
  for (const InstructionSet& set : instruction_sets())
    if (set.supported) return &set;
  throw std::logic_error("the baseline instruction set is always supported");
}

const InstructionSet*& current() {
  static const InstructionSet* set = best();
  return set;
}

}  // namespace

std::vector<std::string> supported_instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& set : instruction_sets())
    if (set.supported) names.push_back(set.name);
  return names;
}

const std::string& instruction_set() { return current()->name; }

void set_instruction_set(const std::string& name) {
  for (const InstructionSet& set : instruction_sets()) {
    if (set.supported && set.name == name) {
      current() = &set;
      return;
    }
  }
  throw std::invalid_argument("no such instruction set on this machine: " + name);
}

template <>
const Kernels<float>& kernels<float>() {
  return current()->f32;
}
template <>
const Kernels<double>& kernels<double>() {
  return current()->f64;
}

}  // namespace softmaxloss
