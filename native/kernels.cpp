// The kernels of one instruction set for one type: this file is compiled once for each pair, with SOFTMAXLOSS_ISA and
// SOFTMAXLOSS_NUMBER naming them.
#include "class_blocks.hpp"
#include "distributions.hpp"
#include "hessian_rows.hpp"
#include "instruction_sets.hpp"
#include "judging_rows.hpp"
#include "loss_as_they_lie.hpp"
#include "loss_by_tiles.hpp"
#include "loss_rows.hpp"
#include "softmax_by_tiles.hpp"
#include "sparse_rows.hpp"
#include "statistics_rows.hpp"
#include "vectors.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

template <class T, class I>
constexpr SparseKernels<T, I> kSparse = {sparse_product<T, I>, add_transposed_product<T, I>};

template <class T>
constexpr Kernels<T> kKernels = {contiguous_loss<T>,
                                 tiled_loss<T>,
                                 loss_as_they_lie<T>,
                                 hessian<T>,
                                 statistics<T>,
                                 softmax<T>,
                                 judge<T>,
                                 check<T>,
                                 class_blocks<T>,
                                 solve_blocks<T>,
                                 kSparse<T, std::int32_t>,
                                 kSparse<T, std::int64_t>,
                                 largest_derivative<T>,
                                 dot<T>,
                                 add_scaled<T>,
                                 add_columns<T>};

template <>
Kernels<SOFTMAXLOSS_NUMBER> kernels() {
  return kKernels<SOFTMAXLOSS_NUMBER>;
}

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
