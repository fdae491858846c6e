// What the targets t_j of a row look like besides the spike at its label.
#pragma once

#include <algorithm>

#include "sources.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

enum class Dense {
  kNone,
  kShared,    // one vector for all rows: label smoothing
  kRow,       // the row's own distribution
  kAffineRow  // the same, scaled and shifted by class
};

constexpr bool per_row(Dense dense) { return dense == Dense::kRow || dense == Dense::kAffineRow; }

// The dense targets of a row.
template <class T>
struct DenseTargets {
  const T* dense;
  const T* scale;
  const T* shift;

  // Those of the classes from j on.
  ALWAYS_INLINE DenseTargets from(Index j) const {
    return {dense ? dense + j : nullptr, scale ? scale + j : nullptr, shift ? shift + j : nullptr};
  }
};

template <class T, Dense kDense>
ALWAYS_INLINE Vec<T> dense_target(const DenseTargets<T>& in, Index j) {
  if constexpr (kDense == Dense::kAffineRow)
    return fused_multiply_add(load(in.dense + j), load(in.scale + j), load(in.shift + j));
  return load(in.dense + j);
}

template <class T, Dense kDense>
ALWAYS_INLINE T dense_target_scalar(const DenseTargets<T>& in, Index j) {
  if constexpr (kDense == Dense::kAffineRow) return fused_multiply_add(in.dense[j], in.scale[j], in.shift[j]);
  return in.dense[j];
}

// The targets of a row shorter than a group, copied so that whole vectors may be read.
template <class T>
class ShortTargets {
 public:
  DenseTargets<T> of(const DenseTargets<T>& in, Index classes) {
    return {copy(dense_, in.dense, classes), copy(scale_, in.scale, classes), copy(shift_, in.shift, classes)};
  }

 private:
  static const T* copy(T* to, const T* from, Index classes) {
    if (!from) return nullptr;
    std::copy_n(from, classes, to);
    std::fill(to + classes, to + kGroup<T>, T{0});
    return to;
  }
  T dense_[kGroup<T>], scale_[kGroup<T>], shift_[kGroup<T>];
};

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
