// Deposits to an image and back, for one image that stays in the first cache. Free of torch.

#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "../deposits.h"
#include "../faults.h"

namespace sparsereco {

constexpr int kBlock = 512;  // deposits that are located at once: what is kept of them stays in the first cache

// Rows of numbers start apart by no power of two: those would share few lines of the cache.
constexpr int kRow = kBlock + 48;

// Where the deposits from row `start` on lie. Aligned, so that no vector lies across two cache lines.
template <typename scalar_t>
struct Located {
  int64_t start = -1;  // none yet
  alignas(64) int32_t cell[kRow];
  alignas(64) scalar_t low[kRow], high[kRow];      // light for the lower and the upper layer of voxels along x
  alignas(64) scalar_t x[kRow], y[kRow], z[kRow];  // share of the upper layer, and its derivative
  alignas(64) scalar_t slope_x[kRow], slope_y[kRow], slope_z[kRow];
  // A run is of successive deposits in the same cell; each has as many bytes as a share, to be looked up beside it.
  alignas(64) std::conditional_t<sizeof(scalar_t) == 4, int32_t, int64_t> run[kRow];
  int32_t cell_of_run[kBlock];
  int runs;
};

// Buffers of one thread; images have the border of the crop.
template <typename scalar_t>
struct Scratch {
  explicit Scratch(const Crop& crop)
      : inside(crop.cells()), light(crop.cells()), leaked(crop.cells()), slope(crop.cells()) {
    for (int x = 0; x < crop.size[0]; ++x)
      for (int y = 0; y < crop.size[1]; ++y)
        for (int z = 0; z < crop.size[2]; ++z) inside[crop.cell(x, y, z)] = 1;
  }
  std::vector<scalar_t> inside;  // 1 within the image, 0 on the border
  std::vector<scalar_t> light, leaked, slope;
  Located<scalar_t> located;  // always of the same deposits
};

struct Census {
  int64_t dropped, fault;
};

template <typename scalar_t>
struct SplatKernels {
  // Fills scratch.light with the light of deposits [first, last); its border has what falls out of the image.
  Census (*splat)(const Deposits<scalar_t>& deposits, int64_t first, int64_t last, const Crop& crop,
                  const Softness<scalar_t>& soft, Scratch<scalar_t>& scratch);
  // Derivatives with respect to deposits [first, last) from those with respect to the image, whose border is zero.
  void (*pull)(const Deposits<scalar_t>& deposits, int64_t first, int64_t last, const Crop& crop,
               const Softness<scalar_t>& soft, const scalar_t* slope, Located<scalar_t>& at, scalar_t* grad_position,
               scalar_t* grad_charge);
};

template <typename scalar_t>
SplatKernels<scalar_t> splat_kernels_portable();
template <typename scalar_t>
SplatKernels<scalar_t> splat_kernels_avx2();
template <typename scalar_t>
SplatKernels<scalar_t> splat_kernels_avx512();

// Those for this processor; defined by whoever knows it.
template <typename scalar_t>
SplatKernels<scalar_t> splat_kernels();

}  // namespace sparsereco
