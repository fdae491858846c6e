// What the kernels are asked: plain data, shared by every instruction set's copy of them.
#pragma once

#include <cstdint>

namespace softmaxloss {

using Index = std::int64_t;

constexpr int kMaxDimensions = 32;  // NumPy 1's limit; NumPy 2's 64 is refused at the door

// How an array holds its numbers. The kernels compute in double for kFloat64 and in float for the others.
enum class Storage { kFloat32, kFloat64, kFloat16, kBFloat16 };

constexpr Index size_of(Storage storage) {
  return storage == Storage::kFloat64 ? 8 : storage == Storage::kFloat32 ? 4 : 2;
}

// The storage of what is computed in T.
template <class T>
constexpr Storage kStorageOf = sizeof(T) == 8 ? Storage::kFloat64 : Storage::kFloat32;

// Rows laid out in memory: any number of leading axes, and a class axis; strides count bytes.
template <class Byte>
struct RowsOf {
  Byte* data = nullptr;
  Storage storage = Storage::kFloat32;
  int dimensions = 0;  // leading axes, the class axis not counted
  Index shape[kMaxDimensions] = {};
  Index strides[kMaxDimensions] = {};
  Index class_stride = 0;

  explicit operator bool() const { return data != nullptr; }
};
using Rows = RowsOf<char>;
using ConstRows = RowsOf<const char>;

// Rows that lie one after another from `data` on.
template <class Byte, class Element>
RowsOf<Byte> dense_rows(Element* data, Storage storage, Index rows, Index classes) {
  RowsOf<Byte> result;
  result.data = reinterpret_cast<Byte*>(data);
  result.storage = storage;
  result.dimensions = 1;
  result.shape[0] = rows;
  result.strides[0] = classes * size_of(storage);
  result.class_stride = size_of(storage);
  return result;
}

// What is done with the logits first: v_j = softcap * tanh(z_j / temperature / softcap) + bias_j.
template <class T>
struct Transform {
  double temperature = 1.0;
  double softcap = 0.0;          // 0 means none
  const double* bias = nullptr;  // (classes,), or null for none; the next two are null with it
  const T* bias_high = nullptr;  // (classes,): the bias, rounded
  const T* bias_low = nullptr;   // (classes,): what the rounding left out

  bool is_identity() const { return temperature == 1.0 && softcap == 0.0 && !bias; }
};

// The labels of a loss. A row's target is t_j = spike * [j == label] + dense_j, where `dense` is nothing, one vector
// shared by all rows (label smoothing), or the row's own distribution q_j, scaled and shifted by class if asked.
// Then CE = sum_j t_j * -log p_j and dCE/dv_j = p_j * sum(t) - t_j.
template <class T>
struct Targets {
  const Index* labels = nullptr;  // one a row; or null
  Index ignore_index = -100;
  const double* spike = nullptr;  // (classes,): class_weight * (1 - eps); null means 1
  const T* dense = nullptr;       // (classes,): class_weight * eps / C
  double dense_sum = 0.0;
  ConstRows distribution;                 // held as T
  const T* distribution_scale = nullptr;  // (classes,): class_weight * (1 - eps); null, like the next, means q as it is
  const T* distribution_shift = nullptr;  // (classes,): class_weight * eps / C
  double tolerance = 1e-3;                // how far from 1 a distribution may sum
};

// What is made of a row's cross-entropy: with m = 1 - p_y,
// row = m^focal_gamma * CE + spike * poly_epsilon * m^(focal_gamma + 1) + z_loss * lse^2.
struct RowFormula {
  double z_loss = 0.0;  // times what the reduction divides the cross-entropy by over what it divides this term by
  double focal_gamma = 0.0;
  double poly_epsilon = 0.0;

  bool is_cross_entropy() const { return z_loss == 0.0 && focal_gamma == 0.0 && poly_epsilon == 0.0; }
};

// A row's label distribution that is not one: its row, what it sums to, and its least entry.
struct BadDistribution {
  Index row = -1;
  double sum = 1.0;
  double least = 0.0;
};

inline bool is_distribution(double sum, double least, double tolerance) {
  return sum - 1.0 <= tolerance && sum - 1.0 >= -tolerance && least >= 0.0;  // false for NaN
}

template <class T>
struct LossProblem {
  Index classes = 0;
  ConstRows logits;
  Transform<T> transform;
  Targets<T> targets;
  RowFormula formula;
  const double* weights = nullptr;  // one a row; null means 1
  double gradient_scale = 1.0;      // the gradient of row i is multiplied by gradient_scale * weights[i]
  double* loss = nullptr;           // out: weights[i] * row_i
  Rows gradient;                    // out, may be the logits, in the logits' storage; or null
  bool stream = false;              // write the gradient past the cache
};

// The Hessian of the rows' losses, in each row's logits, times a vector; written in place of a gradient.
template <class T>
struct HessianProblem {
  LossProblem<T> loss;  // its `gradient` is where the product goes; no row's loss is written
  ConstRows vector;     // held as T
};

// What is told of each row; null where it is not asked for.
template <class T>
struct StatisticsProblem {
  Index classes = 0;
  ConstRows logits;
  Transform<T> transform;
  const Index* labels = nullptr;  // one a row; or null
  double* loss = nullptr;         // -log p of the label
  double* logsumexp = nullptr;
  Index* prediction = nullptr;  // the first of the largest v; the first NaN
  Index* rank = nullptr;        // how many v are larger than the label's
};

template <class T>
struct SoftmaxProblem {
  Index classes = 0;
  ConstRows logits;
  double temperature = 1.0;
  bool logarithm = false;
  double* logsumexp = nullptr;  // out; or null
  Rows output;                  // out, may be the logits; or null
  bool stream = false;
};

// Up to so many classes, many rows at once are quicker than one after another.
constexpr Index kMostTiledSoftmax = 64;
template <class T>
bool softmax_takes_tiles(const SoftmaxProblem<T>& problem) {
  return problem.output && problem.temperature == 1.0 && problem.classes > 1 && problem.classes <= kMostTiledSoftmax;
}

// What the numbers of a row that is judged are.
enum class Scores { kLogits, kLogProbabilities, kProbabilities };

// Up to so many classes, several rows are judged at once.
constexpr Index kMostFewJudged = 40;

// What evaluation is told of each row; of one that holds NaN or +inf, anything but a `sum` that is finite.
template <class T>
struct JudgingProblem {
  Index classes = 0;
  Scores kind = Scores::kLogits;
  const T* scores = nullptr;      // rows one after another
  const Index* labels = nullptr;  // one a row; one that is none counts as the nearest
  double* sum = nullptr;          // of the probabilities; of logits, relative to a number near the largest
  double* least = nullptr;        // of the probabilities, the least; of others, anything
  Index* prediction = nullptr;    // the first of the largest scores; null where only sums are asked for, and then
  Index* rank = nullptr;          // how many classes are ahead of the label, by score or as equals of a lower index
  double* confidence = nullptr;   // the prediction's probability
  double* brier = nullptr;        // the sum over classes of (p - q)^2, q being the label's one-hot vector
};

// Memory for one thread: `scratch` holds kScratchRows rows of scratch_row_length(classes) elements, aligned to 64
// bytes.
constexpr int kScratchRows = 4;
constexpr Index scratch_row_length(Index classes) {
  return (classes + 191) / 64 * 64;  // the loops write whole groups of up to 64 elements, from within a line on
}

// The rows of a tile: few, for between reading one tile and the next, or writing, memory is idle. Where there are so
// many classes that the tile would leave the second-level cache, fewer yet, but a cache line of them.
constexpr Index kMostTileRows = 128;
constexpr Index tile_rows(Index classes, Index element_size) {
  constexpr Index kSecondLevel = 384 * 1024;
  const Index line = 64 / element_size, rows = kSecondLevel / (classes * element_size) / line * line;
  return rows > kMostTileRows ? kMostTileRows : rows > line ? rows : line;
}

// Elements from one class of a tile to the next: a line more than the rows, lest classes share few sets of the cache.
constexpr Index tile_stride(Index classes, Index element_size) {
  return tile_rows(classes, element_size) + 64 / element_size;
}

// What a thread needs, aligned to 64 bytes: a tile, and room for its rows on their way to or from it.
constexpr Index tile_scratch_elements(Index classes, Index element_size) {
  return 2 * classes * tile_stride(classes, element_size) + 64 / element_size;
}

// The same for rows of not many classes taken as they lie: rowwise.hpp. Whole vectors of rows.
constexpr Index kRowwiseBytes = 2 * 1024, kMostRowwiseClasses = 64;

// Rows of more classes are quicker so too, as long as they take no more than this (measured): loss_as_they_lie.hpp.
constexpr Index kMostRowwiseRow = 1024;

constexpr Index rowwise_rows(Index classes, Index element_size) {
  const Index unit = 64 / element_size, rows = kRowwiseBytes / (classes * element_size) / unit * unit;
  return rows > kMostTileRows ? kMostTileRows : rows > unit ? rows : unit;
}

// Two tiles, with room for whole vectors past their end.
constexpr Index rowwise_scratch_elements(Index element_size) {
  return 2 * (64 / element_size * (kMostRowwiseRow / element_size) + 256);
}

// What the blocks of a Hessian are made of: see class_blocks.hpp. The block of class k is the sum over rows i of
// curvatures[k][i] * weights[i] * f f^T for the row's features f, centred and scaled, and one for the intercept; rows
// below the least curvature count together, by the mean of all rows. Sizes are multiples of `kBlockUnit`, with
// penalties on what there is beyond the features.
constexpr Index kBlockUnit = 16;

// So many vectors times themselves are added to a block at once, which is read and written once for all of them.
constexpr Index kBlockPanel = 4;

constexpr Index class_block_scratch_elements(Index size) { return (size + kBlockPanel) * size; }

template <class T>
struct ClassBlocksProblem {
  Index rows = 0, count = 0, size = 0;  // of features, and of a block
  const T* features = nullptr;          // (rows, count)
  const T* curvatures = nullptr;        // (classes, rows)
  const T* weights = nullptr;           // (rows,)
  T least{0};
  const T* mean = nullptr;  // (count,)
  const T* scale = nullptr;
  T intercept_scale{0};
  const T* of_all = nullptr;     // (size, size)
  const T* penalties = nullptr;  // (size,)
  T* factors = nullptr;          // out: (classes, size, size), upper triangles
};

// A product of a sparse matrix, of which the numbers of a row lie one after another (CSR), with one of as many columns
// as there are classes: see sparse_rows.hpp. An outer product of a column and a row is taken from it, where there is
// one.
template <class T, class I>
struct SparseProblem {
  Index classes = 0;
  const I* starts = nullptr;   // (rows + 1,): of each row's numbers, and of what would be the next
  const I* columns = nullptr;  // of each number
  const T* values = nullptr;
  const T* dense = nullptr;        // (columns, classes); (rows, classes) for the transposed matrix
  const T* less_column = nullptr;  // (rows,)
  const T* less_row = nullptr;     // (classes,)
  T* out = nullptr;                // (rows, classes); (columns, classes) for the transposed matrix
};

// Derivatives by the coefficients of centred features. Those by the coefficients of features as they are have mean[i] *
// by_intercept besides; those by scaled ones are scale[i] times as large.
template <class T>
struct LargestProblem {
  Index classes = 0;
  const T* centred = nullptr;       // (features, classes)
  const T* scale = nullptr;         // (features,)
  const T* mean = nullptr;          // (features,)
  const T* by_intercept = nullptr;  // (classes,)
};

// The numbers of a sparse matrix are counted in 32 or 64 bits.
template <class T, class I>
struct SparseKernels {
  void (*product)(const SparseProblem<T, I>&, Index begin, Index end);
  void (*add_transposed_product)(const SparseProblem<T, I>&, Index begin, Index end);
};

template <class T>
struct Kernels {
  // Rows [begin, end). Returns the first bad distribution met, if any (the rows after it are left out).
  BadDistribution (*loss)(const LossProblem<T>&, Index begin, Index end, T* scratch);
  // The same of index labels without a transform, of many rows at once, in any layout. `begin` is a multiple of
  // rowwise_rows.
  BadDistribution (*tiled_loss)(const LossProblem<T>&, Index begin, Index end, T* scratch);
  // The same of labels alone, of rows that lie one after another; `begin` is one here too.
  BadDistribution (*loss_as_they_lie)(const LossProblem<T>&, Index begin, Index end, T* scratch);
  BadDistribution (*hessian)(const HessianProblem<T>&, Index begin, Index end, T* scratch);
  void (*statistics)(const StatisticsProblem<T>&, Index begin, Index end, T* scratch);
  void (*softmax)(const SoftmaxProblem<T>&, Index begin, Index end, T* scratch);
  void (*judge)(const JudgingProblem<T>&, Index begin, Index end);
  // The first row that is not a distribution, if any.
  BadDistribution (*check)(const ConstRows& distribution, Index classes, Index begin, Index end, double tolerance);
  // Classes [begin, end).
  void (*class_blocks)(const ClassBlocksProblem<T>&, Index begin, Index end, T* scratch);
  void (*solve_blocks)(const ClassBlocksProblem<T>&, T* vectors, Index begin, Index end);
  SparseKernels<T, std::int32_t> sparse;
  SparseKernels<T, std::int64_t> wide_sparse;
  T (*largest_derivative)(const LargestProblem<T>&, Index begin, Index end);
  T (*dot)(const T* a, const T* b, Index count);
  void (*add_scaled)(T factor, const T* from, T* to, Index count);
  void (*add_columns)(const T* matrix, Index rows, Index columns, double* sums);
};

}  // namespace softmaxloss
