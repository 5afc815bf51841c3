// Checks shared by the devices. A message names the argument, what was expected and what came.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <limits>

#include "path_lengths.h"

namespace sparsereco {

inline void check_points(const at::Tensor& points, const char* name) {
  TORCH_CHECK_VALUE(points.dim() == 2 && points.size(1) == 3, "path_lengths: ", name, " must have shape (N, 3), got ",
                    points.sizes());
  TORCH_CHECK_TYPE(points.scalar_type() == at::kFloat || points.scalar_type() == at::kDouble, "path_lengths: ", name,
                   " must be float32 or float64, got ", points.scalar_type());
  // One comparison finds NaN, infinity and positions too far away to be meant; 2^31 also keeps squares from overflow.
  const at::Tensor near = points.abs().lt(2147483648.0);
  if (!near.all().item<bool>()) {
    const at::Tensor where = near.logical_not().nonzero()[0];
    const int64_t row = where[0].item<int64_t>(), axis = where[1].item<int64_t>();
    TORCH_CHECK_VALUE(false, "path_lengths: ", name, "[", row, ", ", axis,
                      "] must be finite and within 2^31 voxels, got ", points[row][axis].item<double>());
  }
}

inline Grid check_path_lengths(const at::Tensor& start, const at::Tensor& end, at::IntArrayRef shape) {
  check_points(start, "start");
  check_points(end, "end");
  TORCH_CHECK_VALUE(start.size(0) == end.size(0), "path_lengths: start and end must have the same number of rows, got ",
                    start.size(0), " and ", end.size(0));
  TORCH_CHECK_TYPE(start.scalar_type() == end.scalar_type(),
                   "path_lengths: start and end must have the same dtype, got ", start.scalar_type(), " and ",
                   end.scalar_type());
  Grid grid;
  for (int axis = 0; axis < 3; ++axis) {
    TORCH_CHECK_VALUE(shape[axis] > 0 && shape[axis] <= std::numeric_limits<int32_t>::max(),
                      "path_lengths: shape must be three positive int32 numbers of voxels, got ", shape);
    grid.size[axis] = shape[axis];
  }
  return grid;
}

}  // namespace sparsereco
