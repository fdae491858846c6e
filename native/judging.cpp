// The functions of the Python module that serve evaluation: see judging.hpp.
#include "judging.hpp"

#include "arguments.hpp"
#include "dispatch.hpp"
#include "threads.hpp"

namespace softmaxloss {
namespace {

using Weights = std::optional<Vector<double>>;
template <class T>
using Found = std::optional<OutVector<T>>;

// Contiguous rows of floats or doubles: body(first element, classes).
template <class Body>
void with_rows(const Array& rows, const Body& body) {
  require(rows.ndim() == 2 && rows.shape(1) > 0);
  const Index classes = classes_of(rows);
  require(length(rows) < 2 || rows.stride(0) == classes);
  require(classes < 2 || length(rows) == 0 || rows.stride(1) == 1);
  by_storage(computed_storage(rows),
             [&](auto zero) { body(static_cast<const decltype(zero)*>(rows.data()), classes); });
}

void judge(const Array& scores, const Vector<Index>& labels, int kind, const OutVector<double>& sum,
           const OutVector<double>& least, const Found<Index>& prediction, const Found<Index>& rank,
           const Found<double>& confidence, const Found<double>& brier) {
  const Index rows = length(scores);
  require(length(labels) == rows && length(sum) == rows && length(least) == rows && kind >= 0 && kind <= 2);
  require(!prediction || (rank && confidence && brier));
  with_rows(scores, [&](const auto* first, Index classes) {
    using T = std::remove_cvref_t<decltype(*first)>;
    JudgingProblem<T> problem;
    problem.classes = classes;
    problem.kind = static_cast<Scores>(kind);
    problem.scores = first;
    problem.labels = labels.data();
    problem.sum = sum.data();
    problem.least = least.data();
    problem.prediction = pointer(prediction, rows);
    problem.rank = pointer(rank, rows);
    problem.confidence = pointer(confidence, rows);
    problem.brier = pointer(brier, rows);
    nb::gil_scoped_release release;
    parallel_rows(rows, threads_for(rows, classes),
                  [&](int, Index begin, Index end) { kernels<T>().judge(problem, begin, end); });
  });
}

void cells_of_keys(const Vector<std::uint64_t>& keys, std::uint64_t start, int bits, const OutVector<Index>& cells) {
  const Index rows = length(keys);
  require(length(cells) == rows && bits > 0 && bits < 64);
  nb::gil_scoped_release release;
  for (Index i = 0; i < rows; ++i) cells.data()[i] = cell_of_key(keys.data()[i] + start, bits);
}

void losses(const Vector<Index>& labels, const Weights& weights, const Vector<double>& loss,
            const OutVector<Index>& count, const OutVector<double>& weight, const OutVector<double>& total) {
  const Index rows = length(labels), classes = length(count);
  require(length(loss) == rows && length(weight) == classes && length(total) == classes);
  const AddedRows added{rows, pointer(weights, rows), nullptr};
  nb::gil_scoped_release release;
  add_losses(added, labels.data(), loss.data(), classes, count.data(), weight.data(), total.data());
}

void details(const Vector<Index>& labels, const Weights& weights, const Vector<Index>& ranks,
             const Vector<double>& loss, const Vector<double>& confidence, const Vector<double>& brier,
             const Vector<Index>& cell, const OutVector<double>& class_hits, const Vector<Index>& ks,
             const OutVector<double>& top_k_hits, const OutVector<double>& brier_sum, const Dense<double, 2>& by_cell,
             const Dense<double, 2>& by_confidence, const OutVector<Index>& confidence_counts) {
  const Index rows = length(labels);
  for (const Index of_rows : {length(ranks), length(loss), length(confidence), length(brier), length(cell)})
    require(of_rows == rows);
  require(length(ks) == length(top_k_hits) && length(brier_sum) == 1);
  require(length(by_cell) == 3 && length(by_confidence) == 3 && by_confidence.shape(1) == confidence_counts.shape(0));
  DetailSums sums;
  sums.classes = length(class_hits);
  sums.n_k = length(ks);
  sums.cells = static_cast<Index>(by_cell.shape(1));
  sums.confidence_cells = length(confidence_counts);
  sums.class_hits = class_hits.data();
  sums.ks = ks.data();
  sums.top_k_hits = top_k_hits.data();
  sums.brier = brier_sum.data();
  sums.by_cell = by_cell.data();
  sums.by_confidence = by_confidence.data();
  sums.confidence_counts = confidence_counts.data();
  const AddedRows added{rows, pointer(weights, rows), ranks.data()};
  nb::gil_scoped_release release;
  add_details(added, {labels.data(), loss.data(), confidence.data(), brier.data(), cell.data()}, sums);
}

}  // namespace

void bind_judging(nb::module_& m) {
  m.def("judge_rows", &judge);
  m.def("cells_of_keys", &cells_of_keys);
  m.def("add_losses", &losses);
  m.def("add_details", &details);
}

}  // namespace softmaxloss
