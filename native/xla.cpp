// The calls that XLA makes: its buffers become requests to the kernels of _native, whose threads and instruction set
// are those of every other caller.
//
// Under jax.vmap all arrays but absent ones get leading axes, of length 1 where an array is the same for the whole
// batch (vmap_method "expand_dims"): each element of the batch is a request of its own, with its own reduction.
#include <nanobind/nanobind.h>
#include <sys/mman.h>
#include <xla/ffi/api/ffi.h>

#include <cfenv>
#include <cstdint>
#include <exception>
#include <vector>

#include "requests.hpp"

namespace softmaxloss {
namespace {

namespace ffi = xla::ffi;
namespace nb = nanobind;

const Requests* requests = nullptr;  // those of _native

// XLA's threads flush subnormal numbers to 0. Ours do not, and neither may threads that OpenMP starts from here.
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() {
    std::fegetenv(&callers_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatingPoint() { std::fesetenv(&callers_); }
  DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
  DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;

 private:
  std::fenv_t callers_;
};

// XLA takes a large result's memory fresh from the system, which hands it out page by page as it is written: in pages
// of 4 KiB that takes longer than all else. NumPy asks for larger ones, and so does this.
void prefer_huge_pages(const ffi::AnyBuffer& result) {
#if defined(MADV_HUGEPAGE)
  constexpr std::size_t kLarge = std::size_t{1} << 22;  // as NumPy has it
  constexpr std::uintptr_t kPage = 4096;
  if (result.size_bytes() < kLarge) return;
  const auto begin = reinterpret_cast<std::uintptr_t>(result.untyped_data());
  const std::uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  // Advice: where it is not taken, nothing is wrong.
  madvise(reinterpret_cast<void*>(first), begin + result.size_bytes() - first, MADV_HUGEPAGE);
#else
  (void)result;
#endif
}

// The leading axes of a result: a batch of requests.
class Batch {
 public:
  Batch(const ffi::AnyBuffer& result, std::size_t own_axes)
      : axes_(result.dimensions().begin(), result.dimensions().end()) {
    axes_.resize(axes_.size() - own_axes);
  }
  Index count() const {
    Index product = 1;
    for (const Index length : axes_) product *= length;
    return product;
  }
  const std::vector<Index>& axes() const { return axes_; }

 private:
  std::vector<Index> axes_;
};

// An array of a batch: where the part of each request is. Absent arrays have no elements.
class Batched {
 public:
  Batched(const ffi::AnyBuffer& buffer, const Batch& batch)
      : data_(buffer.element_count() == 0 ? nullptr : static_cast<char*>(buffer.untyped_data())),
        type_(buffer.element_type()),
        axes_(batch.axes()),
        strides_(axes_.size(), 0) {
    const auto dimensions = buffer.dimensions();
    Index stride = static_cast<Index>(ffi::ByteWidth(type_));
    for (std::size_t axis = dimensions.size(); axis-- > 0;) {
      if (axis < axes_.size() && dimensions[axis] > 1) strides_[axis] = stride;
      stride *= dimensions[axis];
    }
  }

  void* at(Index request) const {
    Index offset = 0;
    for (std::size_t axis = axes_.size(); axis-- > 0;) {
      offset += request % axes_[axis] * strides_[axis];
      request /= axes_[axis];
    }
    return data_ ? data_ + offset : nullptr;
  }
  Reals reals_at(Index request) const { return {at(request), type_ == ffi::DataType::F64}; }
  Integers integers_at(Index request) const { return {at(request), type_ == ffi::DataType::S64}; }

 private:
  char* data_;
  ffi::DataType type_;
  std::vector<Index> axes_, strides_;
};

// Of logits (..., before, classes, after), or (..., rows, classes) where two axes are their own.
Shape shape_of(const ffi::AnyBuffer& logits, std::size_t own_axes = 3) {
  const auto own = logits.dimensions().last(own_axes);
  Shape shape{own[0], own[1], own_axes == 3 ? own[2] : 1, Storage::kFloat32};
  if (logits.element_type() == ffi::DataType::F64) shape.storage = Storage::kFloat64;
  if (logits.element_type() == ffi::DataType::F16) shape.storage = Storage::kFloat16;
  if (logits.element_type() == ffi::DataType::BF16) shape.storage = Storage::kBFloat16;
  return shape;
}

// Runs body(i) for each request of the batch.
template <class Body>
ffi::Error answered(const Batch& batch, const Shape& shape, const Body& body) {
  const DefaultFloatingPoint guard;
  try {
    if (batch.count() == 1)
      body(Index{0});
    else
      requests->for_each(batch.count(), shape, body);
    return ffi::Error::Success();
  } catch (const std::exception& error) {
    return ffi::Error::Internal(error.what());
  }
}

// Arguments: logits, labels, sample_weight, class_weight, logit_bias, and a vector where the Hessian times it is asked
// for. Results: the loss, and its gradient where that is asked for, which may take the place of the logits; or the
// product. `axes` are the logits' own.
ffi::Error loss(ffi::RemainingArgs arguments, ffi::RemainingRets results, std::int64_t axes, std::int64_t reduction,
                bool soft, std::int64_t ignore_index, double label_smoothing, double temperature, double softcap,
                double z_loss, double focal_gamma, double poly_epsilon, double tolerance) {
  const bool is_hessian = arguments.size() == 6;
  const auto argument = [&](std::size_t i) { return arguments.get<ffi::AnyBuffer>(i).value(); };
  const auto result = [&](std::size_t i) { return *results.get<ffi::AnyBuffer>(i).value(); };
  const LossOptions options{static_cast<Reduction>(reduction),
                            ignore_index,
                            label_smoothing,
                            temperature,
                            softcap,
                            z_loss,
                            focal_gamma,
                            poly_epsilon,
                            tolerance};
  const auto own_axes = static_cast<std::size_t>(axes);
  const Shape shape = shape_of(argument(0), own_axes);
  const Batch batch(result(0), is_hessian ? own_axes : options.reduction == Reduction::kNone ? own_axes - 1 : 0);
  std::vector<Batched> given, asked;
  for (std::size_t i = 0; i < arguments.size(); ++i) given.emplace_back(argument(i), batch);
  for (std::size_t i = 0; i < results.size(); ++i) {
    prefer_huge_pages(result(i));
    asked.emplace_back(result(i), batch);
  }
  return answered(batch, shape, [&](Index i) {
    LossRequest request;
    request.shape = shape;
    request.options = options;
    request.logits = given[0].at(i);
    if (soft)
      request.distribution = given[1].at(i);
    else
      request.labels = given[1].integers_at(i);
    request.sample_weight = given[2].reals_at(i);
    request.class_weight = given[3].reals_at(i);
    request.logit_bias = given[4].reals_at(i);
    if (is_hessian) {
      request.vector = given[5].at(i);
      request.gradient = asked[0].at(i);
    } else {
      request.loss = asked[0].at(i);
      if (asked.size() > 1) request.gradient = asked[1].at(i);
    }
    requests->loss(request);
  });
}

ffi::Error statistics(ffi::AnyBuffer logits, ffi::AnyBuffer labels, ffi::AnyBuffer bias,
                      ffi::Result<ffi::AnyBuffer> losses, ffi::Result<ffi::AnyBuffer> logsumexps,
                      ffi::Result<ffi::AnyBuffer> predictions, ffi::Result<ffi::AnyBuffer> ranks, double temperature,
                      double softcap) {
  const Shape shape = shape_of(logits);
  const Batch batch(*logsumexps, 2);
  const Batched z(logits, batch), y(labels, batch), b(bias, batch), loss_of(*losses, batch), lse_of(*logsumexps, batch),
      prediction_of(*predictions, batch), rank_of(*ranks, batch);
  return answered(batch, shape, [&](Index i) {
    StatisticsRequest request;
    request.shape = shape;
    request.logits = z.at(i);
    request.labels = y.integers_at(i);
    request.logit_bias = b.reals_at(i);
    request.temperature = temperature;
    request.softcap = softcap;
    request.loss = loss_of.at(i);
    request.logsumexp = lse_of.at(i);
    request.prediction = static_cast<std::int32_t*>(prediction_of.at(i));
    request.rank = static_cast<std::int32_t*>(rank_of.at(i));
    requests->statistics(request);
  });
}

ffi::Error softmax(ffi::AnyBuffer logits, ffi::Result<ffi::AnyBuffer> output, double temperature, bool logarithm,
                   bool only_logsumexp) {
  const Shape shape = shape_of(logits);
  const Batch batch(*output, only_logsumexp ? 2 : 3);
  const Batched z(logits, batch), result(*output, batch);
  prefer_huge_pages(*output);
  return answered(batch, shape, [&](Index i) {
    SoftmaxRequest request;
    request.shape = shape;
    request.logits = z.at(i);
    request.temperature = temperature;
    request.logarithm = logarithm;
    (only_logsumexp ? request.logsumexp : request.output) = result.at(i);
    requests->softmax(request);
  });
}

XLA_FFI_DEFINE_HANDLER(loss_handler, loss,
                       ffi::Ffi::Bind()
                           .RemainingArgs()
                           .RemainingRets()
                           .Attr<std::int64_t>("axes")
                           .Attr<std::int64_t>("reduction")
                           .Attr<bool>("soft")
                           .Attr<std::int64_t>("ignore_index")
                           .Attr<double>("label_smoothing")
                           .Attr<double>("temperature")
                           .Attr<double>("softcap")
                           .Attr<double>("z_loss")
                           .Attr<double>("focal_gamma")
                           .Attr<double>("poly_epsilon")
                           .Attr<double>("tolerance"));

XLA_FFI_DEFINE_HANDLER(statistics_handler, statistics,
                       ffi::Ffi::Bind()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<double>("temperature")
                           .Attr<double>("softcap"));

XLA_FFI_DEFINE_HANDLER(softmax_handler, softmax,
                       ffi::Ffi::Bind()
                           .Arg<ffi::AnyBuffer>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<double>("temperature")
                           .Attr<bool>("logarithm")
                           .Attr<bool>("only_logsumexp"));

nb::capsule capsule(XLA_FFI_Handler* handler) { return nb::capsule(reinterpret_cast<void*>(handler)); }

}  // namespace
}  // namespace softmaxloss

NB_MODULE(_xla, m) {
  using namespace softmaxloss;
  const auto of_native = nb::cast<nb::capsule>(nb::module_::import_("softmaxloss._native").attr("requests"));
  requests = static_cast<const Requests*>(of_native.data("softmaxloss.requests"));
  // By the names that they are registered under.
  nb::dict handlers;
  handlers["softmaxloss_loss"] = capsule(loss_handler);
  handlers["softmaxloss_statistics"] = capsule(statistics_handler);
  handlers["softmaxloss_softmax"] = capsule(softmax_handler);
  m.attr("handlers") = handlers;
}
