// Checks of the operators on images, shared by the devices. A message names the argument, what was expected and what
// came. Values are looked at by the kernels, on the way (faults.h).

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "faults.h"
#include "image_match.h"
#include "sparse_images.h"

namespace sparsereco {

// What both operators are given of the deposits; `op` stands at the head of each message.
struct DepositTensors {
  const char* op;
  at::Tensor position, charge, offsets;
};

// sizes: -1 for any.
inline void check_tensor(const DepositTensors& given, const char* name, const at::Tensor& tensor,
                         std::initializer_list<int64_t> sizes, const char* letters, at::ScalarType type) {
  bool fits = tensor.dim() == static_cast<int64_t>(sizes.size());
  for (int64_t axis = 0; fits && axis < tensor.dim(); ++axis) {
    const int64_t size = sizes.begin()[axis];
    fits = size < 0 || tensor.size(axis) == size;
  }
  TORCH_CHECK_VALUE(fits, given.op, ": ", name, " must have shape ", letters, ", got ", tensor.sizes());
  TORCH_CHECK_TYPE(tensor.scalar_type() == type, given.op, ": ", name, " must be ", type,
                   at::isFloatingType(type) ? " as position is, got " : ", got ", tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.device() == given.position.device(), given.op, ": ", name, " must be on ",
                    given.position.device(), " as position is, got ", tensor.device());
}

inline void check_deposits(const DepositTensors& given) {
  const at::ScalarType type = given.position.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble, given.op, ": position must be float32 or float64, got ",
                   type);
  check_tensor(given, "position", given.position, {-1, 3}, "(N, 3)", type);
  const int64_t count = given.position.size(0);
  check_tensor(given, "charge", given.charge, {count}, "(N,) with N the rows of position", type);
  check_tensor(given, "offsets", given.offsets, {-1}, "(I + 1,)", at::kLong);
  TORCH_CHECK_VALUE(given.offsets.size(0) > 0 && given.offsets.size(0) <= std::numeric_limits<int32_t>::max(), given.op,
                    ": offsets must have shape (I + 1,) with I a 31-bit number, got ", given.offsets.sizes());
  TORCH_CHECK_VALUE(count == 0 || given.offsets.size(0) > 1, given.op, ": offsets names no image for ", count,
                    " deposits");
}

inline Crop check_crop(const char* op, at::IntArrayRef shape) {
  int64_t cells = 1;
  Crop crop;
  for (int axis = 0; axis < 3; ++axis) {
    TORCH_CHECK_VALUE(shape[axis] > 0 && shape[axis] < kMaxCells, op,
                      ": shape must be three positive numbers of voxels, got ", shape);
    crop.size[axis] = static_cast<int32_t>(shape[axis]);
    cells *= shape[axis] + 2;
  }
  TORCH_CHECK_VALUE(cells <= kMaxCells, op, ": shape is for small images, with a border of one voxel at most ",
                    kMaxCells, " voxels such as 12 x 12 x 12; got ", shape);
  return crop;
}

// An image of which only the lit voxels are kept.
inline Crop check_grid(const char* op, at::IntArrayRef shape, int64_t images) {
  int64_t room = kMaxVoxels / std::max<int64_t>(images, 1);
  Crop grid;
  for (int axis = 0; axis < 3; ++axis) {
    TORCH_CHECK_VALUE(shape[axis] > 0 && shape[axis] <= kMaxSide, op,
                      ": shape must be three numbers of voxels from 1 to 2^24, got ", shape);
    grid.size[axis] = static_cast<int32_t>(shape[axis]);
    room /= shape[axis];
  }
  TORCH_CHECK_VALUE(room > 0, op, ": all images together must have at most 2^62 voxels, got ", images, " images of ",
                    shape);
  return grid;
}

inline void check_softness(const char* op, double softness) {
  TORCH_CHECK_VALUE(softness > 0 && softness <= 0.5, op, ": softness must lie in (0, 0.5], got ", softness);
}

inline Likelihood check_likelihood(std::string_view loss, double crosstalk, std::optional<double> threshold,
                                   double empty_variance, bool has_variance) {
  const bool poisson = loss == "poisson", gaussian = loss == "gaussian", squared = loss == "squared";
  TORCH_CHECK_VALUE(poisson || gaussian || squared,
                    "image_match: loss must be 'poisson', 'gaussian' or 'squared', got '", std::string(loss), "'");
  TORCH_CHECK_VALUE(crosstalk >= 0 && crosstalk <= 1.0 / 6, "image_match: crosstalk must lie in [0, 1/6], got ",
                    crosstalk);
  TORCH_CHECK_VALUE(gaussian == has_variance, "image_match: variance is ", gaussian ? "needed by" : "only for",
                    " the loss 'gaussian', got ", has_variance ? "one" : "none", " with '", std::string(loss), "'");
  TORCH_CHECK_VALUE(empty_variance > 0 && std::isfinite(empty_variance),
                    "image_match: empty_variance must be positive and finite, got ", empty_variance);
  if (!threshold.has_value())
    return {poisson ? Loss::kPoisson : Loss::kGaussian, crosstalk, 0, empty_variance,
            gaussian ? 1 / empty_variance : 1};
  TORCH_CHECK_VALUE(!squared, "image_match: threshold needs a likelihood, which the loss 'squared' is not, got ",
                    *threshold);
  TORCH_CHECK_VALUE(*threshold > 0 && *threshold <= 1000, "image_match: threshold must lie in (0, 1000], got ",
                    *threshold);
  return {poisson ? Loss::kPoissonUnder : Loss::kGaussianUnder, crosstalk, *threshold, empty_variance,
          1 / empty_variance};
}

// What image_match is given besides the deposits.
struct MatchTensors {
  at::Tensor background, index, coords, signal;
  std::optional<at::Tensor> variance;
  at::Tensor measured_offsets;
};

inline void check_match(const DepositTensors& deposits, const MatchTensors& match) {
  const at::ScalarType type = deposits.position.scalar_type();
  const int64_t images = deposits.offsets.size(0) - 1, count = match.coords.dim() > 0 ? match.coords.size(0) : 0;
  check_tensor(deposits, "background", match.background, {images}, "(I,) with I + 1 the length of offsets", type);
  check_tensor(deposits, "index", match.index, {images}, "(I,) with I + 1 the length of offsets", at::kLong);
  check_tensor(deposits, "measured.coords", match.coords, {-1, 3}, "(M, 3)", at::kInt);
  check_tensor(deposits, "measured.signal", match.signal, {count}, "(M,) with M the rows of measured.coords", type);
  if (match.variance)
    check_tensor(deposits, "measured.variance", *match.variance, {count}, "(M,) with M the rows of measured.coords",
                 type);
  check_tensor(deposits, "measured.offsets", match.measured_offsets, {-1}, "(K + 1,)", at::kLong);
  TORCH_CHECK_VALUE(match.measured_offsets.size(0) > 0,
                    "image_match: measured.offsets must have shape (K + 1,), got [0]");
}

// Puts a fault that a kernel found into words. `match` is null for soft_voxelize.
inline void raise_fault(int64_t fault, const DepositTensors& given, const MatchTensors* match = nullptr) {
  if (fault == kNoFault) return;
  const Fault kind = static_cast<Fault>(fault >> kFaultShift);
  const int64_t row = fault - (static_cast<int64_t>(kind) << kFaultShift);
  const auto number = [row](const at::Tensor& values) { return values[row].item<double>(); };
  const auto whole = [](const at::Tensor& values, int64_t i) { return values[i].item<int64_t>(); };
  const char* op = given.op;
  switch (kind) {
    case Fault::kOffsets:
      TORCH_CHECK_VALUE(false, op, ": offsets must rise from 0 to the ", given.position.size(0),
                        " rows of position, got ", whole(given.offsets, row), " and then ",
                        whole(given.offsets, row + 1), " at image ", row, " of ", given.offsets.size(0) - 1);
    case Fault::kPosition: {
      const at::Tensor at = given.position[row];
      TORCH_CHECK_VALUE(false, op, ": position[", row, "] must be finite, got (", at[0].item<double>(), ", ",
                        at[1].item<double>(), ", ", at[2].item<double>(), ")");
    }
    case Fault::kCharge:
      TORCH_CHECK_VALUE(false, op, ": charge[", row, "] must be finite and not negative, got ", number(given.charge));
    case Fault::kBackground:
      TORCH_CHECK_VALUE(false, op, ": background[", row, "] must be finite and not negative, and above 0 for the loss ",
                        "'poisson', got ", number(match->background));
    case Fault::kIndex:
      TORCH_CHECK_VALUE(false, op, ": index[", row, "] must be one of the ", match->measured_offsets.size(0) - 1,
                        " measured images, got ", whole(match->index, row));
    case Fault::kMeasuredOffsets:
      TORCH_CHECK_VALUE(false, op, ": measured.offsets must rise from 0 to the ", match->coords.size(0),
                        " rows of measured.coords, got ", whole(match->measured_offsets, row), " and then ",
                        whole(match->measured_offsets, row + 1), " at image ", row);
    case Fault::kCoords: {
      const at::Tensor at = match->coords[row];
      TORCH_CHECK_VALUE(false, op, ": measured.coords[", row, "] must be inside the image, got (", whole(at, 0), ", ",
                        whole(at, 1), ", ", whole(at, 2), ")");
    }
    case Fault::kTwice: {
      const at::Tensor at = match->coords[row];
      TORCH_CHECK_VALUE(false, op, ": measured.coords[", row, "] names a voxel for the second time, (", whole(at, 0),
                        ", ", whole(at, 1), ", ", whole(at, 2), ")");
    }
    case Fault::kSignal:
      TORCH_CHECK_VALUE(false, op, ": measured.signal[", row, "] must be finite and not negative, got ",
                        number(match->signal));
    case Fault::kVariance:
      TORCH_CHECK_VALUE(false, op, ": measured.variance[", row, "] must be finite and positive, got ",
                        number(*match->variance));
  }
}

inline void make_contiguous(DepositTensors& given) {
  given.position = given.position.contiguous();
  given.charge = given.charge.contiguous();
  given.offsets = given.offsets.contiguous();
}

inline void make_contiguous(MatchTensors& match) {
  for (at::Tensor* tensor : {&match.background, &match.index, &match.coords, &match.signal, &match.measured_offsets})
    *tensor = tensor->contiguous();
  if (match.variance) match.variance = match.variance->contiguous();
}

// Views for the kernels.
template <typename scalar_t>
Deposits<scalar_t> deposits_of(const DepositTensors& given) {
  return {given.position.const_data_ptr<scalar_t>(), given.charge.const_data_ptr<scalar_t>(),
          given.offsets.const_data_ptr<int64_t>(), given.position.size(0), given.offsets.size(0) - 1};
}

template <typename scalar_t>
Measured<scalar_t> measured_of(const MatchTensors& match) {
  return {match.coords.const_data_ptr<int32_t>(),
          match.signal.const_data_ptr<scalar_t>(),
          match.variance ? match.variance->const_data_ptr<scalar_t>() : nullptr,
          match.measured_offsets.const_data_ptr<int64_t>(),
          match.coords.size(0),
          match.measured_offsets.size(0) - 1};
}

}  // namespace sparsereco
