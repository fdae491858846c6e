// What evaluation adds up over rows: few operations a row, and in the order of the rows, so that any blocks of them
// give the same bits.
//
// Indices are those of the caller's arrays, which another thread may write to: one that is out of range is left out.
#pragma once

#include <cstdint>

#include "problem.hpp"

namespace softmaxloss {

// The finaliser of SplitMix64 (G. L. Steele, D. Lea, C. H. Flood, 2014), of which the highest bits are the cell.
inline Index cell_of_key(std::uint64_t key, int bits) {
  std::uint64_t x = key + 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return static_cast<Index>((x ^ (x >> 31)) >> (64 - bits));
}

// Rows as they are added: their weights, null for 1, and their labels' ranks, 0 for a prediction that is right.
struct AddedRows {
  Index count = 0;
  const double* weights = nullptr;
  const Index* rank = nullptr;

  double weight(Index i) const { return weights ? weights[i] : 1.0; }
  double weighted(Index i, double value) const { return weights ? weights[i] * value : value; }
  double hit(Index i) const { return rank[i] == 0 ? weight(i) : 0.0; }
};

inline bool is_below(Index index, Index end) {
  return static_cast<std::uint64_t>(index) < static_cast<std::uint64_t>(end);
}

// Counts, weights and weighted losses by class.
inline void add_losses(const AddedRows& rows, const Index* labels, const double* loss, Index classes, Index* count,
                       double* weight, double* total) {
  for (Index i = 0; i < rows.count; ++i) {
    const Index label = labels[i];
    if (!is_below(label, classes)) continue;
    ++count[label];
    weight[label] += rows.weight(i);
    total[label] += rows.weighted(i, loss[i]);
  }
}

// The cell of a confidence from 0 to 1; probabilities may exceed 1 within their tolerance.
inline Index cell_of_confidence(double confidence, Index cells) {
  const double cell = confidence * static_cast<double>(cells), last = static_cast<double>(cells - 1);
  return static_cast<Index>(cell < last ? cell : last);
}

// What is added up of rows besides their losses, each sum in the order of the rows.
struct DetailSums {
  Index classes = 0, n_k = 0, cells = 0, confidence_cells = 0;
  double* class_hits = nullptr;  // weights of the rows whose prediction is right, by class
  const Index* ks = nullptr;
  double* top_k_hits = nullptr;        // of those whose label is among the k first, by k
  double* brier = nullptr;             // one number
  double* by_cell = nullptr;           // weights, weighted losses and hits: three rows of `cells`
  double* by_confidence = nullptr;     // weights, weighted confidences and hits: three rows of `confidence_cells`
  Index* confidence_counts = nullptr;  // rows
};

// What is known of each row.
struct Details {
  const Index* labels;
  const double* loss;
  const double* confidence;
  const double* brier;
  const Index* cell;
};

inline void add_to_cell(double* sums, Index cells, Index cell, double weight, double value, double hit) {
  sums[cell] += weight;
  sums[cells + cell] += value;
  sums[2 * cells + cell] += hit;
}

inline void add_details(const AddedRows& rows, const Details& of, const DetailSums& to) {
  double brier = *to.brier;
  for (Index i = 0; i < rows.count; ++i) {
    const double weight = rows.weight(i), hit = rows.hit(i);
    if (is_below(of.labels[i], to.classes)) to.class_hits[of.labels[i]] += hit;
    for (Index k = 0; k < to.n_k; ++k) to.top_k_hits[k] += rows.rank[i] < to.ks[k] ? weight : 0.0;
    brier += rows.weighted(i, of.brier[i]);
    if (is_below(of.cell[i], to.cells))
      add_to_cell(to.by_cell, to.cells, of.cell[i], weight, rows.weighted(i, of.loss[i]), hit);
    const Index sure = cell_of_confidence(of.confidence[i], to.confidence_cells);
    if (!is_below(sure, to.confidence_cells)) continue;
    ++to.confidence_counts[sure];
    add_to_cell(to.by_confidence, to.confidence_cells, sure, weight, rows.weighted(i, of.confidence[i]), hit);
  }
  *to.brier = brier;
}

}  // namespace softmaxloss
