// The CUDA launches on images, free of torch, so that nvcc alone can compile them (make cuda-check) and a C++ compiler
// can emulate them (csrc/emulator). Instantiated for float and double. Arguments as in cpu/images.h; `fault` (faults.h)
// lies on the device, holds kNoFault, and receives the lowest one. At least one image.

#pragma once

#include <cuda_runtime.h>

#include "../image_match.h"

namespace sparsereco {

// deterministic: the same bits in every run, at the price of looking at every deposit from every voxel.
template <typename scalar_t>
void launch_match(Deposits<scalar_t> deposits, const scalar_t* background, const int64_t* index,
                  Measured<scalar_t> measured, Crop crop, double softness, Likelihood likelihood, bool deterministic,
                  Match<scalar_t> match, int64_t* fault, cudaStream_t stream);

template <typename scalar_t>
void launch_splat(Deposits<scalar_t> deposits, Crop crop, double softness, bool deterministic, scalar_t* image,
                  int64_t* dropped, int64_t* fault, cudaStream_t stream);

template <typename scalar_t>
void launch_pull(Deposits<scalar_t> deposits, Crop crop, double softness, const scalar_t* grad_image,
                 scalar_t* grad_position, scalar_t* grad_charge, int64_t* fault, cudaStream_t stream);

// The voxels of each deposit, numbered through all images (-1: no light, or outside), and its light there: (count, 8).
template <typename scalar_t>
void launch_place(Deposits<scalar_t> deposits, Crop grid, double softness, int64_t* voxel, scalar_t* light,
                  int64_t* dropped, int64_t* fault, cudaStream_t stream);

// grad: (count, 8) derivatives with respect to that light. At least one deposit.
template <typename scalar_t>
void launch_pull_places(Deposits<scalar_t> deposits, Crop grid, double softness, const scalar_t* grad,
                        scalar_t* grad_position, scalar_t* grad_charge, cudaStream_t stream);

}  // namespace sparsereco
