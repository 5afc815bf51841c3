// Binds the CUDA launches on images to torch: device guard, stream, faults.

#ifdef WITH_CUDA

#include <ATen/Context.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/_unique2.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
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
  static int64_t pull(const Deposits<scalar_t>& deposits, const Crop& crop, double softness, const scalar_t* grad_image,
                      scalar_t* grad_position, scalar_t* grad_charge) {
    return run([&](int64_t* fault, cudaStream_t stream) {
      launch_pull(deposits, crop, softness, grad_image, grad_position, grad_charge, fault, stream);
    });
  }

  template <typename scalar_t>
  static Tensors3 splat_sparse(const Deposits<scalar_t>& deposits, const Crop& grid, double softness, int64_t* dropped,
                               const DepositTensors& given) {
    const at::Tensor light = at::empty({deposits.count, 8}, given.position.options());
    const at::Tensor voxel = at::empty({deposits.count, 8}, given.offsets.options());
    raise_fault(place(deposits, grid, softness, voxel, light, dropped), given);
    const at::Tensor lit = voxel.ge(0);
    const auto [all, owner, counts] = at::_unique2(voxel.masked_select(lit), /*sorted=*/true, /*return_inverse=*/true);
    const int64_t y = grid.size[1], z = grid.size[2], size = grid.size[0] * y * z;
    const at::Tensor in_image = all.remainder(size);
    const at::Tensor coords =
        at::stack({in_image.div(y * z, "floor"), in_image.div(z, "floor").remainder(y), in_image.remainder(z)}, 1);
    const at::Tensor starts = at::arange(deposits.images + 1, given.offsets.options()).mul(size);
    return {at::zeros({all.size(0)}, light.options()).index_add(0, owner, light.masked_select(lit)),
            coords.to(at::kInt), at::searchsorted(all, starts)};
  }

  template <typename scalar_t>
  static int64_t pull_sparse(const Deposits<scalar_t>& deposits, const Crop& grid, double softness,
                             const at::Tensor& coords, const at::Tensor& rows, const at::Tensor& grad_light,
                             scalar_t* grad_position, scalar_t* grad_charge) {
    const at::Tensor light = at::empty({deposits.count, 8}, grad_light.options());
    const at::Tensor voxel = at::empty({deposits.count, 8}, rows.options());
    const at::Tensor dropped = at::empty({deposits.images}, rows.options());
    const int64_t fault = place(deposits, grid, softness, voxel, light, dropped.mutable_data_ptr<int64_t>());
    if (fault != kNoFault) return fault;
    const at::Tensor image = at::repeat_interleave(rows.diff());
    const at::Tensor at = coords.to(at::kLong);
    at::Tensor all = image;  // numbers of the lit voxels, ascending
    for (int axis = 0; axis < 3; ++axis) all = all.mul(grid.size[axis]).add(at.select(1, axis));
    at::Tensor grad = at::zeros_like(light);  // a voxel that is not listed has no derivative
    if (all.size(0) > 0) {
      const at::Tensor row = at::searchsorted(all, voxel).clamp_max(all.size(0) - 1);
      grad = at::where(all.index_select(0, row.flatten()).view_as(voxel).eq(voxel),
                       grad_light.index_select(0, row.flatten()).view_as(voxel), grad);
    }
    launch_pull_places(deposits, grid, softness, grad.const_data_ptr<scalar_t>(), grad_position, grad_charge,
                       at::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    return kNoFault;
  }

 private:
  template <typename scalar_t>
  static int64_t place(const Deposits<scalar_t>& deposits, const Crop& grid, double softness, const at::Tensor& voxel,
                       const at::Tensor& light, int64_t* dropped) {
    return run([&](int64_t* fault, cudaStream_t stream) {
      launch_place(deposits, grid, softness, voxel.mutable_data_ptr<int64_t>(), light.mutable_data_ptr<scalar_t>(),
                   dropped, fault, stream);
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
  library.impl("soft_voxelize_sparse", &soft_voxelize_sparse<Cuda>);
  library.impl("soft_voxelize_sparse_backward", &soft_voxelize_sparse_backward<Cuda>);
}

}  // namespace sparsereco

#endif  // WITH_CUDA
