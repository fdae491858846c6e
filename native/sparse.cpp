// The functions of the Python module that multiply sparse matrices: see sparse_rows.hpp.
#include <algorithm>
#include <cmath>
#include <vector>

#include "arguments.hpp"
#include "dispatch.hpp"
#include "threads.hpp"

namespace softmaxloss {
namespace {

template <class T, class I>
const SparseKernels<T, I>& sparse_kernels() {
  if constexpr (sizeof(I) == 4) return kernels<T>().sparse;
  if constexpr (sizeof(I) == 8) return kernels<T>().wide_sparse;
}

// The first row of one of so many parts that have about as much to do: a row takes some time without a number.
template <class I>
Index start_of_part(const I* starts, Index rows, Index part, Index parts) {
  constexpr Index kNumbersPerRow = 2;
  const auto cost = [&](Index row) { return static_cast<Index>(starts[row] - starts[0]) + kNumbersPerRow * row; };
  const Index wanted = cost(rows) * part / parts;
  Index low = 0, high = rows;
  while (low < high) {
    const Index middle = (low + high) / 2;
    if (cost(middle) < wanted)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// The numbers lie where the rows' starts say, if these ascend. That they do, and that columns are fewer than the rows
// of the dense matrix, is for the caller to see to: it would take as long as a product of a few classes.
template <class T, class I>
void require_csr(const Vector<I>& starts, const Vector<I>& columns, const Vector<T>& values) {
  require(length(starts) > 0 && length(columns) == length(values));
  require(starts.data()[0] >= 0 && starts.data()[length(starts) - 1] <= length(values));
}

template <class T, class I>
SparseProblem<T, I> problem_of(const Vector<I>& starts, const Vector<I>& columns, const Vector<T>& values,
                               const Dense<const T, 2>& dense, const Dense<T, 2>& out) {
  require_csr(starts, columns, values);
  require(dense.shape(1) == out.shape(1));
  SparseProblem<T, I> problem;
  problem.classes = static_cast<Index>(dense.shape(1));
  problem.starts = starts.data();
  problem.columns = columns.data();
  problem.values = values.data();
  problem.dense = dense.data();
  problem.out = out.data();
  return problem;
}

template <class T, class I>
void sparse_product(const Vector<I>& starts, const Vector<I>& columns, const Vector<T>& values,
                    const Dense<const T, 2>& dense, const Dense<T, 2>& out, const std::optional<Vector<T>>& less_column,
                    const std::optional<Vector<T>>& less_row) {
  SparseProblem<T, I> problem = problem_of(starts, columns, values, dense, out);
  const Index rows = length(out);
  require(length(starts) == rows + 1 && less_column.has_value() == less_row.has_value());
  problem.less_column = pointer(less_column, rows);
  problem.less_row = pointer(less_row, problem.classes);
  nb::gil_scoped_release release;
  const Index numbers = length(values) / std::max<Index>(rows, 1) + 1;
  const int threads = threads_for(rows, numbers * problem.classes);
  parallel_rows(threads, threads, [&](int, Index begin, Index end) {
    sparse_kernels<T, I>().product(problem, start_of_part(problem.starts, rows, begin, threads),
                                   start_of_part(problem.starts, rows, end, threads));
  });
}

template <class T, class I>
void add_transposed_product(const Vector<I>& starts, const Vector<I>& columns, const Vector<T>& values,
                            const Dense<const T, 2>& dense, const Dense<T, 2>& out) {
  const SparseProblem<T, I> problem = problem_of(starts, columns, values, dense, out);
  require(length(starts) == length(dense) + 1);
  nb::gil_scoped_release release;
  sparse_kernels<T, I>().add_transposed_product(problem, 0, length(dense));
}

template <class T>
double largest_derivative(const Dense<const T, 2>& centred, const Vector<T>& scale, const Vector<T>& mean,
                          const Vector<T>& by_intercept) {
  const Index features = length(centred);
  LargestProblem<T> problem;
  problem.classes = static_cast<Index>(centred.shape(1));
  require(length(scale) == features && length(mean) == features && length(by_intercept) == problem.classes);
  problem.centred = centred.data();
  problem.scale = scale.data();
  problem.mean = mean.data();
  problem.by_intercept = by_intercept.data();
  nb::gil_scoped_release release;
  const int threads = threads_for(features, problem.classes);
  std::vector<T> largest(static_cast<std::size_t>(threads));
  parallel_rows(features, threads, [&](int thread, Index begin, Index end) {
    largest[static_cast<std::size_t>(thread)] = kernels<T>().largest_derivative(problem, begin, end);
  });
  T found{0};
  for (const T of_thread : largest)
    if (of_thread > found || std::isnan(of_thread)) found = of_thread;  // it stays NaN
  return found;
}

// Adds to sums[j], for each number v in column j of a row of weight w that is not 0: w * (v - origin[j])^power, w
// and 1.
template <class T, class I>
void add_distances(const Vector<I>& starts, const Vector<I>& columns, const Vector<T>& values,
                   const Vector<double>& weights, const Vector<double>& origin, int power,
                   const Dense<double, 2>& sums) {
  const Index rows = length(weights);
  require_csr(starts, columns, values);
  require(length(starts) == rows + 1 && length(sums) == length(origin) && sums.shape(1) == 3);
  require(power == 1 || power == 2);
  nb::gil_scoped_release release;
  for (Index i = 0; i < rows; ++i) {
    const double weight = weights.data()[i];
    if (weight == 0.0) continue;
    const I stop = starts.data()[i + 1];
    for (I k = starts.data()[i]; k < stop; ++k) {
      const auto column = static_cast<Index>(columns.data()[k]);
      const double distance = static_cast<double>(values.data()[k]) - origin.data()[column];
      double* const to = sums.data() + 3 * column;
      to[0] += weight * (power == 1 ? distance : distance * distance);
      to[1] += weight;
      to[2] += 1.0;
    }
  }
}

// What is written to is never a copy.
template <class T, class I>
void bind_products(nb::module_& m) {
  m.def("sparse_product", &sparse_product<T, I>, nb::arg("starts").noconvert(), nb::arg("columns").noconvert(),
        nb::arg("values").noconvert(), nb::arg("dense").noconvert(), nb::arg("out").noconvert(),
        nb::arg("less_column").noconvert() = nb::none(), nb::arg("less_row").noconvert() = nb::none());
  m.def("add_transposed_product", &add_transposed_product<T, I>, nb::arg("starts").noconvert(),
        nb::arg("columns").noconvert(), nb::arg("values").noconvert(), nb::arg("dense").noconvert(),
        nb::arg("out").noconvert());
  m.def("add_distances", &add_distances<T, I>, nb::arg("starts").noconvert(), nb::arg("columns").noconvert(),
        nb::arg("values").noconvert(), nb::arg("weights").noconvert(), nb::arg("origin").noconvert(), nb::arg("power"),
        nb::arg("sums").noconvert());
}

template <class T>
void bind_largest_derivative(nb::module_& m) {
  m.def("largest_derivative", &largest_derivative<T>, nb::arg("centred").noconvert(), nb::arg("scale").noconvert(),
        nb::arg("mean").noconvert(), nb::arg("by_intercept").noconvert());
}

}  // namespace

void bind_sparse(nb::module_& m) {
  bind_products<float, std::int32_t>(m);
  bind_products<float, std::int64_t>(m);
  bind_products<double, std::int32_t>(m);
  bind_products<double, std::int64_t>(m);
  bind_largest_derivative<float>(m);
  bind_largest_derivative<double>(m);
}

}  // namespace softmaxloss
