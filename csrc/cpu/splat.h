// Deposits to an image and back, for one image that stays in the first cache. Free of torch.

#pragma once

#include <algorithm>
#include <vector>

#include "../deposits.h"
#include "../faults.h"

namespace sparsereco {

constexpr int kBlock =
    64;  // deposits whose shares are computed at once, with vector instructions, before they are added up

// Buffers of one thread, each with the border of the crop.
template <typename scalar_t>
struct Scratch {
  explicit Scratch(const Crop& crop)
      : inside(crop.cells()),
        light(crop.cells()),
        odd(crop.cells()),
        value(crop.cells()),
        slope(crop.cells()),
        seen(crop.cells()) {
    for (int x = 0; x < crop.size[0]; ++x)
      for (int y = 0; y < crop.size[1]; ++y)
        for (int z = 0; z < crop.size[2]; ++z) inside[crop.cell(x, y, z)] = 1;
  }
  std::vector<scalar_t> inside;  // 1 within the image, 0 on the border
  std::vector<scalar_t> light, odd, value, slope;
  std::vector<uint8_t> seen;
};

struct Census {
  int64_t dropped, fault;
};

template <typename scalar_t>
int64_t find_fault(const Deposits<scalar_t>& deposits, int64_t first, int64_t last) {
  int64_t fault = kNoFault;
  for (int64_t j = first; j < last; ++j) {
    for (int axis = 0; axis < 3; ++axis)
      if (!is_finite(deposits.position[3 * j + axis])) fault = lower_fault(fault, fault_at(Fault::kPosition, j));
    if (!is_finite_and_not_negative(deposits.charge[j])) fault = lower_fault(fault, fault_at(Fault::kCharge, j));
  }
  return fault;
}

template <typename scalar_t>
SPARSERECO_HD void add(const Pair<scalar_t>& light, scalar_t* at) {
  at[0] += light.low;
  at[1] += light.high;
}

// Adds the light of deposits [first, last) to an image that is zero.
template <typename scalar_t>
SPARSERECO_HD Census splat(const Deposits<scalar_t>& deposits, int64_t first, int64_t last, const Crop& crop,
                           const Softness<scalar_t>& soft, Scratch<scalar_t>& scratch) {
  const int32_t cells = crop.cells();
  scalar_t* __restrict__ even = scratch.light.data();
  scalar_t* __restrict__ odd = scratch.odd.data();
  std::fill_n(even, cells, scalar_t(0));
  std::fill_n(odd, cells, scalar_t(0));

  const int32_t up_x = crop.stride(0), up_y = crop.stride(1);
  int32_t cell[kBlock];
  Eight<scalar_t> share[kBlock];
  scalar_t lit = 0, flaw = 0;
  for (int64_t start = first; start < last; start += kBlock) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, last - start));
    const scalar_t* __restrict__ position = deposits.position + 3 * start;
    const scalar_t* __restrict__ charge = deposits.charge + start;
#pragma omp simd reduction(+ : lit, flaw)
    for (int j = 0; j < n; ++j) {
      const scalar_t x = position[3 * j], y = position[3 * j + 1], z = position[3 * j + 2], q = charge[j];
      const Corners<scalar_t> at = corners(x, y, z, crop, soft);
      cell[j] = at.cell;
      share[j] = shares(at, q);
      lit += at.lit;
      flaw += (x - x) + (y - y) + (z - z) + (q - q) + (q < 0 ? scalar_t(1) : scalar_t(0));  // 0, or NaN if not finite
    }
    // Successive deposits often light the same voxels: two images in turn keep one sum from waiting for the other.
    for (int j = 0; j < n; ++j) {
      scalar_t* at = (j & 1 ? odd : even) + cell[j];
      add(share[j].low_low, at);
      add(share[j].low_high, at + up_y);
      add(share[j].high_low, at + up_x);
      add(share[j].high_high, at + up_x + up_y);
    }
  }

  const scalar_t* __restrict__ inside = scratch.inside.data();
  for (int32_t c = 0; c < cells; ++c) even[c] = (even[c] + odd[c]) * inside[c];
  return {last - first - static_cast<int64_t>(lit), flaw == 0 ? kNoFault : find_fault(deposits, first, last)};
}

// Derivatives with respect to deposits [first, last) from those with respect to the image, whose border is zero.
template <typename scalar_t>
SPARSERECO_HD void pull_all(const Deposits<scalar_t>& deposits, int64_t first, int64_t last, Crop crop,
                            Softness<scalar_t> soft, const scalar_t* __restrict__ slope,
                            scalar_t* __restrict__ grad_position, scalar_t* __restrict__ grad_charge) {
  const scalar_t* __restrict__ position = deposits.position;
  const scalar_t* __restrict__ charge = deposits.charge;
  const int32_t up_x = crop.stride(0), up_y = crop.stride(1);
#pragma GCC ivdep
  for (int64_t j = first; j < last; ++j) {
    const scalar_t q = charge[j];
    const Corners<scalar_t> at = corners(position[3 * j], position[3 * j + 1], position[3 * j + 2], crop, soft);
    const int32_t low = at.cell, high = low + up_x;
    const Eight<scalar_t> g{{slope[low], slope[low + 1]},
                            {slope[low + up_y], slope[low + up_y + 1]},
                            {slope[high], slope[high + 1]},
                            {slope[high + up_y], slope[high + up_y + 1]}};
    const Pull<scalar_t> grad = pull(g, at, q);
    grad_charge[j] = grad.charge;
    grad_position[3 * j] = grad.x;
    grad_position[3 * j + 1] = grad.y;
    grad_position[3 * j + 2] = grad.z;
  }
}

}  // namespace sparsereco
