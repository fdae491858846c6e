#include "dispatch.hpp"

#include <stdexcept>

#include "instruction_sets.hpp"

namespace softmaxloss {
namespace {

struct InstructionSet {
  std::string name;
  Kernels<float> f32;
  Kernels<double> f64;
};

#if defined(SOFTMAXLOSS_HAS_avx2) || defined(SOFTMAXLOSS_HAS_avx512)
bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif

// Those of this processor, the best first. Of another one nothing is called, not even what returns its kernels: that is
// compiled with its instructions too.
const std::vector<InstructionSet>& instruction_sets() {
  static const std::vector<InstructionSet> sets = [] {
    std::vector<InstructionSet> supported;
#if defined(SOFTMAXLOSS_HAS_avx512)
    if (has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
      supported.push_back({"avx512", avx512::kernels<float>(), avx512::kernels<double>()});
#endif
#if defined(SOFTMAXLOSS_HAS_avx2)
    if (has_avx2()) supported.push_back({"avx2", avx2::kernels<float>(), avx2::kernels<double>()});
#endif
    supported.push_back({"baseline", baseline::kernels<float>(), baseline::kernels<double>()});
    return supported;
  }();
  return sets;
}

const InstructionSet*& current() {
  static const InstructionSet* set = &instruction_sets().front();
  return set;
}

}  // namespace

std::vector<std::string> supported_instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet& set : instruction_sets()) names.push_back(set.name);
  return names;
}

const std::string& instruction_set() { return current()->name; }

void set_instruction_set(const std::string& name) {
  for (const InstructionSet& set : instruction_sets()) {
    if (set.name == name) {
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
