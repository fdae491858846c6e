// What evaluation adds up over rows: few operations a row, and in the order of the rows, so that any blocks of them
// give the same bits.
//
// Indices are those of the caller's arrays, which another thread may write to: one that is out of range is left out.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "problem.hpp"

namespace softmaxloss {

// Rows of few classes, one after another: the first largest entry, and how many are ahead of the label's; of equal
// entries the lower index is. (Without branches, which would be guessed wrong.)
template <class T>
void rank_rows(const T* scores, Index classes, const Index* labels, Index begin, Index end, Index* prediction,
               Index* rank, T* top) {
  for (Index i = begin; i < end; ++i) {
    const T* const row = scores + i * classes;
    const Index label = std::clamp<Index>(labels[i], 0, classes - 1);
    const T own = row[label];
    T largest = row[0];
    Index first = 0, ahead = 0;
    for (Index j = 0; j < classes; ++j) {
      const T value = row[j];
      const bool larger = value > largest;
      largest = larger ? value : largest;
      first = larger ? j : first;
      ahead += (value > own) | ((value == own) & (j < label));
    }
    prediction[i] = first;
    rank[i] = ahead;
    top[i] = largest;
  }
}

// The sum of each row's entries, and that of their squares.
template <class T>
void power_sums(const T* values, Index classes, Index begin, Index end, double* sums, double* squares) {
  for (Index i = begin; i < end; ++i) {
    const T* const row = values + i * classes;
    double sum = 0.0, square = 0.0;
    for (Index j = 0; j < classes; ++j) {
      const double value = row[j];
      sum += value;
      square += value * value;
    }
    sums[i] = sum;
    squares[i] = square;
  }
}

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

// Weights of the rows whose prediction is right by class, and of those whose label is among the k first by k.
inline void add_hits(const AddedRows& rows, const Index* labels, Index classes, double* hits, const Index* ks,
                     Index n_k, double* top_k_hits) {
  for (Index i = 0; i < rows.count; ++i) {
    const Index label = labels[i];
    if (is_below(label, classes)) hits[label] += rows.hit(i);
    for (Index k = 0; k < n_k; ++k) top_k_hits[k] += rows.rank[i] < ks[k] ? rows.weight(i) : 0.0;
  }
}

// Weights, weighted values and hits by cell: `sums` has a row of `cells` for each of the three.
template <class CellOf>
void add_by_cell(const AddedRows& rows, const CellOf& cell_of, const double* values, Index cells, double* sums,
                 Index* counts) {
  for (Index i = 0; i < rows.count; ++i) {
    const Index cell = cell_of(i);
    if (!is_below(cell, cells)) continue;
    if (counts) ++counts[cell];
    sums[cell] += rows.weight(i);
    sums[cells + cell] += rows.weighted(i, values[i]);
    sums[2 * cells + cell] += rows.hit(i);
  }
}

// The cell of a confidence from 0 to 1; probabilities may exceed 1 within their tolerance.
inline Index cell_of_confidence(double confidence, Index cells) {
  const double cell = confidence * static_cast<double>(cells), last = static_cast<double>(cells - 1);
  return static_cast<Index>(cell < last ? cell : last);
}

}  // namespace softmaxloss
