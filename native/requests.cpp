#include "requests.hpp"

#include <cmath>
#include <cstring>
#include <exception>
#include <limits>
#include <vector>

#include "checked.hpp"
#include "driver.hpp"
#include "gather.hpp"
#include "setup.hpp"
#include "threads.hpp"

namespace softmaxloss {
namespace {

template <class Byte>
RowsOf<Byte> rows_of(const Shape& shape, Byte* data, Storage storage) {
  RowsOf<Byte> rows;
  rows.data = data;
  rows.storage = storage;
  const Index size = size_of(storage);
  const auto add_axis = [&](Index length, Index stride) {
    rows.shape[rows.dimensions] = length;
    rows.strides[rows.dimensions++] = stride;
  };
  if (shape.before > 1 || shape.after == 1) add_axis(shape.before, shape.classes * shape.after * size);
  if (shape.after > 1) add_axis(shape.after, size);
  rows.class_stride = shape.after * size;
  return rows;
}

ConstRows read_rows(const Shape& shape, const void* data, Storage storage) {
  return data ? rows_of(shape, static_cast<const char*>(data), storage) : ConstRows{};
}

Rows written_rows(const Shape& shape, void* data, Storage storage) {
  return data ? rows_of(shape, static_cast<char*>(data), storage) : Rows{};
}

void fill_with_nan(const Rows& rows, Index row, Index classes) {
  constexpr std::uint16_t kHalfNan = 0x7e00, kBFloat16Nan = 0x7fc0;
  char* element = rows.data + row_offset(rows, row);
  const auto fill = [&](auto nan) {
    for (Index j = 0; j < classes; ++j) std::memcpy(element + j * rows.class_stride, &nan, sizeof nan);
  };
  if (rows.storage == Storage::kFloat64) return fill(std::numeric_limits<double>::quiet_NaN());
  if (rows.storage == Storage::kFloat32) return fill(std::numeric_limits<float>::quiet_NaN());
  fill(rows.storage == Storage::kFloat16 ? kHalfNan : kBFloat16Nan);
}

// Distributions of which some rows are none: a copy in which these are one-hot, so that the others can be computed.
template <class T>
class Repaired {
 public:
  explicit Repaired(const LossRequest& request)
      : request_(request), rows_(read_rows(request.shape, request.distribution, kStorageOf<T>)) {}

  const ConstRows& rows() const { return rows_; }

  void replace(Index row) {
    const Index classes = request_.shape.classes, count = request_.shape.rows() * classes;
    if (copy_.empty()) {
      const T* given = static_cast<const T*>(request_.distribution);
      copy_.assign(given, given + count);
      rows_.data = reinterpret_cast<const char*>(copy_.data());
    }
    T* entry = copy_.data() + row_offset(rows_, row) / static_cast<Index>(sizeof(T));
    for (Index j = 0; j < classes; ++j) entry[j * request_.shape.after] = j == 0 ? T{1} : T{0};
  }

 private:
  const LossRequest& request_;
  ConstRows rows_;
  std::vector<T> copy_;
};

template <class T>
LossProblem<T> problem_of(const LossRequest& request, const Checked& checked, const ClassTargets<T>& targets,
                          const Transform<T>& transform, const ConstRows& distribution) {
  const Shape& shape = request.shape;
  LossProblem<T> problem;
  problem.classes = shape.classes;
  problem.logits = read_rows(shape, request.logits, shape.storage);
  problem.transform = transform;
  problem.targets.labels = checked.labels();
  problem.targets.ignore_index = request.options.ignore_index;
  targets.put_into(problem.targets);
  problem.targets.distribution = distribution;
  problem.targets.tolerance = request.options.tolerance;
  problem.formula = {checked.z_loss(), request.options.focal_gamma, request.options.poly_epsilon};
  problem.weights = checked.weights();
  problem.gradient_scale = checked.gradient_scale();
  problem.gradient = written_rows(shape, request.gradient, shape.storage);
  problem.stream = request.gradient && may_stream(problem, shape.rows());
  return problem;
}

template <class T>
BadDistribution run(const LossRequest& request, LossProblem<T>& problem, std::vector<double>& losses) {
  if (request.vector)
    return run_hessian(HessianProblem<T>{problem, read_rows(request.shape, request.vector, kStorageOf<T>)},
                       request.shape.rows());
  losses.resize(static_cast<std::size_t>(request.shape.rows()));
  problem.loss = losses.data();
  return run_loss(problem, request.shape.rows());
}

template <class T>
void write_loss(const LossRequest& request, const Checked& checked, const std::vector<double>& losses) {
  T* out = static_cast<T*>(request.loss);
  const Index rows = request.shape.rows();
  if (request.options.reduction != Reduction::kNone) {
    const bool is_nan = !checked.invalid_rows().empty();
    *out = is_nan ? std::numeric_limits<T>::quiet_NaN() : static_cast<T>(sum(losses.data(), rows) * checked.scale());
    return;
  }
  for (Index row = 0; row < rows; ++row)
    out[row] = static_cast<T>(losses[static_cast<std::size_t>(row)] * checked.scale());
  for (const Index row : checked.invalid_rows()) out[row] = std::numeric_limits<T>::quiet_NaN();
}

template <class T>
void answer_in(const LossRequest& request) {
  const Shape& shape = request.shape;
  Checked checked(request);
  const ClassTargets<T> targets(request, checked);
  const OwnedTransform<T> transform(request.options.temperature, request.options.softcap, checked.bias(),
                                    shape.classes);
  Repaired<T> distribution(request);
  std::vector<double> losses;
  while (shape.rows() > 0) {
    auto problem = problem_of<T>(request, checked, targets, transform.get(), distribution.rows());
    const BadDistribution bad = run(request, problem, losses);
    if (bad.row < 0) break;
    // Rare enough to begin again, without this row and all others that are no distributions.
    for (Index row = bad.row; row < shape.rows(); ++row) {
      ConstRows one = distribution.rows();
      one.data += row_offset(one, row);
      one.dimensions = 0;
      if (row != bad.row && check_distribution<T>(one, shape.classes, 1, request.options.tolerance).row < 0) continue;
      distribution.replace(row);
      checked.leave_out(row);
    }
    checked.recount();
  }
  if (request.loss) write_loss<T>(request, checked, losses);
  if (request.gradient)
    for (const Index row : checked.invalid_rows())
      fill_with_nan(written_rows(shape, request.gradient, shape.storage), row, shape.classes);
}

template <class T>
void answer_in(const StatisticsRequest& request) {
  const Index rows = request.shape.rows(), classes = request.shape.classes;
  const auto size = static_cast<std::size_t>(rows);
  std::vector<double> bias, loss(request.labels ? size : 0), logsumexp(size);
  std::vector<Index> labels, prediction(size), rank(request.labels ? size : 0);
  for (Index j = 0; request.logit_bias && j < classes; ++j) bias.push_back(request.logit_bias[j]);
  // No row of the kernels has a label that is no class.
  const auto is_class = [&](Index row) { return request.labels[row] >= 0 && request.labels[row] < classes; };
  for (Index row = 0; request.labels && row < rows; ++row) labels.push_back(is_class(row) ? request.labels[row] : 0);
  const OwnedTransform<T> transform(request.temperature, request.softcap, bias.empty() ? nullptr : bias.data(),
                                    classes);
  StatisticsProblem<T> problem;
  problem.classes = classes;
  problem.logits = read_rows(request.shape, request.logits, request.shape.storage);
  problem.transform = transform.get();
  problem.logsumexp = logsumexp.data();
  problem.prediction = prediction.data();
  if (request.labels) {
    problem.labels = labels.data();
    problem.loss = loss.data();
    problem.rank = rank.data();
  }
  run_statistics(problem, rows);
  for (std::size_t row = 0; row < size; ++row) {
    static_cast<T*>(request.logsumexp)[row] = static_cast<T>(logsumexp[row]);
    request.prediction[row] = static_cast<std::int32_t>(prediction[row]);
    if (!request.labels) continue;
    const bool valid = is_class(static_cast<Index>(row));
    static_cast<T*>(request.loss)[row] = valid ? static_cast<T>(loss[row]) : std::numeric_limits<T>::quiet_NaN();
    request.rank[row] = valid ? static_cast<std::int32_t>(rank[row]) : -1;
  }
}

template <class T>
void answer_in(const SoftmaxRequest& request) {
  const Index rows = request.shape.rows();
  std::vector<double> logsumexp(request.logsumexp ? static_cast<std::size_t>(rows) : 0);
  SoftmaxProblem<T> problem;
  problem.classes = request.shape.classes;
  problem.logits = read_rows(request.shape, request.logits, request.shape.storage);
  problem.temperature = request.temperature;
  problem.logarithm = request.logarithm;
  problem.logsumexp = request.logsumexp ? logsumexp.data() : nullptr;
  problem.output = written_rows(request.shape, request.output, request.shape.storage);
  problem.stream = request.output && worth_streaming(rows * problem.classes, request.shape.storage);
  run_softmax(problem, rows);
  for (std::size_t row = 0; row < logsumexp.size(); ++row)
    static_cast<T*>(request.logsumexp)[row] = static_cast<T>(logsumexp[row]);
}

template <class Request>
void answer_by_storage(const Request& request) {
  if (request.shape.storage == Storage::kFloat64)
    answer_in<double>(request);
  else
    answer_in<float>(request);
}

}  // namespace

void answer(const LossRequest& request) { answer_by_storage(request); }
void answer(const StatisticsRequest& request) { answer_by_storage(request); }
void answer(const SoftmaxRequest& request) { answer_by_storage(request); }

void for_each_request(Index count, const Shape& shape, const std::function<void(Index)>& body) {
  const Index elements = shape.rows() * shape.classes;
  const int threads = threads_for(shape.rows(), shape.classes) > 1 ? 1 : threads_for(count, elements);
  std::vector<std::exception_ptr> thrown(static_cast<std::size_t>(threads));
  parallel_rows(count, threads, [&](int thread, Index begin, Index end) {
    try {
      for (Index i = begin; i < end; ++i) body(i);
    } catch (...) {
      thrown[static_cast<std::size_t>(thread)] = std::current_exception();
    }
  });
  for (const std::exception_ptr& error : thrown)
    if (error) std::rethrow_exception(error);
}

}  // namespace softmaxloss
