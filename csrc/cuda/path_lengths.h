// The CUDA launches, free of torch, so that nvcc alone can compile them (make cuda-check). For float and double.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../path_lengths.h"

namespace sparsereco {

// counts[i] = number of voxels that segment i crosses.
template <typename scalar_t>
void launch_count_crossed(const scalar_t* start, const scalar_t* end, Grid grid, int64_t n, int64_t* counts,
                          cudaStream_t stream);

// stops[i] = inclusive prefix sum of the counts.
template <typename scalar_t>
void launch_write_crossed(const scalar_t* start, const scalar_t* end, Grid grid, int64_t n, const int64_t* stops,
                          int64_t* segment, int32_t* coords, scalar_t* length, cudaStream_t stream);

}  // namespace sparsereco
