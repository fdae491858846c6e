// The functions of the Python module that multiply and add several long vectors: see vectors.hpp.
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <vector>

#include "arguments.hpp"
#include "dispatch.hpp"
#include "threads.hpp"

namespace softmaxloss {
namespace {

using Vectors = std::vector<Vector<double>>;

// Of the one vector so many elements stay in a core's first cache while all the others are gone through. Sums are those
// of such blocks, whatever the number of threads.
constexpr Index kBlock = 2048;

std::vector<const double*> pointers(const Vectors& vectors, Index size) {
  std::vector<const double*> found;
  for (const Vector<double>& vector : vectors) {
    if (static_cast<Index>(vector.shape(0)) != size) throw std::invalid_argument("vectors of one size expected");
    found.push_back(vector.data());
  }
  return found;
}

// body(block, first element, count) for all blocks.
template <class Body>
void for_blocks(Index size, Index vectors, const Body& body) {
  const Index blocks = (size + kBlock - 1) / kBlock;
  parallel_rows(blocks, threads_for(blocks, std::min(size, kBlock) * vectors), [&](int, Index begin, Index end) {
    for (Index block = begin; block < end; ++block)
      body(block, block * kBlock, std::min(kBlock, size - block * kBlock));
  });
}

// out[k] = vectors[k] . vector
void dots(const Vectors& vectors, const Vector<double>& vector, const OutVector<double>& out) {
  const auto size = static_cast<Index>(vector.shape(0));
  const std::vector<const double*> pointer = pointers(vectors, size);
  const std::size_t count = pointer.size();
  if (out.shape(0) != count) throw std::invalid_argument("a number for each vector expected");
  nb::gil_scoped_release release;
  std::vector<double> of_blocks(count * static_cast<std::size_t>((size + kBlock - 1) / kBlock));
  for_blocks(size, static_cast<Index>(count), [&](Index block, Index first, Index elements) {
    double* const sums = of_blocks.data() + static_cast<std::size_t>(block) * count;
    for (std::size_t k = 0; k < count; ++k)
      sums[k] = kernels<double>().dot(pointer[k] + first, vector.data() + first, elements);
  });
  std::fill_n(out.data(), count, 0.0);
  for (std::size_t i = 0; i < of_blocks.size(); ++i) out.data()[i % count] += of_blocks[i];
}

// to += the sum of factors[k] * vectors[k]
void add_multiples(const Vectors& vectors, const Vector<double>& factors, const OutVector<double>& to) {
  const auto size = static_cast<Index>(to.shape(0));
  const std::vector<const double*> pointer = pointers(vectors, size);
  const std::size_t count = pointer.size();
  if (factors.shape(0) != count) throw std::invalid_argument("a factor for each vector expected");
  nb::gil_scoped_release release;
  for_blocks(size, static_cast<Index>(count), [&](Index, Index first, Index elements) {
    for (std::size_t k = 0; k < count; ++k)
      kernels<double>().add_scaled(factors.data()[k], pointer[k] + first, to.data() + first, elements);
  });
}

// sums[j] += the sum of column j, in one thread: those of each row before those of the next.
template <class T>
void add_columns(const Dense<const T, 2>& matrix, const OutVector<double>& sums) {
  const Index columns = length(sums);
  require(static_cast<Index>(matrix.shape(1)) == columns);
  nb::gil_scoped_release release;
  kernels<T>().add_columns(matrix.data(), length(matrix), columns, sums.data());
}

template <class T>
void bind_add_columns(nb::module_& m) {
  m.def("add_columns", &add_columns<T>, nb::arg("matrix").noconvert(), nb::arg("sums").noconvert());
}

}  // namespace

void bind_vectors(nb::module_& m) {
  m.def("dots", &dots, nb::arg("vectors"), nb::arg("vector").noconvert(), nb::arg("out").noconvert());
  m.def("add_multiples", &add_multiples, nb::arg("vectors"), nb::arg("factors").noconvert(), nb::arg("to").noconvert());
  bind_add_columns<float>(m);
  bind_add_columns<double>(m);
}

}  // namespace softmaxloss
