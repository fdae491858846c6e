// The functions of the Python module that serve evaluation: see judging.hpp.
#include "judging.hpp"

#include <tuple>

#include "arguments.hpp"
#include "threads.hpp"

namespace softmaxloss {
namespace {

template <class T>
using OutMatrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Weights = std::optional<Vector<double>>;

void require(bool fits) {
  if (!fits) throw std::invalid_argument("arrays that fit each other expected");
}

template <class V>
Index length(const V& vector) {
  return static_cast<Index>(vector.shape(0));
}

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

void rank(const Array& scores, const Vector<Index>& labels, const OutVector<Index>& prediction,
          const OutVector<Index>& ranks, const OutArray& top) {
  const Index rows = length(scores);
  require(length(labels) == rows && length(prediction) == rows && length(ranks) == rows);
  require(top.ndim() == 1 && length(top) == rows && top.dtype() == scores.dtype() && (rows < 2 || top.stride(0) == 1));
  with_rows(scores, [&](const auto* first, Index classes) {
    using T = std::remove_cvref_t<decltype(*first)>;
    nb::gil_scoped_release release;
    parallel_rows(rows, threads_for(rows, classes), [&](int, Index begin, Index end) {
      rank_rows<T>(first, classes, labels.data(), begin, end, prediction.data(), ranks.data(),
                   static_cast<T*>(top.data()));
    });
  });
}

void sums_of_powers(const Array& values, const OutVector<double>& sums, const OutVector<double>& squares) {
  const Index rows = length(values);
  require(length(sums) == rows && length(squares) == rows);
  with_rows(values, [&](const auto* first, Index classes) {
    nb::gil_scoped_release release;
    parallel_rows(rows, threads_for(rows, classes), [&](int, Index begin, Index end) {
      power_sums(first, classes, begin, end, sums.data(), squares.data());
    });
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

void hits(const Vector<Index>& labels, const Weights& weights, const Vector<Index>& ranks,
          const OutVector<double>& of_class, const Vector<Index>& ks, const OutVector<double>& top_k) {
  const Index rows = length(labels);
  require(length(ranks) == rows && length(ks) == length(top_k));
  const AddedRows added{rows, pointer(weights, rows), ranks.data()};
  nb::gil_scoped_release release;
  add_hits(added, labels.data(), length(of_class), of_class.data(), ks.data(), length(ks), top_k.data());
}

void by_cell(const Vector<Index>& cell, const Weights& weights, const Vector<Index>& ranks,
             const Vector<double>& values, const OutMatrix<double>& sums) {
  const Index rows = length(cell);
  require(length(ranks) == rows && length(values) == rows && length(sums) == 3);
  const AddedRows added{rows, pointer(weights, rows), ranks.data()};
  nb::gil_scoped_release release;
  add_by_cell(
      added, [&](Index i) { return cell.data()[i]; }, values.data(), static_cast<Index>(sums.shape(1)), sums.data(),
      nullptr);
}

void by_confidence(const Vector<double>& confidence, const Weights& weights, const Vector<Index>& ranks,
                   const OutMatrix<double>& sums, const OutVector<Index>& counts) {
  const Index rows = length(confidence), cells = length(counts);
  require(length(ranks) == rows && length(sums) == 3 && static_cast<Index>(sums.shape(1)) == cells);
  const AddedRows added{rows, pointer(weights, rows), ranks.data()};
  nb::gil_scoped_release release;
  add_by_cell(
      added, [&](Index i) { return cell_of_confidence(confidence.data()[i], cells); }, confidence.data(), cells,
      sums.data(), counts.data());
}

}  // namespace

void bind_judging(nb::module_& m) {
  m.def("rank_rows", &rank);
  m.def("power_sums", &sums_of_powers);
  m.def("cells_of_keys", &cells_of_keys);
  m.def("add_losses", &losses);
  m.def("add_hits", &hits);
  m.def("add_by_cell", &by_cell);
  m.def("add_by_confidence", &by_confidence);
}

}  // namespace softmaxloss
