// Walks the rows of an array whose leading axes may lie in memory in any way.
#pragma once

#include "problem.hpp"

namespace softmaxloss::SOFTMAXLOSS_ISA {

template <class Byte>
class RowCursor {
 public:
  RowCursor(const RowsOf<Byte>& rows, Index row) : rows_(rows), pointer_(rows.data) {
    if (!pointer_) return;
    for (int axis = rows.dimensions - 1; axis >= 0; --axis) {
      index_[axis] = row % rows.shape[axis];
      row /= rows.shape[axis];
      pointer_ += index_[axis] * rows.strides[axis];
    }
  }

  Byte* get() const { return pointer_; }

  void advance() {
    if (!pointer_) return;
    for (int axis = rows_.dimensions - 1; axis >= 0; --axis) {
      pointer_ += rows_.strides[axis];
      if (++index_[axis] < rows_.shape[axis]) return;
      pointer_ -= rows_.shape[axis] * rows_.strides[axis];
      index_[axis] = 0;
    }
  }

 private:
  const RowsOf<Byte>& rows_;
  Byte* pointer_;
  Index index_[kMaxDimensions];
};

}  // namespace softmaxloss::SOFTMAXLOSS_ISA
