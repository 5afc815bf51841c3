// Binds the CUDA launches on images to torch: device guard, stream, memory. The counterpart of cpu/image_match.cpp.

#ifdef WITH_CUDA

#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/repeat_interleave.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <tuple>

#include "../image_checks.h"
#include "image_match.h"

namespace sparsereco {
namespace {

using Tensors2 = std::tuple<at::Tensor, at::Tensor>;
using Tensors3 = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using Tensors5 = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

bool deterministic() { return at::globalContext().deterministicAlgorithms(); }

// Where a kernel reports what it finds. Reading it waits for the kernel: the one synchronisation of a call.
at::Tensor no_fault(const at::Tensor& offsets) { return at::full({1}, kNoFault, offsets.options()); }

Tensors5 image_match_cuda(const at::Tensor& position, const at::Tensor& charge, const at::Tensor& offsets,
                          const at::Tensor& background, const at::Tensor& index, const at::Tensor& coords,
                          const at::Tensor& signal, const std::optional<at::Tensor>& variance,
                          const at::Tensor& measured_offsets, at::IntArrayRef shape, c10::string_view loss,
                          double softness, double crosstalk, std::optional<double> threshold, double empty_variance) {
  const c10::cuda::CUDAGuard guard(position.device());
  DepositTensors given{"image_match", position, charge, offsets};
  MatchTensors match{background, index, coords, signal, variance, measured_offsets};
  check_deposits(given);
  check_match(given, match);
  check_softness(given.op, softness);
  const Crop crop = check_crop(given.op, shape);
  const Likelihood likelihood = check_likelihood(std::string_view(loss.data(), loss.size()), crosstalk, threshold,
                                                 empty_variance, variance.has_value());
  make_contiguous(given);
  make_contiguous(match);

  const int64_t images = offsets.size(0) - 1;
  const at::Tensor losses = at::empty({images}, position.options());
  const at::Tensor dropped = at::empty({images}, offsets.options());
  const at::Tensor grad_position = at::empty({position.size(0), 3}, position.options());
  const at::Tensor grad_charge = at::empty({position.size(0)}, position.options());
  const at::Tensor grad_background = at::empty({images}, position.options());
  if (images == 0) return {losses, dropped, grad_position, grad_charge, grad_background};
  AT_DISPATCH_FLOATING_TYPES(position.scalar_type(), "image_match_cuda", [&] {
    const at::Tensor fault = no_fault(offsets);
    const Match<scalar_t> out{losses.mutable_data_ptr<scalar_t>(), dropped.mutable_data_ptr<int64_t>(),
                              grad_position.mutable_data_ptr<scalar_t>(), grad_charge.mutable_data_ptr<scalar_t>(),
                              grad_background.mutable_data_ptr<scalar_t>()};
    launch_match(deposits_of<scalar_t>(given), match.background.const_data_ptr<scalar_t>(),
                 match.index.const_data_ptr<int64_t>(), measured_of<scalar_t>(match), crop, softness, likelihood,
                 deterministic(), out, fault.mutable_data_ptr<int64_t>(), at::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    raise_fault(fault.item<int64_t>(), given, &match);
  });
  return {losses, dropped, grad_position, grad_charge, grad_background};
}

Tensors3 image_match_backward_cuda(const at::Tensor& grad_loss, const at::Tensor& offsets,
                                   const at::Tensor& grad_position, const at::Tensor& grad_charge,
                                   const at::Tensor& grad_background) {
  const c10::cuda::CUDAGuard guard(grad_loss.device());
  const at::Tensor factor = at::repeat_interleave(grad_loss, offsets.diff(), 0, grad_charge.size(0));
  return {at::mul(factor.unsqueeze(1), grad_position), at::mul(factor, grad_charge),
          at::mul(grad_loss, grad_background)};
}

Tensors2 soft_voxelize_cuda(const at::Tensor& position, const at::Tensor& charge, const at::Tensor& offsets,
                            at::IntArrayRef shape, double softness) {
  const c10::cuda::CUDAGuard guard(position.device());
  DepositTensors given{"soft_voxelize", position, charge, offsets};
  check_deposits(given);
  check_softness(given.op, softness);
  const Crop crop = check_crop(given.op, shape);
  make_contiguous(given);
  const int64_t images = offsets.size(0) - 1;
  const at::Tensor image = at::empty({images, shape[0], shape[1], shape[2]}, position.options());
  const at::Tensor dropped = at::empty({images}, offsets.options());
  if (images == 0) return {image, dropped};
  AT_DISPATCH_FLOATING_TYPES(position.scalar_type(), "soft_voxelize_cuda", [&] {
    const at::Tensor fault = no_fault(offsets);
    launch_splat(deposits_of<scalar_t>(given), crop, softness, deterministic(), image.mutable_data_ptr<scalar_t>(),
                 dropped.mutable_data_ptr<int64_t>(), fault.mutable_data_ptr<int64_t>(),
                 at::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    raise_fault(fault.item<int64_t>(), given);
  });
  return {image, dropped};
}

Tensors2 soft_voxelize_backward_cuda(const at::Tensor& grad_image, const at::Tensor& position, const at::Tensor& charge,
                                     const at::Tensor& offsets, double softness) {
  const c10::cuda::CUDAGuard guard(position.device());
  DepositTensors given{"soft_voxelize", position, charge, offsets};
  check_deposits(given);
  check_softness(given.op, softness);
  check_tensor(given, "grad_image", grad_image, {offsets.size(0) - 1, -1, -1, -1}, "(I, X, Y, Z)",
               position.scalar_type());
  make_contiguous(given);
  const at::Tensor grad = grad_image.contiguous();
  const Crop crop = check_crop(given.op, grad.sizes().slice(1));
  const at::Tensor grad_position = at::empty_like(given.position), grad_charge = at::empty_like(given.charge);
  if (grad.size(0) == 0) return {grad_position, grad_charge};
  AT_DISPATCH_FLOATING_TYPES(position.scalar_type(), "soft_voxelize_backward_cuda", [&] {
    const at::Tensor fault = no_fault(offsets);
    launch_pull(deposits_of<scalar_t>(given), crop, softness, grad.const_data_ptr<scalar_t>(),
                grad_position.mutable_data_ptr<scalar_t>(), grad_charge.mutable_data_ptr<scalar_t>(),
                fault.mutable_data_ptr<int64_t>(), at::cuda::getCurrentCUDAStream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    raise_fault(fault.item<int64_t>(), given);
  });
  return {grad_position, grad_charge};
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsereco, CUDA, library) {
  library.impl("image_match", &image_match_cuda);
  library.impl("image_match_backward", &image_match_backward_cuda);
  library.impl("soft_voxelize", &soft_voxelize_cuda);
  library.impl("soft_voxelize_backward", &soft_voxelize_backward_cuda);
}

}  // namespace sparsereco

#endif  // WITH_CUDA
