// CUDA kernels of soft voxelisation: one block per image.

#include "image_match.h"

#include "splat.h"

namespace sparsereco {
namespace {

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, kBlocks)
    splat_kernel(Deposits<scalar_t> deposits, Crop crop, Softness<scalar_t> soft, bool deterministic,
                 scalar_t* __restrict__ image, int64_t* __restrict__ dropped, int64_t* lowest) {
  const Shared<scalar_t> shared{crop.cells()};
  const int64_t i = blockIdx.x;
  const bool sound = segment_is_sound(deposits.offsets, i, deposits.images, deposits.count);
  if (!sound && threadIdx.x == 0) report(fault_at(Fault::kOffsets, i), lowest);
  if (!sound) return;  // the same in all threads
  splat(deposits, i, crop, soft, deterministic, shared, dropped, lowest);
  for (int32_t v = threadIdx.x; v < crop.voxels(); v += kThreads)
    image[i * crop.voxels() + v] = shared.light()[cell_of(v, crop)];
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, kBlocks)
    pull_kernel(Deposits<scalar_t> deposits, Crop crop, Softness<scalar_t> soft,
                const scalar_t* __restrict__ grad_image, scalar_t* __restrict__ grad_position,
                scalar_t* __restrict__ grad_charge, int64_t* lowest) {
  const Shared<scalar_t> shared{crop.cells()};
  const int64_t i = blockIdx.x;
  const bool sound = segment_is_sound(deposits.offsets, i, deposits.images, deposits.count);
  if (!sound && threadIdx.x == 0) report(fault_at(Fault::kOffsets, i), lowest);
  if (!sound) return;  // the same in all threads
  clear_border(crop, shared.slope());
  for (int32_t v = threadIdx.x; v < crop.voxels(); v += kThreads)
    shared.slope()[cell_of(v, crop)] = grad_image[i * crop.voxels() + v];
  __syncthreads();
  pull_all(deposits, i, crop, soft, shared.slope(), grad_position, grad_charge);
}

}  // namespace

template <typename scalar_t>
void launch_splat(Deposits<scalar_t> deposits, Crop crop, double softness, bool deterministic, scalar_t* image,
                  int64_t* dropped, int64_t* fault, cudaStream_t stream) {
  const cudaLaunchConfig_t config = configuration<scalar_t>(deposits.images, crop, stream);
  cudaLaunchKernelEx(&config, splat_kernel<scalar_t>, deposits, crop, Softness<scalar_t>(softness), deterministic,
                     image, dropped, fault);
}

template <typename scalar_t>
void launch_pull(Deposits<scalar_t> deposits, Crop crop, double softness, const scalar_t* grad_image,
                 scalar_t* grad_position, scalar_t* grad_charge, int64_t* fault, cudaStream_t stream) {
  const cudaLaunchConfig_t config = configuration<scalar_t>(deposits.images, crop, stream);
  cudaLaunchKernelEx(&config, pull_kernel<scalar_t>, deposits, crop, Softness<scalar_t>(softness), grad_image,
                     grad_position, grad_charge, fault);
}

#define INSTANTIATE(scalar_t)                                                                                      \
  template void launch_splat(Deposits<scalar_t>, Crop, double, bool, scalar_t*, int64_t*, int64_t*, cudaStream_t); \
  template void launch_pull(Deposits<scalar_t>, Crop, double, const scalar_t*, scalar_t*, scalar_t*, int64_t*,     \
                            cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace sparsereco
