// The Python module: arrays in, numbers out. Nothing is checked here beyond what memory safety needs; the Python
// functions in front decide what is allowed.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "dispatch.hpp"
#include "driver.hpp"
#include "threads.hpp"

namespace nb = nanobind;

namespace softmaxloss {
namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;
using OutArray = nb::ndarray<nb::device::cpu>;
template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using OutVector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T, class A>
auto rows_of(const A& array) {
  using Element = std::conditional_t<std::is_same_v<A, Array>, const T, T>;
  if (array.dtype() != nb::dtype<T>()) throw std::invalid_argument("arrays of one dtype expected");
  if (array.ndim() < 1 || array.ndim() > kMaxDimensions + 1) throw std::invalid_argument("too many dimensions");
  Rows<Element> rows;
  rows.data = static_cast<Element*>(array.data());
  rows.dimensions = static_cast<int>(array.ndim()) - 1;
  for (int axis = 0; axis < rows.dimensions; ++axis) {
    rows.shape[axis] = static_cast<Index>(array.shape(static_cast<std::size_t>(axis)));
    rows.strides[axis] = array.stride(static_cast<std::size_t>(axis));
  }
  rows.class_stride = array.stride(array.ndim() - 1);
  return rows;
}

Index classes_of(const Array& array) { return static_cast<Index>(array.shape(array.ndim() - 1)); }

Index row_count(const Array& array) {
  Index rows = 1;
  for (std::size_t axis = 0; axis + 1 < array.ndim(); ++axis) rows *= static_cast<Index>(array.shape(axis));
  return rows;
}

template <class A, class B>
void require_same_shape(const A& a, const B& b) {
  bool same = a.ndim() == b.ndim();
  for (std::size_t axis = 0; same && axis < a.ndim(); ++axis) same = a.shape(axis) == b.shape(axis);
  if (!same) throw std::invalid_argument("arrays of one shape expected");
}

template <class V>
auto pointer(const std::optional<V>& vector, Index size) -> decltype(vector->data()) {
  if (!vector) return nullptr;
  if (static_cast<Index>(vector->shape(0)) < size) throw std::invalid_argument("a vector is too short");
  return vector->data();
}

// Streamed stores pay where the gradient will not be found in cache anyway (a third-level cache holds some 32 MiB: at
// that size ordinary stores are 10% faster, at twice that 20% slower), and rows hold several whole lines.
bool worth_streaming(Index rows, Index classes, std::size_t element) {
  constexpr Index kCacheBytes = 32 * 1024 * 1024;
  constexpr Index kRowBytes = 1024;
  const Index row_bytes = classes * static_cast<Index>(element);
  return row_bytes >= kRowBytes && rows * row_bytes >= kCacheBytes;
}

using Found = std::optional<std::tuple<Index, double, double>>;

Found found(const BadDistribution& bad) {
  if (bad.row < 0) return std::nullopt;
  return std::make_tuple(bad.row, bad.sum, bad.least);
}

// Runs body<float> or body<double>, as the array's dtype asks.
template <class Body>
auto by_dtype(const Array& array, const Body& body) {
  if (array.dtype() == nb::dtype<float>()) return body(float{});
  if (array.dtype() == nb::dtype<double>()) return body(double{});
  throw std::invalid_argument("float32 or float64 expected");
}

// The dense part of index targets, or the affine map of distributions: see Targets.
template <class T>
const T* class_vector(const std::optional<Array>& array, Index classes) {
  if (!array) return nullptr;
  if (array->dtype() != nb::dtype<T>() || array->ndim() != 1 || classes_of(*array) < classes || array->stride(0) != 1)
    throw std::invalid_argument("a vector of the logits' dtype, one entry a class, expected");
  return static_cast<const T*>(array->data());
}

std::tuple<double, Found> loss(const Array& logits, const std::optional<Vector<Index>>& labels,
                               const std::optional<Array>& distribution, const OutVector<double>& row_loss,
                               const std::optional<OutArray>& gradient, double gradient_scale,
                               const std::optional<Vector<double>>& weights, Index ignore_index,
                               const std::optional<Vector<double>>& spike, const std::optional<Array>& dense,
                               double dense_sum, const std::optional<Array>& scale, const std::optional<Array>& shift,
                               double tolerance) {
  const Index classes = classes_of(logits), rows = row_count(logits);
  if (static_cast<Index>(row_loss.shape(0)) < rows) throw std::invalid_argument("row_loss is too short");
  if (labels.has_value() == distribution.has_value()) throw std::invalid_argument("one kind of label expected");
  if (distribution) require_same_shape(logits, *distribution);
  if (gradient) require_same_shape(logits, *gradient);
  return by_dtype(logits, [&](auto zero) {
    using T = decltype(zero);
    LossProblem<T> problem;
    problem.classes = classes;
    problem.logits = rows_of<T>(logits);
    problem.targets.labels = pointer(labels, rows);
    problem.targets.ignore_index = ignore_index;
    problem.targets.spike = pointer(spike, classes);
    problem.targets.dense = class_vector<T>(dense, classes);
    problem.targets.dense_sum = dense_sum;
    if (distribution) problem.targets.distribution = rows_of<T>(*distribution);
    problem.targets.distribution_scale = class_vector<T>(scale, classes);
    problem.targets.distribution_shift = class_vector<T>(shift, classes);
    problem.targets.tolerance = tolerance;
    problem.weights = pointer(weights, rows);
    problem.gradient_scale = gradient_scale;
    problem.loss = row_loss.data();
    if (gradient) {
      problem.gradient = rows_of<T>(*gradient);
      problem.stream = problem.gradient.data != problem.logits.data && worth_streaming(rows, classes, sizeof(T));
    }
    nb::gil_scoped_release release;
    const BadDistribution bad = run_loss(problem, rows);
    return std::make_tuple(sum(problem.loss, rows), found(bad));
  });
}

void softmax(const Array& logits, const std::optional<OutArray>& output,
             const std::optional<OutVector<double>>& logsumexp, double temperature, bool logarithm) {
  const Index rows = row_count(logits);
  if (output) require_same_shape(logits, *output);
  if (output.has_value() == logsumexp.has_value()) throw std::invalid_argument("one output expected");
  by_dtype(logits, [&](auto zero) {
    using T = decltype(zero);
    SoftmaxProblem<T> problem;
    problem.classes = classes_of(logits);
    problem.logits = rows_of<T>(logits);
    problem.temperature = temperature;
    problem.logarithm = logarithm;
    problem.logsumexp = pointer(logsumexp, rows);
    if (output) {
      problem.output = rows_of<T>(*output);
      problem.stream = problem.output.data != problem.logits.data && worth_streaming(rows, problem.classes, sizeof(T));
    }
    nb::gil_scoped_release release;
    run_softmax(problem, rows);
  });
}

Found bad_distribution(const Array& distribution, double tolerance) {
  return by_dtype(distribution, [&](auto zero) {
    const auto rows = rows_of<decltype(zero)>(distribution);
    nb::gil_scoped_release release;
    return found(check_distribution(rows, classes_of(distribution), row_count(distribution), tolerance));
  });
}

// The position of the first label that is neither a class nor ignore_index (-1: none), how many are classes, and the
// sum of weights[i] * class_weight[label i] over these.
std::tuple<Index, Index, double> survey_labels(const Vector<Index>& labels, Index classes, Index ignore_index,
                                               const std::optional<Vector<double>>& weights,
                                               const std::optional<Vector<double>>& class_weight) {
  const Index rows = static_cast<Index>(labels.shape(0));
  const double* weight = pointer(weights, rows);
  const double* of_class = pointer(class_weight, classes);
  const Index* label = labels.data();
  nb::gil_scoped_release release;
  Index counted = 0;
  CompensatedSum total;
  for (Index row = 0; row < rows; ++row) {
    const Index y = label[row];  // read once: another thread may write to it
    if (y == ignore_index) continue;
    if (y < 0 || y >= classes) return {row, counted, 0.0};
    ++counted;
    if (weight || of_class) total.add((weight ? weight[row] : 1.0) * (of_class ? of_class[y] : 1.0));
  }
  return {-1, counted, weight || of_class ? total.value() : static_cast<double>(counted)};
}

}  // namespace
}  // namespace softmaxloss

NB_MODULE(_native, m) {
  using namespace softmaxloss;
  m.def("loss", &loss, nb::arg("logits"), nb::arg("labels").none(), nb::arg("distribution").none(), nb::arg("row_loss"),
        nb::arg("gradient").none(), nb::arg("gradient_scale"), nb::arg("weights").none(), nb::arg("ignore_index"),
        nb::arg("spike").none(), nb::arg("dense").none(), nb::arg("dense_sum"), nb::arg("scale").none(),
        nb::arg("shift").none(), nb::arg("tolerance"));
  m.def("softmax", &softmax, nb::arg("logits"), nb::arg("output").none(), nb::arg("logsumexp").none(),
        nb::arg("temperature"), nb::arg("logarithm"));
  m.def("bad_distribution", &bad_distribution, nb::arg("distribution"), nb::arg("tolerance"));
  m.def("survey_labels", &survey_labels, nb::arg("labels"), nb::arg("classes"), nb::arg("ignore_index"),
        nb::arg("weights").none(), nb::arg("class_weight").none());
  m.def("get_num_threads", &get_num_threads);
  m.def("set_num_threads", &set_num_threads, nb::arg("threads"));
  m.def("supported_instruction_sets", &supported_instruction_sets);
  m.def("instruction_set", &instruction_set);
  m.def("set_instruction_set", &set_instruction_set, nb::arg("name"));
  m.attr("compiler") = SOFTMAXLOSS_COMPILER;
}
