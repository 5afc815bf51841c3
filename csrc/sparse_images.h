// Deposits in images of any size, of which only the voxels that get light are kept: host and device.

#pragma once

#include <cstdint>

#include "deposits.h"

namespace sparsereco {

constexpr int64_t kMaxSide = 1 << 24;      // of an image in voxels: float32 still tells one from the next
constexpr int64_t kMaxVoxels = 1LL << 62;  // of all images together: each has a number

// Where a deposit lies, and its eight voxels in the order of Eight, as their numbers in an image; -1 stands for a voxel
// outside, and for one that gets none of the deposit's light.
template <typename scalar_t>
struct Place {
  Corners<scalar_t> at;  // at.cell is of no use
  int64_t voxel[8];
};

template <typename scalar_t>
SPARSERECO_HD Place<scalar_t> place(const scalar_t* position, const Crop& image, const Softness<scalar_t>& soft) {
  const Edge<scalar_t> edges[3] = {edge(position[0], image.size[0], soft), edge(position[1], image.size[1], soft),
                                   edge(position[2], image.size[2], soft)};
  Place<scalar_t> found{{0, edges[0].lit * edges[1].lit * edges[2].lit, edges[0], edges[1], edges[2]}, {}};
  for (int corner = 0; corner < 8; ++corner) {
    int64_t voxel = 0;
    bool lit = true;
    for (int axis = 0; axis < 3; ++axis) {
      const bool upper = (corner >> (2 - axis) & 1) != 0;
      const int32_t index = static_cast<int32_t>(edges[axis].plane) - (upper ? 0 : 1);
      lit = lit && (upper ? edges[axis].above > 0 : edges[axis].above < 1) && index >= 0 && index < image.size[axis];
      voxel = voxel * image.size[axis] + index;
    }
    found.voxel[corner] = lit ? voxel : -1;
  }
  return found;
}

template <typename scalar_t>
SPARSERECO_HD void flatten(const Eight<scalar_t>& eight, scalar_t* to) {
  const Pair<scalar_t> pairs[4] = {eight.low_low, eight.low_high, eight.high_low, eight.high_high};
  for (int k = 0; k < 4; ++k) {
    to[2 * k] = pairs[k].low;
    to[2 * k + 1] = pairs[k].high;
  }
}

template <typename scalar_t>
SPARSERECO_HD Eight<scalar_t> unflatten(const scalar_t* from) {
  return {{from[0], from[1]}, {from[2], from[3]}, {from[4], from[5]}, {from[6], from[7]}};
}

}  // namespace sparsereco
