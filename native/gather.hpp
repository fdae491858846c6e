// Rows whose classes are not adjacent, brought into tiles where they are, and back.
#pragma once

#include <cstdlib>
#include <cstring>

#include "problem.hpp"

namespace softmaxloss {

constexpr Index kTileRows = 64;  // four cache lines of neighbours where the class axis is strided

template <class Byte>
Index row_offset(const RowsOf<Byte>& rows, Index row) {
  Index offset = 0;
  for (int axis = rows.dimensions - 1; axis >= 0; --axis) {
    offset += row % rows.shape[axis] * rows.strides[axis];
    row /= rows.shape[axis];
  }
  return offset;
}

template <class Byte>
bool adjacent(const RowsOf<Byte>& rows, Index classes) {
  return !rows || rows.class_stride == size_of(rows.storage) || classes == 1;
}

// Calls copy(element in the array, its place in the tile) in the order that is kinder to the array.
template <class Byte, class Copy>
void for_each_in_tile(const RowsOf<Byte>& rows, Index first_row, Index count, Index classes, const Copy& copy) {
  Index offsets[kTileRows];
  for (Index i = 0; i < count; ++i) offsets[i] = row_offset(rows, first_row + i);
  const bool class_is_innermost = count < 2 || std::abs(rows.class_stride) < std::abs(offsets[1] - offsets[0]);
  if (class_is_innermost) {
    for (Index i = 0; i < count; ++i)
      for (Index j = 0; j < classes; ++j) copy(rows.data + offsets[i] + j * rows.class_stride, i * classes + j);
  } else {
    for (Index j = 0; j < classes; ++j)
      for (Index i = 0; i < count; ++i) copy(rows.data + offsets[i] + j * rows.class_stride, i * classes + j);
  }
}

template <class Element>
void gather_elements(const ConstRows& rows, Index first_row, Index count, Index classes, char* tile) {
  for_each_in_tile(rows, first_row, count, classes, [tile](const char* element, Index place) {
    std::memcpy(tile + place * sizeof(Element), element, sizeof(Element));
  });
}

template <class Element>
void scatter_elements(const char* tile, const Rows& rows, Index first_row, Index count, Index classes) {
  for_each_in_tile(rows, first_row, count, classes, [tile](char* element, Index place) {
    std::memcpy(element, tile + place * sizeof(Element), sizeof(Element));
  });
}

template <class T>
void gather(const ConstRows& rows, Index first_row, Index count, Index classes, T* tile) {
  char* to = reinterpret_cast<char*>(tile);
  switch (size_of(rows.storage)) {
    case 2:
      return gather_elements<std::uint16_t>(rows, first_row, count, classes, to);
    case 4:
      return gather_elements<std::uint32_t>(rows, first_row, count, classes, to);
    default:
      return gather_elements<std::uint64_t>(rows, first_row, count, classes, to);
  }
}

template <class T>
void scatter(const T* tile, const Rows& rows, Index first_row, Index count, Index classes) {
  const char* from = reinterpret_cast<const char*>(tile);
  switch (size_of(rows.storage)) {
    case 2:
      return scatter_elements<std::uint16_t>(from, rows, first_row, count, classes);
    case 4:
      return scatter_elements<std::uint32_t>(from, rows, first_row, count, classes);
    default:
      return scatter_elements<std::uint64_t>(from, rows, first_row, count, classes);
  }
}

// A tile of the rows [first_row, first_row + count), filled; of no rows where there are none.
template <class T>
ConstRows gathered(const ConstRows& rows, Index first_row, Index count, Index classes, T* tile) {
  if (!rows) return {};
  gather(rows, first_row, count, classes, tile);
  return dense_rows<const char>(tile, rows.storage, count, classes);
}

}  // namespace softmaxloss
