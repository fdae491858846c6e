// The Python module: arrays in, numbers out. Nothing is checked here beyond what memory safety needs; the Python
// functions in front decide what is allowed.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

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

Storage storage_of(const Array& array, int storage) {
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

// Streamed stores pay where the gradient will not be found in cache anyway: a third-level cache holds some 32 MiB (at
// that size ordinary stores are 10% faster, at twice that 20% slower).
bool worth_streaming(Index elements, Storage storage) {
  constexpr Index kCacheBytes = 32 * 1024 * 1024;
  return elements * size_of(storage) >= kCacheBytes;
}

using Found = std::optional<std::tuple<Index, double, double>>;

Found found(const BadDistribution& bad) {
  if (bad.row < 0) return std::nullopt;
  return std::make_tuple(bad.row, bad.sum, bad.least);
}

// Runs body<float> or body<double>, as the storage is computed in.
template <class Body>
auto by_storage(Storage storage, const Body& body) {
  return storage == Storage::kFloat64 ? body(double{}) : body(float{});
}

Storage computed_storage(const Array& array) {
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

// A transform, and the parts of its bias.
template <class T>
class OwnedTransform {
 public:
  OwnedTransform(double temperature, double softcap, const std::optional<Vector<double>>& bias, Index classes)
      : transform_{temperature, softcap, pointer(bias, classes), nullptr, nullptr} {
    if (!bias) return;
    for (Index j = 0; j < classes; ++j) {
      constexpr double kMost = std::numeric_limits<T>::max();
      const double value = bias->data()[j];
      high_.push_back(static_cast<T>(std::isfinite(value) ? std::clamp(value, -kMost, kMost) : value));
      low_.push_back(std::abs(value) < kMost ? static_cast<T>(value - static_cast<double>(high_.back())) : T{0});
    }
    transform_.bias_high = high_.data();
    transform_.bias_low = low_.data();
  }
  const Transform<T>& get() const { return transform_; }

 private:
  Transform<T> transform_;
  std::vector<T> high_, low_;
};

// What the loss and its Hessian product are asked, as Python says it.
struct LossArguments {
  const Array& logits;
  int storage;
  const std::optional<Vector<Index>>& labels;
  const std::optional<Array>& distribution;
  double gradient_scale;
  const std::optional<Vector<double>>& weights;
  Index ignore_index;
  const std::optional<Vector<double>>& spike;
  const std::optional<Array>& dense;
  double dense_sum;
  const std::optional<Array>& scale;
  const std::optional<Array>& shift;
  double tolerance;
  RowFormula formula;
};

// All of a problem but its transform and what it writes.
template <class T>
LossProblem<T> loss_problem(const LossArguments& in) {
  const Index classes = classes_of(in.logits), rows = row_count(in.logits);
  if (in.labels.has_value() == in.distribution.has_value()) throw std::invalid_argument("one kind of label expected");
  LossProblem<T> problem;
  problem.classes = classes;
  problem.logits = rows_of(in.logits, storage_of(in.logits, in.storage));
  problem.targets.labels = pointer(in.labels, rows);
  problem.targets.ignore_index = in.ignore_index;
  problem.targets.spike = pointer(in.spike, classes);
  problem.targets.dense = class_vector<T>(in.dense, classes);
  problem.targets.dense_sum = in.dense_sum;
  if (in.distribution) {
    require_same_shape(in.logits, *in.distribution);
    problem.targets.distribution =
        rows_of(*in.distribution, storage_of(*in.distribution, static_cast<int>(kStorageOf<T>)));
  }
  problem.targets.distribution_scale = class_vector<T>(in.scale, classes);
  problem.targets.distribution_shift = class_vector<T>(in.shift, classes);
  problem.targets.tolerance = in.tolerance;
  problem.formula = in.formula;
  problem.weights = pointer(in.weights, rows);
  problem.gradient_scale = in.gradient_scale;
  return problem;
}

template <class T>
void set_gradient(LossProblem<T>& problem, const Array& logits, const OutArray& gradient) {
  require_same_shape(logits, gradient);
  problem.gradient = rows_of(gradient, problem.logits.storage);
  problem.stream = problem.gradient.data != problem.logits.data &&
                   reinterpret_cast<std::uintptr_t>(problem.gradient.data) % sizeof(T) == 0 &&
                   worth_streaming(row_count(logits) * problem.classes, problem.logits.storage);
}

std::tuple<double, Found> loss(const Array& logits, int storage, const std::optional<Vector<Index>>& labels,
                               const std::optional<Array>& distribution, const OutVector<double>& row_loss,
                               const std::optional<OutArray>& gradient, double gradient_scale,
                               const std::optional<Vector<double>>& weights, Index ignore_index,
                               const std::optional<Vector<double>>& spike, const std::optional<Array>& dense,
                               double dense_sum, const std::optional<Array>& scale, const std::optional<Array>& shift,
                               double tolerance, double temperature, double softcap,
                               const std::optional<Vector<double>>& bias, double z_loss, double focal_gamma,
                               double poly_epsilon) {
  const Index rows = row_count(logits);
  if (static_cast<Index>(row_loss.shape(0)) < rows) throw std::invalid_argument("row_loss is too short");
  return by_storage(static_cast<Storage>(storage), [&](auto zero) {
    using T = decltype(zero);
    LossProblem<T> problem = loss_problem<T>({logits,
                                              storage,
                                              labels,
                                              distribution,
                                              gradient_scale,
                                              weights,
                                              ignore_index,
                                              spike,
                                              dense,
                                              dense_sum,
                                              scale,
                                              shift,
                                              tolerance,
                                              {z_loss, focal_gamma, poly_epsilon}});
    const OwnedTransform<T> transform(temperature, softcap, bias, problem.classes);
    problem.transform = transform.get();
    problem.loss = row_loss.data();
    if (gradient) set_gradient(problem, logits, *gradient);
    nb::gil_scoped_release release;
    const BadDistribution bad = run_loss(problem, rows);
    return std::make_tuple(sum(problem.loss, rows), found(bad));
  });
}

Found hessian_vector_product(const Array& logits, int storage, const std::optional<Vector<Index>>& labels,
                             const std::optional<Array>& distribution, const Array& vector, const OutArray& product,
                             double gradient_scale, const std::optional<Vector<double>>& weights, Index ignore_index,
                             const std::optional<Vector<double>>& spike, const std::optional<Array>& dense,
                             double dense_sum, const std::optional<Array>& scale, const std::optional<Array>& shift,
                             double tolerance, double temperature, double softcap,
                             const std::optional<Vector<double>>& bias, double z_loss, double focal_gamma,
                             double poly_epsilon) {
  require_same_shape(logits, vector);
  return by_storage(static_cast<Storage>(storage), [&](auto zero) {
    using T = decltype(zero);
    HessianProblem<T> problem;
    problem.loss = loss_problem<T>({logits,
                                    storage,
                                    labels,
                                    distribution,
                                    gradient_scale,
                                    weights,
                                    ignore_index,
                                    spike,
                                    dense,
                                    dense_sum,
                                    scale,
                                    shift,
                                    tolerance,
                                    {z_loss, focal_gamma, poly_epsilon}});
    const OwnedTransform<T> transform(temperature, softcap, bias, problem.loss.classes);
    problem.loss.transform = transform.get();
    set_gradient(problem.loss, logits, product);
    problem.vector = rows_of(vector, storage_of(vector, static_cast<int>(kStorageOf<T>)));
    nb::gil_scoped_release release;
    return found(run_hessian(problem, row_count(logits)));
  });
}

void row_statistics(const Array& logits, int storage, const std::optional<Vector<Index>>& labels, double temperature,
                    double softcap, const std::optional<Vector<double>>& bias,
                    const std::optional<OutVector<double>>& loss, const OutVector<double>& logsumexp,
                    const OutVector<Index>& prediction, const std::optional<OutVector<Index>>& rank) {
  const Index rows = row_count(logits);
  if (static_cast<Index>(logsumexp.shape(0)) < rows || static_cast<Index>(prediction.shape(0)) < rows)
    throw std::invalid_argument("an output is too short");
  by_storage(static_cast<Storage>(storage), [&](auto zero) {
    using T = decltype(zero);
    StatisticsProblem<T> problem;
    problem.classes = classes_of(logits);
    problem.logits = rows_of(logits, storage_of(logits, storage));
    const OwnedTransform<T> transform(temperature, softcap, bias, problem.classes);
    problem.transform = transform.get();
    problem.labels = pointer(labels, rows);
    problem.loss = pointer(loss, rows);
    problem.logsumexp = logsumexp.data();
    problem.prediction = prediction.data();
    problem.rank = pointer(rank, rows);
    nb::gil_scoped_release release;
    run_statistics(problem, rows);
  });
}

// The whole of a call without options, `reduction` 0 for the mean and 1 for the sum: nothing where this is not one, or
// a label is no class.
std::optional<double> quick_loss(const Array& logits, const Array& labels, const std::optional<OutArray>& gradient,
                                 bool mean) {
  constexpr Index kMostRows = 4096;
  const nb::dlpack::dtype dtype = logits.dtype();
  if (dtype != nb::dtype<float>() && dtype != nb::dtype<double>()) return std::nullopt;
  if (labels.dtype() != nb::dtype<Index>() || labels.ndim() + 1 != logits.ndim() || labels.ndim() > 1)
    return std::nullopt;
  const Index rows = row_count(logits), classes = classes_of(logits);
  if (rows == 0 || rows > kMostRows || classes == 0) return std::nullopt;
  if (labels.ndim() == 1 && (static_cast<Index>(labels.shape(0)) != rows || (rows > 1 && labels.stride(0) != 1)))
    return std::nullopt;
  const Index* label = static_cast<const Index*>(labels.data());
  for (Index row = 0; row < rows; ++row)
    if (label[row] < 0 || label[row] >= classes) return std::nullopt;
  const Storage storage = computed_storage(logits);
  return by_storage(storage, [&](auto zero) {
    using T = decltype(zero);
    LossProblem<T> problem;
    problem.classes = classes;
    problem.logits = rows_of(logits, storage);
    problem.targets.labels = label;
    problem.gradient_scale = mean ? 1.0 / static_cast<double>(rows) : 1.0;
    if (gradient) set_gradient(problem, logits, *gradient);
    double row_loss[kMostRows];
    problem.loss = row_loss;
    nb::gil_scoped_release release;
    run_loss(problem, rows);
    return sum(row_loss, rows) * problem.gradient_scale;
  });
}

void softmax(const Array& logits, int storage, const std::optional<OutArray>& output,
             const std::optional<OutVector<double>>& logsumexp, double temperature, bool logarithm) {
  const Index rows = row_count(logits);
  if (output) require_same_shape(logits, *output);
  if (output.has_value() == logsumexp.has_value()) throw std::invalid_argument("one output expected");
  by_storage(static_cast<Storage>(storage), [&](auto zero) {
    using T = decltype(zero);
    SoftmaxProblem<T> problem;
    problem.classes = classes_of(logits);
    problem.logits = rows_of(logits, storage_of(logits, static_cast<int>(kStorageOf<T>)));
    problem.temperature = temperature;
    problem.logarithm = logarithm;
    problem.logsumexp = pointer(logsumexp, rows);
    if (output) {
      problem.output = rows_of(*output, problem.logits.storage);
      problem.stream =
          problem.output.data != problem.logits.data && worth_streaming(rows * problem.classes, problem.logits.storage);
    }
    nb::gil_scoped_release release;
    run_softmax(problem, rows);
  });
}

Found bad_distribution(const Array& distribution, double tolerance) {
  const Storage storage = computed_storage(distribution);
  return by_storage(storage, [&](auto zero) {
    const auto rows = rows_of(distribution, storage);
    nb::gil_scoped_release release;
    return found(
        check_distribution<decltype(zero)>(rows, classes_of(distribution), row_count(distribution), tolerance));
  });
}

constexpr Index kSurveyBlock = 1024;

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
  const bool may_skip = !weight && !of_class && (ignore_index < 0 || ignore_index >= classes);
  for (Index begin = 0; begin < rows; begin += kSurveyBlock) {
    const Index size = std::min(kSurveyBlock, rows - begin);
    Index block[kSurveyBlock];  // read once: another thread may write to them
    std::copy_n(label + begin, size, block);
    std::uint64_t outside = 0;  // its sign bit tells of a label below 0 or above the last class
    for (Index i = 0; i < size; ++i) {
      const auto y = static_cast<std::uint64_t>(block[i]);
      outside |= y | (static_cast<std::uint64_t>(classes - 1) - y);
    }
    if (may_skip && outside >> 63 == 0) {
      counted += size;
      continue;
    }
    for (Index i = 0; i < size; ++i) {
      const Index y = block[i];
      if (y == ignore_index) continue;
      if (y < 0 || y >= classes) return {begin + i, counted, 0.0};
      ++counted;
      if (weight || of_class) total.add((weight ? weight[begin + i] : 1.0) * (of_class ? of_class[y] : 1.0));
    }
  }
  return {-1, counted, weight || of_class ? total.value() : static_cast<double>(counted)};
}

}  // namespace
}  // namespace softmaxloss

NB_MODULE(_native, m) {
  using namespace softmaxloss;
  m.def("loss", &loss, nb::arg("logits"), nb::arg("storage"), nb::arg("labels").none(), nb::arg("distribution").none(),
        nb::arg("row_loss"), nb::arg("gradient").none(), nb::arg("gradient_scale"), nb::arg("weights").none(),
        nb::arg("ignore_index"), nb::arg("spike").none(), nb::arg("dense").none(), nb::arg("dense_sum"),
        nb::arg("scale").none(), nb::arg("shift").none(), nb::arg("tolerance"), nb::arg("temperature"),
        nb::arg("softcap"), nb::arg("bias").none(), nb::arg("z_loss"), nb::arg("focal_gamma"), nb::arg("poly_epsilon"));
  m.def("hessian_vector_product", &hessian_vector_product, nb::arg("logits"), nb::arg("storage"),
        nb::arg("labels").none(), nb::arg("distribution").none(), nb::arg("vector"), nb::arg("product"),
        nb::arg("gradient_scale"), nb::arg("weights").none(), nb::arg("ignore_index"), nb::arg("spike").none(),
        nb::arg("dense").none(), nb::arg("dense_sum"), nb::arg("scale").none(), nb::arg("shift").none(),
        nb::arg("tolerance"), nb::arg("temperature"), nb::arg("softcap"), nb::arg("bias").none(), nb::arg("z_loss"),
        nb::arg("focal_gamma"), nb::arg("poly_epsilon"));
  m.def("row_statistics", &row_statistics, nb::arg("logits"), nb::arg("storage"), nb::arg("labels").none(),
        nb::arg("temperature"), nb::arg("softcap"), nb::arg("bias").none(), nb::arg("loss").none(),
        nb::arg("logsumexp"), nb::arg("prediction"), nb::arg("rank").none());
  m.def("quick_loss", &quick_loss, nb::arg("logits"), nb::arg("labels"), nb::arg("gradient").none(), nb::arg("mean"));
  m.def("softmax", &softmax, nb::arg("logits"), nb::arg("storage"), nb::arg("output").none(),
        nb::arg("logsumexp").none(), nb::arg("temperature"), nb::arg("logarithm"));
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
