// Deposits to an image and back, for one image that a block holds in shared memory. Free of torch.

#pragma once

#include "image_match.h"

namespace sparsereco {

// All of a block's shared memory; `Shared` says what lies where.
extern __shared__ double shared_memory[];

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocks = 5;  // resident on a multiprocessor at the least: 96 registers per thread, and none is spilled
constexpr int kTile = 64;   // deposits that all threads look at together, in deterministic mode
constexpr unsigned kAll = 0xffffffffu;

// What a voxel must know of a deposit.
template <typename scalar_t>
struct Near {
  scalar_t charge, x, y, z;  // x, y, z: share of the upper voxel
  int32_t cell;
};

// Addresses are worked out where they are used: kept, they would fill registers.
template <typename scalar_t>
struct Shared {
  int32_t cells;

  __device__ double* partial() const { return shared_memory; }  // (kWarps,)
  __device__ Near<scalar_t>* tile() const {                     // (kTile,)
    return reinterpret_cast<Near<scalar_t>*>(shared_memory + kWarps);
  }
  __device__ scalar_t* light() const { return reinterpret_cast<scalar_t*>(tile() + kTile); }  // (cells,)
  __device__ scalar_t* slope() const { return light() + cells; }                              // (cells,)
  __device__ uint32_t* measured() const {  // one bit per cell: it has a measured signal
    return reinterpret_cast<uint32_t*>(slope() + cells);
  }
  static constexpr size_t bytes(int32_t cells) {
    return kWarps * sizeof(double) + kTile * sizeof(Near<scalar_t>) + 2 * cells * sizeof(scalar_t) +
           (cells + 31) / 32 * sizeof(uint32_t);
  }
};

// Every GPU gives 48 kB to a block. Images of 7 x 7 x 7 voxels, which have 9 x 9 x 9 cells, let kBlocks blocks into the
// 100 kB of the smallest multiprocessors since sm_80, each of which takes 1 kB for itself.
static_assert(Shared<double>::bytes(kMaxCells) <= 48 * 1024);
static_assert(kBlocks * (Shared<double>::bytes(9 * 9 * 9) + 1024) <= 100 * 1024);

__device__ inline void report(int64_t fault, int64_t* lowest) {
  static_assert(sizeof(long long) == sizeof(int64_t));
  if (fault != kNoFault) atomicMin(reinterpret_cast<long long*>(lowest), static_cast<long long>(fault));
}

// The same order of additions in every run.
__device__ inline double block_sum(double value, double* partial) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(kAll, value, step);
  __syncthreads();  // the last sum may still be read
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  for (int warp = 0; warp < kWarps; ++warp) total += partial[warp];
  return total;
}

// Sums `value` over the lanes [lane, end); what lanes that do not start a run get is of no use.
template <typename scalar_t>
__device__ inline scalar_t run_sum(scalar_t value, int end) {
  const int lane = threadIdx.x % 32;
  for (int step = 1; step < 32; step *= 2) {
    const scalar_t other = __shfl_down_sync(kAll, value, step);
    if (lane + step < end) value += other;
  }
  return value;
}

template <typename scalar_t>
__device__ inline void add_pair(const Pair<scalar_t>& pair, int end, bool starts, scalar_t* at) {
  const scalar_t low = run_sum(pair.low, end), high = run_sum(pair.high, end);
  if (!starts) return;
  atomicAdd(at, low);
  atomicAdd(at + 1, high);
}

// Adds the light of one deposit per thread. Along a track, successive deposits light the same voxels: a warp adds each
// run of them up before it touches shared memory. All threads of the warp take part.
template <typename scalar_t>
__device__ inline void add_light(const Corners<scalar_t>& at, scalar_t charge, const Crop& crop, scalar_t* light) {
  const int lane = threadIdx.x % 32;
  const int32_t before = __shfl_up_sync(kAll, at.cell, 1);
  const bool starts = lane == 0 || at.cell != before;
  const unsigned later = __ballot_sync(kAll, starts) & ~(2u * (1u << lane) - 1u);  // runs that start after this lane
  const int end = later ? __ffs(static_cast<int>(later)) - 1 : 32;
  const Eight<scalar_t> share = shares(at, charge);
  scalar_t* low = light + at.cell;
  scalar_t* high = low + crop.stride(0);
  add_pair(share.low_low, end, starts, low);
  add_pair(share.low_high, end, starts, low + crop.stride(1));
  add_pair(share.high_low, end, starts, high);
  add_pair(share.high_high, end, starts, high + crop.stride(1));
}

// Light that the voxel of cell c gets from one deposit.
template <typename scalar_t>
__device__ inline scalar_t light_from(const Near<scalar_t>& near, int32_t c, const Crop& crop) {
  const int32_t step = c - near.cell;
  const bool x = step >= crop.stride(0);
  const int32_t in_plane = step - (x ? crop.stride(0) : 0);
  const bool y = in_plane >= crop.stride(1);
  const int32_t in_row = in_plane - (y ? crop.stride(1) : 0);
  if (in_row != 0 && in_row != 1) return 0;
  return near.charge * (x ? near.x : 1 - near.x) * (y ? near.y : 1 - near.y) * (in_row ? near.z : 1 - near.z);
}

// Fills the light of image i, border included, and counts the deposits that light none of its voxels.
template <typename scalar_t>
__device__ void splat(const Deposits<scalar_t>& deposits, int64_t i, const Crop& crop, const Softness<scalar_t>& soft,
                      bool deterministic, const Shared<scalar_t>& shared, int64_t* dropped, int64_t* lowest) {
  const int64_t first = deposits.offsets[i], last = deposits.offsets[i + 1];
  const int32_t cells = crop.cells();
  for (int32_t c = threadIdx.x; c < cells; c += kThreads) shared.light()[c] = 0;
  __syncthreads();
  int64_t fault = kNoFault;
  double lit = 0;
  const int width = deterministic ? kTile : kThreads;
  for (int64_t start = first; start < last; start += width) {
    const int64_t j = start + threadIdx.x;
    const bool mine = static_cast<int>(threadIdx.x) < width && j < last;
    scalar_t x = -1, y = -1, z = -1, charge = 0;  // idle threads light nothing
    if (mine) {
      x = deposits.position[3 * j];
      y = deposits.position[3 * j + 1];
      z = deposits.position[3 * j + 2];
      charge = deposits.charge[j];
      if (!(is_finite(x) && is_finite(y) && is_finite(z))) fault = lower_fault(fault, fault_at(Fault::kPosition, j));
      if (!is_finite_and_not_negative(charge)) fault = lower_fault(fault, fault_at(Fault::kCharge, j));
    }
    const Corners<scalar_t> at = corners(x, y, z, crop, soft);
    lit += static_cast<double>(at.lit);
    if (!deterministic) {
      add_light(at, charge, crop, shared.light());
      continue;
    }
    if (static_cast<int>(threadIdx.x) < kTile)
      shared.tile()[threadIdx.x] = {charge, at.x.above, at.y.above, at.z.above, at.cell};
    __syncthreads();
    for (int32_t c = threadIdx.x; c < cells; c += kThreads) {
      scalar_t sum = 0;
      for (int k = 0; k < kTile; ++k) sum += light_from(shared.tile()[k], c, crop);
      shared.light()[c] += sum;
    }
    __syncthreads();
  }
  report(fault, lowest);
  const double total = block_sum(lit, shared.partial());  // synchronises: all light is there
  if (threadIdx.x == 0) dropped[i] = last - first - static_cast<int64_t>(total);
}

template <typename scalar_t>
__device__ inline void pull_all(const Deposits<scalar_t>& deposits, int64_t i, const Crop& crop,
                                const Softness<scalar_t>& soft, const scalar_t* slope, scalar_t* grad_position,
                                scalar_t* grad_charge) {
  const int32_t up_x = crop.stride(0), up_y = crop.stride(1);
  for (int64_t j = deposits.offsets[i] + threadIdx.x; j < deposits.offsets[i + 1]; j += kThreads) {
    const scalar_t* r = deposits.position + 3 * j;
    const Corners<scalar_t> at = corners(r[0], r[1], r[2], crop, soft);
    const int32_t low = at.cell, high = low + up_x;
    const Eight<scalar_t> g{{slope[low], slope[low + 1]},
                            {slope[low + up_y], slope[low + up_y + 1]},
                            {slope[high], slope[high + 1]},
                            {slope[high + up_y], slope[high + up_y + 1]}};
    const Pull<scalar_t> grad = pull(g, at.x, at.y, at.z, deposits.charge[j]);
    grad_charge[j] = grad.charge;
    grad_position[3 * j] = grad.x;
    grad_position[3 * j + 1] = grad.y;
    grad_position[3 * j + 2] = grad.z;
  }
}

// Cell of voxel v, in the order of a dense image.
__device__ inline int32_t cell_of(int32_t v, const Crop& crop) {
  const int32_t z = v % crop.size[2], xy = v / crop.size[2];
  return crop.cell(xy / crop.size[1], xy % crop.size[1], z);
}

template <typename scalar_t>
__device__ inline void clear_border(const Crop& crop, scalar_t* image) {
  for (int32_t c = threadIdx.x; c < crop.cells(); c += kThreads) {
    const int32_t x = c / crop.stride(0), yz = c % crop.stride(0), y = yz / crop.stride(1), z = yz % crop.stride(1);
    const bool inside = x > 0 && x <= crop.size[0] && y > 0 && y <= crop.size[1] && z > 0 && z <= crop.size[2];
    if (!inside) image[c] = 0;
  }
}

// One block per image.
template <typename scalar_t>
cudaLaunchConfig_t configuration(int64_t images, const Crop& crop, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned int>(images));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = Shared<scalar_t>::bytes(crop.cells());
  config.stream = stream;
  return config;
}

}  // namespace sparsereco
