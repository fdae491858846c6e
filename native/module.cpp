// The Python module: arrays in, numbers out.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "arguments.hpp"
#include "dispatch.hpp"
#include "driver.hpp"
#include "labels.hpp"
#include "requests.hpp"
#include "threads.hpp"

namespace softmaxloss {

void bind_judging(nb::module_& m);  // judging.cpp
void bind_sparse(nb::module_& m);   // sparse.cpp
void bind_vectors(nb::module_& m);  // vectors.cpp

namespace {

using Found = std::optional<std::tuple<Index, double, double>>;

Found found(const BadDistribution& bad) {
  if (bad.row < 0) return std::nullopt;
  return std::make_tuple(bad.row, bad.sum, bad.least);
}

std::tuple<double, Found> loss(const Array& logits, int storage, const LossTerms& terms,
                               const OutVector<double>& row_loss, const std::optional<OutArray>& gradient) {
  const Index rows = row_count(logits);
  if (static_cast<Index>(row_loss.shape(0)) < rows) throw std::invalid_argument("row_loss is too short");
  return by_storage(static_cast<Storage>(storage), [&](auto zero) {
    using T = decltype(zero);
    LossProblem<T> problem = loss_problem<T>(logits, storage, terms);
    const OwnedTransform<T> transform(terms.temperature, terms.softcap, pointer(terms.bias, problem.classes),
                                      problem.classes);
    problem.transform = transform.get();
    problem.loss = row_loss.data();
    if (gradient) set_gradient(problem, logits, *gradient);
    nb::gil_scoped_release release;
    const BadDistribution bad = run_loss(problem, rows);
    return std::make_tuple(sum(problem.loss, rows), found(bad));
  });
}

Found hessian_vector_product(const Array& logits, int storage, const LossTerms& terms, const Array& vector,
                             const OutArray& product) {
  require_same_shape(logits, vector);
  return by_storage(static_cast<Storage>(storage), [&](auto zero) {
    using T = decltype(zero);
    HessianProblem<T> problem;
    problem.loss = loss_problem<T>(logits, storage, terms);
    const OwnedTransform<T> transform(terms.temperature, terms.softcap, pointer(terms.bias, problem.loss.classes),
                                      problem.loss.classes);
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
    const OwnedTransform<T> transform(temperature, softcap, pointer(bias, problem.classes), problem.classes);
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

// The loss of a call without options, whose labels are in range; its gradient too, where the problem has a place for
// it.
template <class T>
double plain_loss(LossProblem<T>& problem, Index rows, bool mean) {
  constexpr Index kFewRows = 4096;
  double few[kFewRows];
  const auto many =
      rows > kFewRows ? std::make_unique_for_overwrite<double[]>(static_cast<std::size_t>(rows)) : nullptr;
  problem.loss = many ? many.get() : few;
  problem.gradient_scale = mean ? 1.0 / static_cast<double>(rows) : 1.0;
  nb::gil_scoped_release release;
  run_loss(problem, rows);
  return sum(problem.loss, rows) * problem.gradient_scale;
}

// The whole of a call without options: nothing where this is not one, a label is no class, or the gradient may overlap
// what is read.
std::optional<double> quick_loss(const Array& logits, const Array& labels, const std::optional<OutArray>& gradient,
                                 bool mean) {
  const nb::dlpack::dtype dtype = logits.dtype();
  if (dtype != nb::dtype<float>() && dtype != nb::dtype<double>()) return std::nullopt;
  if (labels.dtype() != nb::dtype<Index>() || labels.ndim() + 1 != logits.ndim() || labels.ndim() > 1)
    return std::nullopt;
  const Index rows = row_count(logits), classes = classes_of(logits);
  if (rows == 0 || classes == 0) return std::nullopt;
  if (labels.ndim() == 1 && (static_cast<Index>(labels.shape(0)) != rows || (rows > 1 && labels.stride(0) != 1)))
    return std::nullopt;
  const Index* label = static_cast<const Index*>(labels.data());
  if (gradient && !is_plainly_free(*gradient, logits, labels)) return std::nullopt;
  if (!all_are_classes(label, rows, classes)) return std::nullopt;
  const Storage storage = computed_storage(logits);
  return by_storage(storage, [&](auto zero) {
    LossProblem<decltype(zero)> problem;
    problem.classes = classes;
    problem.logits = rows_of(logits, storage);
    problem.targets.labels = label;
    if (gradient) set_gradient(problem, logits, *gradient);
    return plain_loss(problem, rows, mean);
  });
}

// The same of dense matrices in memory that the caller knows, float32 or float64, with the loss written to where `loss`
// is: tensors, for which arrays would first have to be made. `gradient` is 0 for none, and may be the logits. Whether
// there are logits, and all labels are classes; else nothing is written.
bool quick_loss_at(std::uintptr_t logits, std::uintptr_t labels, std::uintptr_t gradient, std::uintptr_t loss,
                   Index rows, Index classes, bool is_double, bool mean) {
  const auto* label = reinterpret_cast<const Index*>(labels);
  if (logits == 0 || labels == 0 || !all_are_classes(label, rows, classes)) return false;
  by_storage(is_double ? Storage::kFloat64 : Storage::kFloat32, [&](auto zero) {
    using T = decltype(zero);
    LossProblem<T> problem;
    problem.classes = classes;
    problem.logits = dense_rows<const char>(reinterpret_cast<const T*>(logits), kStorageOf<T>, rows, classes);
    problem.targets.labels = label;
    if (gradient != 0) {
      problem.gradient = dense_rows<char>(reinterpret_cast<T*>(gradient), kStorageOf<T>, rows, classes);
      problem.stream = may_stream(problem, rows);
    }
    *reinterpret_cast<T*>(loss) = static_cast<T>(plain_loss(problem, rows, mean));
  });
  return true;
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

template <class T>
Index block_size(const Dense<T, 3>& factors) {
  const auto size = static_cast<Index>(factors.shape(1));
  if (size == 0 || size % kBlockUnit != 0 || factors.shape(2) != factors.shape(1))
    throw std::invalid_argument("square blocks of a multiple of block_unit expected");
  return size;
}

// See ClassBlocksProblem.
template <class T>
void class_blocks(const Dense<const T, 2>& features, const Dense<const T, 2>& curvatures, const Vector<T>& weights,
                  double least, const Vector<T>& mean, const Vector<T>& scale, double intercept_scale,
                  const Dense<const T, 2>& of_all, const Vector<T>& penalties, const Dense<T, 3>& factors) {
  ClassBlocksProblem<T> problem;
  problem.rows = static_cast<Index>(features.shape(0));
  problem.count = static_cast<Index>(features.shape(1));
  problem.size = block_size(factors);
  const std::size_t size = factors.shape(1);
  if (curvatures.shape(0) != factors.shape(0) || curvatures.shape(1) != features.shape(0) ||
      weights.shape(0) != features.shape(0) || mean.shape(0) != features.shape(1) ||
      scale.shape(0) != features.shape(1) || problem.count >= problem.size || of_all.shape(0) != size ||
      of_all.shape(1) != size || penalties.shape(0) != size)
    throw std::invalid_argument("arrays of shapes that do not go together");
  problem.features = features.data();
  problem.curvatures = curvatures.data();
  problem.weights = weights.data();
  problem.least = static_cast<T>(least);
  problem.mean = mean.data();
  problem.scale = scale.data();
  problem.intercept_scale = static_cast<T>(intercept_scale);
  problem.of_all = of_all.data();
  problem.penalties = penalties.data();
  problem.factors = factors.data();
  nb::gil_scoped_release release;
  run_class_blocks(problem, static_cast<Index>(factors.shape(0)));
}

template <class T>
void solve_blocks(const Dense<T, 3>& factors, const Dense<T, 2>& vectors) {
  ClassBlocksProblem<T> problem;
  problem.size = block_size(factors);
  if (vectors.shape(0) != factors.shape(0) || vectors.shape(1) != factors.shape(1))
    throw std::invalid_argument("a vector for each block expected");
  problem.factors = factors.data();
  nb::gil_scoped_release release;
  run_solve_blocks(problem, vectors.data(), static_cast<Index>(factors.shape(0)));
}

// What is written to is never a copy.
template <class T>
void bind_blocks(nb::module_& m) {
  m.def("class_blocks", &class_blocks<T>, nb::arg("features").noconvert(), nb::arg("curvatures").noconvert(),
        nb::arg("weights").noconvert(), nb::arg("least"), nb::arg("mean").noconvert(), nb::arg("scale").noconvert(),
        nb::arg("intercept_scale"), nb::arg("of_all").noconvert(), nb::arg("penalties").noconvert(),
        nb::arg("factors").noconvert());
  m.def("solve_blocks", &solve_blocks<T>, nb::arg("factors").noconvert(), nb::arg("vectors").noconvert());
}

// The position of the first label that is neither a class nor ignore_index (-1: none), how many are classes, and the
// sum of weights[i] * class_weight[label i] over these.
std::tuple<Index, Index, double> survey(const Vector<Index>& labels, Index classes, Index ignore_index,
                                        const std::optional<Vector<double>>& weights,
                                        const std::optional<Vector<double>>& class_weight) {
  const Index rows = static_cast<Index>(labels.shape(0));
  const double* weight = pointer(weights, rows);
  const double* of_class = pointer(class_weight, classes);
  nb::gil_scoped_release release;
  const LabelSurvey found = survey_labels(labels.data(), rows, classes, ignore_index, weight, of_class);
  return {found.bad, found.counted, found.weight};
}

}  // namespace
}  // namespace softmaxloss

NB_MODULE(_native, m) {
  using namespace softmaxloss;
  using Doubles = std::optional<Vector<double>>;
  nb::class_<LossTerms>(m, "LossTerms")
      .def(nb::init<std::optional<Vector<Index>>, std::optional<Array>, double, Doubles, Index, Doubles,
                    std::optional<Array>, double, std::optional<Array>, std::optional<Array>, double, double, double,
                    Doubles, double, double, double>());
  m.def("loss", &loss);
  m.def("hessian_vector_product", &hessian_vector_product);
  m.def("row_statistics", &row_statistics);
  m.def("quick_loss", &quick_loss);
  m.def("quick_loss_at", &quick_loss_at);
  m.def("softmax", &softmax);
  m.def("bad_distribution", &bad_distribution);
  m.def("survey_labels", &survey);
  bind_blocks<float>(m);
  bind_blocks<double>(m);
  m.attr("block_unit") = kBlockUnit;
  bind_judging(m);
  bind_sparse(m);
  bind_vectors(m);
  m.def("get_num_threads", &get_num_threads);
  m.def("set_num_threads", &set_num_threads, nb::arg("threads"));
  m.def("work_alone", &work_alone);
  m.def("supported_instruction_sets", &supported_instruction_sets);
  m.def("instruction_set", &instruction_set);
  m.def("set_instruction_set", &set_instruction_set, nb::arg("name"));
  static const Requests requests;
  m.attr("requests") = nb::capsule(&requests, "softmaxloss.requests");
  m.attr("compiler") = SOFTMAXLOSS_COMPILER;
}
