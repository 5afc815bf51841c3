// CUDA kernels of sparse soft voxelisation. What one deposit does; torch sorts the voxels and adds up the light.

#include "image_match.h"

#include "../sparse_images.h"
#include "splat.h"

namespace sparsereco {
namespace {

// One block per image. The voxels of image i are numbered from i times the size of an image on.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, kBlocks)
    place_kernel(Deposits<scalar_t> deposits, Crop grid, Softness<scalar_t> soft, int64_t* __restrict__ voxel,
                 scalar_t* __restrict__ light, int64_t* __restrict__ dropped, int64_t* lowest) {
  const int64_t i = blockIdx.x;
  const bool sound = segment_is_sound(deposits.offsets, i, deposits.images, deposits.count);
  if (!sound && threadIdx.x == 0) report(fault_at(Fault::kOffsets, i), lowest);
  if (!sound) return;  // the same in all threads
  const int64_t first = deposits.offsets[i], last = deposits.offsets[i + 1];
  const int64_t origin = i * grid.size[0] * grid.size[1] * grid.size[2];
  int64_t fault = kNoFault;
  double lit = 0;
  for (int64_t j = first + threadIdx.x; j < last; j += kThreads) {
    const scalar_t* r = deposits.position + 3 * j;
    if (!(is_finite(r[0]) && is_finite(r[1]) && is_finite(r[2])))
      fault = lower_fault(fault, fault_at(Fault::kPosition, j));
    if (!is_finite_and_not_negative(deposits.charge[j])) fault = lower_fault(fault, fault_at(Fault::kCharge, j));
    const Place<scalar_t> found = place(r, grid, soft);
    lit += static_cast<double>(found.at.lit);
    for (int k = 0; k < 8; ++k) voxel[8 * j + k] = found.voxel[k] < 0 ? -1 : origin + found.voxel[k];
    flatten(shares(found.at, deposits.charge[j]), light + 8 * j);
  }
  report(fault, lowest);
  const double total = block_sum(lit, shared_memory);
  if (threadIdx.x == 0) dropped[i] = last - first - static_cast<int64_t>(total);
}

// One thread per deposit; grad: (count, 8) derivatives with respect to its voxels.
template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, kBlocks)
    pull_places_kernel(Deposits<scalar_t> deposits, Crop grid, Softness<scalar_t> soft,
                       const scalar_t* __restrict__ grad, scalar_t* __restrict__ grad_position,
                       scalar_t* __restrict__ grad_charge) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (j >= deposits.count) return;
  const Place<scalar_t> found = place(deposits.position + 3 * j, grid, soft);
  const Pull<scalar_t> pulled = pull(unflatten(grad + 8 * j), found.at.x, found.at.y, found.at.z, deposits.charge[j]);
  grad_charge[j] = pulled.charge;
  grad_position[3 * j] = pulled.x;
  grad_position[3 * j + 1] = pulled.y;
  grad_position[3 * j + 2] = pulled.z;
}

cudaLaunchConfig_t of_blocks(int64_t blocks, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned int>(blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kWarps * sizeof(double);
  config.stream = stream;
  return config;
}

}  // namespace

template <typename scalar_t>
void launch_place(Deposits<scalar_t> deposits, Crop grid, double softness, int64_t* voxel, scalar_t* light,
                  int64_t* dropped, int64_t* fault, cudaStream_t stream) {
  const cudaLaunchConfig_t config = of_blocks(deposits.images, stream);
  cudaLaunchKernelEx(&config, place_kernel<scalar_t>, deposits, grid, Softness<scalar_t>(softness), voxel, light,
                     dropped, fault);
}

template <typename scalar_t>
void launch_pull_places(Deposits<scalar_t> deposits, Crop grid, double softness, const scalar_t* grad,
                        scalar_t* grad_position, scalar_t* grad_charge, cudaStream_t stream) {
  const cudaLaunchConfig_t config = of_blocks((deposits.count + kThreads - 1) / kThreads, stream);
  cudaLaunchKernelEx(&config, pull_places_kernel<scalar_t>, deposits, grid, Softness<scalar_t>(softness), grad,
                     grad_position, grad_charge);
}

#define INSTANTIATE(scalar_t)                                                                                          \
  template void launch_place(Deposits<scalar_t>, Crop, double, int64_t*, scalar_t*, int64_t*, int64_t*, cudaStream_t); \
  template void launch_pull_places(Deposits<scalar_t>, Crop, double, const scalar_t*, scalar_t*, scalar_t*,            \
                                   cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace sparsereco
