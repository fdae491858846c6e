// Runs a problem: splits its rows among threads, and brings rows whose classes are not adjacent to the kernels in
// tiles.
#pragma once

#include <cmath>

#include "problem.hpp"

namespace softmaxloss {

template <class T>
BadDistribution run_loss(const LossProblem<T>& problem, Index rows);

template <class T>
BadDistribution run_hessian(const HessianProblem<T>& problem, Index rows);

template <class T>
void run_statistics(const StatisticsProblem<T>& problem, Index rows);

template <class T>
void run_softmax(const SoftmaxProblem<T>& problem, Index rows);

template <class T>
void run_class_blocks(const ClassBlocksProblem<T>& problem, Index classes);

// Each of the vectors (classes, size) becomes the solution of the equations of its block, which has been factored.
template <class T>
void run_solve_blocks(const ClassBlocksProblem<T>& problem, T* vectors, Index classes);

// The first row that is not a distribution, without a loss: for a gradient that is to overwrite the logits.
template <class T>
BadDistribution check_distribution(const ConstRows& distribution, Index classes, Index rows, double tolerance);

// A sum of many doubles that keeps what each addition rounds away (Knuth's two-sum).
class CompensatedSum {
 public:
  void add(double value) {
    const double next = total_ + value;
    const double added = next - total_;
    error_ += (total_ - (next - added)) + (value - added);
    total_ = next;
  }
  double value() const { return std::isfinite(error_) ? total_ + error_ : total_; }

 private:
  double total_ = 0.0, error_ = 0.0;
};

// A sum whose rounding does not depend on the number of threads.
double sum(const double* values, Index count);

}  // namespace softmaxloss
