// CUDA kernel of image matching: one block per image, whose light and derivatives stay in shared memory.

#include "image_match.h"

#include "splat.h"

namespace sparsereco {
namespace {

// Light of a voxel after crosstalk, or the derivative with respect to its light before. The image's border is zero.
template <typename scalar_t>
__device__ scalar_t leaked(const scalar_t* image, int32_t c, const Crop& crop, scalar_t share) {
  if (share == 0) return image[c];
  const int32_t x = crop.stride(0), y = crop.stride(1);
  const scalar_t around = image[c - x] + image[c + x] + image[c - y] + image[c + y] + image[c - 1] + image[c + 1];
  return (1 - 6 * share) * image[c] + share * around;
}

// Marks the cells of the measured image [first, last). Rows that cannot be used are reported.
template <typename scalar_t>
__device__ int64_t mark(const Measured<scalar_t>& measured, int64_t first, int64_t last, const Crop& crop,
                        uint32_t* marks) {
  int64_t fault = kNoFault;
  for (int64_t m = first + threadIdx.x; m < last; m += kThreads) {
    const int32_t c = measured.cell(m, crop);
    if (c < 0) {
      fault = lower_fault(fault, fault_at(Fault::kCoords, m));
      continue;
    }
    const uint32_t bit = 1u << (c % 32);
    if (atomicOr(&marks[c / 32], bit) & bit) fault = lower_fault(fault, fault_at(Fault::kTwice, m));
    fault = lower_fault(fault, measured.fault(m));
  }
  return fault;
}

template <Loss loss, typename scalar_t>
__global__ void __launch_bounds__(kThreads, kBlocks)
    match_kernel(Deposits<scalar_t> deposits, const scalar_t* __restrict__ background,
                 const int64_t* __restrict__ index, Measured<scalar_t> measured, Crop crop, Softness<scalar_t> soft,
                 Likelihood likelihood, bool deterministic, Match<scalar_t> match, int64_t* lowest) {
  const Shared<scalar_t> shared{crop.cells()};
  const scalar_t share = static_cast<scalar_t>(likelihood.crosstalk);
  const int64_t i = blockIdx.x;
  const int64_t fault = image_fault(deposits, index, measured, i);
  if (threadIdx.x == 0) report(fault, lowest);
  if (fault != kNoFault) return;  // the same in all threads
  if (threadIdx.x == 0) report(background_fault<loss>(background[i], i), lowest);

  const int64_t first = measured.offsets[index[i]], last = measured.offsets[index[i] + 1];
  for (int32_t c = threadIdx.x; c < crop.cells(); c += kThreads) {
    shared.slope()[c] = 0;
    if (c % 32 == 0) shared.measured()[c / 32] = 0;
  }
  splat(deposits, i, crop, soft, deterministic, shared, match.dropped, lowest);
  clear_border(crop, shared.light());
  report(mark(measured, first, last, crop, shared.measured()), lowest);
  __syncthreads();

  double value = 0, slope = 0;
  for (int32_t v = threadIdx.x; v < crop.voxels(); v += kThreads) {
    const int32_t c = cell_of(v, crop);
    if (shared.measured()[c / 32] >> (c % 32) & 1u) continue;
    const Term<scalar_t> term = empty_term<loss>(background[i] + leaked(shared.light(), c, crop, share), likelihood);
    shared.slope()[c] = term.slope;
    value += term.value;
    slope += term.slope;
  }
  for (int64_t m = first + threadIdx.x; m < last; m += kThreads) {
    const int32_t c = measured.cell(m, crop);
    if (c < 0) continue;
    const Term<scalar_t> term = measured_term<loss>(background[i] + leaked(shared.light(), c, crop, share),
                                                    measured.signal[m], measured.variance_of(m), likelihood);
    shared.slope()[c] = term.slope;
    value += term.value;
    slope += term.slope;
  }
  value = block_sum(value, shared.partial());  // synchronises: all derivatives are there, and light is read no more
  slope = block_sum(slope, shared.partial());
  if (threadIdx.x == 0) match.loss[i] = static_cast<scalar_t>(value);
  if (match.grad_background == nullptr) return;  // the same in all threads
  if (threadIdx.x == 0) match.grad_background[i] = static_cast<scalar_t>(slope);
  const scalar_t* derivatives = shared.slope();
  if (share > 0) {
    for (int32_t v = threadIdx.x; v < crop.voxels(); v += kThreads) {
      const int32_t c = cell_of(v, crop);
      shared.light()[c] = leaked(shared.slope(), c, crop, share);
    }
    derivatives = shared.light();
    __syncthreads();
  }
  pull_all(deposits, i, crop, soft, derivatives, match.grad_position, match.grad_charge);
}

}  // namespace

template <typename scalar_t>
void launch_match(Deposits<scalar_t> deposits, const scalar_t* background, const int64_t* index,
                  Measured<scalar_t> measured, Crop crop, double softness, Likelihood likelihood, bool deterministic,
                  Match<scalar_t> match, int64_t* fault, cudaStream_t stream) {
  const auto kernel = likelihood.loss == Loss::kPoisson        ? match_kernel<Loss::kPoisson, scalar_t>
                      : likelihood.loss == Loss::kPoissonUnder ? match_kernel<Loss::kPoissonUnder, scalar_t>
                      : likelihood.loss == Loss::kGaussian     ? match_kernel<Loss::kGaussian, scalar_t>
                                                               : match_kernel<Loss::kGaussianUnder, scalar_t>;
  const cudaLaunchConfig_t config = configuration<scalar_t>(deposits.images, crop, stream);
  cudaLaunchKernelEx(&config, kernel, deposits, background, index, measured, crop, Softness<scalar_t>(softness),
                     likelihood, deterministic, match, fault);
}

#define INSTANTIATE(scalar_t)                                                                                       \
  template void launch_match(Deposits<scalar_t>, const scalar_t*, const int64_t*, Measured<scalar_t>, Crop, double, \
                             Likelihood, bool, Match<scalar_t>, int64_t*, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace sparsereco
