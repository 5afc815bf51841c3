// CUDA kernels: one thread per segment, twice (count, fill). No atomics: the result does not depend on the schedule.

#include "path_lengths.h"

namespace sparsereco {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 4;  // resident on a multiprocessor at the least: 64 registers per thread, and none is spilled
constexpr int64_t kMaxBlocks = 65535;

unsigned int blocks_for(int64_t n) {
  const int64_t blocks = (n + kThreads - 1) / kThreads;
  return static_cast<unsigned int>(blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, kBlocks)
    count_crossed_kernel(const scalar_t* __restrict__ start, const scalar_t* __restrict__ end, Grid grid, int64_t n,
                         int64_t* __restrict__ counts) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride)
    counts[i] = count_crossed(start, end, grid, i);
}

template <typename scalar_t>
__global__ void __launch_bounds__(kThreads, kBlocks)
    write_crossed_kernel(const scalar_t* __restrict__ start, const scalar_t* __restrict__ end, Grid grid, int64_t n,
                         const int64_t* __restrict__ stops, int64_t* __restrict__ segment, int32_t* __restrict__ coords,
                         scalar_t* __restrict__ length) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride)
    write_crossed(start, end, grid, i, i > 0 ? stops[i - 1] : 0, stops[i], segment, coords, length);
}

}  // namespace

template <typename scalar_t>
void launch_count_crossed(const scalar_t* start, const scalar_t* end, Grid grid, int64_t n, int64_t* counts,
                          cudaStream_t stream) {
  count_crossed_kernel<<<blocks_for(n), kThreads, 0, stream>>>(start, end, grid, n, counts);
}

template <typename scalar_t>
void launch_write_crossed(const scalar_t* start, const scalar_t* end, Grid grid, int64_t n, const int64_t* stops,
                          int64_t* segment, int32_t* coords, scalar_t* length, cudaStream_t stream) {
  write_crossed_kernel<<<blocks_for(n), kThreads, 0, stream>>>(start, end, grid, n, stops, segment, coords, length);
}

#define INSTANTIATE(scalar_t)                                                                                   \
  template void launch_count_crossed<scalar_t>(const scalar_t*, const scalar_t*, Grid, int64_t, int64_t*,       \
                                               cudaStream_t);                                                   \
  template void launch_write_crossed<scalar_t>(const scalar_t*, const scalar_t*, Grid, int64_t, const int64_t*, \
                                               int64_t*, int32_t*, scalar_t*, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace sparsereco
