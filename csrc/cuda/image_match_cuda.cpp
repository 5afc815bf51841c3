// Binds the CUDA launches on images to torch: device guard, stream, faults.

#ifdef WITH_CUDA

#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/repeat_interleave.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "../image_operators.h"
#include "image_match.h"

namespace sparsereco {
namespace {

bool deterministic() { return at::globalContext().deterministicAlgorithms(); }

// launch(fault, stream) on the current device; returns the lowest fault. Reading it waits for the kernel: the one
// synchronisation of a call.
template <typename Launch>
int64_t run(const Launch& launch) {
  const at::Tensor fault = at::full({1}, kNoFault, at::TensorOptions(at::kCUDA).dtype(at::kLong));
  launch(fault.mutable_data_ptr<int64_t>(), at::cuda::getCurrentCUDAStream());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return fault.item<int64_t>();
}

struct Cuda {
  using Guard = c10::cuda::CUDAGuard;

  template <typename scalar_t>
  static int64_t match(const Deposits<scalar_t>& deposits, const scalar_t* background, const int64_t* index,
                       const Measured<scalar_t>& measured, const Crop& crop, double softness,
                       const Likelihood& likelihood, const Match<scalar_t>& out) {
    return run([&](int64_t* fault, cudaStream_t stream) {
      launch_match(deposits, background, index, measured, crop, softness, likelihood, deterministic(), out, fault,
                   stream);
    });
  }

  template <typename scalar_t>
  static int64_t splat(const Deposits<scalar_t>& deposits, const Crop& crop, double softness, scalar_t* image,
                       int64_t* dropped) {
    return run([&](int64_t* fault, cudaStream_t stream) {
      launch_splat(deposits, crop, softness, deterministic(), image, dropped, fault, stream);
    });
  }

  template <typename scalar_t>
  static int64_t pull(const Deposits<scalar_t>& deposits, const Crop& crop, double softness,
                      const scalar_t* grad_image, scalar_t* grad_position, scalar_t* grad_charge) {
    return run([&](int64_t* fault, cudaStream_t stream) {
      launch_pull(deposits, crop, softness, grad_image, grad_position, grad_charge, fault, stream);
    });
  }
};

Tensors3 image_match_backward(const at::Tensor& grad_loss, const at::Tensor& offsets, const at::Tensor& grad_position,
                              const at::Tensor& grad_charge, const at::Tensor& grad_background) {
  const c10::cuda::CUDAGuard guard(grad_loss.device());
  const at::Tensor factor = at::repeat_interleave(grad_loss, offsets.diff(), 0, grad_charge.size(0));
  return {at::mul(factor.unsqueeze(1), grad_position), at::mul(factor, grad_charge),
          at::mul(grad_loss, grad_background)};
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsereco, CUDA, library) {
  library.impl("image_match", &image_match<Cuda>);
  library.impl("image_match_backward", &image_match_backward);
  library.impl("soft_voxelize", &soft_voxelize<Cuda>);
  library.impl("soft_voxelize_backward", &soft_voxelize_backward<Cuda>);
}

}  // namespace sparsereco

#endif  // WITH_CUDA
