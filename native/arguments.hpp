// What Python gives the module, as the kernels take it: arrays as rows, options as a problem. Nothing is checked here
// beyond what memory safety needs; the Python functions in front decide what is allowed.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <optional>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "problem.hpp"
#include "setup.hpp"

namespace softmaxloss {

namespace nb = nanobind;

using Array = nb::ndarray<nb::ro, nb::device::cpu>;
using OutArray = nb::ndarray<nb::device::cpu>;
template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using OutVector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T, int kDimensions>
using Dense = nb::ndarray<T, nb::ndim<kDimensions>, nb::c_contig, nb::device::cpu>;

inline void require(bool fits) {
  if (!fits) throw std::invalid_argument("arrays that fit each other expected");
}

template <class V>
Index length(const V& array) {
  return static_cast<Index>(array.shape(0));
}

inline Storage storage_of(const Array& array, int storage) {
  const nb::dlpack::dtype given = array.dtype();
  const auto wanted = static_cast<Storage>(storage);
  if (wanted == Storage::kFloat32 && given == nb::dtype<float>()) return wanted;
  if (wanted == Storage::kFloat64 && given == nb::dtype<double>()) return wanted;
  const bool half = wanted == Storage::kFloat16 || wanted == Storage::kBFloat16;
  if (half && given == nb::dtype<std::uint16_t>()) return wanted;
  throw std::invalid_argument("an array of another storage expected");
}

template <class A>
auto rows_of(const A& array, Storage storage) {
  using Byte = std::conditional_t<std::is_same_v<A, Array>, const char, char>;
  if (array.itemsize() != static_cast<std::size_t>(size_of(storage)))
    throw std::invalid_argument("arrays of one storage expected");
  if (array.ndim() < 1 || array.ndim() > kMaxDimensions + 1) throw std::invalid_argument("too many dimensions");
  RowsOf<Byte> rows;
  rows.data = static_cast<Byte*>(array.data());
  rows.storage = storage;
  rows.dimensions = static_cast<int>(array.ndim()) - 1;
  for (int axis = 0; axis < rows.dimensions; ++axis) {
    rows.shape[axis] = static_cast<Index>(array.shape(static_cast<std::size_t>(axis)));
    rows.strides[axis] = array.stride(static_cast<std::size_t>(axis)) * size_of(storage);
  }
  rows.class_stride = array.stride(array.ndim() - 1) * size_of(storage);
  return rows;
}

inline Index classes_of(const Array& array) { return static_cast<Index>(array.shape(array.ndim() - 1)); }

inline Index row_count(const Array& array) {
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

// The bytes from an array's first element to its last: [begin, end).
template <class A>
std::pair<std::uintptr_t, std::uintptr_t> extent(const A& array) {
  const auto size = static_cast<std::int64_t>(array.itemsize());
  std::int64_t first = 0, last = size;
  for (std::size_t axis = 0; axis < array.ndim(); ++axis) {
    if (array.shape(axis) == 0) return {0, 0};
    const std::int64_t span = static_cast<std::int64_t>(array.shape(axis) - 1) * array.stride(axis) * size;
    (span < 0 ? first : last) += span;
  }
  const auto data = reinterpret_cast<std::uintptr_t>(array.data());
  return {data + static_cast<std::uintptr_t>(first), data + static_cast<std::uintptr_t>(last)};
}

template <class A, class B>
bool are_apart(const A& a, const B& b) {
  const auto [a_begin, a_end] = extent(a);
  const auto [b_begin, b_end] = extent(b);
  return a_end <= b_begin || b_end <= a_begin;
}

template <class A, class B>
bool are_one(const A& a, const B& b) {
  bool same = static_cast<const void*>(a.data()) == static_cast<const void*>(b.data());
  for (std::size_t axis = 0; same && axis < a.ndim(); ++axis) same = a.stride(axis) == b.stride(axis);
  return same;
}

// Tells, quickly, that a gradient of the logits' dtype may be written: all of it is apart from the others, or it is the
// logits.
inline bool is_plainly_free(const OutArray& gradient, const Array& logits, const Array& labels) {
  bool same = gradient.ndim() == logits.ndim() && gradient.dtype() == logits.dtype();
  for (std::size_t axis = 0; same && axis < logits.ndim(); ++axis) same = gradient.shape(axis) == logits.shape(axis);
  return same && (are_one(gradient, logits) || are_apart(gradient, logits)) && are_apart(gradient, labels);
}

template <class V>
auto pointer(const std::optional<V>& vector, Index size) -> decltype(vector->data()) {
  if (!vector) return nullptr;
  if (static_cast<Index>(vector->shape(0)) < size) throw std::invalid_argument("a vector is too short");
  return vector->data();
}

// Runs body<float> or body<double>, as the storage is computed in.
template <class Body>
auto by_storage(Storage storage, const Body& body) {
  return storage == Storage::kFloat64 ? body(double{}) : body(float{});
}

inline Storage computed_storage(const Array& array) {
  return storage_of(array,
                    static_cast<int>(array.dtype() == nb::dtype<double>() ? kStorageOf<double> : kStorageOf<float>));
}

// The dense part of index targets, or the affine map of distributions: see Targets.
template <class T>
const T* class_vector(const std::optional<Array>& array, Index classes) {
  if (!array) return nullptr;
  if (array->dtype() != nb::dtype<T>() || array->ndim() != 1 || classes_of(*array) < classes || array->stride(0) != 1)
    throw std::invalid_argument("a vector of the dtype that is computed in, one entry a class, expected");
  return static_cast<const T*>(array->data());
}

// What the loss and its Hessian product have in common: labels, weights and options. See Targets and RowFormula.
struct LossTerms {
  std::optional<Vector<Index>> labels;
  std::optional<Array> distribution;
  double gradient_scale;
  std::optional<Vector<double>> weights;
  Index ignore_index;
  std::optional<Vector<double>> spike;
  std::optional<Array> dense;
  double dense_sum;
  std::optional<Array> scale;
  std::optional<Array> shift;
  double tolerance;
  double temperature;
  double softcap;
  std::optional<Vector<double>> bias;
  double z_loss;
  double focal_gamma;
  double poly_epsilon;
};

// All of a problem but its transform and what it writes.
template <class T>
LossProblem<T> loss_problem(const Array& logits, int storage, const LossTerms& in) {
  const Index classes = classes_of(logits), rows = row_count(logits);
  if (in.labels.has_value() == in.distribution.has_value()) throw std::invalid_argument("one kind of label expected");
  LossProblem<T> problem;
  problem.classes = classes;
  problem.logits = rows_of(logits, storage_of(logits, storage));
  problem.targets.labels = pointer(in.labels, rows);
  problem.targets.ignore_index = in.ignore_index;
  problem.targets.spike = pointer(in.spike, classes);
  problem.targets.dense = class_vector<T>(in.dense, classes);
  problem.targets.dense_sum = in.dense_sum;
  if (in.distribution) {
    require_same_shape(logits, *in.distribution);
    problem.targets.distribution =
        rows_of(*in.distribution, storage_of(*in.distribution, static_cast<int>(kStorageOf<T>)));
  }
  problem.targets.distribution_scale = class_vector<T>(in.scale, classes);
  problem.targets.distribution_shift = class_vector<T>(in.shift, classes);
  problem.targets.tolerance = in.tolerance;
  problem.formula = {in.z_loss, in.focal_gamma, in.poly_epsilon};
  problem.weights = pointer(in.weights, rows);
  problem.gradient_scale = in.gradient_scale;
  return problem;
}

template <class T>
void set_gradient(LossProblem<T>& problem, const Array& logits, const OutArray& gradient) {
  require_same_shape(logits, gradient);
  problem.gradient = rows_of(gradient, problem.logits.storage);
  problem.stream = may_stream(problem, row_count(logits));
}

}  // namespace softmaxloss
