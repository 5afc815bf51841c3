// The operators on images, once for all devices: checks, output tensors, views. A `Device` has a Guard and runs the
// kernels, each of which returns the lowest fault: cpu/image_match.cpp and cuda/image_match_cuda.cpp.

#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <tuple>

#include "image_checks.h"

namespace sparsereco {

using Tensors2 = std::tuple<at::Tensor, at::Tensor>;
using Tensors3 = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using Tensors4 = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using Tensors5 = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

template <typename Device>
Tensors5 image_match(const at::Tensor& position, const at::Tensor& charge, const at::Tensor& offsets,
                     const at::Tensor& background, const at::Tensor& index, const at::Tensor& coords,
                     const at::Tensor& signal, const std::optional<at::Tensor>& variance,
                     const at::Tensor& measured_offsets, at::IntArrayRef shape, c10::string_view loss, double softness,
                     double crosstalk, std::optional<double> threshold, double empty_variance, bool derivatives) {
  const typename Device::Guard guard(position.device());
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

  const int64_t images = offsets.size(0) - 1, count = position.size(0);
  const at::Tensor losses = at::empty({images}, position.options());
  const at::Tensor dropped = at::empty({images}, offsets.options());
  const at::Tensor grad_position = at::empty({derivatives ? count : 0, 3}, position.options());
  const at::Tensor grad_charge = at::empty({derivatives ? count : 0}, position.options());
  const at::Tensor grad_background = at::empty({derivatives ? images : 0}, position.options());
  if (images > 0) {
    AT_DISPATCH_FLOATING_TYPES(position.scalar_type(), "image_match", [&] {
      Match<scalar_t> out{losses.mutable_data_ptr<scalar_t>(), dropped.mutable_data_ptr<int64_t>()};
      if (derivatives) {
        out.grad_position = grad_position.mutable_data_ptr<scalar_t>();
        out.grad_charge = grad_charge.mutable_data_ptr<scalar_t>();
        out.grad_background = grad_background.mutable_data_ptr<scalar_t>();
      }
      const int64_t fault = Device::match(deposits_of<scalar_t>(given), match.background.const_data_ptr<scalar_t>(),
                                          match.index.const_data_ptr<int64_t>(), measured_of<scalar_t>(match), crop,
                                          softness, likelihood, out);
      raise_fault(fault, given, &match);
    });
  }
  return {losses, dropped, grad_position, grad_charge, grad_background};
}

template <typename Device>
Tensors2 soft_voxelize(const at::Tensor& position, const at::Tensor& charge, const at::Tensor& offsets,
                       at::IntArrayRef shape, double softness) {
  const typename Device::Guard guard(position.device());
  DepositTensors given{"soft_voxelize", position, charge, offsets};
  check_deposits(given);
  check_softness(given.op, softness);
  const Crop crop = check_crop(given.op, shape);
  make_contiguous(given);
  const int64_t images = offsets.size(0) - 1;
  const at::Tensor image = at::empty({images, shape[0], shape[1], shape[2]}, position.options());
  const at::Tensor dropped = at::empty({images}, offsets.options());
  if (images > 0) {
    AT_DISPATCH_FLOATING_TYPES(position.scalar_type(), "soft_voxelize", [&] {
      const int64_t fault = Device::splat(deposits_of<scalar_t>(given), crop, softness,
                                          image.mutable_data_ptr<scalar_t>(), dropped.mutable_data_ptr<int64_t>());
      raise_fault(fault, given);
    });
  }
  return {image, dropped};
}

template <typename Device>
Tensors2 soft_voxelize_backward(const at::Tensor& grad_image, const at::Tensor& position, const at::Tensor& charge,
                                const at::Tensor& offsets, double softness) {
  const typename Device::Guard guard(position.device());
  DepositTensors given{"soft_voxelize", position, charge, offsets};
  check_deposits(given);
  check_softness(given.op, softness);
  check_tensor(given, "grad_image", grad_image, {offsets.size(0) - 1, -1, -1, -1}, "(I, X, Y, Z)",
               position.scalar_type());
  make_contiguous(given);
  const at::Tensor grad = grad_image.contiguous();
  const Crop crop = check_crop(given.op, grad.sizes().slice(1));
  const at::Tensor grad_position = at::empty_like(given.position), grad_charge = at::empty_like(given.charge);
  if (grad.size(0) > 0) {
    AT_DISPATCH_FLOATING_TYPES(position.scalar_type(), "soft_voxelize_backward", [&] {
      const int64_t fault =
          Device::pull(deposits_of<scalar_t>(given), crop, softness, grad.const_data_ptr<scalar_t>(),
                       grad_position.mutable_data_ptr<scalar_t>(), grad_charge.mutable_data_ptr<scalar_t>());
      raise_fault(fault, given);
    });
  }
  return {grad_position, grad_charge};
}

// Device::splat_sparse also makes the tensors light, coords and image_offsets: how many voxels are lit, it finds out.
template <typename Device>
Tensors4 soft_voxelize_sparse(const at::Tensor& position, const at::Tensor& charge, const at::Tensor& offsets,
                              at::IntArrayRef shape, double softness) {
  const typename Device::Guard guard(position.device());
  DepositTensors given{"soft_voxelize_sparse", position, charge, offsets};
  check_deposits(given);
  check_softness(given.op, softness);
  const int64_t images = offsets.size(0) - 1;
  const Crop grid = check_grid(given.op, shape, images);
  make_contiguous(given);
  const at::Tensor dropped = at::empty({images}, offsets.options());
  Tensors3 voxels{at::empty({0}, position.options()), at::empty({0, 3}, position.options().dtype(at::kInt)),
                  at::zeros({1}, offsets.options())};
  if (images > 0) {
    AT_DISPATCH_FLOATING_TYPES(position.scalar_type(), "soft_voxelize_sparse", [&] {
      voxels = Device::splat_sparse(deposits_of<scalar_t>(given), grid, softness, dropped.mutable_data_ptr<int64_t>(),
                                    given);
    });
  }
  return std::tuple_cat(std::move(voxels), std::make_tuple(dropped));
}

template <typename Device>
Tensors2 soft_voxelize_sparse_backward(const at::Tensor& grad_light, const at::Tensor& coords,
                                       const at::Tensor& image_offsets, const at::Tensor& position,
                                       const at::Tensor& charge, const at::Tensor& offsets, at::IntArrayRef shape,
                                       double softness) {
  const typename Device::Guard guard(position.device());
  DepositTensors given{"soft_voxelize_sparse", position, charge, offsets};
  check_deposits(given);
  check_softness(given.op, softness);
  const int64_t images = offsets.size(0) - 1, count = grad_light.numel();
  const Crop grid = check_grid(given.op, shape, images);
  check_tensor(given, "grad_light", grad_light, {-1}, "(M,)", position.scalar_type());
  check_tensor(given, "coords", coords, {count, 3}, "(M, 3)", at::kInt);
  check_tensor(given, "image_offsets", image_offsets, {images + 1}, "(I + 1,)", at::kLong);
  TORCH_CHECK_VALUE(image_offsets[0].item<int64_t>() == 0 && image_offsets[images].item<int64_t>() == count &&
                        image_offsets.diff().ge(0).all().item<bool>(),
                    given.op, ": image_offsets must rise from 0 to the ", count, " rows of coords");
  make_contiguous(given);
  const at::Tensor rows = image_offsets.contiguous(), places = coords.contiguous(), grad = grad_light.contiguous();
  const at::Tensor grad_position = at::empty_like(given.position), grad_charge = at::empty_like(given.charge);
  if (position.size(0) > 0) {
    AT_DISPATCH_FLOATING_TYPES(position.scalar_type(), "soft_voxelize_sparse_backward", [&] {
      const int64_t fault =
          Device::pull_sparse(deposits_of<scalar_t>(given), grid, softness, places, rows, grad,
                              grad_position.mutable_data_ptr<scalar_t>(), grad_charge.mutable_data_ptr<scalar_t>());
      raise_fault(fault, given);
    });
  }
  return {grad_position, grad_charge};
}

}  // namespace sparsereco
